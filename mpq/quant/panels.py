"""Products of integers by the C of `product.c`: sums are scaled in the registers that they were summed in.

torch's ``_int_mm`` brings a matrix into the order that the processor wants at every call, and writes sums that are
read again to be scaled. Only on processors with AVX512-VNNI, and not on those with AMX, where torch's products are
several times as fast.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from mpq.quant.compiled import COUNT, POINTER, at, library_for, share
from mpq.quant.kernels import TINY, top_of
from mpq.quant.table import Quantized


class Matrix(ctypes.Structure):
    """A quantized matrix and a bias as `product.c` reads them; `kept` are the tensors that it points to."""

    _fields_ = (("panels", POINTER), ("scale", POINTER), ("bias", POINTER), ("outputs", COUNT), ("inputs", COUNT))
    kept: tuple[Tensor | None, ...]


class _Windows(ctypes.Structure):
    _fields_ = (("high", COUNT), ("wide", COUNT), ("channels", COUNT), ("taps", COUNT * 2), ("size", COUNT * 2),
                ("step", COUNT * 2), ("apart", COUNT * 2), ("before", COUNT * 2))  # fmt: skip


def fused_for(*tensors: Tensor | None) -> ctypes.CDLL | None:
    """The library, if it has products of integers and can work on these float32 tensors."""
    found = library_for(*tensors)
    return found if found is not None and _suits() and hasattr(found, "multiply") else None


@cache
def _suits() -> bool:
    return not torch.cpu._is_amx_tile_supported()


def matrix(weight: Quantized, bias: Tensor | None = None) -> Matrix | None:
    """What a product by these codes reads; none where there are scales for parts of a row, or offsets.

    Args:
        weight: (N, K).
        bias: (N,).
    """
    codes, scale, offset = weight
    library = fused_for(scale, bias)
    if library is None or scale.shape[1] > 1 or offset is not None or not codes.numel():
        return None
    assert codes.dtype == torch.int8
    codes = codes.contiguous()
    outputs, inputs = codes.shape
    panels = torch.empty(-(-outputs // 16) * -(-inputs // 4) * 64, dtype=torch.uint8)
    library.pack_panels(codes.data_ptr(), outputs, inputs, panels.data_ptr())
    scale = scale[:, 0].expand(outputs).contiguous()
    if bias is not None:
        fit(bias, (outputs,), "bias")
        bias = bias.contiguous()
    found = Matrix(at(panels, 0), at(scale, 0), at(bias, 0), outputs, inputs)
    found.kept = panels, scale, bias
    return found


def multiply(rows: Tensor, row_scale: Tensor, by: Matrix, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """row_scale * (scale * rows @ codes.T) + bias.

    Args:
        rows: (M, K) int8.
        row_scale: (M, 1) float32.
        by: of codes (N, K), whose bias is left out.
        bias: (N,) or (M, N) float32.
        out: (M, N) float32, its rows contiguous; none: a new one.
    Returns:
        `out`.
    """
    library = fused_for(row_scale, bias, out)
    assert library is not None
    rows, row_scale = rows.contiguous(), row_scale.contiguous()
    out = row_scale.new_empty(len(rows), by.outputs) if out is None else out
    fit(rows, (len(rows), by.inputs), "rows")
    fit(row_scale, (len(rows), 1), "scales of rows")
    fit(out, (len(rows), by.outputs), "results")
    assert rows.dtype == torch.int8 and (out.numel() <= 1 or (out.stride(1) == 1 and out.stride(0) >= by.outputs))
    if bias is not None:
        fit(bias, (len(rows), by.outputs)[2 - bias.dim() :], "bias")
    if bias is not None and bias.stride(-1) != 1:
        bias = bias.contiguous()
    bias_stride = 0 if bias is None or bias.dim() == 1 else bias.stride(0)
    places = at(rows, 0), at(row_scale, 0), ctypes.byref(by), at(bias, 0), bias_stride, at(out, 0), out.stride(0)
    share(lambda first, count: done(library.multiply(*places, first, count)), len(rows), by.outputs)
    return out


def convolve(x: Tensor, weight: Quantized, bias: Tensor | None, geometry: Sequence[Sequence[int]], pads: Sequence[int],
             n_bits: int, relu: bool = False) -> Tensor | None:  # fmt: skip
    """A convolution whose windows are rounded with a scale each, on integers.

    Args:
        x: (N, ..., C) of one or two dimensions, contiguous.
        weight: (out, prod(kernel) * C): the channels of a place side by side.
        geometry: kernel, stride and dilation of every dimension.
        pads: zeros before and after, of the last dimension first.
        n_bits: of the rounded numbers.
        relu: leave no result below 0.
    Returns:
        (N, ..., out) float32; none where it cannot be done here.
    """
    library = fused_for(x) if x.numel() else None
    by = matrix(weight, bias) if library else None
    if library is None or by is None:
        return None
    x = x.contiguous()
    kernel, stride, dilation = geometry
    fit(x, (*x.shape[:-1], by.inputs // math.prod(kernel)), "input of a convolution")
    assert by.inputs % math.prod(kernel) == 0
    before, after = pads[::2][::-1], pads[1::2][::-1]
    padded = map(sum, zip(x.shape[1:-1], before, after, strict=True))
    size = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(padded, kernel, stride, dilation, strict=True)]
    if len(size) > 2 or min(size) < 1:
        return None
    one, zero = [1] * (2 - len(size)), [0] * (2 - len(size))
    pairs = ((COUNT * 2)(*fill, *numbers) for fill, numbers in
             ((one, kernel), (one, size), (one, stride), (one, dilation), (zero, before)))  # fmt: skip
    windows = _Windows(*one, *x.shape[1:], *pairs)
    out = x.new_empty(len(x), *size, by.outputs)
    least, n_windows = 0.0 if relu else -math.inf, out.numel() // by.outputs
    places = at(x, 0), ctypes.byref(windows), ctypes.byref(by), TINY, top_of(n_bits), least, at(out, 0)
    share(lambda first, count: done(library.convolve(*places, first, count)), n_windows, by.inputs)
    return out


def fit(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raises RuntimeError, as torch does, where a tensor has another shape: the library would read beyond it."""
    if x.shape != shape:
        raise RuntimeError(f"{what} of shape {tuple(x.shape)}: expected {shape}")


def done(enough: int) -> None:
    """Raises MemoryError where a function of the library says that there was not enough."""
    if not enough:
        raise MemoryError("no memory for the rows between two products")
