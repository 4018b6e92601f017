"""Epochs that are parts of a pass over the training utterances: what is trained on, by whom, and after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mpq.am import TdnnConfig, TdnnfConfig, make_am
from mpq.data.batches import Batch, FeatureSet, SpecAugment
from mpq.io import BadInput
from mpq.quant import quantize_model, uniform_plan
from mpq.train.am import AmConfig, AmTask
from mpq.train.loop import FitConfig, FitResult, fit
from mpq.train.quant_am import AmData, QuantAmConfig, QuantAmTask
from tests.train.test_am import LEXICON, UNITS, features

__all__ = ["features"]
SMALL = TdnnConfig(hidden=24, dilations=[1, 1], channels=(4, 4), dropout=0.2)
FACTORIZED = TdnnfConfig(channels=[4, 4], height_strides=[4, 4], hidden=24, bottleneck=8, first_bottleneck=8,
                         strides=[1], prefinal=8)  # fmt: skip


def config(epochs: int = 4, average: int = 0, **options: Any) -> AmConfig:
    fit_config = FitConfig(epochs=epochs, lr=5e-3, average=average)
    return AmConfig(**{"model": SMALL, "fit": fit_config, "max_frames": 700, "ctc_part": 0.3, **options})


def make(options: AmConfig, path: Path) -> AmTask:
    return AmTask(options, FeatureSet(path), FeatureSet(path), LEXICON)


def quantized(options: AmConfig, path: Path) -> QuantAmTask:
    """The same for a model on four bits."""
    some = QuantAmConfig(options.fit, max_frames=options.max_frames, epoch_part=options.epoch_part)
    torch.manual_seed(3)
    teacher = make_am(SMALL, len(UNITS) + 1)
    model = quantize_model(make_am(SMALL, len(UNITS) + 1), uniform_plan(teacher, 4))
    return QuantAmTask(some, AmData(FeatureSet(path), FeatureSet(path), LEXICON, UNITS), model, teacher)


def same(first: Batch, second: Batch) -> bool:
    return first.utts == second.utts and torch.equal(first.features, second.features)


@pytest.mark.parametrize("kind", [make, quantized])
def test_the_parts_of_two_passes_are_two_passes(kind: Any, features: Path) -> None:
    masks = SpecAugment(n_feature_masks=1, feature_mask=20)
    whole, part = (kind(config(masks=masks, epoch_part=p), features) for p in (1.0, 0.25))
    expected = [batch for epoch in range(2) for batch in whole.batches(epoch)]
    found = [list(part.batches(epoch)) for epoch in range(8)]
    joined = [batch for batches in found for batch in batches]
    assert len(expected) == len(joined) > 16
    assert all(same(a, b) for a, b in zip(joined, expected, strict=True))
    first = [utt for batches in found[:4] for batch in batches for utt in batch.utts]
    assert sorted(first) == whole.train.utts
    assert part.steps_per_epoch() == whole.steps_per_epoch() / 4
    assert all(abs(part.steps_per_epoch() - len(batches)) < 1.0 for batches in found)


@pytest.mark.parametrize("part", [0.9, 0.3, 0.07])
def test_parts_of_a_pass_of_one_batch(part: float, features: Path) -> None:
    """No part is empty, and as many steps are expected, by which the learning rate falls, as there are."""
    task = make(config(max_frames=10**6, epoch_part=part), features)
    steps = [len(list(task.batches(epoch))) for epoch in range(30)]
    assert min(steps) == 1 and abs(sum(steps) - 30 * task.steps_per_epoch()) < 1.0


def test_two_processes_share_a_part(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make(config(epoch_part=0.3), features)
    seen = []
    for epoch in range(10):  # three passes
        shares = []
        for rank in range(2):
            monkeypatch.setattr("mpq.train.am.world", lambda rank=rank: (rank, 2))
            shares.append(list(task.batches(epoch)))
        assert len(shares[0]) == len(shares[1]) > 0
        seen += [batch for step in zip(*shares, strict=True) for batch in step]
    expected = []
    for number in range(3):
        monkeypatch.setattr("mpq.train.am.world", lambda: (0, 1))
        whole = list(make(config(), features).batches(number))
        expected += whole + whole[: len(whole) % 2]  # the first one again, for the second process
    assert [batch.utts for batch in seen] == [batch.utts for batch in expected]


def killed(task: AmTask, epoch: int) -> AmTask:
    """A task whose training dies after the second batch of an epoch."""
    batches = task.batches

    def dying(number: int) -> Iterator[Batch]:
        for i, batch in enumerate(batches(number)):
            if (number, i) == (epoch, 2):
                raise KeyboardInterrupt
            yield batch

    task.batches = dying  # type: ignore[method-assign]
    return task


def run(task: AmTask, options: AmConfig, folder: Path) -> tuple[FitResult, dict[str, torch.Tensor]]:
    result = fit(task, options.fit, folder, task.plugins)
    return result, {name: value.clone() for name, value in task.model.state_dict().items()}


@pytest.mark.parametrize("model", [SMALL, FACTORIZED])
@pytest.mark.parametrize("epoch", [1, 4])
def test_a_killed_training_goes_on_after_the_last_part(model: Any, epoch: int, features: Path, tmp_path: Path) -> None:
    """In the first pass and in the second: the same numbers as without the kill, the mean over the last parts too."""
    schedule = "0,0@0.2,0.3@0.5,0" if model is FACTORIZED else ""
    options = config(6, 4, model=model, epoch_part=0.3, dropout_schedule=schedule)
    expected, weights = run(make(options, features), options, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(killed(make(options, features), epoch), options, tmp_path / "killed")
    task = make(options, features)
    begun: list[int] = []
    batches = task.batches
    task.batches = lambda number: begun.append(number) or batches(number)  # type: ignore[method-assign, func-returns-value]
    result, found = run(task, options, tmp_path / "killed")
    assert begun == list(range(epoch, 6)), "what lies behind the last checkpoint is not done again"
    assert result.history == expected.history and len(result.history) == 6
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_parts_of_the_whole_training_do_not_depend_on_the_epoch(features: Path, tmp_path: Path) -> None:
    """CTC, dropout and learning rate by the part of all steps; one step and one line in the log for each part."""
    seen: dict[float, list[float]] = {}
    for part, epochs in ((1.0, 2), (0.25, 8)):
        task = make(config(epochs, epoch_part=part), features)
        inner, done_at = task.loss, seen.setdefault(part, [])

        def loss(*args: Any, inner: Any = inner, done_at: list[float] = done_at) -> torch.Tensor:
            done_at.append(args[2])
            return inner(*args)

        task.loss = loss  # type: ignore[method-assign]
        result = fit(task, task.config.fit, tmp_path / str(part), task.plugins)
        assert len(result.history) == epochs and result.history[-1]["step"] == len(done_at)
    assert len(seen[1.0]) == len(seen[0.25])
    for whole, parts in zip(seen[1.0], seen[0.25], strict=True):
        assert parts == pytest.approx(whole)


@pytest.mark.parametrize("kind", [AmConfig, QuantAmConfig])
@pytest.mark.parametrize("part", [0.0, 1.5, -0.1])
def test_parts_that_are_none(kind: type[AmConfig], part: float) -> None:
    with pytest.raises(BadInput, match=f"epoch_part: {part} must be above 0 and at most 1"):
        kind(epoch_part=part)
