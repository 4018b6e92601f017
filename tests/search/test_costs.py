"""Plans from costs: budgets, levels, files, baselines, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpq.io import BadInput
from mpq.lm import LanguageModel
from mpq.quant import project, quantizable, quantize_model
from mpq.search import Costs, Grid, random_costs, read_candidates, read_rule, rule_costs, uniform_plan_within
from mpq.search.costs import squared_errors

SHAPES = {"a": (4, 6), "b": (2, 12)}


def table(**rows: list[list[float]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


def test_a_layer_plan() -> None:
    costs = Costs("kl", Grid((1, 2, 4)), table(a=[[9.0, 1.0, 0.0]], b=[[5.0, 4.0, 0.0]]))
    plan = costs.plan(SHAPES, 2.5)
    assert (plan.bits, plan.cost, plan.budget, plan.method) == ({"a": 2, "b": 2}, 5.0, 2.5, "kl")
    assert costs.plan(SHAPES, 3).bits == {"a": 2, "b": 4}
    assert costs.plan(SHAPES, 8).bits == {"a": 4, "b": 4}


def test_a_node_plan_spends_on_the_rows_that_need_it() -> None:
    a = [[1.0, 0.0], [9.0, 0.0], [2.0, 0.0], [8.0, 0.0]]
    plan = Costs("kl", Grid((1, 3), level="node"), table(a=a, b=[[0.5, 0.0], [0.1, 0.0]])).plan(SHAPES, 1.5)
    assert plan.bits == {"a": (1, 3, 1, 3), "b": (1, 1)}
    assert plan.average_bits(SHAPES) == 1.5
    plan.check(SHAPES)


def test_costs_are_kept_in_a_file(tmp_path: Path) -> None:
    grid = Grid((1, 2), level="node")
    costs = Costs("hessian", grid, table(a=[[1.0, 1 / 3]] * 4, b=[[2.0, 0.1]] * 2))
    costs.write(tmp_path / "c.json", "key")
    again = Costs.read(tmp_path / "c.json", "key", "hessian", grid)
    assert again.plan(SHAPES, 1.5) == costs.plan(SHAPES, 1.5)
    with pytest.raises(BadInput, match=r"c\.json: costs of another model"):
        Costs.read(tmp_path / "c.json", "other", "hessian", grid)
    for broken in ("{", "[]", '{"key": "key"}', '{"key": "key", "costs": {"a": "x"}}'):
        (tmp_path / "c.json").write_text(broken)
        with pytest.raises(BadInput, match=r"c\.json: not a table of costs"):
            Costs.read(tmp_path / "c.json", "key", "hessian", grid)


def test_costs_of_another_model_are_refused() -> None:
    for rows in (table(a=[[1.0, 0.0]]), table(a=[[1.0, 0.0]] * 3, b=[[1.0, 0.0]])):
        with pytest.raises(BadInput, match="another model"):
            Costs("kl", Grid((1, 2)), rows).plan(SHAPES, 2)


@pytest.mark.parametrize("level", ["layer", "node"])
def test_baselines_meet_any_budget(model: LanguageModel, level: str) -> None:
    shapes, grid = quantizable(model), Grid(level=level)
    n_weights = sum(rows * columns for rows, columns in shapes.values())
    largest = max(rows * columns if level == "layer" else columns for rows, columns in shapes.values())
    for budget in (1.0, 1.7, 2.5, 4.0, 8.0):
        for costs in (random_costs(model, grid, 1), rule_costs(model, grid, {})):
            plan = costs.plan(shapes, budget)
            plan.check(shapes)
            used = plan.average_bits(shapes)
            assert used <= budget + 1e-9
            assert used > budget - 4 * largest / n_weights, "no cheaper bits are left over"
    first, second = (random_costs(model, grid, seed).plan(shapes, 2.5).bits for seed in (1, 2))
    assert first != second and first == random_costs(model, grid, 1).plan(shapes, 2.5).bits


def test_uniform_takes_the_most_bits_that_fit() -> None:
    assert set(uniform_plan_within(SHAPES, Grid(), 3.9).bits.values()) == {2}
    assert set(uniform_plan_within(SHAPES, Grid(), 4).bits.values()) == {4}
    with pytest.raises(BadInput, match="the fewest of the candidates are 2"):
        uniform_plan_within(SHAPES, Grid((2, 4)), 1.5)


def test_the_rule_prefers_what_it_names() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    net = nn.Sequential(layer, copy.deepcopy(layer), copy.deepcopy(layer))
    shapes, grid = quantizable(net), Grid((1, 2, 3, 4, 5, 6, 7, 8))
    assert list(rule_costs(net, grid, {}).plan(shapes, 16 / 3).bits.values()) == [6, 4, 6]
    assert list(rule_costs(net, grid, read_rule("1.*=+3, *=0")).plan(shapes, 4).bits.values()) == [3, 6, 3]
    with pytest.raises(BadInput, match=r"'9\.\*' fits none"):
        rule_costs(net, grid, {"9.*": 1.0})
    for text in ("embedding", "=2", "a=b"):
        with pytest.raises(BadInput, match="expected PATTERN=BITS"):
            read_rule(text)


def test_squared_errors() -> None:
    weight = torch.randn(5, 8)
    errors = squared_errors(weight, Grid((1, 4)))
    rounded = project(weight, Grid().precision(4)).dequantize()
    assert torch.allclose(errors[:, 1], (rounded - weight).square().sum(1).double())


def test_node_plans_can_be_packed(model: LanguageModel) -> None:
    plan = random_costs(model, Grid(level="node"), 3).plan(quantizable(model), 2.5)
    quantized = quantize_model(copy.deepcopy(model), plan)
    assert list(quantizable(quantized)) == list(plan.bits)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"candidates": ()}, "candidates: none"),
        ({"candidates": (0, 2)}, "from 1 to 8"),
        ({"candidates": (2, 9)}, "from 1 to 8"),
        ({"candidates": (2, 2)}, "distinct"),
        ({"level": "matrix"}, "level: 'matrix'"),
        ({"level": "node", "scale": "matrix"}, "bits for each row"),
        ({"scale": "column"}, "scale: 'column'"),
        ({"scale": 0}, "scale: '0'"),
        ({"table": "log"}, "table: 'log'"),
    ],
)
def test_bad_grids(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Grid(**options)


def test_candidates() -> None:
    assert read_candidates("8,1, 4") == (1, 4, 8)
    for text in ("", "1,,2", "two", "1.5,2"):
        with pytest.raises(BadInput, match="expected bits separated by commas"):
            read_candidates(text)
