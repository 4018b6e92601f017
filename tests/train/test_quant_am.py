"""Quantized acoustic models: `mpq quantize` from training to files that give training's numbers, and co-training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mpq.am import AcousticModel, ConformerConfig, Tdnn, TdnnConfig, TdnnfConfig, load_am, make_am, save_am
from mpq.am.model import ModelConfig, run_batch
from mpq.cli.main import main
from mpq.data.batches import FeatureSet, batches
from mpq.io import BadInput
from mpq.quant import QuantModule, quantizable, quantize_model, read_model_file, uniform_plan, write_plan
from mpq.quant.report import describe, render
from mpq.train.cotrain import CoTrained, cotraining_loss
from mpq.train.loop import FitConfig
from mpq.train.quant_am import AmData, QuantAmConfig, QuantAmTask, dev_loss, divergence, train_quantized_am
from tests.train.test_am import LEXICON, UNITS, features

__all__ = ["features"]
MODELS: dict[str, ModelConfig] = {
    "tdnn": TdnnConfig(hidden=24, dilations=[1, 2], channels=(4, 4), dropout=0.1),
    "cnn-tdnnf": TdnnfConfig(channels=[4, 4], height_strides=[4, 4], hidden=24, bottleneck=8, first_bottleneck=8,
                             strides=[1], prefinal=8),
    "conformer": ConformerConfig(dim=16, heads=2, feed_forward=32, layers=1, kernel=5, channels=16),
}  # fmt: skip
every_model = pytest.mark.parametrize("arch", MODELS)


def make(arch: str) -> AcousticModel:
    torch.manual_seed(3)
    return make_am(MODELS[arch], len(UNITS) + 1).eval()


@pytest.fixture
def data(features: Path) -> AmData:
    return AmData(FeatureSet(features), FeatureSet(features), LEXICON, UNITS)


@pytest.fixture
def lang(tmp_path: Path) -> Path:
    folder = tmp_path / "lang"
    folder.mkdir()
    lines = [
        f"{word} {' '.join(LEXICON.phones[i - 1] for i in p)}"
        for word in LEXICON.words
        for p in LEXICON.pronunciations(word)
    ]
    (folder / "lexicon.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "phones.txt").write_text("<blk> 0\n" + "".join(f"{p} {i + 1}\n" for i, p in enumerate(LEXICON.phones)))
    return folder


@every_model
@pytest.mark.parametrize(("n_bits", "a_bits"), [(w, a) for w in (8, 4, 2, 1) for a in (8, 4)])
def test_training_and_the_packed_file_agree_bit_for_bit(
    arch: str, n_bits: int, a_bits: int, features: Path, tmp_path: Path
) -> None:
    """The forward pass that gradients flow through, after a step of training, is what the file gives."""
    model = make(arch)
    plan = uniform_plan(model, n_bits, a_bits=a_bits)
    quantize_model(model, plan)
    batch = next(iter(batches(FeatureSet(features), max_frames=700)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run_batch(model, batch)[0][..., 1].mean().backward()
    optimizer.step()
    trained, lengths = run_batch(model, batch)
    assert trained.requires_grad
    with torch.autocast("cpu", torch.bfloat16):  # of gradients only
        assert torch.equal(run_batch(model, batch)[0], trained)
    save_am(tmp_path / "m.mpq", model, UNITS.names, plan=plan)
    for packed in (False, True):
        served = load_am(tmp_path / "m.mpq", UNITS.names, packed)
        with torch.inference_mode():
            found, found_lengths = run_batch(served, batch)
        assert torch.equal(found, trained) and torch.equal(found_lengths, lengths)
        assert not any(name in dict(served.named_parameters()) for name in quantizable(model))


@every_model
def test_nearly_all_weights_are_quantized(arch: str, tmp_path: Path) -> None:
    model = make(arch)
    plan = uniform_plan(model, 4)
    save_am(tmp_path / "m.mpq", quantize_model(model, plan), UNITS.names, plan=plan)
    report = describe(read_model_file(tmp_path / "m.mpq"))
    matrices = {name for name, parameter in make(arch).named_parameters() if parameter.dim() > 1}
    assert {layer["name"] for layer in report["layers"]} == matrices
    residue = sum(tensor["bytes"] for tensor in report["residue"])
    assert f"float residue: {report['residue_parameters']:,} parameters" in render(report)
    assert report["residue_bytes"] == residue > 0


def test_files_from_before_convolutions_could_be_quantized(tmp_path: Path) -> None:
    """Their plans say nothing of the convolutions, which they hold in float."""
    model = make("tdnn")
    plan = uniform_plan(model, 32)
    path = tmp_path / "m.mpq"
    save_am(path, model, UNITS.names, plan=plan)
    stored = read_model_file(path)
    old = [name for name in stored.shapes if "conv" in name]
    for name in old:
        del stored.shapes[name], stored.plan.bits[name]  # type: ignore[attr-defined]
    from mpq.quant import load_weights_into

    loaded = load_weights_into(make_am(MODELS["tdnn"], len(UNITS) + 1), stored)
    for name in old:
        assert torch.equal(loaded.get_parameter(name), model.get_parameter(name))


def quick(epochs: int = 1, **options: Any) -> QuantAmConfig:
    return QuantAmConfig(FitConfig(epochs=epochs, lr=2e-3), max_frames=3000, augment=False, **options)


@pytest.mark.parametrize("method", ["ste", "admm", "cotrain", "scratch"])
def test_training_lowers_the_loss(method: str, data: AmData, tmp_path: Path) -> None:
    model = make("conformer")
    plan = uniform_plan(model, 2)
    scratch = method == "scratch"
    config = quick(3 if scratch else 1, cotrain_bits=4 if method == "cotrain" else 0, scratch=scratch)
    rounded = quantize_model(copy.deepcopy(model), plan).eval()
    before = dev_loss(rounded, config, data)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    train = "admm" if method == "admm" else "ste"
    trained, result = train_quantized_am(model, plan, config, data, tmp_path / "exp", "float", train)
    assert result.best["loss"] < (result.history[0]["loss"] if scratch else before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), "the float model is left as it is"
    save_am(tmp_path / "m.mpq", trained, UNITS.names, plan=plan)
    again = dev_loss(load_am(tmp_path / "m.mpq"), config, data)
    # ADMM validates with float activations
    assert again == pytest.approx(result.best["loss"], rel=0.02 if method == "admm" else 1e-6)


def test_norms_stand_after_their_part(data: AmData) -> None:
    model = quantize_model(make("tdnn"), uniform_plan(make("tdnn"), 8))
    task = QuantAmTask(quick(norms_part=0.5), data, model)
    batch = next(task.batches(0))
    for done, moves in ((0.4, True), (0.6, False)):
        task.model.train()
        before = model.norm.running_mean.clone()
        task.loss(task.model, batch, done)
        assert torch.equal(model.norm.running_mean, before) != moves


def test_distillation(data: AmData) -> None:
    teacher, model = make("tdnn"), make("tdnn")
    quantize_model(model, uniform_plan(model, 1))
    batch = next(iter(batches(data.train, max_frames=700)))
    with torch.no_grad():
        found, lengths = run_batch(model, batch)
        target, _ = run_batch(teacher, batch)
        losses = {
            d: QuantAmTask(quick(distill=d), data, model, teacher).loss(model, batch, 0.9) for d in (0.0, 0.5, 1.0)
        }
    real = torch.cat([(t.exp() * (t - f)).sum(-1)[:n] for t, f, n in zip(target, found, lengths.tolist(), strict=True)])
    assert divergence(found, target, lengths).item() == pytest.approx(real.mean().item(), rel=1e-4)
    assert losses[1.0].item() == pytest.approx(real.mean().item(), rel=1e-4)
    assert losses[0.5].item() == pytest.approx((losses[0.0] + losses[1.0]).item() / 2, rel=1e-4)


def test_cotraining_runs_both_precisions_of_the_same_weights(data: AmData) -> None:
    """High and low are what quantizing to these bits alone gives; mixed is neither; low alone moves the statistics."""
    reference = make("tdnn")
    batch = next(iter(batches(data.train, max_frames=700)))
    alone = {}
    for n_bits in (4, 1):
        model = quantize_model(copy.deepcopy(reference), uniform_plan(reference, n_bits)).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        alone[n_bits] = run_batch(model, batch)[0], model.norm.running_mean
    low = quantize_model(copy.deepcopy(reference), uniform_plan(reference, 1))
    projectors = {layer: dict(layer.projectors) for layer in low.modules() if isinstance(layer, QuantModule)}
    for module in low.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    both = CoTrained(low, 4).train()
    torch.manual_seed(0)
    outputs, lengths = run_batch(both, batch)
    assert torch.equal(outputs[0], alone[4][0]) and torch.equal(outputs[1], alone[1][0])
    assert not torch.equal(outputs[2], outputs[0]) and not torch.equal(outputs[2], outputs[1])
    assert torch.equal(low.norm.running_mean, alone[1][1])
    assert all(layer.projectors == kept for layer, kept in projectors.items())
    assert torch.equal(run_batch(both.eval(), batch)[0], run_batch(low, batch)[0])
    assert both.p_low[0] == pytest.approx(0.2) and both.p_low[-1] == pytest.approx(0.9)

    high, one, mixed = (branch.detach() for branch in outputs)
    found = cotraining_loss(outputs, lambda x: x[..., 0].mean(), lambda x, y: divergence(x, y, lengths))
    kl = [divergence(branch, high, lengths) for branch in (one, mixed)]
    expected = high[..., 0].mean() + 0.5 * (one[..., 0].mean() + mixed[..., 0].mean()) + sum(kl)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    grads = [parameter.grad for parameter in both.parameters()]
    assert all(grad is not None for grad in grads)


def test_cotraining_needs_more_bits() -> None:
    model = quantize_model(make("tdnn"), uniform_plan(make("tdnn"), 4))
    with pytest.raises(BadInput, match="cotrain_bits: 4"):
        CoTrained(model, 4)


def mpq(command: str, capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    """Runs a command; what it prints, on standard error where it must fail."""
    assert main(command.split()) == status, capsys.readouterr().err
    out, err = capsys.readouterr()
    return err if status else out


def test_the_command(features: Path, lang: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make("conformer")
    path, data = tmp_path / "model.mpq", f"--dev {features} --lang {lang}"
    save_am(path, model, UNITS.names)
    quantize = f"quantize --model {path} --out {tmp_path}/q.mpq"
    out = mpq(f"{quantize} --bits 8 --scale 16 {data}", capsys)
    assert "times smaller than float32, LF-MMI loss " in out
    assert read_model_file(tmp_path / "q.mpq").plan.scale == 16
    ste = f"--train ste --features {features} --fit.epochs 1 --augment false --max_frames 3000"
    mpq(f"{quantize} --bits 2 --a-bits 4 {data} {ste} --cotrain_bits 4", capsys)
    stored = read_model_file(tmp_path / "q.mpq")
    assert stored.plan.a_bits == 4 and stored.extra["train"] == "ste" and stored.extra["dev_loss"] > 0
    assert "float residue" in mpq(f"inspect {tmp_path}/q.mpq", capsys)

    for options, says in (
        (f"--bits 4 --text {lang}", "--text: "),
        ("--bits 4 --train ste", "--features"),
        ("--bits 4 --scale 10", "cut into groups of 10; "),
        (f"--bits 4 --lang {lang} --dev {lang}/none", "none"),
        (f"--bits 4 --dev {features}", "give both"),
        (f"--bits 4 --features {features}", "give both"),
    ):
        assert says in mpq(f"{quantize} {options}", capsys, 2)
    write_plan(tmp_path / "plan.yaml", uniform_plan(make("tdnn"), 4))
    assert "no quantizable weight" in mpq(f"{quantize} --plan {tmp_path}/plan.yaml", capsys, 2)
    again = f"quantize --model {tmp_path}/q.mpq --bits 4 --out {tmp_path}/r.mpq"
    assert "is quantized already" in mpq(again, capsys, 2)
    save_am(path, Tdnn(TdnnConfig(feature_dim=40, dilations=[1]), len(UNITS) + 1), UNITS.names)
    assert "expects 40" in mpq(f"{quantize} --bits 4 {data}", capsys, 2)
    save_am(path, make_am(MODELS["tdnn"], 3), ["X", "Y"])
    assert "3 units are not those" in mpq(f"{quantize} --bits 4 {data}", capsys, 2)
