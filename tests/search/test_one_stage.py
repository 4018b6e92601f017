"""One-stage search: weights and bits move together, the budget is met, a kill changes nothing."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mpq.data.lmtext import LmText
from mpq.io import BadInput
from mpq.lm import LanguageModel
from mpq.quant import quantizable
from mpq.search import Grid, LmSearchData, OneStageConfig, search_one_stage
from mpq.search.costs import named_weights
from mpq.search.one_stage import OneStageTask
from mpq.search.supernet import CALM, BudgetNet
from mpq.train.loop import FitConfig

GRID = Grid((2, 4, 8))


def config(**options: Any) -> OneStageConfig:
    fit = FitConfig(epochs=options.pop("epochs", 2), lr=0.005, weight_decay=0.0)
    return OneStageConfig(fit, batch_tokens=60, **options)


def make_task(model: LanguageModel, text: LmText, **options: Any) -> tuple[BudgetNet, OneStageTask, Any]:
    data, options_ = LmSearchData(model, text, text), config(**options)
    net = BudgetNet(data.trainee(), GRID, options_, 3.0)
    task = OneStageTask(net, data, options_)
    return net, task, next(iter(task.batches(0)))


def test_one_step_moves_weights_and_logits(model: LanguageModel, text: LmText) -> None:
    net, task, batch = make_task(model, text)
    task.loss(net, batch, 0.0).backward()
    assert all(row.grad is not None and row.grad.abs().sum() > 0 for row in net.logits)
    assert all(parameter.grad is not None for parameter in net.net.parameters())
    assert all(scale.grad is not None and scale.grad.abs().sum() > 0 for scale in net.scales)


def test_the_gradient_of_a_logit_is_that_of_the_mixture(model: LanguageModel, text: LmText) -> None:
    """CALM of it: against differences of the loss, with soft shares; the price of a bit moves with the logit."""
    net, task, batch = make_task(model, text, sampling="softmax", t_end=1.0)
    loss = task.loss(net, batch, 0.0)
    name, row = list(quantizable(model)).index("output.weight"), net.logits
    (gradient,) = torch.autograd.grad(loss, row[name])
    for column in range(3):
        values = []
        for step in (0.01, -0.01):
            with torch.no_grad():
                row[name][column] += step
                values.append(task.loss(net, batch, 0.0).item())
                row[name][column] -= step
        assert gradient[column].item() / CALM == pytest.approx((values[0] - values[1]) / 0.02, rel=0.02, abs=1e-4)


def test_clipping_leaves_logits_alone(model: LanguageModel, text: LmText) -> None:
    """However steep the loss is in them, the norm of all gradients is that of the weights' and scales'."""
    net, task, batch = make_task(model, text, logit_speed=1000.0)
    task.loss(net, batch, 0.0).backward()
    of_logits = [row.grad for row in net.logits]
    others = [part.grad for part in (*net.net.parameters(), *net.scales)]
    assert 0.0 < torch.nn.utils.get_total_norm(of_logits) < 0.1 * torch.nn.utils.get_total_norm(others)


def test_the_teacher_pulls(model: LanguageModel, text: LmText) -> None:
    """At 8 bits everywhere the divergence is nearly none, and the loss the model's own part of it."""
    eight = [torch.tensor([0.0, 0.0, 1.0])] * len(quantizable(model))
    parts = {}
    for distill in (0.0, 0.5, 1.0):
        net, task, batch = make_task(model, text, distill=distill)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(net, "draw", lambda done: eight)
            parts[distill] = task.loss(net, batch, 0.0).item()
    assert parts[1.0] == pytest.approx(0.0, abs=0.01) and parts[0.0] > 0.3
    assert parts[0.5] == pytest.approx((parts[0.0] + parts[1.0]) / 2, rel=1e-4)


def test_bits_meet_the_budget(model: LanguageModel, text: LmText, tmp_path: Path) -> None:
    budget = 3.0
    before = copy.deepcopy(model.state_dict())
    data, shapes = LmSearchData(model, text, text), quantizable(model)
    options = config(epochs=10, logit_speed=20.0)
    costs, net = search_one_stage(data, GRID, options, tmp_path, "key", budget)
    plan = costs.plan(shapes, budget)
    largest = max(map(math.prod, shapes.values())) / sum(map(math.prod, shapes.values()))
    assert budget - 4 * largest < plan.average_bits(shapes) <= budget
    assert plan.method == "one-stage" and plan.budget == budget
    assert expected_bits(costs.table, shapes) == pytest.approx(budget, rel=1e-4), "learned so, not only projected"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert net.net.state_dict().keys() == before.keys()
    latent = net.latent(plan).state_dict()
    assert not torch.equal(latent["output.weight"], before["output.weight"])
    assert latent.keys() - before.keys() == {f"{name}_log_scale" for name in shapes}
    assert all(len(latent[f"{name}_log_scale"]) == rows for name, (rows, _) in shapes.items())


@pytest.mark.parametrize("budget", [2.0, 2.5, 14 / 3, 7.9, 8.0])
def test_the_bits_of_the_budget_are_expected_whatever_the_logits(model: LanguageModel, budget: float) -> None:
    """And all matrices have the same chances at first; gradients know that what one gains others pay."""
    net = BudgetNet(copy.deepcopy(model), GRID, config(logit_speed=1.0), budget)
    first = [row.exp() for row in net.log_alphas().values()]
    assert all(torch.allclose(row, first[0]) for row in first)
    torch.manual_seed(0)
    for row in net.logits:
        row.data = 3 * torch.randn(3)
    shares = [row.exp() for row in net.log_alphas().values()]
    assert net.average_bits(shares).item() == pytest.approx(budget, abs=2e-4)
    sizes = [weight.numel() for weight in named_weights(net.net).values()]
    torch.stack([n * share[2] for n, share in zip(sizes, shares, strict=True)]).sum().backward()
    gradients = torch.stack([row.grad for row in net.logits if row.grad is not None])
    with torch.no_grad():  # where more of all shares is wished for, one step finds the same bits, otherwise shared out
        for row, gradient in zip(net.logits, gradients, strict=True):
            row.add_(gradient, alpha=0.1 / float(gradients.abs().max().clamp_min(1e-6)))
        moved = [row.exp() for row in net.log_alphas().values()]
    assert net.average_bits(moved).item() == pytest.approx(budget, abs=2e-4)
    gained = [n * (new - old)[2].item() for n, new, old in zip(sizes, moved, shares, strict=True)]
    assert sum(gained) > 0 if 2.0 < budget < 8.0 else sum(gained) == pytest.approx(0, abs=1e-2 * sum(sizes))


def test_steep_logits_have_their_price(model: LanguageModel) -> None:
    """However far the search has moved them."""
    net = BudgetNet(copy.deepcopy(model), GRID, config(logit_speed=1.0), 3.0)
    for row in net.logits:
        row.data = torch.tensor([0.0, 200.0, 600.0])
    assert net.average_bits([row.exp() for row in net.log_alphas().values()]).item() == pytest.approx(3.0, abs=1e-3)


def expected_bits(table: Any, shapes: dict[str, tuple[int, ...]]) -> float:
    bits = torch.tensor(GRID.candidates, dtype=torch.float64)
    enough = {name: (-rows[0] / math.prod(shapes[name])).exp() for name, rows in table.items()}
    spent = (math.prod(shapes[name]) * (p.diff(prepend=torch.zeros(1)) @ bits).item() for name, p in enough.items())
    return sum(spent) / sum(map(math.prod, shapes.values()))


def test_a_killed_search_continues_alike(model: LanguageModel, text: LmText, tmp_path: Path) -> None:
    data = LmSearchData(model, text, text)
    whole, net = search_one_stage(data, GRID, config(), tmp_path / "whole", "key", 3.0)

    class Killed(OneStageTask):
        def loss(self, model: Any, batch: Any, done: float) -> torch.Tensor:
            if done > 0.7:
                raise KeyboardInterrupt
            return super().loss(model, batch, done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpq.search.one_stage.OneStageTask", Killed)
        with pytest.raises(KeyboardInterrupt):
            search_one_stage(data, GRID, config(), tmp_path / "killed", "key", 3.0)
    resumed, again = search_one_stage(data, GRID, config(), tmp_path / "killed", "key", 3.0)
    assert all(torch.equal(resumed.table[name], rows) for name, rows in whole.table.items())
    assert all(torch.equal(again.state_dict()[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("options", [{"distill": 1.5}, {"epoch_part": 0.0}, {"t_end": 2.0}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(options))):
        config(**options)


def test_rows_are_refused(model: LanguageModel, text: LmText, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="level: node"):
        search_one_stage(LmSearchData(model, text, text), Grid((2, 4), "node"), config(), tmp_path, "key", 3.0)
