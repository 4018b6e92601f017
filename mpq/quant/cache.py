"""Large tensors taken part by part, so that one pass of an elementwise computation finds the last one's in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SHARE = 1 << 15  # numbers that torch gives a thread at least
_AT_ONCE = 4 * SHARE  # float32: 0.5 MB a thread


def parts(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of `x` along its first dimension, and those of other tensors with as many entries there; on a GPU all."""
    if x.device.type != "cpu":
        yield (x, *others)
        return
    at_once = max(1, _AT_ONCE * torch.get_num_threads() // max(1, x[:1].numel()))
    for start in range(0, len(x), at_once):
        yield tuple(tensor[start : start + at_once] for tensor in (x, *others))
