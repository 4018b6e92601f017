"""ADMM: it finds the best ternary weights of toy problems, its residual vanishes, and a killed run continues alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.io import BadInput
from mpq.quant import BitPlan, project, quantizable, uniform_plan
from mpq.train.admm import Admm, AdmmConfig
from mpq.train.loop import FitConfig, fit


class Logistic:
    """Logistic regression on correlated features, where rounding the float optimum is far from the best."""

    name = "logistic"

    def __init__(self, seed: int, size: int = 6, die_in_epoch: int = -1) -> None:
        generator = torch.Generator().manual_seed(seed)
        mix = torch.randn(size, size, generator=generator) + 2.0
        self.x = torch.randn(200, size, generator=generator) @ mix / size
        truth = torch.randn(size, generator=generator)
        self.y = (torch.rand(200, generator=generator) < (2 * self.x @ truth).sigmoid()).float()
        torch.manual_seed(seed)
        self.model: nn.Module = nn.Sequential(nn.Linear(size, 1, bias=False))
        self.die_in_epoch = die_in_epoch

    def steps_per_epoch(self) -> int:
        return 100

    def batches(self, epoch: int) -> Iterator[Any]:
        for step in range(100):
            if (epoch, step) == (self.die_in_epoch, 37):
                raise KeyboardInterrupt
            yield None

    def loss(self, model: nn.Module, batch: Any, done: float) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(self.x).squeeze(1), self.y)

    def validate(self) -> dict[str, float]:
        return {"loss": self.loss(self.model, None, 0.0).item()}


def loss_of(task: Logistic, weight: Tensor) -> float:
    return F.binary_cross_entropy_with_logits(task.x @ weight, task.y).item()


def best_ternary(task: Logistic) -> float:
    """The lowest loss over all 3^size codes, each with its best scale (a convex problem of one variable)."""
    codes = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=task.x.shape[1])))
    z = task.x @ codes.t()
    low, high = torch.zeros(len(codes)), torch.full((len(codes),), 20.0)
    for _ in range(40):  # bisection on the derivative by the scale
        middle = (low + high) / 2
        slope = (((middle * z).sigmoid() - task.y[:, None]) * z).sum(0)
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    losses = F.binary_cross_entropy_with_logits(low * z, task.y[:, None].expand_as(z), reduction="none").mean(0)
    return losses.min().item()


def descend(task: Logistic, admm: Admm | None, steps: int = 3000, lr: float = 0.5) -> float:
    """Gradient descent on the whole batch, with ADMM where given; the loss, with ADMM the lowest of its G."""
    (weight,) = task.model.parameters()

    def backward() -> None:
        weight.grad = None
        task.loss(task.model, None, 0.0).backward()

    lowest = float("inf")
    for step in range(steps):
        backward()
        if admm is not None:
            admm.before_step(task.model, backward)
        with torch.no_grad():
            weight.sub_(weight.grad, alpha=lr)
        if admm is None:
            continue
        admm.after_step(task.model)
        if step % admm.config.every == admm.config.every - 1:
            with torch.no_grad(), admm.evaluation(task.model):
                lowest = min(lowest, task.loss(task.model, None, 0.0).item())
    return task.validate()["loss"] if admm is None else lowest


@pytest.mark.parametrize("predict", [0.0, 0.3])
def test_it_reaches_the_best_ternary_weights(predict: float) -> None:
    gaps = []
    for seed in range(6):
        task = Logistic(seed)
        floating = descend(task, None)
        plan = uniform_plan(task.model, 2)
        precision = plan.precision("0.weight")
        assert precision is not None
        weight = task.model.get_parameter("0.weight")
        rounded = loss_of(task, project(weight, precision).dequantize()[0])
        admm = Admm(plan, AdmmConfig(rho=0.0025, growth=1.03, every=20, predict=predict))
        found, best = descend(task, admm), best_ternary(task)
        assert best - 1e-6 < found < rounded and floating < best
        assert admm.record[0]["residual"] > 0.05 > 1e-3 > admm.record[-1]["residual"]
        gaps.append((found - best, rounded - best))
    assert sum(found < 5e-4 for found, _ in gaps) >= 4, gaps
    assert sum(found for found, _ in gaps) < 0.05 * sum(rounded for _, rounded in gaps), gaps


def quadratic(rho: float, predict: float) -> tuple[nn.Module, Admm, Any]:
    """A model of one weight row, its ADMM, and the backward pass of F(w) = 1/2 w A w - b w."""
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.9, -0.4, 0.1]]))
    a = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
    b = torch.tensor([1.0, -1.0, 0.5])

    def backward() -> None:
        w = model[0].weight[0]
        model.zero_grad()
        (0.5 * w @ a @ w - b @ w).backward()

    return model, Admm(uniform_plan(model, 2), AdmmConfig(rho=rho, every=1, predict=predict, growth=2.0)), backward


def test_one_step_by_hand() -> None:
    """Ternary {-a, 0, a}: of w = (0.9, -0.4, 0.1) the nearest has a = 0.65 and codes (1, -1, 0)."""
    model, admm, backward = quadratic(rho=0.5, predict=0.1)
    w = torch.tensor([0.9, -0.4, 0.1])
    a = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
    b = torch.tensor([1.0, -1.0, 0.5])
    scale = torch.tensor(0.65).half().float()
    g = scale * torch.tensor([1.0, -1.0, 0.0])
    backward()
    admm.before_step(model, backward)
    predicted = w - 0.1 * (a @ w - b + 0.5 * (w - g))
    assert torch.allclose(model[0].weight.grad[0], a @ predicted - b, atol=1e-6)
    assert torch.equal(model[0].weight[0].detach(), w), "the predictor's step is taken back"
    admm.after_step(model)  # the optimizer has not moved: what is left is the proximal map, ρ = 1/2
    moved = (w + 0.5 * g) / 1.5
    assert torch.allclose(model[0].weight[0], moved, atol=1e-6)
    u = (moved - g) / 2  # G is still that of w; rho doubles, so u = y / rho halves
    assert torch.allclose(admm.state_dict()["u"]["0.weight"][0], u, atol=1e-3), "but for the new fit of the scale"
    assert admm.record[0]["step"] == 1 and admm.record[0]["rho"] == 0.5
    g, u = admm.state_dict()["codes"]["0.weight"], admm.state_dict()["u"]["0.weight"][0].clone()
    g = (g[0] * g[1])[0]
    assert admm.record[0]["residual"] == pytest.approx(((moved - g).norm() / moved.norm()).item(), rel=1e-5)
    Admm.before_step(admm, model, backward)
    admm.after_step(model)
    assert torch.allclose(model[0].weight[0], (moved + 1.0 * (g - u)) / 2.0, atol=1e-6), "ρ = 1 now"


FIT = FitConfig(epochs=3, lr=0.02, weight_decay=0.0)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    config = AdmmConfig(rho=0.05, growth=1.1, every=30, predict=0.05)
    whole = Logistic(0)
    plan = uniform_plan(whole.model, 2)
    expected = Admm(plan, config)
    result = fit(whole, FIT, tmp_path / "whole", [expected])
    with pytest.raises(KeyboardInterrupt):
        fit(Logistic(0, die_in_epoch=1), FIT, tmp_path / "killed", [Admm(plan, config)])
    resumed, admm = Logistic(0), Admm(plan, config)
    assert fit(resumed, FIT, tmp_path / "killed", [admm]).history == result.history
    assert admm.record == expected.record and len(admm.record) == 10
    weight = resumed.model[0].weight.detach()
    assert torch.equal(weight, whole.model[0].weight)
    mine, other = admm.best["0.weight"], expected.best["0.weight"]
    assert torch.equal(mine.codes, other.codes) and torch.equal(mine.scale, other.scale)
    assert torch.equal(weight, admm.best["0.weight"].dequantize()), "what is kept are the quantized weights"
    assert result.history[-1]["admm_residual"] == expected.record[-1]["residual"]


def test_once_an_epoch_and_float_layers_left_alone(tmp_path: Path) -> None:
    task = Logistic(1)
    task.model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    names = list(quantizable(task.model))
    admm = Admm(BitPlan({names[0]: (1, 2, 4, 8), names[1]: 32}), AdmmConfig(every=0))
    fit(task, FIT, tmp_path, [admm])
    assert [row["step"] for row in admm.record] == [100, 200, 300]
    assert list(admm.best) == names[:1]
    assert len(task.model[0].weight[0].unique()) <= 2, "one bit"
    assert len(task.model[2].weight.unique()) == 4


@pytest.mark.parametrize("options", [{"rho": 0.0}, {"growth": 0.9}, {"every": -1}, {"predict": -0.1}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(options))):
        AdmmConfig(**options)
