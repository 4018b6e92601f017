"""What stands before and after a product of integers: rounding rows to codes, and scaling sums.

Written with torch, the first takes five passes over memory and the second three, longer than the product itself where
oneDNN is at its best; `kernels.c` does each in one.
"""

from __future__ import annotations

import ctypes
from math import prod

import torch
from torch import Tensor

from mpq.quant.cache import parts
from mpq.quant.compiled import COUNT, at, library_for, share

TINY = 1e-30  # keeps 0 / 0 out of rows of zeros


def int8_rows(x: Tensor, n_bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantize each row symmetrically: codes = round(x / scale), scale = max |row| / (2^(n_bits - 1) - 1).

    Args:
        x: (..., K) float.
        n_bits: of the codes, 2 to 8.
    Returns:
        codes (..., K) int8, -127..127 for 8 bits, and scale (..., 1) float32.
    """
    x = x.to(torch.float32)
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = x.new_empty(*x.shape[:-1], 1)
    if x.numel() and (library := library_for(x)):
        _round_rows(library, x.reshape(-1, x.shape[-1]), codes, scale, n_bits)
    else:
        _round_rows_by_torch(x, codes, scale, n_bits)
    return codes, scale


def int8_windows(windows: Tensor, n_bits: int = 8) -> tuple[Tensor, Tensor] | None:
    """`int8_rows` of what each output frame of a convolution sees, the channels of a place side by side.

    Args:
        windows: (N, ..., C, *kernel), of one or two dimensions, without a copy (strides overlap).
    Returns:
        codes (M, prod(kernel) * C) int8 and scale (N, ...) float32, M numbers; None where torch has to do it.
    """
    library = library_for(windows) if windows.numel() else None
    n_dims = windows.dim() // 2 - 1
    outer, (channels, *taps) = windows.shape[: n_dims + 1], windows.shape[n_dims + 1 :]
    strides = windows.stride()
    if library is None or n_dims not in (1, 2) or strides[n_dims + 1] != 1:
        return None
    one = (1,) * (2 - n_dims)
    size, stride, kernel, tap_stride = (
        (COUNT * len(numbers))(*numbers)
        for numbers in (
            (outer[0], *one, *outer[1:]), (strides[0], *one, *strides[1 : n_dims + 1]),
            (*one, *taps), (*one, *strides[n_dims + 2 :]),
        )
    )  # fmt: skip
    scale = windows.new_empty(outer)
    codes = torch.empty(scale.numel(), channels * prod(taps), dtype=torch.int8, device=windows.device)

    def work(first: int, count: int) -> None:
        window = windows.new_empty(codes.shape[1])
        places = at(window, 0), at(codes, 0), at(scale, 0), first, count
        library.int8_windows(at(windows, 0), size, stride, kernel, tap_stride, channels, *places, TINY, top_of(n_bits))

    share(work, *codes.shape)
    return codes, scale


def scale_rows(
    total: Tensor, scale: Tensor, row_scale: Tensor, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """row_scale * (scale * total) + bias.

    Args:
        total: (M, N) int32, contiguous; its memory is used again.
        scale: (N,) or (1,) float32.
        row_scale: (M, 1) float32.
        bias: (N,) or (M, N) float32.
        out: (M, N) float32; none: in the memory of `total`.
    Returns:
        `out`.
    """
    library = library_for(scale, row_scale, bias, out)
    if library and total.numel() and library_for(total, dtype=torch.int32):
        return _scale_rows(library, total, scale, row_scale, bias, out)
    floats = scaled(total, scale)
    return add_bias(floats, row_scale, bias, floats if out is None else out)


def add_bias(floats: Tensor, row_scale: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """row_scale * floats + bias, to `out`."""
    if bias is None:
        return torch.mul(floats, row_scale, out=out)
    return torch.addcmul(bias, floats, row_scale, out=out)


def scaled(total: Tensor, scale: Tensor) -> Tensor:
    """total (M, N) int32 times scale (N,), as float32 in the same memory: fetching as much anew takes longer.

    Converted first, since torch's product of an int32 and a float32 tensor is 30 times slower.
    """
    floats = total.view(torch.float32)
    for part, out in parts(total, floats):
        out.copy_(part).mul_(scale)
    return floats


def largest(size: Tensor) -> Tensor:
    """The largest of each row of numbers of which none is below 0, (..., K) to (..., 1).

    Read as integers they have the same order, and torch finds the largest integer several times as fast.
    """
    return size.view(torch.int32).amax(-1, keepdim=True).view(torch.float32)


def scale_of(largest: Tensor, n_bits: int) -> Tensor:
    """The step between codes that lets the highest one stand for that number, in its memory."""
    return largest.clamp_min_(TINY).div_(top_of(n_bits))


def top_of(n_bits: int) -> float:
    """The highest code."""
    return 2.0 ** (n_bits - 1) - 1.0


def _round_rows_by_torch(x: Tensor, codes: Tensor, scale: Tensor, n_bits: int) -> None:
    for part, part_scale, out in parts(x, scale, codes):
        size = part.abs()
        part_scale.copy_(scale_of(largest(size), n_bits))
        out.copy_(torch.div(part, part_scale, out=size).round_())


def _round_rows(library: ctypes.CDLL, x: Tensor, codes: Tensor, scale: Tensor, n_bits: int) -> None:
    x = x if x.stride(1) == 1 else x.contiguous()
    codes, scale = codes.view(x.shape), scale.view(-1)

    def work(first: int, rows: int) -> None:
        places = at(x, first), x.stride(0), at(codes, first), at(scale, first)
        library.int8_rows(*places, rows, x.shape[1], TINY, top_of(n_bits))

    share(work, *x.shape)


def _scale_rows(
    library: ctypes.CDLL, total: Tensor, scale: Tensor, row_scale: Tensor, bias: Tensor | None, out: Tensor | None
) -> Tensor:
    n_rows, columns = total.shape
    scale, row_scale = _spread(scale, (columns,)), _spread(row_scale, (n_rows, 1))
    if bias is not None:
        bias = bias.expand(n_rows, columns)
        bias = bias if bias.stride(1) == 1 else bias.contiguous()
    out = total.view(torch.float32) if out is None else out
    bias_stride = 0 if bias is None else bias.stride(0)

    def work(first: int, rows: int) -> None:
        places = at(total, first), at(scale, 0), at(row_scale, first), at(bias, first), bias_stride
        library.scale_rows(*places, at(out, first), out.stride(0), rows, columns)

    share(work, n_rows, columns)
    return out


def _spread(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Contiguous, of that shape."""
    return (x if x.shape == shape else x.expand(shape)).contiguous()
