"""The training loop: learning-rate schedule, early stopping, and resuming after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.io import BadInput, read_jsonl
from mpq.train.loop import FitConfig, Plugin, fit, learning_rate


class Regression:
    """Least squares with dropout (so that resuming must restore the random state)."""

    name = "regression"

    def __init__(self, die_in_epoch: int = -1) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(64, 4, generator=generator)
        self.y = self.x.sum(dim=1, keepdim=True)
        self.die_in_epoch = die_in_epoch

    def steps_per_epoch(self) -> int:
        return 8

    def batches(self, epoch: int) -> Iterator[Any]:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(epoch))
        for i in range(8):
            if epoch == self.die_in_epoch and i == 5:
                raise KeyboardInterrupt
            rows = order[i * 8 : i * 8 + 8]
            yield self.x[rows], self.y[rows]

    def loss(self, model: nn.Module, batch: Any, done: float) -> Tensor:
        x, y = batch
        return ((model(x) - y) ** 2).mean()

    def validate(self) -> dict[str, float]:
        return {"loss": ((self.model(self.x) - self.y) ** 2).mean().item()}


def weights(task: Regression) -> Tensor:
    return torch.cat([p.detach().flatten() for p in task.model.parameters()])


def test_training_lowers_the_loss_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    task = Regression()
    before = task.validate()["loss"]
    result = fit(task, FitConfig(epochs=20, lr=0.03), tmp_path)
    assert result.best["loss"] < 0.1 * before
    assert result.best["loss"] == min(row["loss"] for row in result.history)
    assert task.validate()["loss"] == pytest.approx(result.best["loss"], rel=1e-6)
    assert [row["epoch"] for _, row in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(1, 21))
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("die_in_epoch", [0, 1, 4])
def test_a_killed_run_continues_to_the_same_numbers(tmp_path: Path, die_in_epoch: int) -> None:
    config = FitConfig(epochs=6, lr=0.02)
    whole = Regression()
    expected = fit(whole, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(die_in_epoch), config, tmp_path / "killed")
    resumed = Regression()
    result = fit(resumed, config, tmp_path / "killed")
    assert torch.equal(weights(resumed), weights(whole))
    assert result.history == expected.history


def test_a_checkpoint_of_other_options_is_not_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Regression(), FitConfig(epochs=2), tmp_path)
    result = fit(Regression(), FitConfig(epochs=3), tmp_path)
    assert len(result.history) == 3
    assert "other options" in capsys.readouterr().err


def test_schedules_follow_the_epochs_where_another_number_of_processes_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = FitConfig(epochs=6, lr=0.02)
    whole = Regression()
    expected = fit(whole, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(die_in_epoch=3), config, tmp_path / "killed")
    path = tmp_path / "killed" / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    assert (saved["processes"], saved["state"]["step"]) == (1, 24)
    saved["processes"], saved["state"]["step"] = 2, 12  # as two processes count
    torch.save(saved, path)
    resumed = Regression()
    result = fit(resumed, config, tmp_path / "killed")
    assert torch.equal(weights(resumed), weights(whole)) and result.history == expected.history
    assert f"{path}: written by 2 processes, continued by 1: the batch is another one" in capsys.readouterr().err


def test_a_damaged_checkpoint_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = FitConfig(epochs=2)
    expected = fit(Regression(), config, tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert fit(Regression(), config, tmp_path).history == expected.history
    assert "cannot be read" in capsys.readouterr().err


def test_early_stopping(tmp_path: Path) -> None:
    class Worse(Regression):
        epochs = 0

        def validate(self) -> dict[str, float]:
            self.epochs += 1
            return {"loss": float(self.epochs)}

    result = fit(Worse(), FitConfig(epochs=10, patience=3), tmp_path)
    assert len(result.history) == 4
    assert result.best_epoch == 1


def test_the_last_epochs_are_averaged(tmp_path: Path) -> None:
    config = FitConfig(epochs=6, lr=0.02, average=3)
    seen: list[Tensor] = []

    class Watch(Plugin):
        def after_epoch(self, model: nn.Module, epoch: int) -> None:
            seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]).clone())

    task = Regression()
    result = fit(task, config, tmp_path / "whole", [Watch()])
    torch.testing.assert_close(weights(task), torch.stack(seen[3:]).mean(0))
    assert result.best_epoch == 6 and result.best == result.history[-1]
    assert task.validate()["loss"] == pytest.approx(result.best["loss"], rel=1e-6)

    with pytest.raises(KeyboardInterrupt):
        fit(Regression(die_in_epoch=5), config, tmp_path / "killed")
    resumed = Regression()
    fit(resumed, config, tmp_path / "killed")
    assert torch.equal(weights(resumed), weights(task))


def test_a_loss_that_is_no_number_is_said(tmp_path: Path) -> None:
    class Broken(Regression):
        def loss(self, model: nn.Module, batch: Any, done: float) -> Tensor:
            return super().loss(model, batch, done) * float("nan")

    with pytest.raises(BadInput, match="training loss became nan in epoch 1"):
        fit(Broken(), FitConfig(epochs=2), tmp_path)


class Steep(Regression):
    """The gradients of some steps of the second epoch are not finite, though the loss is."""

    def __init__(self, steps: set[int], **options: Any) -> None:
        super().__init__(**options)
        self.steps, self.left_out = steps, 0

    def loss(self, model: nn.Module, batch: Any, done: float) -> Tensor:
        loss = super().loss(model, batch, done)
        if round(done * 4 * self.steps_per_epoch()) in self.steps:
            loss = loss + (0.0 * loss).sqrt()  # 0, of infinite slope
        return loss


def test_a_batch_without_a_finite_gradient_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Steep({9, 12})
    result = fit(task, FitConfig(epochs=4, lr=0.02), tmp_path)
    assert weights(task).isfinite().all() and result.best["loss"] < 1.0
    assert [row.get("left_out") for row in result.history] == [None, 2.0, None, None]
    assert "regression: epoch 2: 2 of 8 batches left out: gradients not finite" in capsys.readouterr().err


def test_what_is_left_out_changes_nothing(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watch(Plugin):
        def after_step(self, model: nn.Module) -> None:
            seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]).clone())

    fit(Steep({9}), FitConfig(epochs=4, lr=0.02), tmp_path, [Watch()])
    assert torch.equal(seen[9], seen[8]) and not torch.equal(seen[10], seen[9])


class Normed(Regression):
    """A batch of the second epoch holds an infinity, which batch normalization would remember for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def batches(self, epoch: int) -> Iterator[Any]:
        for number, (x, y) in enumerate(super().batches(epoch)):
            yield (x / 0.0 if (epoch, number) == (1, 3) else x), y


def test_a_batch_that_is_left_out_leaves_no_statistics(tmp_path: Path) -> None:
    task = Normed()
    result = fit(task, FitConfig(epochs=4, lr=0.02), tmp_path)
    assert [row.get("left_out") for row in result.history] == [None, 1.0, None, None]
    assert result.best_epoch == 4 and all(buffer.isfinite().all() for buffer in task.model.buffers())


def test_an_epoch_of_nothing_but_these_has_the_loss_of_all(tmp_path: Path) -> None:
    result = fit(Steep(set(range(8, 16))), FitConfig(epochs=4, lr=0.02), tmp_path)
    assert [row.get("left_out") for row in result.history] == [None, 8.0, None, None]


def test_a_held_out_loss_that_is_no_number_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    class Odd(Regression):
        epochs = 0

        def validate(self) -> dict[str, float]:
            self.epochs += 1
            return {"loss": float("nan")} if self.epochs == 2 else super().validate()

    with pytest.raises(BadInput, match="held-out loss became nan in epoch 2; expected a finite number: lower lr"):
        fit(Odd(), FitConfig(epochs=3, lr=0.02), tmp_path)
    assert len(fit(Regression(), FitConfig(epochs=3, lr=0.02), tmp_path).history) == 3


def test_many_of_them_in_a_row_end_the_training(tmp_path: Path) -> None:
    class Long(Steep):
        def steps_per_epoch(self) -> int:
            return 40

        def batches(self, epoch: int) -> Iterator[Any]:
            return chain.from_iterable(super(Long, self).batches(part) for part in range(5))

    with pytest.raises(BadInput, match=r"gradients of 20 batches in a row up to step 29 are not finite.*lower lr"):
        fit(Long(set(range(9, 40))), FitConfig(epochs=4, lr=0.02), tmp_path)


def test_plugins_see_every_step_and_decide_which_weights_are_kept(tmp_path: Path) -> None:
    class Sign(Plugin):
        """Evaluates with the signs of the weights, as quantized training evaluates with its codes."""

        steps = 0

        def after_step(self, model: nn.Module) -> None:
            self.steps += 1

        def evaluation(self, model: nn.Module) -> Any:
            from contextlib import contextmanager

            @contextmanager
            def swap() -> Iterator[None]:
                kept = {k: v.clone() for k, v in model.state_dict().items()}
                for p in model.parameters():
                    p.copy_(p.sign())
                yield
                model.load_state_dict(kept)

            return swap()

    task, plugin = Regression(), Sign()
    fit(task, FitConfig(epochs=2), tmp_path, plugins=[plugin])
    assert plugin.steps == 16
    assert set(weights(task).unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_learning_rate_schedule() -> None:
    linear = FitConfig(lr=1.0, warmup=0.1)
    assert learning_rate(linear, 0, 100) == pytest.approx(0.1)
    assert learning_rate(linear, 9, 100) == pytest.approx(1.0)
    assert learning_rate(linear, 55, 100) == pytest.approx(0.5)
    assert learning_rate(linear, 99, 100) == pytest.approx(1 / 90)
    assert learning_rate(FitConfig(lr=1.0, warmup=0.1, schedule="cosine"), 55, 100) == pytest.approx(0.5)
    assert learning_rate(FitConfig(lr=1.0, warmup=0.1, schedule="constant"), 99, 100) == 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "step"}, "'step' is not one of"),
        ({"epochs": 0}, "epochs: 0"),
        ({"warmup": 1.0}, "warmup: 1.0"),
        ({"lr": -1.0}, "lr: -1.0 must be above 0"),
        ({"lr": float("inf")}, "lr: inf must be above 0 and finite"),
        ({"grad_clip": 0.0}, "grad_clip: 0.0"),
        ({"beta2": 1.0}, "beta2: 1.0"),
        ({"weight_decay": -0.1}, "weight_decay: -0.1 must be at least 0"),
        ({"patience": -1}, "patience: -1"),
        ({"average": 11}, r"average: 11 must be at least 0 and at most 10"),
        ({"average": 2, "patience": 1}, "average: 2 with patience 1"),
        ({"seed": -1}, "seed: -1"),
        ({"devices": 0}, "devices: 0 must be at least 1"),
        ({"precision": "8-bit"}, "precision: '8-bit' is not one of auto, 32-true"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        FitConfig(**options)
