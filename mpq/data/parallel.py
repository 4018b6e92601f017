"""One function over many items in several processes, in order, with the first error raised in the caller."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_processes(function: Callable[[Item], Result], items: Sequence[Item], nj: int) -> Iterator[Result]:
    """Yields ``function(item)`` in the order of `items`, computed by at most `nj` processes.

    Workers are forked, so that they need no second import of torch and scipy, and are started by the call
    itself, before the caller starts threads of its own (a progress bar). With one job or one item
    everything runs in this process. After an error the items not yet begun are dropped. Workers
    end with this process, however it ends.

    Args:
        function: what the workers inherit, with all that it refers to; its results must not depend on `nj`.
        items: what to work on (they are pickled, as the results are); each should be worth at least some 50 ms.
        nj: number of processes, at least 1.

    Raises:
        Whatever `function` raises first in the order of `items`.
    """
    if nj < 1:
        raise ValueError(f"nj ({nj}) must be at least 1")
    if nj == 1 or len(items) < 2:
        return map(function, items)
    context = multiprocessing.get_context("fork")
    n_workers = min(nj, len(items))
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start_worker, initargs=(function,))
    return _results(pool, [pool.submit(_work, item) for item in items])


def _results(pool: ProcessPoolExecutor, futures: list[Future[Any]]) -> Iterator[Any]:
    with pool:
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_inherited: dict[str, Callable[..., object]] = {}  # by a worker


def _work(item: object) -> object:
    return _inherited["function"](item)


def _start_worker(function: Callable[..., object]) -> None:
    """Makes a worker use one core, leave Ctrl-C to the parent, and end when the parent is gone."""
    _inherited["function"] = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """Ends this process when the one behind `sentinel` has ended; a worker of a killed pool waits for ever."""
    wait([sentinel])
    os._exit(1)
