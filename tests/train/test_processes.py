"""Two processes (gloo, started by torchrun) train as one process with the doubled batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.train.loop import FitConfig, fit, world

ROOT = Path(__file__).resolve().parents[2]
CONFIG = FitConfig(epochs=3, lr=0.03, seed=2)


class Regression:
    """Least squares; each process takes its share of a batch of 16 rows. One layer is used every other time only."""

    name = "regression"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.ModuleDict({"often": nn.Linear(4, 8), "rarely": nn.Linear(8, 1)})
        self.model.forward = self.forward  # type: ignore[method-assign]
        self.model.register_buffer("seen", torch.zeros(4))  # as the statistics of batch norms
        self.x = torch.randn(64, 4, generator=torch.Generator().manual_seed(7))

    def forward(self, x: Tensor, rarely: bool) -> Tensor:
        if self.model.training:
            self.model.seen.copy_(x.mean(0))  # type: ignore[operator, union-attr]
        hidden = torch.tanh(self.model["often"](x))  # type: ignore[index]
        return self.model["rarely"](hidden) if rarely else hidden.mean(1, keepdim=True)  # type: ignore[index, no-any-return]

    def steps_per_epoch(self) -> int:
        return 4

    def batches(self, epoch: int) -> Iterator[Any]:
        rank, processes = world()
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(epoch)).view(4, 16)
        for number, row in enumerate(rows):
            yield self.x[row[rank::processes]], number % 2 == 0

    def loss(self, model: nn.Module, batch: Any, done: float) -> Tensor:
        x, rarely = batch
        return ((model(x, rarely) - x.sum(1, keepdim=True)) ** 2).mean()

    def validate(self) -> dict[str, float]:
        return {"loss": ((self.forward(self.x, True) - self.x.sum(1, keepdim=True)) ** 2).mean().item()}


def train(folder: Path) -> dict[str, Any]:
    """What a training did: its history, and the weights that it kept."""
    task = Regression()
    result = fit(task, CONFIG, folder)
    weights = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    return {"history": result.history, "weights": weights.tolist(), "seen": task.model.state_dict()["seen"].tolist()}


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path: Path) -> None:
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    done = subprocess.run([*command, str(tmp_path)], env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    one = train(tmp_path / "one")
    for rank in range(2):
        two = json.loads((tmp_path / f"{rank}.json").read_text())
        assert two["processes"] == 2
        assert two["weights"] == pytest.approx(one["weights"], rel=1e-5)
        for theirs, ours in zip(two["history"], one["history"], strict=True):
            assert theirs == pytest.approx(ours, rel=1e-5)
    kept = [json.loads((tmp_path / f"{rank}.json").read_text())["seen"] for rank in range(2)]
    assert kept[0] == kept[1], "the model that all keep is one"
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    outcome = train(folder / "two")
    rank, processes = world()
    (folder / f"{rank}.json").write_text(json.dumps({**outcome, "processes": processes}))
