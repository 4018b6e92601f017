"""Progress of a long step, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0


def progress(iterable: Iterable[T], total: int | None = None, what: str = "working") -> Iterator[T]:
    """Pass the items of ``iterable`` on, telling on standard error how far it is and how long it still takes.

    A bar on a terminal; elsewhere (a log file, a job on a cluster) one plain line about every ten seconds.

    Args:
        iterable: what to go through.
        total: number of items; by default ``len(iterable)`` where it has one, else only a count is shown.
        what: one or two words that name the step.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return _bar(iterable, total, what) if sys.stderr.isatty() else _lines(iterable, total, what)


def _bar(iterable: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    from rich import progress as shown  # imported late: most commands never draw a bar
    from rich.console import Console

    columns = (
        shown.TextColumn("{task.description}"),
        shown.BarColumn(),
        shown.MofNCompleteColumn(),
        shown.TimeElapsedColumn(),
        shown.TextColumn("left"),
        shown.TimeRemainingColumn(),
    )
    with shown.Progress(*columns, console=Console(stderr=True)) as bar:
        yield from bar.track(iterable, total=total, description=what)


def _lines(iterable: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    start = told = time.monotonic()
    done = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - told >= _SECONDS_BETWEEN_LINES and done != total:
            told = now
            print(_line(done, total, what, now - start), file=sys.stderr, flush=True)
    if told > start:
        print(f"{what}: {done} done in {_clock(time.monotonic() - start)}", file=sys.stderr, flush=True)


def _line(done: int, total: int | None, what: str, elapsed: float) -> str:
    """One line of a log: how much, how long so far, how long still."""
    if not total:
        return f"{what}: {done}, {_clock(elapsed)} so far"
    left = _clock(elapsed / done * (total - done))
    return f"{what}: {done}/{total} ({100 * done / total:.0f} %), {_clock(elapsed)} so far, {left} left"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(max(0.0, seconds))))
