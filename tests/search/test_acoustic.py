"""Searches of acoustic models: divergences against rounding one weight after the other, traces against exact ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from torch import Tensor

from mpq.am import ConformerConfig, ModelConfig, TdnnConfig, TdnnfConfig, Wav2Vec2Config, load_am, make_am, save_am
from mpq.cli.main import main
from mpq.data.batches import FeatureSet
from mpq.data.features import FeatureConfig, extract
from mpq.data.manifests import Spoken, write_manifests
from mpq.data.waveform import refer_to_audio
from mpq.fst.lfmmi import total_score
from mpq.io import BadInput
from mpq.lang.lexicon import Lexicon
from mpq.quant import project, quantizable, read_model_file, read_plan
from mpq.quant.model import quantized_weights
from mpq.quant.table import round_to
from mpq.search import (
    AmSearchData,
    Grid,
    HessianConfig,
    NasConfig,
    OneStageConfig,
    hessian,
    kl_costs,
    nas_costs,
    search_one_stage,
)
from mpq.search.costs import named_weights
from mpq.search.data import mean_loss, sample
from mpq.search.hessian import _draw, _probe, row_traces, twice_differentiable
from mpq.search.supernet import BudgetNet
from mpq.train.am import AmConfig, AmTask
from mpq.train.loop import FitConfig
from mpq.train.quantized import quantize_start

RATE = 16000
LEXICON = Lexicon({"ab": [["A", "B"]], "ca": [["C", "A"], ["C"]]})
MODELS: dict[str, ModelConfig] = {
    "tdnn": TdnnConfig(feature_dim=8, channels=(1, 2), hidden=4, dilations=[1], dropout=0.1),
    "cnn-tdnnf": TdnnfConfig(
        feature_dim=8, channels=(2,), height_strides=(2,), hidden=6, bottleneck=3, first_bottleneck=4, prefinal=4,
        strides=(1,),
    ),
    "wav2vec2": Wav2Vec2Config(
        conv_channels=(3, 3), conv_kernels=(400, 3), conv_strides=(160, 2), filterbank=False, dim=4, layers=1, heads=2,
        feed_forward=4, position_kernel=4, position_groups=2, dropout=0.0, layer_drop=0.0, mask_prob=0.0,
    ),
    "conformer": ConformerConfig(feature_dim=8, channels=2, dim=4, heads=2, feed_forward=4, layers=1, kernel=3),
}  # fmt: skip


def make_features(folder: Path, texts: list[str], seconds: list[float]) -> tuple[FeatureSet, FeatureSet]:
    """Features and waveforms of noise that is louder and softer."""
    rng, spoken = np.random.default_rng(0), []
    for i, (text, length) in enumerate(zip(texts, seconds, strict=True)):
        size = int(RATE * length)
        audio = 0.1 * rng.standard_normal(size) * (1.5 + np.sin(np.arange(size) / 900))
        path = folder / f"u{i}.flac"
        soundfile.write(path, audio, RATE)
        spoken.append(Spoken(f"u{i}", "s", path, text))
    write_manifests(folder / "data", spoken, RATE)
    extract(folder / "data" / "cuts.jsonl.gz", folder / "features", FeatureConfig(n_mels=8), 1)
    refer_to_audio(folder / "data" / "cuts.jsonl.gz", folder / "waveforms")
    return FeatureSet(folder / "features" / "cuts.jsonl.gz"), FeatureSet(folder / "waveforms" / "cuts.jsonl.gz")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[FeatureSet, FeatureSet]]:
    """Training data, and held-out ones with a word outside the lexicon and with a second too few; as waveforms too."""
    train, dev = (tmp_path_factory.mktemp(name) for name in ("train", "dev"))
    training = make_features(train, ["ab ca", "ca", "ab"], [0.7, 0.5, 0.4])
    held_out = make_features(dev, ["ab ca", "ca", "ab xx", "ab ca ab ca ab ca"], [0.7, 0.5, 0.5, 0.2])
    return list(zip(training, held_out, strict=True))


@pytest.fixture(scope="module", params=sorted(MODELS))
def data(request: pytest.FixtureRequest, sets: list[tuple[FeatureSet, FeatureSet]]) -> AmSearchData:
    """A model of each architecture with its data."""
    torch.manual_seed(1)
    config, features = MODELS[request.param], sets[request.param == "wav2vec2"]
    model = make_am(config, len(LEXICON.phones) + 1)
    task = AmTask(AmConfig(model=config, augment=False), *features, LEXICON, acoustic=model)
    data = AmSearchData(model, features[1], task)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for epoch in range(25):
        for batch in data.training(200, 0, epoch):
            optimizer.zero_grad()
            data.loss(data.run(model, batch), batch).backward()
            optimizer.step()
    model.eval()
    return data


def predictions(data: AmSearchData, model: torch.nn.Module, dev: FeatureSet) -> Tensor:
    """(frames, classes) probabilities, one utterance at a time."""
    with torch.no_grad():
        parts = [model(torch.from_numpy(dev.load(i))[None], torch.tensor([dev.lengths[i]])) for i in range(len(dev))]
    return torch.cat([log_probs[0, : int(length)] for log_probs, length in parts]).double().exp()


def test_divergences_are_those_of_one_weight_at_a_time(data: AmSearchData) -> None:
    dev, grid = data._dev, Grid((2, 8))
    all_of_it = AmSearchData(data._am, dev)  # without a loss to compute, no utterance is left out
    before = copy.deepcopy(data.model.state_dict())
    table = kl_costs(all_of_it, grid, 10**9).table
    assert all(torch.equal(value, before[name]) for name, value in data.model.state_dict().items()), "left as it was"
    p = predictions(data, data.model, dev)
    assert list(table) == list(quantizable(data.model))
    for name, costs in table.items():
        for column, n_bits in enumerate(grid.candidates):
            changed = copy.deepcopy(data.model)
            weight = named_weights(changed)[name]
            with torch.no_grad():
                weight.copy_(project(weight, grid.precision(n_bits)).dequantize().view_as(weight))
            q = predictions(data, changed, dev)
            direct = (p * (p / q).log()).sum().item()
            assert costs[0, column].item() == pytest.approx(direct, rel=1e-2, abs=1e-5), name
    node = kl_costs(all_of_it, Grid((2, 8), level="node"), 10**9).table
    for name, (rows, _) in quantizable(data.model).items():
        assert node[name].shape == (rows, 2)
        assert torch.allclose(node[name].sum(0), table[name][0])


def test_losses_are_those_of_training(data: AmSearchData) -> None:
    task = data._task
    (batch,) = sample(data, 10**9, 10**6)
    assert sorted(batch.utts) == ["u0", "u1"], "the others have no loss"
    log_probs, lengths = data.run(data.model, batch)
    assert data.n_units(batch) == lengths.sum() == len(data.scores((log_probs, lengths)))
    expected = task.loss(task.model.eval(), batch, 1.0)
    assert data.loss((log_probs, lengths), batch).item() == pytest.approx(expected.item(), rel=1e-5)
    ctc = AmSearchData(data._am, data._dev, task, ctc=True)
    numerator = total_score(log_probs, lengths, [task.numerator(text) for text in batch.texts])
    assert ctc.loss((log_probs, lengths), batch).item() == pytest.approx((-numerator.sum() / lengths.sum()).item())
    assert ctc.key != data.key


@torch.no_grad()
def test_what_training_has_not_said_has_a_loss(sets: list[tuple[FeatureSet, FeatureSet]]) -> None:
    """A phone model that is not smooth: held-out utterances are scored by one of their own."""
    train, dev = map(copy.copy, sets[0])
    train.utts = [f"t{i}" for i in range(len(train))]
    dev._texts = ["ca ab", "ca", "ab", "ab"]
    config = AmConfig(model=MODELS["tdnn"], augment=False, phone_order=4, phone_smooth=False)
    model = make_am(config.model, len(LEXICON.phones) + 1).eval()
    task = AmTask(config, train, dev, LEXICON, acoustic=model)
    assert np.isinf(task.numerator("ca ab").min_frames)
    data = AmSearchData(model, dev, task)
    (batch,) = data.held_out(10**6, 0)
    assert data.loss(data.run(model, batch), batch).item() == pytest.approx(task.validate()["loss"], rel=1e-4)
    (batch,) = data.training(10**6, 0, 0)
    expected = task.loss(task.model.eval(), batch, 1.0)
    assert data.loss(data.run(model, batch), batch).item() == pytest.approx(expected.item(), rel=1e-5)


@torch.no_grad()
def move(weights: Iterable[Tensor], directions: Iterable[Tensor], step: float) -> None:
    for weight, direction in zip(weights, directions, strict=True):
        weight.add_(direction, alpha=step)


def test_products_with_the_hessian_are_differences_of_gradients(
    data: AmSearchData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "relu", F.softplus)  # differences know of kinks, derivatives do not
    weights = named_weights(data.model)
    (batch,) = sample(data, 10**9, 10**6)
    found = _probe(data, weights, batch, "gaussian", torch.Generator().manual_seed(0))
    generator, parameters, step = torch.Generator().manual_seed(0), list(weights.values()), 3e-4
    z = [_draw(weight, "gaussian", generator) for weight in parameters]
    gradients = []
    for sign in (1.0, -1.0):
        move(parameters, z, sign * step)
        gradients.append(torch.autograd.grad(mean_loss(data, batch), parameters))
        move(parameters, z, -sign * step)
    for name, direction, ahead, behind in zip(weights, z, *gradients, strict=True):
        expected = (direction * (ahead - behind) / (2 * step)).double().flatten(1).sum(1)
        assert torch.allclose(found[name], expected, rtol=0.05, atol=0.03 * expected.abs().max().item()), name


@pytest.mark.parametrize("data", ["tdnn"], indirect=True)
def test_traces_are_the_exact_ones(data: AmSearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every diagonal element by its own backward pass; with orthogonal random signs the estimate has no variance."""
    weights = named_weights(data.model)
    (batch,) = sample(data, 60, 60)
    exact = {}
    with twice_differentiable():
        gradients = torch.autograd.grad(mean_loss(data, batch), list(weights.values()), create_graph=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            slopes = enumerate(gradient.flatten())
            diagonal = [torch.autograd.grad(slope, weight, retain_graph=True)[0].flatten()[i] for i, slope in slopes]
            exact[name] = torch.stack(diagonal).view(len(weight), -1).double().sum(1)
    sizes = [weight.numel() for weight in weights.values()]
    columns = torch.randperm(128, generator=torch.Generator().manual_seed(0))[: sum(sizes)]
    signs = torch.from_numpy(hadamard(128)).float()[:, columns]
    draws = (part.view_as(weight) for z in signs for part, weight in zip(z.split(sizes), weights.values(), strict=True))
    monkeypatch.setattr(hessian, "_draw", lambda *_: next(draws))
    found = row_traces(data, HessianConfig(max_probes=128, tolerance=0.0, batch_tokens=60, tokens=60))
    assert list(found) == list(exact)
    whole = sum(rows.sum().item() for rows in exact.values())
    for name, rows in exact.items():
        assert torch.allclose(found[name], rows, rtol=0.01, atol=0.01 * rows.abs().max().item()), name
    assert sum(rows.sum().item() for rows in found.values()) == pytest.approx(whole, rel=0.01)


def test_bits_are_learned(data: AmSearchData, tmp_path: Path) -> None:
    grid, shapes = Grid((2, 4, 8)), quantizable(data.model)
    before = copy.deepcopy(data.model.state_dict())
    fit = FitConfig(epochs=2, lr=0.01)
    nas = nas_costs(data, grid, NasConfig(fit, batch_tokens=40), tmp_path / "nas", "key")
    options = OneStageConfig(replace(fit, weight_decay=0.0), batch_tokens=40)
    costs, net = search_one_stage(data, grid, options, tmp_path / "one", "key", 3.5)
    assert all(torch.equal(value, before[name]) for name, value in data.model.state_dict().items()), "left as it was"
    for found in (nas, costs):
        assert found.plan(shapes, 3.5).average_bits(shapes) <= 3.5
    frozen = [name for name in shapes if name.startswith("feature_extractor.")]  # left alone by its own training
    for name, weight in named_weights(net.net).items():
        assert torch.equal(weight, before[name]) == (name in frozen), name
    for learned, fitted in zip(net.scales, BudgetNet(data.trainee(), grid, options, 3.5).scales, strict=True):
        assert not torch.equal(learned, fitted), "of all weights"
    plan = replace(costs.plan(shapes, 3.5), a_bits=32)
    batch = next(data.training(200, 0, 0))
    with torch.no_grad():
        chosen = [F.one_hot(torch.tensor(grid.candidates.index(plan.bits[name])), 3).float() for name in shapes]
        expected, _ = data.run(net.use(chosen).eval(), batch)
        latent = net.latent(plan)
        quantize_start(latent, plan, latent.state_dict())  # pass 2 can begin
        assert quantizable(latent) == shapes
        assert torch.allclose(data.run(latent, batch)[0], expected, atol=1e-4), "where pass 1 has left it"


def test_features_of_another_size_are_refused(sets: list[tuple[FeatureSet, FeatureSet]]) -> None:
    model = make_am(TdnnConfig(feature_dim=12, channels=(2, 2), hidden=4, dilations=[1]), 4)
    with pytest.raises(BadInput, match="8 bins a frame, the model expects 12"):
        AmSearchData(model, sets[0][1])


def test_what_is_missing_is_named(data: AmSearchData) -> None:
    with pytest.raises(BadInput, match="--features"):
        next(AmSearchData(data._am, data._dev).training(40, 0, 0))


@pytest.fixture
def folder(
    data: AmSearchData, sets: list[tuple[FeatureSet, FeatureSet]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What the commands need: model, manifests, lexicon."""
    monkeypatch.chdir(tmp_path)
    save_am("am.mpq", data._am, LEXICON.phones)
    LEXICON.write(tmp_path / "lang")
    for name, part in zip(("train", "dev"), sets[0], strict=True):
        Path(f"{name}.jsonl.gz").symlink_to(part.path)
    return tmp_path


@pytest.mark.parametrize("data", ["tdnn"], indirect=True)
def test_the_commands(data: AmSearchData, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search, loss = (
        "search --model am.mpq --bits 3.5 --candidates 2,4,8 --out plan.yaml",
        "--features train.jsonl.gz --lang lang",
    )
    small = "--hessian.max-probes 3 --nas.batch-tokens 60 --one-stage.batch-tokens 60"
    methods = ["kl --dev dev.jsonl.gz", "kl --dev dev.jsonl.gz --level node"]
    methods += [f"{name} --dev dev.jsonl.gz {loss}" for name in ("hessian --loss ctc", "nas", "one-stage")]
    for method in methods:
        assert main(f"{search} {small} --method {method}".split()) == 0
        plan = read_plan("plan.yaml")
        assert plan.method == method.split()[0] and plan.average_bits(quantizable(data.model)) <= 3.5
    train = f"quantize --model am.mpq --plan plan.yaml --init plan.yaml.search/latent.mpq --dev train.jsonl.gz {loss}"
    assert main(f"{train} --train ste --max-frames 200 --fit.epochs 1 --out q.mpq".split()) == 0
    assert load_am("q.mpq").n_outputs == 4
    assert main(f"{train} --train none --out pass1.mpq".split()) == 0
    learned = read_model_file("plan.yaml.search/latent.mpq").state_dict()
    for name, found in quantized_weights(load_am("pass1.mpq")).items():
        scale = learned[f"{name}_log_scale"].exp().half().float()[:, None]
        precision = plan.precision(name)
        assert precision is not None and torch.equal(found.scale, scale)
        assert torch.equal(found.codes, round_to(learned[name], scale, precision).codes), "packed as they were learned"


@pytest.mark.parametrize("data", ["tdnn"], indirect=True)
def test_the_phone_model_is_an_option(
    data: AmSearchData, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks: list[AmTask] = []

    class Watched(AmTask):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            tasks.append(self)

    monkeypatch.setattr("mpq.train.am.AmTask", Watched)
    search = (
        "search --model am.mpq --method hessian --hessian.max-probes 2 --candidates 2,4,8 --bits 3.5 "
        "--costs costs.json --features train.jsonl.gz --dev dev.jsonl.gz --lang lang --out plan.yaml"
    )
    (folder / "search.yaml").write_text("phone_order: 4\nphone_histories: 5\nphone_smooth: false\n")
    assert main(f"{search} --config search.yaml".split()) == 0
    (task,) = tasks
    assert (task.config.phone_order, task.config.phone_histories, task.config.phone_smooth) == (4, 5, False)
    assert task.held_out is not task.graphs
    for more in ("", "--config search.yaml --phone-histories 6", "--config search.yaml --phone-smooth true"):
        assert main(f"{search} {more}".split()) == 2, "costs of another loss"
        assert "costs.json" in capsys.readouterr().err


@pytest.mark.parametrize("data", ["tdnn"], indirect=True)
def test_bad_input_is_one_line(data: AmSearchData, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Lexicon({"ab": [["A", "X"]]}).write(folder / "other")
    (folder / "other.yaml").write_text("bits: {lstm.weight_ih_l0: 2}\n")
    wide = make_am(TdnnConfig(feature_dim=12, channels=(2, 2), hidden=4, dilations=[1]), 4)
    save_am("wide.mpq", wide, LEXICON.phones)
    search = "search --bits 3.5 --candidates 2,4,8 --out p.yaml --model"
    for command, message in [
        (f"{search} am.mpq --method kl", "--method kl needs held-out features (--dev)"),
        (f"{search} am.mpq --method hessian --dev dev.jsonl.gz", "looks at the model's loss: it needs --features"),
        (f"{search} am.mpq --method hessian --dev dev.jsonl.gz --features train.jsonl.gz", "needs --lang"),
        (
            f"{search} am.mpq --method nas --dev dev.jsonl.gz --features train.jsonl.gz --lang other",
            "its 2 units are not those",
        ),
        (f"{search} am.mpq --method kl --dev dev.jsonl.gz --text t", "--text: am.mpq holds a tdnn acoustic model"),
        (f"{search} wide.mpq --method kl --dev dev.jsonl.gz", "8 bins a frame, the model expects 12"),
        (f"{search} am.mpq --method kl --dev none", "none"),
        ("quantize --model am.mpq --plan other.yaml --out p.yaml", "no quantizable weight 'lstm.weight_ih_l0'"),
        (f"{search} am.mpq --method kl --dev lang/lexicon.txt", "lexicon.txt"),
    ]:
        assert main(command.split()) == 2, command
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line, command
        assert not Path("p.yaml").exists()
