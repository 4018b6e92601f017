"""Products of integer activations with quantized weights: the one arithmetic of training and of serving.

Forward, both run int8 x int8 -> int32 (``torch._int_mm``) and then multiply by the scales ("native" quantized
training, arXiv 2203.15952), so a packed model gives the numbers that its training saw, bit for bit. Backward,
gradients go straight through the rounding: to the activations by the dequantized
weight, to the latent float weight by the dequantized activations. An int32 sum is exact and everything after
it is elementwise, so a row's result does not depend on the rows it is batched with.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpq.quant.cache import at_once
from mpq.quant.kernels import add_bias, int8_rows, scale_rows, scaled
from mpq.quant.pack import Held
from mpq.quant.panels import Matrix, fused_for, matrix, multiply
from mpq.quant.table import Quantized

MANY = 192  # rows that are worth bringing a matrix into the order of `panels.py` for
UNPACKED = 1 << 20  # weights that are unpacked, or brought into another order, at once: they stay in the cache
EXACT = 1024  # float32 sums of so many products of int8, 127 * 128 at most, stay below 2**24, so no digit is lost


def int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T in exact int32, for int8 a (M, K) and b (N, K), both in -127..127, of any size on any device."""
    if a.is_cuda:
        m, n, k = a.shape[0], b.shape[0], a.shape[1]
        a, b = _padded(a, max(0, 32 - m), -k % 16), _padded(b, -n % 16, -k % 16)
        return torch._int_mm(a, b.t())[:m, :n]
    if a.device.type == "cpu" and _cpu_has_int8_products():
        if a.shape[1] == 1:
            return a.to(torch.int32) * b.t().to(torch.int32)
        a, b = _plain(a), _plain(b)
        return torch._int_mm(a, b.t())
    return _matmul_in_floats(a, b)


def _plain(x: Tensor) -> Tensor:
    """A row that stands alone, with the stride that it would have among others: by another torch 2.11 goes astray."""
    return x.flatten().unsqueeze(0) if len(x) == 1 else x


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """Contiguous, with so many rows and columns of zeros more: cuBLAS wants multiples of 16, and more than 16 rows."""
    return (F.pad(x, (0, columns, 0, rows)) if rows or columns else x).contiguous()


@cache
def _cpu_has_int8_products() -> bool:
    """Whether ``torch._int_mm`` is fast and right on this processor.

    Without AVX512-VNNI torch runs three plain loops; and where oneDNN is held to an older instruction set,
    its 16-bit sums overflow without a word (pytorch issue 136746), which the product of extremes brings to
    light.
    """
    extremes = torch.full((32, 256), 127, dtype=torch.int8)
    exact = bool((torch._int_mm(extremes, extremes.t()) == 256 * 127**2).all())
    return exact and torch.cpu._is_vnni_supported()


def _matmul_in_floats(a: Tensor, b: Tensor) -> Tensor:
    """The same integers by float32 products: sums of up to `EXACT` terms are exact."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    with torch.autocast(a.device.type, enabled=False):
        for start in range(0, a.shape[1], EXACT):
            part_a, part_b = (part[:, start : start + EXACT].to(torch.float32) for part in (a, b))
            total += (part_a @ part_b.t()).to(torch.int32)
    return total


def int_linear(
    x: Tensor,
    weight: Quantized | Held,
    bias: Tensor | None = None,
    surrogate: Tensor | None = None,
    a_bits: int = 8,
) -> Tensor:
    """x @ (scale * codes + offset).T + bias, x rounded to integers row by row, the product taken on integers.

    Args:
        x: (..., K) float.
        weight: (N, K); packed codes are unpacked block by block. K is split evenly into the groups of its scales,
            each with its own product. An offset is multiplied by the sum of the integers of a row.
        bias: (N,) float.
        surrogate: (N, K) float, the weight that takes the gradients (see `straight_through`); none: x and
            bias alone take them.
        a_bits: bits of the rounded x.
    Returns:
        (..., N) float32.
    """
    if not asks_gradients(x, bias, surrogate):
        return int_product(x, weight, bias, a_bits)[0]
    if surrogate is None:
        surrogate = weight.rows(slice(None)).dequantize()
    result: Tensor = _IntLinear.apply(x, weight, bias, surrogate, a_bits)  # type: ignore[no-untyped-call]
    return result


def asks_gradients(*inputs: Tensor | None) -> bool:
    """Whether autograd will want the gradient of something made from these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def ready(weight: Quantized) -> Quantized | Matrix:
    """A weight for many products, in the order that the processor wants if it can be brought into it."""
    return matrix(weight) or weight


def int_product(
    x: Tensor, weight: Quantized | Held | Matrix, bias: Tensor | None, a_bits: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass of `int_linear`, and the int8 rows (M, K) with their scales (M, 1); `bias` may be (M, N) too."""
    rows, row_scale = int8_rows(x.reshape(-1, x.shape[-1]), a_bits)
    return rows_product(rows, row_scale, weight, bias).reshape(*x.shape[:-1], -1), rows, row_scale


def rows_product(
    rows: Tensor, row_scale: Tensor, weight: Quantized | Held | Matrix, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """row_scale * rows (M, K) @ (scale * codes + offset).T + bias, (M, N); to `out` if given."""
    if isinstance(weight, Matrix):
        return multiply(rows, row_scale, weight, bias, out)
    codes = weight.codes
    if isinstance(codes, Tensor):
        return _products(rows, row_scale, Quantized(codes, weight.scale, weight.offset), bias, out)
    if out is None:
        out = torch.empty(len(rows), len(codes), device=rows.device)
    for some in codes.blocks(at_once(UNPACKED, rows)):
        part_bias = None if bias is None else bias[..., some]
        _products(rows, row_scale, weight.rows(some), part_bias, out[:, some])
    return out


def _products(
    rows: Tensor, row_scale: Tensor, weight: Quantized, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """`rows_product` of unpacked codes, a product for each group of columns."""
    codes, scale, offset = weight
    bias = None if bias is None else bias.to(torch.float32)
    if scale.shape[1] == 1 and offset is None:
        if len(rows) >= MANY and fused_for(scale):
            return _by_panels(rows, row_scale, weight, bias, out)
        return scale_rows(int_matmul(rows, codes), scale[:, 0], row_scale, bias, out)
    width = codes.shape[1] // scale.shape[1]
    total = scaled(int_matmul(rows[:, :width], codes[:, :width]), scale[:, 0])
    for g in range(1, scale.shape[1]):
        columns = slice(g * width, (g + 1) * width)
        total += scaled(int_matmul(rows[:, columns], codes[:, columns]), scale[:, g])
    if offset is not None:
        sums = rows.view(len(rows), -1, width).sum(2, dtype=torch.int32).to(torch.float32)
        for g in range(scale.shape[1]):
            total.addcmul_(sums[:, g : g + 1], offset[:, g])
    return add_bias(total, row_scale, bias, total if out is None else out)


def _by_panels(rows: Tensor, row_scale: Tensor, weight: Quantized, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """`rows_product` of many rows, by so much of the weight at a time as stays in the processor's cache."""
    if out is None:
        out = row_scale.new_empty(len(rows), len(weight.codes))
    size = max(1, UNPACKED // weight.codes.shape[1])
    for first in range(0, len(weight.codes), size):
        some = slice(first, first + size)
        by = matrix(weight.rows(some))
        assert by is not None
        multiply(rows, row_scale, by, None if bias is None else bias[..., some], out[:, some])
    return out


class _IntLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Quantized | Held, bias: Tensor | None, surrogate: Tensor, a_bits: int
    ) -> Tensor:
        out, rows, row_scale = int_product(x, weight, bias, a_bits)
        ctx.save_for_backward(rows, row_scale, surrogate)
        ctx.dtype = gradient_dtype(x.device)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, row_scale, surrogate = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient_product(grad, surrogate, ctx.dtype)
        if ctx.needs_input_grad[3]:
            grad_weight = gradient_product(flat.t(), rows.to(torch.float32).mul_(row_scale), ctx.dtype)
        grad_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, grad_weight, None


def gradient_dtype(device: torch.device) -> torch.dtype:
    """Format of gradient products: autocast's where it is on, else float32; the forward pass stays exact."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else torch.float32


def gradient_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`, returned as float32."""
    return (a.to(dtype) @ b.to(dtype)).to(torch.float32)


def straight_through(
    latent: Tensor,
    quantized: Quantized,
    log_scale: Tensor | None = None,
    reach: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """The dequantized weight a (Q + z); its gradient goes to the float weight w it was rounded from, log a and z.

    The weight takes the gradient unchanged.  The scale takes that of learned step size quantization (Esser et al. 2020,
    eq. 3): d/da = Q + z - w / a where w lies within the table, else Q + z.  The shift z = offset / a of an asymmetric
    table takes it where w lies outside: d/dz = a.

    Args:
        latent: (rows, ...) float, the matrix (rows, columns) or a convolution's weight.
        quantized: its rounding.
        log_scale: (scales,) natural logarithms of the scales; none: they take no gradient.
        reach: (rows or 1, 2), in scales: where w lies within the table (see `mpq.quant.table`); with `log_scale`.
        shift: (scales,) of an asymmetric table.
    Returns:
        (rows, columns) float32.
    """
    result: Tensor = _StraightThrough.apply(latent, quantized, log_scale, reach, shift)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        latent: Tensor,
        quantized: Quantized,
        log_scale: Tensor | None,
        reach: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        ctx.learned, ctx.shape = log_scale is not None, latent.shape
        ctx.save_for_backward(*((latent, *quantized, reach) if ctx.learned else ()))
        return quantized.dequantize()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_latent = grad.reshape(ctx.shape)
        if not ctx.learned:
            return grad_latent, None, None, None, None
        latent, codes, scale, offset, reach = ctx.saved_tensors
        shape = (latent.shape[0], scale.shape[1], -1)  # rows, groups, columns of a group
        in_scales = latent.reshape(shape) / scale.unsqueeze(-1)
        levels = codes.reshape(shape).to(torch.float32)
        low, high = reach.to(grad.device)[:, :, None].unbind(1)  # (rows or 1, 1)
        zero = 0.0 if offset is None else (offset / scale).unsqueeze(-1)
        place = in_scales - zero
        inside = (place >= low.unsqueeze(-1)) & (place <= high.unsqueeze(-1))
        by_weight = grad.reshape(shape)
        by_scale = _sum_scales(by_weight * (levels + zero - in_scales * inside), scale) * scale
        by_shift = None if offset is None else (_sum_scales(by_weight * ~inside, scale) * scale).flatten()
        return grad_latent, None, by_scale.flatten(), None, by_shift  # d/dlog a = a d/da


def _sum_scales(by_weight: Tensor, scale: Tensor) -> Tensor:
    """(rows, groups, columns) summed over what shares a scale, (rows or 1, groups)."""
    return by_weight.sum(2) if scale.shape[0] > 1 else by_weight.sum((0, 2)).unsqueeze(0)
