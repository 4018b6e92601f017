"""Training on a GPU: every way of it makes steps, resumes, and leaves checkpoints that a CPU reads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mpq.am import make_am
from mpq.data.batches import FeatureSet
from mpq.data.lmtext import LmText
from mpq.fst.units import Units
from mpq.lm import LoadedLm
from mpq.quant import QuantModule, quantizable, uniform_plan
from mpq.search import Grid, LmSearchData, NasConfig, OneStageConfig, nas_costs, search_one_stage
from mpq.train.am import AmConfig, AmTask
from mpq.train.lm import LmTask, LmTexts, LmTrainConfig, QuantTrainConfig, train_lm, train_quantized_lm
from mpq.train.loop import FitConfig, FitResult, fit
from mpq.train.quant_am import AmData, QuantAmConfig, train_quantized_am
from tests.search.conftest import CONFIGS, text, trained
from tests.search.test_acoustic import LEXICON, MODELS, sets

__all__ = ["sets", "text"]
both_precisions = pytest.mark.parametrize("precision", ["auto", "32-true"])
FIT = FitConfig(epochs=1, lr=0.01)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def check(model: nn.Module, before: dict[str, Tensor], result: FitResult, device: torch.device) -> None:
    """Finite losses; every matrix has moved; and it is where it should be."""
    assert all(math.isfinite(row["train_loss"]) for row in result.history)
    assert next(iter(model.state_dict().values())).device.type == device.type
    after = weights(model)
    matrices = [name for name in quantizable(model) if name in after]
    assert all(not torch.equal(after[name], before[name]) for name in matrices)


@pytest.mark.parametrize("arch", sorted(CONFIGS))
@pytest.mark.parametrize("method", ["ste", "admm"])
@both_precisions
def test_quantized_language_models(
    arch: str, method: str, precision: str, text: LmText, device: torch.device, tmp_path: Path
) -> None:
    model = trained(arch, text)
    lm = LoadedLm(model, text.tokenizer, uniform_plan(model, 32), {}, 1, 1)
    config = QuantTrainConfig(replace(FIT, precision=precision), batch_tokens=200, distill=0.5)
    before = weights(model)
    for _ in range(2):  # the second time it begins with the finished checkpoint
        found, result = train_quantized_lm(
            lm, uniform_plan(model, 2), config, LmTexts(text, text), tmp_path, "float", method
        )
        check(found, before, result, device)
        layers = [layer for layer in found.modules() if isinstance(layer, QuantModule)]
        assert layers and all(layer.quantized(name).codes.device.type == device.type
                              for layer in layers for name in layer.projectors)  # fmt: skip


@pytest.mark.parametrize("arch", sorted(MODELS))
@pytest.mark.parametrize("cotrain_bits", [0, 4])
@both_precisions
def test_quantized_acoustic_models(
    arch: str,
    cotrain_bits: int,
    precision: str,
    sets: list[tuple[FeatureSet, FeatureSet]],
    device: torch.device,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    train, dev = sets[arch == "wav2vec2"]
    teacher = make_am(MODELS[arch], len(LEXICON.phones) + 1)
    config = QuantAmConfig(replace(FIT, precision=precision), max_frames=200, cotrain_bits=cotrain_bits)
    data = AmData(train, dev, LEXICON, Units(LEXICON.phones))
    before = weights(teacher)
    model, result = train_quantized_am(teacher, uniform_plan(teacher, 2), config, data, tmp_path, "float")
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(math.isfinite(row["train_loss"]) for row in result.history)
    after = weights(model)
    assert all(not torch.equal(after[n], before[n]) for n in quantizable(model) if n in moving)
    assert next(model.parameters()).device.type == device.type


@pytest.mark.parametrize("arch", sorted(CONFIGS))
@both_precisions
def test_bits_that_are_learned(arch: str, precision: str, text: LmText, device: torch.device, tmp_path: Path) -> None:
    model, grid = trained(arch, text), Grid((2, 4, 8))
    data, config = LmSearchData(model, text, text), replace(FIT, precision=precision)
    shapes, before = quantizable(model), weights(model)
    costs = nas_costs(data, grid, NasConfig(config, batch_tokens=200), tmp_path / "nas", "key")
    assert costs.plan(shapes, 4.0).average_bits(shapes) <= 4.0
    options = OneStageConfig(replace(config, weight_decay=0.0), batch_tokens=200)
    costs, net = search_one_stage(data, grid, options, tmp_path / "one", "key", 4.0)
    assert next(net.parameters()).device.type == device.type
    plan = costs.plan(shapes, 4.0)
    after = weights(net.latent(plan))
    assert all(not torch.equal(after[name], before[name]) for name in shapes)


@both_precisions
@pytest.mark.parametrize("arch", sorted(MODELS))
def test_float_acoustic_models(
    arch: str, precision: str, sets: list[tuple[FeatureSet, FeatureSet]], device: torch.device, tmp_path: Path
) -> None:
    """With the cross-entropy branch, LHUC, SpecAugment, and semi-orthogonal factors where the model has some."""
    config = AmConfig(
        MODELS[arch], replace(FIT, precision=precision, epochs=2), max_frames=200, xent=0.1, lhuc=0.5, ctc_part=0.5
    )
    task = AmTask(config, *sets[arch == "wav2vec2"], LEXICON)
    result = fit(task, config.fit, tmp_path, task.plugins)
    assert all(math.isfinite(row["train_loss"]) for row in result.history)
    assert next(task.model.parameters()).device.type == device.type


@pytest.mark.parametrize("arch", sorted(CONFIGS))
def test_resumed_as_if_never_killed(
    arch: str, text: LmText, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LmTrainConfig(CONFIGS[arch], FitConfig(epochs=3, lr=0.02), batch_tokens=200)
    whole, _ = train_lm(config, LmTexts(text, text), tmp_path / "whole")
    batches = LmTask.batches

    def killed(self: LmTask, epoch: int) -> object:
        if epoch == 2:
            raise KeyboardInterrupt
        return batches(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(LmTask, "batches", killed)
        with pytest.raises(KeyboardInterrupt):
            train_lm(config, LmTexts(text, text), tmp_path / "resumed")
    saved = torch.load(tmp_path / "resumed" / "checkpoint.pt", map_location="cpu", weights_only=True)
    assert saved["state"]["epoch"] == 2
    whole_on_cpu = type(whole)(whole.config, len(text.tokenizer))
    whole_on_cpu.load_state_dict(saved["model"])
    resumed, result = train_lm(config, LmTexts(text, text), tmp_path / "resumed")
    assert len(result.history) == 3
    assert next(resumed.parameters()).device.type == device.type
    found, expected = weights(resumed), weights(whole)
    for name in expected:
        if device.type == "cpu":
            assert torch.equal(found[name], expected[name])
        # sums on a GPU are in any order
        assert torch.allclose(found[name], expected[name], rtol=1e-2, atol=1e-3), name
