"""Large tensors taken part by part, so that one pass of an elementwise computation finds the last one's in cache.

The sizes are those that were fastest on an AMD EPYC with 1 MB of second-level cache a core; a part more costs some ten
microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SHARE = 1 << 15  # numbers that torch gives a thread at least
_WHOLE = 1 << 21  # numbers that stay in the third-level cache anyway
_AT_ONCE = 1 << 18  # numbers of a part, for each thread: 1 MB of float32
_GPU_AT_ONCE = 1 << 25  # numbers: few kernels, and still little of its memory


def at_once(n_numbers: int, x: Tensor) -> int:
    """How many numbers to work on at a time: so many, which suit a processor's cache, or more where `x` is on a GPU."""
    return _GPU_AT_ONCE if x.is_cuda else n_numbers


def parts(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of `x` along its first dimension, and those of other tensors with as many entries there; on a GPU all."""
    if x.device.type != "cpu" or x.numel() <= _WHOLE:
        yield (x, *others)
        return
    rows = max(1, _AT_ONCE * torch.get_num_threads() // max(1, x[:1].numel()))
    for start in range(0, len(x), rows):
        yield tuple(tensor[start : start + rows] for tensor in (x, *others))
