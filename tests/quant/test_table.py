"""Tables, projection and the scale fit, against exhaustive references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpq.quant import Precision, Quantized, fit_scale, levels, nearest, project
from mpq.quant.table import CLIPPINGS, KINDS, reach

SYMMETRIC = ("uniform", "pow2")


def test_levels_are_the_papers_tables() -> None:
    assert levels(1) == (-1, 1)
    assert levels(2) == (-1, 0, 1)
    assert levels(4) == tuple(range(-7, 8))
    assert levels(8) == tuple(range(-127, 128))
    assert levels(2, "pow2") == (-1, 0, 1)
    assert levels(3, "pow2") == (-4, -2, -1, 0, 1, 2, 4)
    assert levels(4, "pow2") == (-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_bits", range(1, 9))
def test_levels_fit_their_bits_and_int8(n_bits: int, kind: str) -> None:
    table = levels(n_bits, kind)
    assert len(set(table)) == len(table) <= 2**n_bits
    assert tuple(sorted(table)) == table and table[0] >= -128 and table[-1] <= 127
    if kind == "asym":
        assert len(table) == 2**n_bits
    else:
        assert table == tuple(-v for v in reversed(table))
    if kind == "pow2" and n_bits > 1:
        digits = max(1, n_bits - 3)
        odd_parts = [v // (v & -v) for v in table if v > 0]
        assert max(odd_parts) < 2**digits


@pytest.mark.parametrize("n_bits", [0, 9, -1])
def test_levels_refuse_other_bits(n_bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        levels(n_bits)
    with pytest.raises(ValueError, match="octal"):
        levels(4, "octal")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_bits", range(1, 9))
def test_nearest_finds_the_nearest_level(n_bits: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(n_bits)
    table = torch.tensor(levels(n_bits, kind), dtype=torch.float32)
    values = torch.randn(5000, generator=generator) * table[-1]
    found = nearest(values, n_bits, kind)
    assert torch.isin(found, table).all()
    torch.testing.assert_close((values - found).abs(), (values[:, None] - table).abs().amin(1), rtol=0, atol=0)


def best_error(v: Tensor, n_bits: int, kind: str) -> float:
    """The least ||v - a Q||^2 over all a > 0, by visiting every a at which some level changes."""
    if n_bits == 1:
        return float(v @ v - v.abs().sum() ** 2 / len(v))
    table = torch.tensor(levels(n_bits, kind), dtype=torch.float64)
    edges = (table[1:] + table[:-1]) / 2
    changes = (v.abs()[:, None] / edges[edges > 0]).flatten()
    changes = torch.cat([changes.unique(), changes.max().view(1) * 2])
    middles = torch.cat([changes[:1] / 2, (changes[1:] + changes[:-1]) / 2])
    q = table[(v / middles[:, None])[..., None].sub(table).abs().argmin(-1)]
    gain = (q @ v) ** 2 / (q * q).sum(1).clamp_min(1)
    return float((v @ v) - gain.max())


def error(v: Tensor, scale: Tensor, n_bits: int, kind: str) -> float:
    q = nearest(v.double() / scale.double(), n_bits, kind)
    return float((v - scale.double() * q).square().sum())


@pytest.mark.parametrize("kind", SYMMETRIC)
@pytest.mark.parametrize("n_bits", [1, 2, 3, 4])
def test_fit_is_near_the_global_optimum(n_bits: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(17)
    v = torch.randn(60, 16, generator=generator)
    v[20:40] *= torch.rand(20, 16, generator=generator) ** 3  # heavy tails
    v[40:] = v[40:].sign() * (1 + 0.1 * v[40:])  # two heaps
    scale = fit_scale(v, n_bits, kind)
    fitted = torch.tensor([error(row, a, n_bits, kind) for row, a in zip(v, scale, strict=True)])
    best = torch.tensor([best_error(row.double(), n_bits, kind) for row in v])
    assert (fitted >= best * (1 - 1e-5)).all(), "the reference search is not exhaustive"
    assert fitted.sum() <= best.sum() * {1: 1.0005, 2: 1.01, 3: 1.05, 4: 1.15}[n_bits]


@pytest.mark.parametrize("kind", SYMMETRIC)
@pytest.mark.parametrize("n_bits", range(1, 9))
def test_fit_is_a_local_optimum(n_bits: int, kind: str) -> None:
    """Neither a better scale for the chosen levels, nor better levels for the chosen scale."""
    generator = torch.Generator().manual_seed(n_bits)
    weight = torch.randn(4, 3000, generator=generator)
    codes, scale, _ = project(weight, Precision(n_bits, kind, "row"))
    assert torch.equal(codes.float(), nearest(weight / scale, n_bits, kind))
    q, v = codes.double(), weight.double()
    best_scale = (q * v).sum(1, keepdim=True) / (q * q).sum(1, keepdim=True)
    fitted = (v - scale * q).square().sum(1)
    refitted = (v - best_scale * q).square().sum(1)
    assert (fitted <= refitted * 1.01).all()  # a few alternations, and a scale of 11 bits


def test_one_bit_is_sign_and_mean() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.5, 0.5, -0.5, 0.0]])
    codes, scale, offset = project(weight, Precision(1, scale="row"))
    assert codes.tolist() == [[1, -1, 1, -1], [1, 1, -1, 1]]
    assert scale.tolist() == [[2.5], [0.375]] and offset is None


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 8),
    st.sampled_from(KINDS),
    st.sampled_from(["matrix", "row", 4]),
    st.floats(-20, 10).map(lambda x: 2.0**x),
    st.integers(0, 2**31),
)
def test_projection_is_well_formed(n_bits: int, kind: str, scale: str | int, size: float, seed: int) -> None:
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(seed)) * size
    quantized = project(weight, Precision(n_bits, kind, scale))
    shape = {"matrix": (1, 1), "row": (6, 1), 4: (6, 3)}[scale]
    assert quantized.scale.shape == shape and (quantized.scale > 0).all()
    assert torch.equal(quantized.scale, quantized.scale.half().float())
    assert (quantized.offset is not None) == (kind == "asym")
    if quantized.offset is not None:
        assert quantized.offset.shape == shape and torch.equal(quantized.offset, quantized.offset.half().float())
    assert torch.isin(quantized.codes.int(), torch.tensor(levels(n_bits, kind), dtype=torch.int32)).all()
    if size > 2.0**-13:  # smaller scales fall out of float16's precision
        assert (weight - quantized.dequantize()).norm() < weight.norm()


@pytest.mark.parametrize("n_bits", [1, 2, 3])
def test_asymmetric_fit_is_near_the_global_optimum(n_bits: int) -> None:
    """Against every lowest and top level on a fine grid, in float64."""
    v = torch.randn(12, 14, generator=torch.Generator().manual_seed(n_bits)).exp().double()
    steps, top = torch.linspace(0, 1, 80).double(), 2**n_bits - 1
    best = []
    for row in v:
        low = row.min() + (row.max() - row.min()) * steps[:, None, None]
        scale = ((row.max() - row.min()) * steps[None, :, None] / top).clamp_min(1e-9)
        errors = row - low - scale * ((row - low) / scale).round().clamp(0, top)
        best.append(errors.square().sum(-1).min())
    fitted = project(v.float(), Precision(n_bits, "asym"))
    found = (v - fitted.dequantize().double()).square().sum(1)
    assert found.sum() <= 1.25 * torch.stack(best).sum()
    symmetric = (v - project(v.float(), Precision(n_bits)).dequantize()).square().sum(1)
    assert found.sum() < 0.5 * symmetric.sum(), "numbers of one sign are what it is for"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_bits", [2, 4, 8])
def test_clipping(n_bits: int, kind: str) -> None:
    """None: the extremes are the outer levels.  Search: the part of that with the least absolute error, in float64."""
    weight = torch.randn(5, 60, generator=torch.Generator().manual_seed(n_bits)) ** 3
    none, search = (project(weight, Precision(n_bits, kind, clipping=clipping)) for clipping in ("none", "search"))
    table = levels(n_bits, kind)
    outer = none.scale * (table[-1] if kind != "asym" else table[-1] - table[0])
    reached = weight.abs().amax(1, True) if kind != "asym" else weight.amax(1, True) - weight.amin(1, True)
    torch.testing.assert_close(outer, reached, rtol=2e-3, atol=0)
    w = weight
    for row in range(5):
        errors = []
        for part in torch.linspace(1, 0.5, 11):
            if kind == "asym":
                scale = part * (w[row].max() - w[row].min()) / (table[-1] - table[0])
                offset = part * w[row].min() - scale * table[0]
            else:
                scale, offset = part * w[row].abs().max() / table[-1], 0.0
            scale, offset = scale.half().float(), torch.as_tensor(offset).half().float()
            q = nearest((w[row] - offset) / scale, n_bits, kind)
            errors.append(float((w[row] - scale * q - offset).abs().sum()))
        found = float((w[row] - search.dequantize()[row]).abs().sum())
        assert found == pytest.approx(min(errors), rel=2e-3)
        assert found <= 1.001 * float((w[row] - none.dequantize()[row]).abs().sum())


def test_one_bit_needs_no_clipping() -> None:
    weight = torch.randn(3, 9)
    assert torch.equal(
        project(weight, Precision(1, clipping="search")).dequantize(), project(weight, Precision(1)).dequantize()
    )


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_asymmetric_projection_of_equal_weights(clipping: str, value: float) -> None:
    quantized = project(torch.full((2, 6), value), Precision(2, "asym", clipping=clipping))
    assert (quantized.scale > 0).all()
    torch.testing.assert_close(quantized.dequantize(), torch.full((2, 6), value), rtol=2e-3, atol=1e-6)


def test_projection_of_zeros_is_zero() -> None:
    quantized = project(torch.zeros(3, 5), Precision(4))
    assert not quantized.codes.any()
    assert project(torch.zeros(3, 5), Precision(1)).dequantize().abs().max() < 1e-7


def test_rows_may_have_their_own_bits() -> None:
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    bits = (2, 8, 1, 2, 4)
    together = project(weight, Precision(bits, "uniform", 4))
    for row, n_bits in enumerate(bits):
        alone = project(weight[row : row + 1], Precision(n_bits, "uniform", 4))
        assert torch.equal(together.codes[row : row + 1], alone.codes)
        assert torch.equal(together.scale[row : row + 1], alone.scale)
    assert reach(Precision(bits)).tolist() == [[-e, e] for e in (1.5, 127.5, 0.0, 1.5, 7.5)]
    assert reach(Precision((1, 2), "asym")).tolist() == [[-1.5, 0.5], [-2.5, 1.5]]


def test_dequantize_by_group() -> None:
    codes = torch.tensor([[1, 2, 3, 4]], dtype=torch.int8)
    assert Quantized(codes, torch.tensor([[2.0, 10.0]])).dequantize().tolist() == [[2, 4, 30, 40]]
