"""Budgets by the size of the file: it is met, hardly undershot, and the plan is no worse than others of that size."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from torch import nn

from mpq.io import BadInput
from mpq.lm import LmConfig, build_lm
from mpq.quant import BitPlan, quantizable, quantize_model, save_model
from mpq.search import Grid, plan_of_ratio, random_costs, uniform_plan_of_ratio
from mpq.search.ratio import SPARE

MODEL = build_lm(LmConfig("lstm", dim=48, layers=1), 600)
FLOAT_BYTES = 4 * sum(parameter.numel() for parameter in MODEL.parameters())


def size(model: nn.Module, plan: BitPlan, folder: Path) -> int:
    save_model(folder / "model.mpq", quantize_model(copy.deepcopy(model), plan), "lstm", {}, plan, "0" * 64)
    return (folder / "model.mpq").stat().st_size


@pytest.mark.parametrize(("level", "ratio"), [("layer", 6.0), ("node", 6.0), ("node", 10.0)])
def test_the_file_is_as_small_as_asked(level: str, ratio: float, tmp_path: Path) -> None:
    costs = random_costs(MODEL, Grid((1, 2, 3, 4, 8), level), 1)
    plan = plan_of_ratio(MODEL, costs, ratio)
    reached = FLOAT_BYTES / size(MODEL, plan, tmp_path)
    assert ratio <= reached
    if level == "node":  # single rows can be made larger until nearly nothing is left
        assert size(MODEL, plan, tmp_path) > FLOAT_BYTES / ratio - 2 * SPARE
    bits = plan.average_bits(quantizable(MODEL))
    by_bits = costs.plan(quantizable(MODEL), bits)
    if size(MODEL, by_bits, tmp_path) <= FLOAT_BYTES / ratio - SPARE:
        assert plan.cost is not None and by_bits.cost is not None and plan.cost <= by_bits.cost


def test_uniform(tmp_path: Path) -> None:
    grid = Grid((1, 2, 4, 8))
    plans = [uniform_plan_of_ratio(MODEL, grid, ratio) for ratio in (2.0, 5.0, 8.0)]
    assert [set(plan.bits.values()) for plan in plans] == [{8}, {4}, {2}]
    for plan, ratio in zip(plans, (2.0, 5.0, 8.0), strict=True):
        assert FLOAT_BYTES / size(MODEL, plan, tmp_path) >= ratio


def test_out_of_reach() -> None:
    for find in (lambda: uniform_plan_of_ratio(MODEL, Grid(), 40.0),
                 lambda: plan_of_ratio(MODEL, random_costs(MODEL, Grid(), 1), 40.0)):  # fmt: skip
        with pytest.raises(BadInput, match=r"--ratio: 40 cannot be met: .* make the file \d+\.\d times smaller"):
            find()
