"""Architecture search: the mixture is one of outputs, updates alternate, bits have a price, a kill changes nothing."""

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
from mpq.quant import project, quantizable
from mpq.search import Costs, Grid, LmSearchData, NasConfig, nas_costs
from mpq.search.costs import named_weights
from mpq.search.nas import NasTask
from mpq.search.supernet import Supernet
from mpq.train.loop import FitConfig

GRID = Grid((1, 2, 8))


def config(**options: Any) -> NasConfig:
    return NasConfig(FitConfig(epochs=2, lr=0.005), batch_tokens=60, **options)


def test_the_mixed_weight_gives_the_mixed_output(model: LanguageModel, text: LmText) -> None:
    net = Supernet(copy.deepcopy(model), GRID, config(logit_speed=1.0)).eval()
    batch = next(iter(text.batches(60, 0, 0)))
    mixture = [torch.tensor([0.2, 0.5, 0.3]) if i == len(net.logits) - 1 else torch.tensor([0.0, 0.0, 1.0])
               for i in range(len(net.logits))]  # fmt: skip
    expected: Any = 0.0
    for share, n_bits in zip((0.2, 0.5, 0.3), GRID.candidates, strict=True):
        single = copy.deepcopy(model)
        with torch.no_grad():
            for name, weight in named_weights(single).items():
                bits = n_bits if name == "output.weight" else 8
                weight.copy_(project(weight, GRID.precision(bits)).dequantize())
        expected = expected + share * single(batch.inputs, batch.mask)
    for weights, logits in ((True, False), (False, True), (True, True)):
        found = net.use(mixture, weights, logits)(batch.inputs, batch.mask)
        assert torch.allclose(found, expected, atol=1e-5)


def test_updates_alternate(model: LanguageModel, text: LmText) -> None:
    net = Supernet(copy.deepcopy(model), GRID, config(logit_speed=1.0))
    task = NasTask(net, LmSearchData(model, text, text), net.config)
    batches = list(task.batches(0))
    assert len(batches) == task.steps_per_epoch()
    assert [b.train_weights for b in batches] == [True, False] * (len(batches) // 2)
    for batch in batches[:2]:
        net.zero_grad()
        task.loss(net, batch, 0.0).backward()
        logits = [row.grad is not None for row in net.logits]
        weights = [parameter.grad is not None for parameter in net.net.parameters()]
        assert logits == [not batch.train_weights] * len(logits)
        assert weights == [batch.train_weights] * len(weights)


def test_an_epoch_may_be_a_part_of_a_pass(model: LanguageModel, text: LmText) -> None:
    data = LmSearchData(model, text, text)
    n_pass = text.n_batches(60)
    net = Supernet(copy.deepcopy(model), GRID, config(epoch_part=0.3))
    task = NasTask(net, data, net.config)
    assert 0 < task.steps_per_epoch() == 2 * int(0.3 * n_pass) < 2 * n_pass
    parts = [list(task.batches(epoch)) for epoch in (0, 1)]
    assert [len(part) for part in parts] == [task.steps_per_epoch()] * 2
    assert [b.train_weights for b in parts[1]] == [True, False] * (len(parts[1]) // 2)
    first, second = ([b.content.inputs.tolist() for b in part if b.train_weights] for part in parts)
    assert first != second, "drawn anew"
    net.config.epoch_part = 1e-6
    assert NasTask(net, data, net.config).steps_per_epoch() == 2
    with pytest.raises(BadInput, match=r"epoch_part: 0\.0 must"):
        config(epoch_part=0.0)


def test_samples_and_penalties(model: LanguageModel) -> None:
    options = config(sampling="softmax", logit_speed=2.0, t_start=0.5, t_end=0.05)
    net = Supernet(copy.deepcopy(model), GRID, options)
    with torch.no_grad():
        for row in net.logits:
            row.copy_(torch.tensor([0.0, 0.5, 1.0]))
    soft = net.draw(0.0)[0]
    assert torch.allclose(soft, torch.tensor([0.0, 2.0, 4.0]).softmax(0))
    torch.manual_seed(0)
    options.sampling = "gumbel"
    draws = torch.stack([net.draw(1.0)[0] for _ in range(2000)])
    assert torch.allclose(draws.sum(1), torch.ones(2000), atol=1e-5)
    often = torch.nn.functional.one_hot(draws.argmax(1), 3).float().mean(0)
    assert torch.allclose(often, torch.tensor([0.0, 1.0, 2.0]).softmax(0), atol=0.04), "argmax follows the softmax"
    assert (draws.amax(1) > 0.9).float().mean() > 0.8, "nearly one-hot when cold"
    one = [torch.tensor([0.5, 0.0, 0.5])] * len(net.logits)
    assert float(options.price(net, one)) == pytest.approx(0.02 * len(one) * (0.5 + 0.5 * 8**0.5))
    options.penalty = "size"
    assert float(options.price(net, one)) == pytest.approx(0.02 * 4.5)
    options.penalty = "budget"
    assert options.price(net, one) == 0.0


def test_a_hard_sample_is_one_candidate_with_the_gradient_of_its_mixture(model: LanguageModel, text: LmText) -> None:
    net = Supernet(copy.deepcopy(model), GRID, config(logit_speed=1.0, t_start=0.7, t_end=0.7))
    torch.manual_seed(0)
    hard = net.draw(0.0)
    assert all(sorted(a.tolist()) == [0.0, 0.0, 1.0] for a in hard)
    net.config.sampling = "gumbel"
    torch.manual_seed(0)
    soft = net.draw(0.0)
    assert [a.argmax() for a in hard] == [a.argmax() for a in soft]
    for mixture in hard, soft:
        net.zero_grad()
        torch.stack(mixture).matmul(torch.tensor([1.0, -2.0, 4.0])).sum().backward()
        gradients = [row.grad.clone() for row in net.logits if row.grad is not None]
        assert len(gradients) == len(hard) and all(gradient.abs().sum() > 0 for gradient in gradients)
        if mixture is hard:
            expected = gradients
    assert all(torch.allclose(a, b) for a, b in zip(expected, gradients, strict=True))
    batch = next(iter(text.batches(60, 0, 0)))  # what is not drawn has no part in a step of the weights
    net.zero_grad()
    net.use(hard, weights=True)(batch.inputs, batch.mask).sum().backward()
    learned = iter(net.scales)
    for a in hard:
        assert [next(learned).grad is not None for _ in a] == [share == 1 for share in a.tolist()]


@pytest.mark.parametrize("sampling", ["softmax", "gumbel", "hard"])
def test_the_penalty_decides_and_the_budget_holds(
    model: LanguageModel, text: LmText, tmp_path: Path, sampling: str
) -> None:
    before = copy.deepcopy(model.state_dict())
    data, shapes = LmSearchData(model, text, text), quantizable(model)
    found = {}
    for beta in (0.0, 5.0):
        options = config(sampling=sampling, beta=beta, penalty="size")
        costs = nas_costs(data, GRID, options, tmp_path / f"{sampling}-{beta}", "key")
        found[beta] = expected_bits(costs, shapes)
        plan = costs.plan(shapes, 2.0)
        assert plan.average_bits(shapes) <= 2 and plan.method == "nas"
        for rows in costs.table.values():
            assert (rows.diff(dim=1) <= 0).all() and rows[0, -1] == 0, "more bits are never a worse choice"
    assert found[5.0] < 2 < 3 < found[0.0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def expected_bits(costs: Costs, shapes: dict[str, tuple[int, ...]]) -> float:
    """Of a weight, by the probabilities that the search ended with."""
    bits = torch.tensor(GRID.candidates, dtype=torch.float64)
    enough = {name: (-rows[0] / math.prod(shapes[name])).exp() for name, rows in costs.table.items()}
    spent = (math.prod(shapes[name]) * (p.diff(prepend=torch.zeros(1)) @ bits).item() for name, p in enough.items())
    return sum(spent) / sum(map(math.prod, shapes.values()))


def test_the_search_itself_keeps_the_budget(model: LanguageModel, text: LmText, tmp_path: Path) -> None:
    data, shapes = LmSearchData(model, text, text), quantizable(model)
    costs = nas_costs(data, GRID, config(penalty="budget"), tmp_path, "key", 1.5)
    assert expected_bits(costs, shapes) == pytest.approx(1.5, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"penalty": "budget", "sampling": "gumbel"}])
def test_a_killed_search_continues_alike(
    model: LanguageModel, text: LmText, tmp_path: Path, options: dict[str, Any]
) -> None:
    data, budget = LmSearchData(model, text, text), 2.0 if options else None
    whole = nas_costs(data, GRID, config(**options), tmp_path / "whole", "key", budget).table

    class Killed(NasTask):
        def loss(self, model: Any, batch: Any, done: float) -> torch.Tensor:
            if done > 0.7:
                raise KeyboardInterrupt
            return super().loss(model, batch, done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpq.search.nas.NasTask", Killed)
        with pytest.raises(KeyboardInterrupt):
            nas_costs(data, GRID, config(**options), tmp_path / "killed", "key", budget)
    resumed = nas_costs(data, GRID, config(**options), tmp_path / "killed", "key", budget).table
    assert all(torch.equal(resumed[name], rows) for name, rows in whole.items())


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": "mixed"},
        {"penalty": "mean"},
        {"beta": -1.0},
        {"t_end": 0.0},
        {"t_end": 9.0},
        {"logit_speed": 0.0},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(options))):
        NasConfig(**options)


def test_more_bad_options(model: LanguageModel, text: LmText, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="devices: 2"):
        NasConfig(FitConfig(devices=2))
    with pytest.raises(BadInput, match="level: node"):
        nas_costs(LmSearchData(model, text, text), Grid(level="node"), config(), tmp_path, "key")
    for options, budget in ((config(penalty="budget"), None), (config(), 2.0)):
        with pytest.raises(BadInput, match="penalty: "):
            nas_costs(LmSearchData(model, text, text), GRID, options, tmp_path, "key", budget)
