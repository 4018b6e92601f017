"""The bit budget, solved exactly: a multiple-choice knapsack.

    min Σ_l Ω_l(n_l)   such that   Σ_l N_l n_l <= B Σ_l N_l,   one n_l of the candidates for each cluster l

A cluster is a weight matrix or a row of one; N_l its weights, Ω_l(n) what n bits cost it (arXiv 2111.14479, eqs 8
and 9). Thousands of rows are solved in a second or so: Lagrangian bounds leave only those clusters open whose choice
is not yet proved, and these are solved exactly, by dynamic programming over the used budget where it has few enough
values (rows of equal length), else by HiGHS' branch and bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mpq.io import BadInput

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_BISECTIONS = 200  # enough to narrow a multiplier down to neighbouring floats
_CELLS = 50_000_000  # of the dynamic program's table, a byte each


def solve_budget(costs: npt.ArrayLike, sizes: Sequence[int], candidates: Sequence[int], budget: float) -> Ints:
    """The choice of bits with the least total cost within the budget.

    Args:
        costs: (L, n) finite: what each candidate costs each cluster; they need not fall with the bits.
        sizes: (L,) weights of each cluster.
        candidates: (n,) bits.
        budget: average bits of a weight, at most.
    Returns:
        (L,) bits.

    Raises:
        BadInput: not even the fewest bits everywhere fit the budget.
    """
    bits = np.asarray(candidates, dtype=np.int64)
    weights = np.asarray(sizes, dtype=np.int64)
    if budget < bits.min():
        raise BadInput(f"a budget of {budget:g} bits cannot be met: the fewest of the candidates are {bits.min()}")
    use = weights[:, None] * bits[None, :]
    chosen: Ints = bits[solve_sizes(costs, use, int(np.floor(budget * int(weights.sum()) * (1 + 1e-12))))]
    return chosen


def solve_sizes(costs: npt.ArrayLike, use: npt.ArrayLike, capacity: int) -> Ints:
    """The same with any sizes: the choice of least total cost whose sizes add up to the capacity at most.

    Args:
        costs: (L, n) finite.
        use: (L, n) whole numbers above 0: the size of each cluster with each candidate.
        capacity: of all clusters together.
    Returns:
        (L,) columns.

    Raises:
        BadInput: not even the smallest choice fits.
    """
    table, sizes = np.asarray(costs, dtype=np.float64), np.asarray(use, dtype=np.int64)
    if table.shape != sizes.shape:
        raise ValueError(f"costs {table.shape} must have the shape of the sizes {sizes.shape}")
    if not np.isfinite(table).all():
        raise BadInput(f"the cost of cluster {int(np.argmin(np.isfinite(table).all(1)))} is not a finite number")
    if (least := int(sizes.min(1).sum())) > capacity:
        raise BadInput(f"a budget of {capacity} cannot be met: the smallest choice takes {least}")
    unit = gcd(*np.unique(sizes).tolist())
    return _choose(table, sizes // unit, capacity // unit)


class _Bound(NamedTuple):
    """A Lagrangian relaxation: a feasible choice and a lower bound of the cost of all feasible ones."""

    choice: Ints
    upper: float
    lower: float
    reduced: Floats  # (L, n) cost + multiplier * use


def _choose(costs: Floats, use: Ints, capacity: int) -> Ints:
    """The optimal column for each row of costs (L, n)."""
    bound = _relax(costs, use, capacity)
    gap = bound.upper - bound.lower
    tiny = 1e-12 * (1.0 + np.abs(costs).max(1).sum())  # what summing the bounds may lose
    if gap <= tiny:
        return bound.choice
    # a column whose reduced cost is above its row's least by more than the gap is in no better solution
    keep = bound.reduced - bound.reduced.min(1, keepdims=True) <= gap + tiny
    fixed = keep.sum(1) == 1
    choice = np.where(fixed, keep.argmax(1), bound.choice)
    rest = np.flatnonzero(~fixed)
    left = capacity - int(use[np.flatnonzero(fixed), choice[fixed]].sum())
    core = np.where(keep[rest], costs[rest] - costs[rest].min(1, keepdims=True), np.inf)
    exact = _dynamic_program if len(rest) * left <= _CELLS else _branch_and_bound
    choice[rest] = exact(core, use[rest], left)
    return choice


def _total(table: npt.NDArray[np.number], choice: Ints) -> float:
    return float(table[np.arange(len(choice)), choice].sum())


def _relax(costs: Floats, use: Ints, capacity: int) -> _Bound:
    """The best multiplier by bisection, then the cheapest upgrades that still fit."""

    def cheapest(multiplier: float) -> Ints:
        reduced = costs + multiplier * use
        tied = reduced <= reduced.min(1, keepdims=True)
        smallest: Ints = np.where(tied, use, use.max() + 1).argmin(1)  # of equal ones
        return smallest

    choice = cheapest(0.0)
    if _total(use, choice) <= capacity:
        total = _total(costs, choice)
        return _Bound(choice, total, total, costs)
    low, high = 0.0, 1.0
    while _total(use, cheapest(high)) > capacity:
        low, high = high, 4.0 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if _total(use, cheapest(middle)) > capacity else (low, middle)
    reduced = costs + high * use
    choice = _fill(costs, use, capacity, cheapest(high))
    return _Bound(choice, _total(costs, choice), float(reduced.min(1).sum()) - high * capacity, reduced)


def _fill(costs: Floats, use: Ints, capacity: int, choice: Ints) -> Ints:
    """Spends what is left on the changes of single clusters that save most for each unit of budget."""
    rows = np.arange(len(choice))
    left = capacity - int(_total(use, choice))
    while True:
        saved = costs[rows, choice][:, None] - costs
        more = use - use[rows, choice][:, None]
        possible = (saved > 0) & (more <= left)
        if not possible.any():
            return choice
        rate = np.where(possible, saved / np.maximum(more, 0.5), 0.0)
        row, column = np.unravel_index(int(rate.argmax()), rate.shape)
        left -= int(more[row, column])
        choice = choice.copy()
        choice[row] = column


def _dynamic_program(costs: Floats, use: Ints, capacity: int) -> Ints:
    """The optimal columns by the least cost of every used budget; a column of infinite cost is not taken."""
    best = np.full(capacity + 1, np.inf)
    best[0] = 0.0
    taken = np.zeros((len(costs), capacity + 1), dtype=np.int8)
    for row, row_costs in enumerate(costs):
        following = np.full(capacity + 1, np.inf)
        for column in np.flatnonzero(np.isfinite(row_costs) & (use[row] <= capacity)):
            spent = use[row, column]
            reached = best[: capacity + 1 - spent] + row_costs[column]
            less = reached < following[spent:]
            following[spent:][less] = reached[less]
            taken[row, spent:][less] = column
        best = following
    choice = np.empty(len(costs), dtype=np.int64)
    at = int(best.argmin())
    for row in reversed(range(len(costs))):
        choice[row] = taken[row, at]
        at -= int(use[row, choice[row]])
    return choice


def _branch_and_bound(costs: Floats, use: Ints, capacity: int) -> Ints:
    """The same by a mixed-integer program."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    rows, columns = np.nonzero(np.isfinite(costs))
    values = costs[rows, columns]
    one_each = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(costs), len(rows)))
    solved = milp(
        values * (1e3 / max(values.max(), 1e-300)),  # HiGHS stops at an absolute gap of 1e-6
        integrality=np.ones(len(rows), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(use[rows, columns][None, :].astype(np.float64), -np.inf, capacity + 0.5),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        raise RuntimeError(f"HiGHS found no solution of a solvable budget: {solved.message}")
    choice = np.empty(len(costs), dtype=np.int64)
    taken = solved.x > 0.5
    choice[rows[taken]] = columns[taken]
    return choice
