"""Numbers and the intervals that they must be in."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mpq.io import BadInput, check_range, check_ranges


@pytest.mark.parametrize(
    ("value", "interval"), [(1, "[1, inf)"), (0.0, "[0, 1)"), (1.0, "(0, 1]"), (-5, "(-inf, 0]"), (10**30, "[1, inf)")]
)
def test_inside(value: float, interval: str) -> None:
    check_range("--n", value, interval)


@pytest.mark.parametrize(
    ("value", "interval", "message"),
    [
        (0, "[1, inf)", "--n: 0 must be at least 1"),
        (0.0, "(0, inf)", "--n: 0.0 must be above 0"),
        (1.0, "[0, 1)", "--n: 1.0 must be at least 0 and below 1"),
        (2, "(0, 1]", "--n: 2 must be above 0 and at most 1"),
        (1000001, "[1, 1e6]", "--n: 1000001 must be at least 1 and at most 1000000"),
        (float("nan"), "[0, 1]", "--n: nan must be at least 0 and at most 1 and finite"),
        (float("inf"), "(0, inf)", "--n: inf must be above 0 and finite"),
        (float("-inf"), "(-inf, inf)", "--n: -inf must be finite"),
    ],
)
def test_outside(value: float, interval: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_range("--n", value, interval)
    assert str(caught.value) == message


@dataclass
class Config:
    size: int = 1
    steps: tuple[int, ...] = (1, 2)


def test_configurations_with_lists() -> None:
    check_ranges(Config(), size="[1, inf)", steps="[1, inf)")
    with pytest.raises(BadInput, match="steps: 0 must be at least 1"):
        check_ranges(Config(steps=(1, 0)), size="[1, inf)", steps="[1, inf)")
