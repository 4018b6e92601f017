"""Ranges of the numbers that people give, written as intervals: ``[1, inf)``, ``(0, 1]``."""

from __future__ import annotations

import math

from mpq.io.errors import BadInput

SEEDS = "[0, 4294967296)"  # torch takes 64 bits, and a seed is multiplied to get one for each epoch


def check_range(name: str, value: float, interval: str) -> None:
    """Refuse a number outside an interval; NaN is in none, infinity in none of the open ends ``inf)``.

    Args:
        name: what people call the number: an option or a key of a configuration file.
        value: what they gave.
        interval: as in mathematics: ``[0, 1)`` holds 0 but not 1.

    Raises:
        BadInput: the number, and what it must be.

    Example:
        >>> check_range("--nj", 0, "[1, inf)")
        Traceback (most recent call last):
        mpq.io.errors.BadInput: --nj: 0 must be at least 1
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    enough = value >= low if interval[0] == "[" else value > low
    if enough and (value <= high if interval[-1] == "]" else value < high):
        return
    ends = [f"{'at least' if interval[0] == '[' else 'above'} {low:.10g}"] if low > -math.inf else []
    if high < math.inf:
        ends.append(f"{'at most' if interval[-1] == ']' else 'below'} {high:.10g}")
    finite = [] if math.isfinite(value) else ["finite"]
    raise BadInput(f"{name}: {value} must be {' and '.join([*ends, *finite])}")


def check_ranges(config: object, **intervals: str) -> None:
    """Refuse a configuration whose attributes, numbers or lists of numbers, are outside their intervals.

    Example:
        >>> check_ranges(config, epochs="[1, inf)", dropout="[0, 1)")
    """
    for name, interval in intervals.items():
        value = getattr(config, name)
        for number in value if isinstance(value, list | tuple) else [value]:
            check_range(name, number, interval)
