"""Plans for a file that is to be so many times smaller than the model in float32."""

from __future__ import annotations

import copy
import tempfile
from math import prod
from pathlib import Path

from torch import nn

from mpq.io import BadInput
from mpq.quant import BitPlan, quantizable, quantize_model, save_model
from mpq.quant.pack import row_bytes
from mpq.search.baseline import uniform_plan_within
from mpq.search.costs import Costs, Grid, Shapes

SPARE = 1024  # bytes for what the final file's header says besides: configuration, figures of the training


def plan_of_ratio(model: nn.Module, costs: Costs, ratio: float) -> BitPlan:
    """The plan of least cost whose packed file, scales and float residue included, is `ratio` times below float32.

    What a file holds besides codes depends on the plan a little (bits of rows are listed in its header); it is found by
    packing the rounded model, and the budget of the codes is lowered by what is too much.

    Args:
        model: float.
        costs: of its weights.
        ratio: 4 bytes for every parameter over the size of the file, at least.

    Raises:
        BadInput: the ratio is out of reach.
    """
    shapes = quantizable(model)
    allowed = _allowed(model, ratio)
    smallest = uniform_plan_within(shapes, costs.grid, costs.grid.candidates[0])
    least = _file_bytes(model, smallest)
    _check(least, allowed, model, ratio)
    fewest = _code_bytes(shapes, smallest)
    codes = allowed - (least - fewest)
    while True:
        plan = costs.plan_in_bytes(shapes, codes)
        over = _file_bytes(model, plan) - allowed
        if over <= 0:
            return plan
        if codes - over < fewest:
            return smallest
        codes -= over


def uniform_plan_of_ratio(model: nn.Module, grid: Grid, ratio: float) -> BitPlan:
    """The most bits, the same everywhere, whose packed file is `ratio` times below float32; see `plan_of_ratio`."""
    shapes, allowed = quantizable(model), _allowed(model, ratio)
    plans = [uniform_plan_within(shapes, grid, n_bits) for n_bits in reversed(grid.candidates)]
    sizes = [_file_bytes(model, plan) for plan in plans]
    _check(sizes[-1], allowed, model, ratio)
    return next(plan for plan, size in zip(plans, sizes, strict=True) if size <= allowed)


def _allowed(model: nn.Module, ratio: float) -> int:
    return int(_float_bytes(model) / ratio) - SPARE


def _float_bytes(model: nn.Module) -> int:
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def _check(size: int, allowed: int, model: nn.Module, ratio: float) -> None:
    if size > allowed:
        most = _float_bytes(model) / (size + SPARE)
        raise BadInput(
            f"--ratio: {ratio:g} cannot be met: the fewest of --candidates everywhere make the file {most:.1f} times "
            "smaller"
        )


def _code_bytes(shapes: Shapes, plan: BitPlan) -> int:
    """Bytes of the packed codes of a plan with the same bits in every row of a matrix."""
    total = 0
    for name, (rows, *columns) in shapes.items():
        bits = plan.bits[name]
        assert isinstance(bits, int)
        total += rows * row_bytes(bits, prod(columns), plan.table)
    return total


def _file_bytes(model: nn.Module, plan: BitPlan) -> int:
    """Size of the rounded model's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mpq"
        save_model(path, quantize_model(copy.deepcopy(model), plan), "", {}, plan, "")
        return path.stat().st_size
