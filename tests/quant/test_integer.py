"""The integer product: exact, independent of batching, and with the gradients of the straight-through estimator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpq.quant import Precision, Quantized, int8_rows, int_linear, int_matmul, integer, project, straight_through
from mpq.quant.table import reach, round_to


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(-30, 30).map(lambda x: 2.0**x), st.integers(0, 2**31))
def test_rows_are_rounded_to_within_half_a_step(columns: int, size: float, seed: int) -> None:
    x = torch.randn(5, columns, generator=torch.Generator().manual_seed(seed)) * size
    codes, scale = int8_rows(x)
    assert codes.dtype == torch.int8 and scale.shape == (5, 1)
    assert torch.equal(codes.abs().amax(1), torch.full((5,), 127, dtype=torch.int8))
    assert ((x - codes * scale).abs() <= scale * 0.5001).all()


def test_rows_of_zeros_give_zeros() -> None:
    codes, scale = int8_rows(torch.zeros(2, 3))
    assert not codes.any() and torch.isfinite(scale).all()


@pytest.mark.parametrize("in_floats", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 1, 2), (3, 5, 7), (17, 8, 8), (64, 256, 100), (2, 4000, 3), (0, 8, 8)]
)
def test_int_matmul_is_exact(shape: tuple[int, int, int], in_floats: bool) -> None:
    m, k, n = shape
    generator = torch.Generator().manual_seed(k)
    a = torch.randint(-127, 128, (m, k), generator=generator, dtype=torch.int8)
    b = torch.randint(-127, 128, (n, k), generator=generator, dtype=torch.int8)
    a[: m // 2], b[: n // 2] = 127, 127  # the largest sums there are
    product = integer._matmul_in_floats(a, b) if in_floats else int_matmul(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), a.long() @ b.long().t())


def test_int_matmul_of_rows_and_columns_that_stand_alone() -> None:
    """Whose strides say nothing: torch 2.11 makes random numbers of some."""
    for shape in ((1, 2, 2), (1, 2, 5), (5, 2, 1), (1, 1, 2), (4, 1, 3), (1, 7, 1)):
        m, k, n = shape
        a, b = (
            torch.randint(-127, 128, (k, m), dtype=torch.int8).t(),
            torch.randint(-127, 128, (k, n), dtype=torch.int8).t(),
        )
        assert torch.equal(int_matmul(a, b).long(), a.long() @ b.long().t()), shape


@pytest.mark.gpu
def test_int_matmul_on_cuda() -> None:
    for m, k, n in [(1, 1, 1), (3, 5, 7), (17, 8, 8), (64, 256, 100)]:
        a = torch.randint(-127, 128, (m, k), dtype=torch.int8)
        b = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        assert torch.equal(int_matmul(a.cuda(), b.cuda()).cpu(), int_matmul(a, b))


def reference(x: Tensor, quantized: Quantized, bias: Tensor) -> Tensor:
    """int_linear in float64, from the definition."""
    step = x.abs().amax(-1, keepdim=True) / 127
    return (x / step).round().double() * step @ quantized.dequantize().double().t() + bias


@pytest.mark.parametrize("kind", ["uniform", "asym"])
@pytest.mark.parametrize("scale", ["matrix", "row", 8, 2])
@pytest.mark.parametrize("n_bits", [1, 2, 4, 8])
def test_int_linear_is_the_scaled_integer_product(n_bits: int, scale: str | int, kind: str) -> None:
    torch.manual_seed(1)
    quantized = project(torch.randn(5, 16) + 0.5, Precision(n_bits, kind, scale))
    x, bias = torch.randn(3, 4, 16), torch.randn(5)
    y = int_linear(x, quantized, bias)
    assert y.shape == (3, 4, 5)
    torch.testing.assert_close(y.double(), reference(x, quantized, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("a_bits", [2, 4, 7])
def test_activations_of_few_bits(a_bits: int) -> None:
    """Codes of the definition, in float64."""
    x, top = torch.randn(9, 16).double(), 2 ** (a_bits - 1) - 1
    codes, scale = int8_rows(x.float(), a_bits)
    assert codes.abs().max() == top and torch.equal(codes.double(), (x / x.abs().amax(-1, True) * top).round())
    quantized = project(torch.randn(5, 16), Precision(4, "asym", 4))
    expected = codes.double() * scale.double() @ quantized.dequantize().double().t()
    torch.testing.assert_close(int_linear(x.float(), quantized, a_bits=a_bits).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "asym"])
def test_rows_do_not_depend_on_their_batch(kind: str) -> None:
    torch.manual_seed(2)
    quantized = project(torch.randn(37, 48), Precision(3, kind, 16))
    x, bias = torch.randn(101, 48), torch.randn(37)
    together = int_linear(x, quantized, bias)
    one_by_one = torch.cat([int_linear(row[None], quantized, bias) for row in x])
    by_columns = int_linear(x.t().contiguous().t(), quantized, bias)
    assert torch.equal(together, one_by_one) and torch.equal(together, by_columns)


@pytest.mark.parametrize("kind", ["uniform", "asym"])
@pytest.mark.parametrize(
    ("n_bits", "scale"),
    [(1, "matrix"), (1, 4), (2, "row"), (4, "matrix"), (4, "row"), (4, 4), ((1, 2, 8, 4, 1, 2), "row")],
)
def test_gradients_go_straight_through(n_bits: int | tuple[int, ...], scale: str | int, kind: str) -> None:
    """Against the definition: by x, by the latent weight (straight through), by log scales (LSQ) and shifts."""
    torch.manual_seed(3)
    precision = Precision(n_bits, kind, scale)
    latent = torch.randn(6, 12, requires_grad=True)
    scale_shape = project(latent, precision).scale.shape
    log_scale = project(latent, precision).scale.mul(0.5).log().flatten().requires_grad_()  # some lie beyond the table
    a = log_scale.detach().exp().reshape(scale_shape)
    shift = torch.linspace(-0.7, 0.9, scale_shape.numel()).requires_grad_() if kind == "asym" else None
    zero = torch.zeros(scale_shape) if shift is None else shift.detach().reshape(scale_shape)
    quantized = round_to(latent, a, precision, None if shift is None else zero * a)
    x, bias = torch.randn(2, 5, 12, requires_grad=True), torch.randn(6, requires_grad=True)
    upstream = torch.randn(2, 5, 6)
    surrogate = straight_through(latent, quantized, log_scale, reach(precision), shift)
    int_linear(x, quantized, bias, surrogate).backward(upstream)

    rows, up = x.detach().reshape(-1, 12), upstream.reshape(-1, 6)
    codes, step = int8_rows(rows)
    weight_grad, scale_grad, shift_grad = torch.zeros(6, 12), torch.zeros(scale_shape), torch.zeros(scale_shape)
    n_beyond = 0
    for i in range(6):
        bits = n_bits if isinstance(n_bits, int) else n_bits[i]
        outer = {1: 0.0, 2: 1.5, 4: 7.5, 8: 127.5}[bits]
        low, high = (-outer, outer) if kind == "uniform" else (-(2 ** (bits - 1)) - 0.5, 2 ** (bits - 1) - 0.5)
        for j in range(12):
            place = i % scale_shape[0], j * scale_shape[1] // 12
            weight_grad[i, j] = (up[:, i] * codes[:, j] * step[:, 0]).sum()
            in_scales = latent[i, j].item() / a[place].item()
            within = low <= in_scales - zero[place].item() <= high
            n_beyond += not within
            slope = quantized.codes[i, j].item() + zero[place].item() - (in_scales if within else 0.0)
            scale_grad[place] += weight_grad[i, j] * slope * a[place]
            shift_grad[place] += weight_grad[i, j] * a[place] * (not within)
    assert n_beyond
    torch.testing.assert_close(latent.grad, weight_grad)
    torch.testing.assert_close(log_scale.grad, scale_grad.flatten(), rtol=1e-4, atol=1e-4)
    if shift is not None:
        torch.testing.assert_close(shift.grad, shift_grad.flatten(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, (up @ quantized.dequantize()).reshape(2, 5, 12))
    torch.testing.assert_close(bias.grad, up.sum(0))


def test_frozen_weights_pass_gradients_on() -> None:
    quantized = project(torch.randn(5, 4), Precision(4))
    x = torch.randn(2, 4, requires_grad=True)
    int_linear(x, quantized).sum().backward()
    torch.testing.assert_close(x.grad, quantized.dequantize().sum(0).expand(2, 4))
    assert not int_linear(x.detach(), quantized).requires_grad
