"""One function over many items in several processes, in order, with the first error raised in the caller."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_processes(function: Callable[[Item], Result], items: Sequence[Item], nj: int) -> Iterator[Result]:
    """Yields ``function(item)`` in the order of `items`, computed by at most `nj` processes.

    Workers are forked, so that they need no second import of torch and scipy, and are started before the
    first result is asked for. With one job or one item everything runs in this process. After an error the
    items not yet begun are dropped.

    Args:
        function: a function of a module (it is pickled), whose results must not depend on `nj`.
        items: what to work on; each should be worth at least some 50 ms.
        nj: number of processes, at least 1.

    Raises:
        Whatever `function` raises first in the order of `items`.
    """
    if nj < 1:
        raise ValueError(f"nj ({nj}) must be at least 1")
    if nj == 1 or len(items) < 2:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(nj, len(items)), mp_context=context, initializer=_single_thread) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _single_thread() -> None:
    """Keeps a worker to one core: nj workers of several threads each are slower than nj workers."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
