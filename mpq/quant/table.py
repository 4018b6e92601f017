"""Quantization tables, and matrices whose numbers are levels of them.

A weight matrix V is stored as a * Q: Q holds levels of a small table of integers, a is one float scale for
the whole matrix, for each row (node), or for each group of columns of a row (arXiv 2111.14479, eqs 5-7). The
power-of-two levels are those of Leng et al. (AAAI 2018), used for LMs in arXiv 2111.14836. An asymmetric table
(``asym``; arXiv 2305.16619) has all 2^n integers and, with each scale, an offset b: a * Q + b.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("uniform", "pow2", "asym")
CLIPPINGS = ("squares", "search", "none")
SCALE_DTYPE = torch.float16  # what a file holds; scales are rounded to it before the codes are chosen
SCALE_MIN, SCALE_MAX = 2.0**-24, 65504.0  # the positive range of float16


@cache
def levels(n_bits: int, kind: str = "uniform") -> tuple[int, ...]:
    """The levels of the n-bit table, ascending; all of them fit int8.

    One bit is the sign, so the tables are symmetric: 1 bit {-1, 1}, 2 bits {-1, 0, 1}, 4 bits uniform 0,
    ±1..±7. ``asym`` has all integers that the bits can write: 2 bits {-2, -1, 0, 1}. ``pow2`` has 0, ±1, ±2, ±4
    ... up to 4 bits (±64); beyond int8's range more octaves would add nothing, so from 5 bits on each further bit
    adds a significant binary digit instead (5 bits: 0, ±1, ±2, ±3, ±4, ±6 ... ±96).

    Raises:
        ValueError: n_bits outside 1..8, or an unknown kind.
    """
    if not 1 <= n_bits <= 8:
        raise ValueError(f"a table has 1 to 8 bits, not n_bits={n_bits}")
    if kind not in KINDS:
        raise ValueError(f"unknown kind of table {kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "asym":
        return tuple(range(-(2 ** (n_bits - 1)), 2 ** (n_bits - 1)))
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
        kind: ``uniform``, ``pow2`` or ``asym`` levels.
        scale: what shares one scale: ``matrix``, ``row``, or that many neighbouring columns of a row (all of a row that
            has fewer).
        clipping: how a scale is found: ``squares``, the least squared error; ``none``, the largest weight is the top
            level; ``search``, the part of that with the least absolute error (see `mpq.quant.fit`).
    """

    n_bits: int | tuple[int, ...]
    kind: str = "uniform"
    scale: str | int = "row"
    clipping: str = "squares"


class Quantized(NamedTuple):
    """A quantized matrix.

    Attributes:
        codes: (rows, columns) int8, levels of the table.
        scale: (rows or 1, groups) float32.
        offset: the same, of an asymmetric table; else None.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None = None

    def rows(self, some: slice | Tensor) -> Quantized:
        """Those rows alone."""
        return Quantized(self.codes[some], *scales_of_rows(self.scale, self.offset, some))

    def dequantize(self) -> Tensor:
        """scale * codes + offset, (rows, columns) float32."""
        rows, columns = self.codes.shape
        groups = self.scale.shape[1]
        blocks = self.codes.to(torch.float32).view(rows, groups, columns // groups)
        blocks.mul_(self.scale.unsqueeze(-1))
        return (blocks if self.offset is None else blocks.add_(self.offset.unsqueeze(-1))).view(rows, columns)


def scales_of_rows(scale: Tensor, offset: Tensor | None, some: slice | Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale and offset, (rows or 1, groups), of some rows."""
    if len(scale) == 1:
        return scale, offset
    return scale[some], None if offset is None else offset[some]


def nearest(values: Tensor, n_bits: int, kind: str = "uniform") -> Tensor:
    """The level nearest to each value (argmin_q |value - q|), as float; halfway cases go either way."""
    table = levels(n_bits, kind)
    if n_bits == 1 and kind != "asym":
        return torch.where(values < 0, -1.0, 1.0)
    if kind != "pow2":
        return values.round().clamp_(table[0], table[-1])
    digits = _digits(n_bits)  # rounding to that many significant binary digits, to integers below 2**digits
    step = torch.exp2((torch.frexp(values).exponent - digits).clamp_min_(0))
    return (values / step).round_().mul_(step).clamp_(table[0], table[-1])


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


def round_to(weight: Tensor, scale: Tensor, precision: Precision, offset: Tensor | None = None) -> Quantized:
    """The codes nearest to ``weight`` under given scales, where `project` fits the scales too.

    Args:
        weight: (rows, ...) float.
        scale, offset: (rows or 1, groups) float32, as `project` returns them.
    """
    weight = weight.detach().to(torch.float32).flatten(1)
    bits = precision.n_bits
    blocks = weight.reshape(len(weight), scale.shape[1], -1)
    blocks = blocks if offset is None else blocks - offset.unsqueeze(-1)
    values = (blocks / scale.unsqueeze(-1)).flatten(1)
    if isinstance(bits, int):
        return Quantized(nearest(values, bits, precision.kind).to(torch.int8), scale, offset)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    row_bits = torch.tensor(bits, device=weight.device)
    for n_bits in sorted(set(bits)):
        chosen = (row_bits == n_bits).nonzero().squeeze(1)
        codes[chosen] = nearest(values[chosen], n_bits, precision.kind).to(torch.int8)
    return Quantized(codes, scale, offset)


@cache
def reach(precision: Precision) -> Tensor:
    """From where to where, in scales, the rounding error moves with the scale; (rows or 1, 2) float32.

    That is from the lowest level to the top one, and half the step beyond them; none at 1 bit of a symmetric table,
    where the code does not depend on the scale.
    """
    bits = precision.n_bits
    rows = bits if isinstance(bits, tuple) else (bits,)
    edges = {n: _edges(n, precision.kind) for n in set(rows)}
    return torch.tensor([edges[n] for n in rows])


def _edges(n_bits: int, kind: str) -> tuple[float, float]:
    if n_bits == 1 and kind != "asym":
        return 0.0, 0.0
    table = levels(n_bits, kind)
    half = (table[-1] - table[-2]) / 2
    return table[0] - half, table[-1] + half
