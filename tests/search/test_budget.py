"""The budget: equal to exhaustive search, within the budget, and quick for thousands of rows."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq.io import BadInput
from mpq.search import budget
from mpq.search.budget import solve_budget, solve_sizes


def exhaustive(costs: np.ndarray, sizes: list[int], candidates: list[int], bits_allowed: float) -> float:
    """The least cost over all choices."""
    best = np.inf
    for choice in itertools.product(range(len(candidates)), repeat=len(sizes)):
        used = sum(size * candidates[c] for size, c in zip(sizes, choice, strict=True))
        if used <= bits_allowed * sum(sizes) + 1e-9:
            best = min(best, sum(costs[row, c] for row, c in enumerate(choice)))
    return best


def total(costs: np.ndarray, candidates: list[int], bits: np.ndarray) -> float:
    return sum(costs[row, candidates.index(b)] for row, b in enumerate(bits.tolist()))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[int], list[int], float]:
    candidates = draw(st.sampled_from([[1, 2, 4, 8], [2, 4], [1, 2, 3, 4], [8, 2, 4], [3]]))
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    # of any shape: not falling, negative, tied, of very different sizes
    value = st.one_of(st.floats(-10, 10), st.integers(0, 3).map(float), st.floats(0, 1e6), st.floats(0, 1e-6))
    costs = draw(st.lists(st.lists(value, min_size=len(candidates), max_size=len(candidates)),
                          min_size=len(sizes), max_size=len(sizes)))  # fmt: skip
    return np.array(costs), sizes, candidates, draw(st.floats(min(candidates), 8.5))


@pytest.mark.parametrize("cells", [budget._CELLS, -1], ids=["dynamic program", "branch and bound"])
@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_equals_exhaustive_search(cells: int, problem: tuple[np.ndarray, list[int], list[int], float]) -> None:
    costs, sizes, candidates, bits_allowed = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "_CELLS", cells)
        bits = solve_budget(costs, sizes, candidates, bits_allowed)
    assert np.dot(bits, sizes) <= bits_allowed * sum(sizes) + 1e-9
    expected = exhaustive(costs, sizes, candidates, bits_allowed)
    assert total(costs, candidates, bits) == pytest.approx(expected, rel=1e-9, abs=1e-9 * np.abs(costs).max())


def dynamic_programming(costs: np.ndarray, sizes: list[int], candidates: list[int], capacity: int) -> float:
    """The least cost, by going through all used budgets."""
    best = np.full(capacity + 1, np.inf)
    best[0] = 0.0
    for row, size in enumerate(sizes):
        following = np.full(capacity + 1, np.inf)
        for column, bits in enumerate(candidates):
            use = size * bits
            following[use:] = np.minimum(following[use:], best[: capacity + 1 - use] + costs[row, column])
        best = following
    return float(best.min())


@pytest.mark.parametrize("bits_allowed", [1.37, 2.0, 3.5])
def test_thousands_of_rows_in_seconds(bits_allowed: float) -> None:
    rng = np.random.default_rng(0)
    candidates = [1, 2, 4, 8]
    sizes = rng.choice([5, 16], 4000).tolist()
    costs = rng.lognormal(0, 2, 4000)[:, None] * 4.0 ** -np.array(candidates) * rng.uniform(0.8, 1.2, (4000, 4))
    started = time.process_time()
    bits = solve_budget(costs, [size * 64 for size in sizes], candidates, bits_allowed)
    assert time.process_time() - started < 10
    expected = dynamic_programming(costs, sizes, candidates, int(bits_allowed * sum(sizes)))
    assert total(costs, candidates, bits) == pytest.approx(expected, rel=1e-9)


def test_bad_budgets() -> None:
    with pytest.raises(BadInput, match=r"budget of 1\.5 bits cannot be met: the fewest of the candidates are 2"):
        solve_budget(np.zeros((2, 2)), [4, 4], [2, 4], 1.5)
    with pytest.raises(BadInput, match="cost of cluster 1 is not a finite number"):
        solve_budget([[0.0, 0.0], [np.nan, 0.0]], [4, 4], [2, 4], 2)
    with pytest.raises(ValueError, match="must have the shape of the sizes"):
        solve_budget(np.zeros((2, 3)), [4, 4], [2, 4], 2)
    with pytest.raises(BadInput, match="budget of 8 cannot be met: the smallest choice takes 9"):
        solve_sizes(np.zeros((2, 2)), [[4, 8], [7, 5]], 8)


def test_any_sizes() -> None:
    """Packed rows of 320 columns: 2 bits have three levels and take 1.6."""
    rng = np.random.default_rng(3)
    costs = -np.sort(-rng.random((5, 3)), 1)
    use = np.tile([[40, 64, 160]], (5, 1))
    choices = [c for c in itertools.product(range(3), repeat=5) if use[range(5), c].sum() <= 400]
    best = min(costs[range(5), c].sum() for c in choices)
    found = solve_sizes(costs, use, 400)
    assert use[range(5), found].sum() <= 400 and costs[range(5), found].sum() == pytest.approx(best)
