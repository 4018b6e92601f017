"""Packing: round trips of everything, and the layout itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq.quant import Precision, levels, pack_codes, unpack_codes
from mpq.quant.pack import PackedRows, pack_in_memory, pack_rows, packed_shape, row_bytes, unpack_rows
from mpq.quant.table import KINDS


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 5), st.integers(1, 70), st.integers(0, 2**31))
def test_codes_come_back(n_bits: int, rows: int, columns: int, seed: int) -> None:
    top = 3 if n_bits == 2 else 2**n_bits
    codes = torch.randint(0, top, (rows, columns), generator=torch.Generator().manual_seed(seed))
    packed = pack_codes(codes, n_bits)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, row_bytes(n_bits, columns))
    assert torch.equal(unpack_codes(packed, n_bits, columns).long(), codes)


def test_layout() -> None:
    assert pack_codes(torch.tensor([[1, 0, 0, 0, 0, 0, 0, 1, 1]]), 1).tolist() == [[129, 1]]
    assert pack_codes(torch.tensor([[2, 1, 0, 0, 2]]), 2).tolist() == [[2 + 1 * 3 + 2 * 81]]
    assert pack_codes(torch.tensor([[1, 15, 2]]), 4).tolist() == [[1 + 15 * 16, 2]]
    # 3 bits: eight codes are one number of three bytes, first code lowest, first byte lowest
    number = sum(code << (3 * j) for j, code in enumerate([7, 0, 5, 1, 2, 3, 4, 6]))
    packed = pack_codes(torch.tensor([[7, 0, 5, 1, 2, 3, 4, 6]]), 3)
    assert packed.tolist() == [list(number.to_bytes(3, "little"))]
    assert pack_codes(torch.tensor([[255, 0]]), 8).tolist() == [[255, 0]]


@pytest.mark.parametrize(("n_bits", "bits"), [(1, 1), (2, 1.6), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (8, 8)])
def test_packing_is_tight(n_bits: int, bits: float) -> None:
    assert row_bytes(n_bits, 4000) * 8 == 4000 * bits


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_codes_outside_the_table_are_refused(n_bits: int) -> None:
    radix = 3 if n_bits == 2 else 2**n_bits
    for code in (-1, radix):
        with pytest.raises(ValueError, match="do not fit"):
            pack_codes(torch.tensor([[0, code]]), n_bits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_bits", [*range(1, 9), (1, 8, 3, 2, 2, 5, 1)])
def test_matrices_of_levels_come_back(n_bits: int | tuple[int, ...], kind: str) -> None:
    generator = torch.Generator().manual_seed(5)
    precision = Precision(n_bits, kind)
    row_bits = n_bits if isinstance(n_bits, tuple) else (n_bits,) * 7
    rows = []
    for n in row_bits:
        table = torch.tensor(levels(n, kind), dtype=torch.int8)
        rows.append(table[torch.randint(0, len(table), (37,), generator=generator)])
    codes = torch.stack(rows)
    packed = pack_rows(codes, precision)
    assert tuple(packed.shape) == packed_shape(precision, 7, 37)
    assert torch.equal(unpack_rows(packed, precision, 37), codes)

    data = pack_in_memory(codes, precision)
    assert data.shape == packed.shape and data.dtype == torch.uint8
    held = PackedRows(data, precision, 37)
    assert len(held) == len(codes) and torch.equal(held[:], codes)
    assert torch.equal(torch.cat([held[some] for some in held.blocks(3 * 37)]), codes)
    for some in (slice(2, 5), torch.tensor([6, 0, 0, 3])):
        assert held[some].dtype == torch.int8 and torch.equal(held[some], codes[some])


def test_a_level_of_another_table_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 3 bits"):
        pack_rows(torch.tensor([[3]], dtype=torch.int8), Precision(3, "pow2"))
