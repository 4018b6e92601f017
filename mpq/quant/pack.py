"""Tight packing of codes into bytes, and back.

A row of codes is cut into groups, and each group is one number in base ``radix`` (first code least
significant) stored in whole bytes, little end first. For 1, 3, 4 ... 8 bits that is plain bit packing; the
three levels of the 2-bit table go five to a byte (3^5 = 243), which makes it 1.6 bits a weight. Rows start at
whole bytes, so that any row can be unpacked alone.

In memory (`PackedRows`) the codes of a byte come from distant columns: byte b of B holds columns b, B + b, 2 B + b, ...
So unpacking is the same arithmetic for many bytes at once, and its results stand side by side already.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq.quant.compiled import at, library_for, share
from mpq.quant.table import Precision, Quantized, levels, scales_of_rows

_AT_ONCE = 1 << 20  # codes that are packed at once: they take 16 bytes each while they are

# n_bits: (radix, codes in a group, bytes of a group)
LAYOUT = {
    1: (2, 8, 1),
    2: (3, 5, 1),
    3: (8, 8, 3),
    4: (16, 2, 1),
    5: (32, 8, 5),
    6: (64, 4, 3),
    7: (128, 8, 7),
    8: (256, 1, 1),
}
_FOUR_LEVELS = (4, 4, 1)  # those of 2 bits that are not three


def layout(n_bits: int, kind: str = "uniform") -> tuple[int, int, int]:
    """Radix, codes in a group and bytes of a group, of a table."""
    return _FOUR_LEVELS if (n_bits, kind) == (2, "asym") else LAYOUT[n_bits]


def row_bytes(n_bits: int, columns: int, kind: str = "uniform") -> int:
    """Bytes of a packed row of that many codes."""
    _, per_group, group_bytes = layout(n_bits, kind)
    return -(-columns // per_group) * group_bytes


def pack_codes(codes: Tensor, n_bits: int, kind: str = "uniform") -> Tensor:
    """Pack rows of unsigned codes.

    Args:
        codes: (R, K) integers in 0 .. radix - 1, at most 2**n_bits of them (three for 2 bits of a symmetric table).
    Returns:
        (R, row_bytes(n_bits, K, kind)) uint8.
    Raises:
        ValueError: a code outside the table.
    """
    radix, per_group, group_bytes = layout(n_bits, kind)
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < radix:
        found = f"{int(codes.min())}..{int(codes.max())}"
        raise ValueError(f"codes {found} do not fit {n_bits} bits: expected 0..{radix - 1}")
    padded = F.pad(codes, (0, -codes.shape[1] % per_group))
    groups = padded.reshape(codes.shape[0], padded.shape[1] // per_group, per_group)
    numbers = (groups.to(torch.int64) * _powers(radix, per_group, codes.device)).sum(-1)
    shifts = torch.arange(0, 8 * group_bytes, 8, device=codes.device)
    return (numbers.unsqueeze(-1) >> shifts).bitwise_and_(255).to(torch.uint8).flatten(1)


def unpack_codes(packed: Tensor, n_bits: int, columns: int, kind: str = "uniform") -> Tensor:
    """The (R, columns) uint8 codes of packed rows (R, row_bytes(n_bits, columns, kind)) uint8."""
    radix, per_group, group_bytes = layout(n_bits, kind)
    shifts = torch.arange(0, 8 * group_bytes, 8, device=packed.device)
    groups = packed.reshape(packed.shape[0], packed.shape[1] // group_bytes, group_bytes)
    numbers = (groups.to(torch.int64) << shifts).sum(-1)
    codes = numbers.unsqueeze(-1) // _powers(radix, per_group, packed.device) % radix
    return codes.to(torch.uint8).flatten(1)[:, :columns]


def _powers(radix: int, count: int, device: torch.device) -> Tensor:
    return torch.tensor([radix**j for j in range(count)], device=device)


def pack_rows(codes: Tensor, precision: Precision) -> Tensor:
    """Pack a matrix of levels.

    Args:
        codes: (R, K) int8 levels of the table of ``precision``.
    Returns:
        (R, bytes) uint8; with bits of their own for each row, (bytes,): the rows of 1 bit, then of 2, ...
    """
    bits = precision.n_bits
    if isinstance(bits, int):
        table = levels(bits, precision.kind)
        rank = torch.full((256,), -1, dtype=torch.int16)  # in the table, of each int8 value; none: -1, refused
        rank[torch.tensor(table) + 128] = torch.arange(len(table), dtype=torch.int16)
        parts = torch.split(codes, max(1, _AT_ONCE // max(1, codes.shape[1])))
        return torch.cat([pack_codes(rank.to(codes.device)[part.int() + 128], bits, precision.kind) for part in parts])
    blocks = [pack_rows(codes[rows], Precision(n, precision.kind)).flatten() for n, rows in _by_bits(bits)]
    return torch.cat(blocks)


def packed_shape(precision: Precision, rows: int, columns: int) -> tuple[int, ...]:
    """Shape of what `pack_rows` makes of a matrix."""
    bits = precision.n_bits
    if isinstance(bits, int):
        return rows, row_bytes(bits, columns, precision.kind)
    return (sum(row_bytes(n, columns, precision.kind) for n in bits),)


def unpack_rows(packed: Tensor, precision: Precision, columns: int) -> Tensor:
    """The (R, columns) int8 levels of what `pack_rows` made."""
    bits = precision.n_bits
    if isinstance(bits, int):
        group_levels = _group_levels(bits, precision.kind, packed.device)
        if group_levels is None:
            table = torch.tensor(levels(bits, precision.kind), dtype=torch.int8, device=packed.device)
            return table[unpack_codes(packed, bits, columns, precision.kind).int()]
        unpacked = group_levels.index_select(0, packed.flatten().int())
        return unpacked.view(packed.shape[0], unpacked.shape[1] * packed.shape[1])[:, :columns]
    codes = torch.empty(len(bits), columns, dtype=torch.int8, device=packed.device)
    start = 0
    for n, rows in _by_bits(bits):
        size = len(rows) * row_bytes(n, columns, precision.kind)
        block = packed[start : start + size].view(len(rows), -1)
        codes[rows] = unpack_rows(block, Precision(n, precision.kind), columns)
        start += size
    return codes


@dataclass(frozen=True, slots=True)
class PackedRows:
    """A matrix of levels packed for use in memory; slices and selections of rows are unpacked.

    Attributes:
        data: (R, bytes) uint8, what `pack_in_memory` made.
        precision: of its levels.
        columns: K.
    """

    data: Tensor
    precision: Precision
    columns: int

    def __len__(self) -> int:
        """R."""
        bits = self.precision.n_bits
        return len(self.data if isinstance(bits, int) else bits)

    def blocks(self, n_weights: int) -> list[slice]:
        """All rows, in slices of about that many weights each; one slice where rows cannot be unpacked alone."""
        n_rows = max(64, n_weights // self.columns) if isinstance(self.precision.n_bits, int) else len(self)
        return [slice(first, first + n_rows) for first in range(0, len(self), n_rows)]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """The int8 levels (M, K) of some rows."""
        if not isinstance(self.precision.n_bits, int):
            return unpack_rows(self.data, self.precision, self.columns)[rows]
        data = self.data[rows] if isinstance(rows, slice) else self.data.index_select(0, rows)
        if not _is_even(self.precision):
            return unpack_rows(data, self.precision, self.columns)
        return _unpack_columns(data, self.precision.n_bits, self.precision.kind)[:, : self.columns]


class Held(NamedTuple):
    """A quantized matrix as serving holds it: like `Quantized`, with codes that may be packed."""

    codes: Tensor | PackedRows
    scale: Tensor
    offset: Tensor | None = None

    def rows(self, some: slice | Tensor) -> Quantized:
        """Those rows alone, unpacked."""
        return Quantized(self.codes[some], *scales_of_rows(self.scale, self.offset, some))


def pack_in_memory(codes: Tensor, precision: Precision) -> Tensor:
    """The ``data`` of `PackedRows` for a matrix of levels (R, K) int8; as many bytes as `pack_rows` makes."""
    if not _is_even(precision):
        return pack_rows(codes, precision)
    assert isinstance(precision.n_bits, int)
    per_group = layout(precision.n_bits, precision.kind)[1]
    lowest = levels(precision.n_bits, precision.kind)[0]
    padded = F.pad(codes, (0, -codes.shape[1] % per_group), value=lowest)
    distant = padded.view(len(codes), per_group, -1).transpose(1, 2).flatten(1)
    return pack_rows(distant, precision)


def _is_even(precision: Precision) -> bool:
    """Whether the levels are evenly spaced and a group of codes is one byte: what `_unpack_columns` needs."""
    bits = precision.n_bits
    return isinstance(bits, int) and LAYOUT[bits][2] == 1 and (precision.kind != "pow2" or bits <= 2)


def _unpack_columns(data: Tensor, n_bits: int, kind: str) -> Tensor:
    """Levels (R, codes of a byte * B) int8 of packed bytes (R, B), by arithmetic: a table took 20 times as long."""
    radix, per_group, _ = layout(n_bits, kind)
    lowest = levels(n_bits, kind)[0]
    n_bytes = data.shape[1]
    out = torch.empty(data.shape[0], per_group * n_bytes, dtype=torch.int8, device=data.device)
    step = 2 if n_bits == 1 and kind != "asym" else 1
    if library := library_for(data, dtype=torch.uint8):
        data = data.contiguous()

        def work(first: int, rows: int) -> None:
            places = at(data, first), at(out, first)
            library.unpack_rows(*places, rows, n_bytes, per_group, n_bits, radix == 3, step, lowest)

        share(work, *out.shape)
        return out
    rest = data.to(torch.int16)
    half = rest.new_tensor(256)
    if radix == 3:
        rest -= 121  # sum of rank * 3**j with ranks 0, 1, 2: now the same sum of levels -1, 0, 1
    for j in range(per_group):
        plane = out[:, j * n_bytes : (j + 1) * n_bytes]
        if radix == 3:
            above = torch.add(half, rest, alpha=171).bitwise_right_shift_(9)  # rest / 3, rounded: exact up to 121
            plane.copy_(rest.sub_(above, alpha=3))
        else:
            above = rest.bitwise_right_shift(n_bits)
            plane.copy_(rest.bitwise_and_(radix - 1))
            if step > 1:
                plane.mul_(step)
            plane.add_(lowest)
        rest = above
    return out


def _by_bits(bits: tuple[int, ...]) -> list[tuple[int, list[int]]]:
    """The rows of each number of bits, ascending."""
    rows: dict[int, list[int]] = {n: [] for n in sorted(set(bits))}
    for row, n in enumerate(bits):
        rows[n].append(row)
    return list(rows.items())


@cache
def _group_levels(n_bits: int, kind: str, device: torch.device) -> Tensor | None:
    """(256, codes in a group) int8: the levels that each byte stands for, where a group is one byte."""
    _, per_group, group_bytes = layout(n_bits, kind)
    if group_bytes > 1:
        return None
    every_byte = torch.arange(256, dtype=torch.uint8).unsqueeze(1)
    ranks = unpack_codes(every_byte, n_bits, per_group, kind).int()
    table = torch.tensor(levels(n_bits, kind), dtype=torch.int8)
    return table[ranks.clamp_(max=len(table) - 1)].to(device)
