"""Training of language models: it learns, resumes to the same numbers, and its quantized forward is the served one."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mpq.data.lmtext import LmBatch, Tokenizer
from mpq.io import BadInput, read_jsonl
from mpq.lm import LanguageModel, LmConfig, build_lm, load_lm, perplexity, save_lm
from mpq.quant import quantize_model, uniform_plan
from mpq.train.admm import AdmmConfig
from mpq.train.lm import LmTask, LmTexts, LmTrainConfig, QuantTrainConfig, train_lm, train_quantized_lm
from mpq.train.loop import FitConfig

NOUNS, VERBS = ["king", "city", "man", "people"], ["went", "said", "saw", "took"]
SIZES = {
    "lstm": LmConfig("lstm", dim=24, dropout=0.1),
    "transformer": LmConfig("transformer", dim=24, layers=2, heads=2, dim_ff=48, dropout=0.1),
}


def sentence(rng: random.Random) -> str:
    """A regular little language: each noun takes one verb."""
    parts = []
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(4)
        parts += ["the", NOUNS[i], VERBS[i]]
    return " ".join(parts)


@pytest.fixture
def texts(tmp_path: Path) -> LmTexts:
    rng = random.Random(0)
    (tmp_path / "words.txt").write_text("\n".join(["the", *NOUNS, *VERBS]) + "\n")
    for name, count in (("train", 200), ("dev", 30)):
        (tmp_path / name).write_text("".join(sentence(rng) + "\n" for _ in range(count)))
    tokenizer = Tokenizer(tmp_path / "words.txt")
    return LmTexts.open(tmp_path / "train", tmp_path / "dev", tokenizer, tmp_path / "units")


def config(arch: str, epochs: int = 3) -> LmTrainConfig:
    return LmTrainConfig(SIZES[arch], FitConfig(epochs=epochs, lr=0.02, patience=0), batch_tokens=128)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("arch", sorted(SIZES))
def test_it_learns_the_language(arch: str, texts: LmTexts, tmp_path: Path) -> None:
    model, result = train_lm(config(arch, epochs=6), texts, tmp_path / "exp")
    # about 2.5 choices a clause: a noun of 4, and going on or ending; 'the' and the verb are certain
    assert result.best["perplexity"] < 1.8
    assert perplexity(model, texts.dev).value == pytest.approx(result.best["perplexity"])


@pytest.mark.parametrize("arch", sorted(SIZES))
def test_resumed_equals_uninterrupted(
    arch: str, texts: LmTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = train_lm(config(arch), texts, tmp_path / "whole")
    loss, steps = LmTask.loss, []

    def die(self: LmTask, model: nn.Module, batch: LmBatch, done: float) -> torch.Tensor:
        steps.append(done)
        if done > 0.5:
            raise KeyboardInterrupt
        return loss(self, model, batch, done)

    monkeypatch.setattr(LmTask, "loss", die)
    with pytest.raises(KeyboardInterrupt):
        train_lm(config(arch), texts, tmp_path / "killed")
    monkeypatch.setattr(LmTask, "loss", loss)
    resumed, result = train_lm(config(arch), texts, tmp_path / "killed")
    assert torch.equal(weights(resumed), weights(whole))
    assert len(result.history) == 3


@pytest.mark.parametrize("arch", sorted(SIZES))
def test_killed_within_a_pass_it_goes_on_there(
    arch: str, texts: LmTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LmTrainConfig(SIZES[arch], FitConfig(epochs=6, lr=0.02), batch_tokens=128, epoch_part=0.25)
    whole, _ = train_lm(options, texts, tmp_path / "whole")
    loss, steps = LmTask.loss, []

    def count(self: LmTask, model: nn.Module, batch: LmBatch, done: float) -> torch.Tensor:
        steps.append(batch.inputs.tolist())
        if len(steps) == kill_at:
            raise KeyboardInterrupt
        return loss(self, model, batch, done)

    monkeypatch.setattr(LmTask, "loss", count)
    n = LmTask("x", whole, texts, 128, 1, epoch_part=0.25).steps_per_epoch()
    kill_at = 3 * n + 2  # in the fourth part
    with pytest.raises(KeyboardInterrupt):
        train_lm(options, texts, tmp_path / "killed")
    seen, steps[:], kill_at = steps[: 3 * n], [], 0
    resumed, result = train_lm(options, texts, tmp_path / "killed")
    assert torch.equal(weights(resumed), weights(whole)) and len(result.history) == 6
    assert len(steps) == 3 * n and not any(batch in steps[:n] for batch in seen), "the rest of the pass, nothing twice"


def test_other_data_starts_anew(texts: LmTexts, tmp_path: Path) -> None:
    train_lm(config("lstm", 1), texts, tmp_path / "exp")
    swapped = LmTexts(texts.dev, texts.dev)
    again, _ = train_lm(config("lstm", 1), swapped, tmp_path / "exp")
    fresh, _ = train_lm(config("lstm", 1), swapped, tmp_path / "other")
    assert torch.equal(weights(again), weights(fresh))


@pytest.mark.parametrize("arch", sorted(SIZES))
@pytest.mark.parametrize("bits", [2, 1])
def test_straight_through_beats_rounding(arch: str, bits: int, texts: LmTexts, tmp_path: Path) -> None:
    model, _ = train_lm(config(arch, 6), texts, tmp_path / "float")
    save_lm(tmp_path / "float/model.mpq", model, texts.train.tokenizer)
    lm = load_lm(tmp_path / "float")
    plan = uniform_plan(lm.model, bits)
    rounded = perplexity(quantize_model(copy.deepcopy(lm.model), plan), texts.dev).value
    before = weights(lm.model)
    settings = QuantTrainConfig(FitConfig(epochs=3, lr=0.005), batch_tokens=128)
    trained, result = train_quantized_lm(lm, plan, settings, texts, tmp_path / "quantized", "key")
    assert torch.equal(weights(lm.model), before), "the float model is left as it is"
    assert all(parameter.requires_grad for parameter in lm.model.parameters())
    assert result.best["perplexity"] < rounded
    save_lm(tmp_path / "packed/model.mpq", trained, texts.train.tokenizer, plan)
    served = load_lm(tmp_path / "packed", packed=True)
    assert perplexity(served.model, texts.dev) == perplexity(trained, texts.dev), "training and serving are one"


def test_distillation_pulls_towards_the_teacher(texts: LmTexts) -> None:
    torch.manual_seed(0)
    words = len(texts.train.tokenizer)
    student, teacher = (build_lm(SIZES["lstm"], words).eval() for _ in range(2))
    batch = next(texts.dev.batches(64, 0, 0))
    task = LmTask("x", student, texts, 64, 1, teacher, distill=1.0)
    same = LmTask("x", teacher, texts, 64, 1, copy.deepcopy(teacher), distill=1.0)
    assert same.loss(teacher, batch, 0.0).item() == pytest.approx(0.0, abs=1e-6)
    probs = teacher(batch.inputs, batch.mask).softmax(-1)
    expected = (probs * (probs.log() - student(batch.inputs, batch.mask).log_softmax(-1))).sum(-1).mean()
    assert task.loss(student, batch, 0.0).item() == pytest.approx(expected.item(), rel=1e-4)
    half = LmTask("x", student, texts, 64, 1, teacher, distill=0.5)
    entropy = LmTask("x", student, texts, 64, 1).loss(student, batch, 0.0)
    assert half.loss(student, batch, 0.0).item() == pytest.approx((expected + entropy).item() / 2, rel=1e-4)


def test_processes_share_the_batches(texts: LmTexts, monkeypatch: pytest.MonkeyPatch) -> None:
    model: LanguageModel = build_lm(SIZES["lstm"], len(texts.train.tokenizer))
    task = LmTask("x", model, texts, 64, 1)
    alone = [batch.inputs.tolist() for batch in task.batches(0)]
    shares = []
    for rank in range(2):
        monkeypatch.setattr("mpq.train.lm.world", lambda rank=rank: (rank, 2))
        shares.append([batch.inputs.tolist() for batch in task.batches(0)])
        assert len(shares[-1]) == task.steps_per_epoch() == len(alone) // 2
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == alone[: len(alone) // 2 * 2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"distill": 1.5}, "distill: 1.5"),
        ({"epoch_part": 0.0}, "epoch_part: 0.0 must be above 0"),
        ({"batch_tokens": 0}, "batch_tokens: 0 must be at least 1"),
    ],
)
def test_bad_options(options: dict[str, float], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        QuantTrainConfig(**options)  # type: ignore[arg-type]
    if "distill" not in options:
        with pytest.raises(BadInput, match=says):
            LmTrainConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.3, 0.25, 0.05, 0.001])
def test_parts_of_whatever_size_take_every_batch_once_in_a_pass(texts: LmTexts, share: float) -> None:
    whole, part = (LmTask("x", build_lm(SIZES["lstm"], 12), texts, 64, 1, epoch_part=p) for p in (1.0, share))
    n_whole, n = whole.steps_per_epoch(), part.steps_per_epoch()
    assert n == max(1, int(share * n_whole)) < n_whole
    passes = [batch.inputs.tolist() for epoch in (0, 1) for batch in whole.batches(epoch)]
    parts = [[batch.inputs.tolist() for batch in part.batches(epoch)] for epoch in range(2 * n_whole // n)]
    assert {len(batches) for batches in parts} == {n}
    assert [batch for batches in parts for batch in batches] == passes[: len(parts) * n]
    sentences = [tuple(row) for batch in passes[:n_whole] for row in batch]
    assert len(sentences) == texts.train.n_sentences and passes[:n_whole] != passes[n_whole:]


def test_parts_train_as_a_whole_pass(texts: LmTexts, tmp_path: Path) -> None:
    results = []
    for epochs, share in ((1, 1.0), (4, 0.25)):
        options = config("lstm", epochs)
        options.epoch_part = share
        options.model = replace(options.model, dropout=0.0)  # it is drawn anew for each epoch
        model, result = train_lm(options, texts, tmp_path / str(epochs))
        assert len(result.history) == epochs == result.best_epoch
        results.append((weights(model), result.history[-1]["step"]))
    assert results[0][1] == results[1][1] and torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("arch", sorted(SIZES))
@pytest.mark.parametrize("scratch", [False, True])
def test_admm_beats_rounding(arch: str, scratch: bool, texts: LmTexts, tmp_path: Path) -> None:
    model, _ = train_lm(config(arch, 6), texts, tmp_path / "float")
    save_lm(tmp_path / "float/model.mpq", model, texts.train.tokenizer)
    lm = load_lm(tmp_path / "float")
    plan = uniform_plan(lm.model, 2)
    rounded = perplexity(quantize_model(copy.deepcopy(lm.model), plan), texts.dev).value
    before = weights(lm.model)
    admm = AdmmConfig(rho=0.002, growth=2.0, every=10) if scratch else AdmmConfig(rho=0.02, growth=1.5, every=10)
    fit = FitConfig(epochs=16 if scratch else 6, lr=0.02, weight_decay=0.0)
    settings = QuantTrainConfig(fit, batch_tokens=128, scratch=scratch, admm=admm)
    trained, result = train_quantized_lm(lm, plan, settings, texts, tmp_path / "quantized", "key", "admm")
    assert torch.equal(weights(lm.model), before), "the float model is left as it is"
    assert result.best["perplexity"] < (1.2 if scratch else 1.0) * rounded
    record = [row["residual"] for _, row in read_jsonl(tmp_path / "quantized/admm.jsonl")]
    assert record[-1] < 0.5 * record[0]
    save_lm(tmp_path / "packed/model.mpq", trained, texts.train.tokenizer, plan)
    served = load_lm(tmp_path / "packed", packed=True)
    assert perplexity(served.model, texts.dev) == perplexity(trained, texts.dev), "training and serving are one"
    assert perplexity(served.model, texts.dev).value == pytest.approx(result.best["perplexity"], rel=0.01)
