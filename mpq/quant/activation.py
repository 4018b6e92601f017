"""Sigmoid, GELU and log sum exp whose numbers do not depend on what else is in the tensor, as integer layers need them.

torch computes sigmoids by vectors of up to 32 numbers, and what is left over at the end of a tensor, or of a thread's
share of it, one by one, with other last bits. After an integer layer's rounding that would now and then be
another int8 code, and so another score for the same sentence in another batch. The compiled ones have no such ends, and
take a quarter of the time; where there are none, torch's tensors are filled up to whole vectors.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpq.quant.cache import SHARE, parts
from mpq.quant.compiled import at, library_for, share

_VECTORS = 64  # a multiple of the numbers that any processor takes at once
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def sigmoid_(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), in place, of a contiguous tensor."""
    library = library_for(x)
    if library and x.is_contiguous():
        numbers = x.view(-1)
        share(lambda first, count: library.sigmoids(at(numbers, first), count), len(numbers), 1)
        return x
    if x.device.type != "cpu":
        return x.sigmoid_()
    flat = x.view(-1)
    even, n_threads = len(flat) // _VECTORS * _VECTORS, torch.get_num_threads()
    together = SHARE * n_threads if n_threads > 1 else max(1, even)
    shared = even // together * together
    for piece in (*torch.split(flat[:shared], together), *torch.split(flat[shared:even], SHARE)):
        piece.sigmoid_()
    if even < len(flat):
        flat[even:] = F.pad(flat[even:], (0, even + _VECTORS - len(flat))).sigmoid_()[: len(flat) - even]
    return x


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (Hendrycks and Gimpel 2016), x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).

    Args:
        x: contiguous float32, of any shape.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
        return result
    result = torch.empty_like(x)
    library = library_for(x)
    if library and x.is_contiguous():
        _gelus(library, x, None, result)
        return result
    for part, out in parts(x.view(-1), result.view(-1)):
        torch.mul(_gate(part), part, out=out)
    return result


def _gate(x: Tensor) -> Tensor:
    """What GELU multiplies x by."""
    gate: Tensor = torch.addcmul(x.new_tensor(_LINEAR), x, x, value=_CUBIC)
    return sigmoid_(gate.mul_(x))


def _gelus(library: ctypes.CDLL, *tensors: Tensor | None) -> None:
    """x, its gate (none: not kept) and the result, contiguous."""
    flat = [None if x is None else x.view(-1) for x in tensors]

    def work(first: int, count: int) -> None:
        library.gelus(*(at(x, first) for x in flat), count)

    assert flat[0] is not None
    share(work, len(flat[0]), 1)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        library = library_for(x)
        if library and x.is_contiguous():
            gate, out = torch.empty_like(x), torch.empty_like(x)
            _gelus(library, x, gate, out)
        else:
            gate = _gate(x)
            out = gate * x
        ctx.save_for_backward(x, gate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope: Tensor = x.square().mul_(3 * _CUBIC).add_(_LINEAR).mul_(x).mul_(1 - gate).add_(1).mul_(gate)
        return slope.mul_(grad)


def log_sum_exp(x: Tensor) -> Tensor:
    """log sum exp of every row, (M, V) to (M,) float32."""
    x = x.float()
    library = library_for(x)
    if library is None or (torch.is_grad_enabled() and x.requires_grad):
        return x.logsumexp(1)
    x, out = x.contiguous(), x.new_empty(len(x))

    def work(first: int, rows: int) -> None:
        library.log_sums(at(x, first), at(out, first), rows, x.shape[1])

    share(work, *x.shape)
    return out
