"""Quantization tables and the fit of a weight matrix to them.

A weight matrix V is stored as a * Q: Q holds levels of a small table of integers, a is one float scale for
the whole matrix, for each row (node), or for each group of columns of a row (arXiv 2111.14479, eqs 5-7). The
power-of-two levels and the alternating fit are those of Leng et al. (AAAI 2018), used for LMs in arXiv 2111.14836.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("uniform", "pow2")
SCALE_DTYPE = torch.float16  # what a file holds; scales are rounded to it before the codes are chosen
SCALE_MIN, SCALE_MAX = 2.0**-24, 65504.0  # the positive range of float16
_N_STARTS = 8  # scales tried before the alternating fit, which only finds the nearest local optimum
_N_ITERS = 3
_CHUNK = 2**18  # elements worked on at a time, to stay in the cache: 7 times faster on large matrices


@cache
def levels(n_bits: int, kind: str = "uniform") -> tuple[int, ...]:
    """The levels of the n-bit table, ascending; all of them fit int8.

    One bit is the sign, so the tables are symmetric: 1 bit {-1, 1}, 2 bits {-1, 0, 1}, 4 bits uniform 0,
    ±1..±7. ``pow2`` has 0, ±1, ±2, ±4 ... up to 4 bits (±64); beyond int8's range more octaves would add
    nothing, so from 5 bits on each further bit adds a significant binary digit instead (5 bits: 0, ±1, ±2,
    ±3, ±4, ±6 ... ±96).

    Raises:
        ValueError: n_bits outside 1..8, or an unknown kind.
    """
    if not 1 <= n_bits <= 8:
        raise ValueError(f"a table has 1 to 8 bits, not n_bits={n_bits}")
    if kind not in KINDS:
        raise ValueError(f"unknown kind of table {kind!r}: expected one of {', '.join(KINDS)}")
    if n_bits == 1:
        return (-1, 1)
    top = 2 ** (n_bits - 1) - 1
    positive = list(range(1, top + 1))
    if kind == "pow2":
        positive = [v for v in range(1, 128) if (v // (v & -v)).bit_length() <= _digits(n_bits)][:top]
    return (*(-v for v in reversed(positive)), 0, *positive)


def _digits(n_bits: int) -> int:
    """Significant binary digits of the levels of a ``pow2`` table."""
    return max(1, n_bits - 3)


@dataclass(frozen=True, slots=True)
class Precision:
    """How one weight matrix is quantized.

    Attributes:
        n_bits: bits of the table, or one number for each row (node-level plans).
        kind: ``uniform`` or ``pow2`` levels.
        scale: what shares one scale: ``matrix``, ``row``, or that many neighbouring columns of a row (all of a row that
            has fewer).
    """

    n_bits: int | tuple[int, ...]
    kind: str = "uniform"
    scale: str | int = "row"


class Quantized(NamedTuple):
    """A quantized matrix.

    Attributes:
        codes: (rows, columns) int8, levels of the table.
        scale: (rows or 1, groups) float32.
    """

    codes: Tensor
    scale: Tensor

    def rows(self, some: slice) -> Quantized:
        """Those rows alone."""
        return Quantized(self.codes[some], self.scale if len(self.scale) == 1 else self.scale[some])

    def dequantize(self) -> Tensor:
        """scale * codes, (rows, columns) float32."""
        rows, columns = self.codes.shape
        groups = self.scale.shape[1]
        blocks = self.codes.to(torch.float32).view(rows, groups, columns // groups)
        return blocks.mul_(self.scale.unsqueeze(-1)).view(rows, columns)


def nearest(values: Tensor, n_bits: int, kind: str = "uniform") -> Tensor:
    """The level nearest to each value (argmin_q |value - q|), as float; halfway cases go either way."""
    table = levels(n_bits, kind)
    if n_bits == 1:
        return torch.where(values < 0, -1.0, 1.0)
    if kind == "uniform":
        return values.round().clamp_(table[0], table[-1])
    digits = _digits(n_bits)  # rounding to that many significant binary digits, to integers below 2**digits
    step = torch.exp2((torch.frexp(values).exponent - digits).clamp_min_(0))
    return (values / step).round_().mul_(step).clamp_(table[0], table[-1])


def fit_scale(clusters: Tensor, n_bits: int, kind: str = "uniform") -> Tensor:
    """The scale a of each cluster v that makes ||v - a Q||^2 small.

    The alternating fit of Leng et al. 2018: Q <- nearest(v / a), a <- <v, Q> / <Q, Q>, from the best of a few
    starts between mean |v| and max |v| (as the value of the top level). 1 bit is the closed form a = mean |v|.
    The same weights always give the same scale.

    Args:
        clusters: (C, M) float, one row for each scale.
    Returns:
        (C, 1) float32, positive, representable in float16.
    """
    at_once = max(1, _CHUNK // clusters.shape[1])
    scales = [_fit(part.abs(), n_bits, kind) for part in torch.split(clusters, at_once)]
    return torch.cat(scales).clamp_(SCALE_MIN, SCALE_MAX).to(SCALE_DTYPE).to(torch.float32)


def _fit(v: Tensor, n_bits: int, kind: str) -> Tensor:
    """`fit_scale` on magnitudes: the tables are symmetric, so signs do not matter to the fit."""
    if n_bits == 1:
        return v.mean(1, keepdim=True)
    scale = _best_start(v, n_bits, kind)
    for _ in range(_N_ITERS):
        scale = _refit(v, scale, n_bits, kind)[0]
    return scale


def _best_start(v: Tensor, n_bits: int, kind: str) -> Tensor:
    """The start with the least error: after a refit that is |v|^2 - <v, Q>^2 / <Q, Q>."""
    top = levels(n_bits, kind)[-1]
    high = v.amax(1, keepdim=True).clamp_min(SCALE_MIN) / top
    low = (v.mean(1, keepdim=True) / top).clamp_min(SCALE_MIN)
    best, gain = high, torch.zeros_like(high)
    for i in range(_N_STARTS):
        start = (low.sqrt() + (high.sqrt() - low.sqrt()) * (i / (_N_STARTS - 1))).square()
        scale, candidate = _refit(v, start, n_bits, kind)
        better = candidate > gain
        best, gain = torch.where(better, scale, best), torch.where(better, candidate, gain)
    return best


def _refit(v: Tensor, scale: Tensor, n_bits: int, kind: str) -> tuple[Tensor, Tensor]:
    """One alternation: the best scale for the levels that ``scale`` selects, and <v, Q>^2 / <Q, Q>."""
    vq, qq = torch.zeros_like(scale), torch.zeros_like(scale)
    for part in torch.split(v, _CHUNK, 1):
        q = nearest(part / scale, n_bits, kind)
        vq += torch.linalg.vecdot(part, q).unsqueeze(1)
        qq += torch.linalg.vecdot(q, q).unsqueeze(1)
    scale = vq / qq.clamp_min_(1.0)
    return torch.where(scale > 0, scale, SCALE_MIN), vq * scale


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """(rows, columns) of a weight; a convolution's row is what makes one output channel, (in / groups) * kernel."""
    return weight.shape[0], weight[0].numel()


def scale_shape(precision: Precision, rows: int, columns: int) -> tuple[int, int]:
    """Shape of the scales of a matrix, (rows or 1, groups)."""
    if precision.scale == "matrix":
        return 1, 1
    return rows, columns // group_width(precision.scale, columns)


def group_width(scale: str | int, columns: int) -> int:
    """Columns of a row that share a scale, where it is not one for the matrix: `scale` of them, or all there are."""
    return min(scale, columns) if isinstance(scale, int) else columns


@torch.no_grad()
def project(weight: Tensor, precision: Precision) -> Quantized:
    """The quantized matrix nearest to ``weight`` in its table: Π_C of ADMM, the rounding of the STE.

    Args:
        weight: (rows, ...) float.
    """
    weight = weight.detach().to(torch.float32).flatten(1)
    bits = precision.n_bits
    if isinstance(bits, int):
        return _project_rows(weight, bits, precision.kind, precision.scale)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    groups = weight.shape[1] // group_width(precision.scale, weight.shape[1])
    scale = torch.empty(weight.shape[0], groups, device=weight.device)
    row_bits = torch.tensor(bits, device=weight.device)
    for n_bits in sorted(set(bits)):
        rows = (row_bits == n_bits).nonzero().squeeze(1)
        codes[rows], scale[rows] = _project_rows(weight[rows], n_bits, precision.kind, precision.scale)
    return Quantized(codes, scale)


def _project_rows(weight: Tensor, n_bits: int, kind: str, granularity: str | int) -> Quantized:
    rows, columns = weight.shape
    if granularity == "matrix":
        clusters = weight.reshape(1, -1)
    else:
        clusters = weight.reshape(-1, group_width(granularity, columns))
    scale = fit_scale(clusters, n_bits, kind)
    codes = nearest(clusters / scale, n_bits, kind).to(torch.int8)
    return Quantized(codes.reshape(rows, columns), scale.reshape(1 if granularity == "matrix" else rows, -1))


def round_to(weight: Tensor, scale: Tensor, precision: Precision) -> Quantized:
    """The codes nearest to ``weight`` under given scales, where `project` fits the scales too.

    Args:
        weight: (rows, ...) float.
        scale: (rows or 1, groups) float32, as `project` returns it.
    """
    weight = weight.detach().to(torch.float32).flatten(1)
    bits = precision.n_bits
    rows, groups = weight.shape[0], scale.shape[1]
    values = (weight.reshape(rows, groups, -1) / scale.unsqueeze(-1)).flatten(1)
    if isinstance(bits, int):
        return Quantized(nearest(values, bits, precision.kind).to(torch.int8), scale)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    row_bits = torch.tensor(bits, device=weight.device)
    for n_bits in sorted(set(bits)):
        chosen = (row_bits == n_bits).nonzero().squeeze(1)
        codes[chosen] = nearest(values[chosen], n_bits, precision.kind).to(torch.int8)
    return Quantized(codes, scale)


@cache
def reach(precision: Precision) -> Tensor:
    """Up to where, in scales, the rounding error of a weight moves with the scale; (rows or 1, 1) float32.

    That is the top level and half the step below it; 0 at 1 bit, where the code does not depend on the scale.
    """
    bits = precision.n_bits
    rows = bits if isinstance(bits, tuple) else (bits,)
    edges = {n: _edge(n, precision.kind) for n in set(rows)}
    return torch.tensor([[edges[n]] for n in rows])


def _edge(n_bits: int, kind: str) -> float:
    if n_bits == 1:
        return 0.0
    table = levels(n_bits, kind)
    return table[-1] + (table[-1] - table[-2]) / 2
