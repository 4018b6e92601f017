"""Times of several ways to do the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Value = TypeVar("Value")


def medians(works: Sequence[Callable[[], Value]], repeats: int, warm: bool = True) -> list[tuple[float, Value]]:
    """Median time on the clock and last result of each; they take turns, after one turn that fills caches if `warm`."""
    times: list[list[float]] = [[] for _ in works]
    values: list[Value] = []
    for _ in range(repeats + warm):
        values = []
        for work, taken in zip(works, times, strict=True):
            begin = time.perf_counter()
            values.append(work())
            taken.append(time.perf_counter() - begin)
    return [(statistics.median(taken[warm:]), value) for taken, value in zip(times, values, strict=True)]
