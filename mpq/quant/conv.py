"""Quantized convolutions on integers: ordinary, pointwise, grouped and depthwise ones, over one or two dimensions.

A convolution is a linear layer of patches: what an output frame sees of the input is one row, rounded with a scale of
its own, and multiplied by the matrix (out, in / groups * kernel) that the weight is (im2col). A depthwise convolution
would round every number once for each tap; its rows are the channels of each utterance instead, rounded once.

Either way an utterance's numbers do not depend on those it is batched with, if what pads it is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mpq.quant.cache import at_once, parts
from mpq.quant.integer import EXACT, asks_gradients, int_linear, rows_product
from mpq.quant.kernels import int8_rows, int8_windows, largest, scale_of
from mpq.quant.layers import Projector, QuantModule
from mpq.quant.panels import convolve, fused_for
from mpq.quant.table import Quantized

_PATCHES = 1 << 19  # numbers of patches at once, where no gradient is asked for: more would leave the processor's cache
_CHANNELS = 8  # that are worth copying side by side

Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]  # kernel, stride, dilation


class QuantConv(QuantModule):
    """nn.Conv1d or nn.Conv2d with a quantized weight, a matrix (out, in / groups * kernel). Zero padding only."""

    bias: Tensor | None
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel_size: tuple[int, ...]
    groups: int
    in_channels: int
    out_channels: int
    pads: list[int]  # of every dimension before and after, the last one first, as F.pad takes them

    def __init__(self, original: nn.Module, projectors: Mapping[str, Projector], a_bits: int = 8) -> None:
        super().__init__(original, projectors, a_bits)
        if original.padding_mode != "zeros":
            raise ValueError(f"{original}: expected padding_mode='zeros', a quantized convolution has no other")
        pads = original.pads if isinstance(original, QuantConv) else original._reversed_padding_repeated_twice
        self.pads = list(cast("list[int]", pads))

    def rectified(self, x: Tensor) -> Tensor:
        """relu(self(x)), in one pass where it can be."""
        found = self._at_once(x.movedim(1, -1), relu=True)
        return torch.relu(self(x)) if found is None else found.movedim(-1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """`(N, in, ...)` to `(N, out, ...)`, as nn.Conv1d and nn.Conv2d."""
        if "weight" not in self.projectors:
            return self._float_conv(input, self.get_parameter("weight"))
        if self.a_bits == 32:
            quantized = self.quantized("weight")
            surrogate = self._surrogate("weight", quantized)
            return self._float_conv(input, quantized.dequantize() if surrogate is None else surrogate)
        if self.is_depthwise:
            return self._depthwise(F.pad(input, self.pads))
        return self._by_patches(input.movedim(1, -1)).movedim(-1, 1)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved by itself."""
        return self.groups == self.in_channels == self.out_channels

    def _float_conv(self, x: Tensor, weight: Tensor) -> Tensor:
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        conv = F.conv1d if len(self.kernel_size) == 1 else F.conv2d
        padded = F.pad(x, self.pads)
        return conv(padded, weight.view(shape), self.bias, self.stride, 0, self.dilation, self.groups)

    def _depthwise(self, x: Tensor) -> Tensor:
        quantized = self.quantized("weight")
        surrogate = self._surrogate("weight", quantized)
        return int_depthwise(x, quantized, self.bias, surrogate, self._geometry, self.a_bits)

    def _by_patches(self, x: Tensor) -> Tensor:
        """`(N, ..., in)` to `(N, ..., out)`."""
        taps = prod(self.kernel_size)
        if self.groups == taps == 1:
            rows = patches(self._padded(x), self._geometry, 1, False).squeeze(-2)
            return self._linear(rows, "weight", self.bias)
        found = self._at_once(x)
        if found is not None:
            return found
        quantized = self.quantized("weight")
        surrogate = self._surrogate("weight", quantized)
        channels_last = quantized.scale.shape[1] == 1 and self.in_channels // self.groups >= _CHANNELS
        if channels_last:
            quantized = _by_places(quantized, taps)
            surrogate = None if surrogate is None else _channels_last(surrogate, taps)
        if asks_gradients(x, self.bias, surrogate):
            return self._by_groups(x, quantized, surrogate, channels_last)
        utts = max(1, at_once(_PATCHES, x) * prod(self.stride) // (x[:1].numel() * taps))
        if self.groups > 1:
            parts = torch.split(x, utts)
            return torch.cat([self._by_groups(part, quantized, None, channels_last) for part in parts])
        out: Tensor | None = None
        for first in range(0, len(x), utts):
            some = slice(first, first + utts)
            rows, scale = int8_patches(self._padded(x[some]), self._geometry, channels_last, self.a_bits)
            if out is None:
                out = scale.new_empty(len(x), *scale.shape[1:], self.out_channels)
            rows_product(rows, scale.view(-1, 1), quantized, self.bias, out[some].view(len(rows), -1))
        assert out is not None
        return out

    def _at_once(self, x: Tensor, relu: bool = False) -> Tensor | None:
        """`(N, ..., in)` to `(N, ..., out)` by the compiled convolution; none where it does not do."""
        by_integers = "weight" in self.projectors and self.a_bits != 32 and fused_for(x)
        if not by_integers or self.groups > 1 or self.is_depthwise or asks_gradients(x, *self.parameters()):
            return None
        weight = _by_places(self.quantized("weight"), prod(self.kernel_size))
        return convolve(x, weight, self.bias, self._geometry, self.pads, self.a_bits, relu)

    @property
    def _geometry(self) -> Geometry:
        return self.kernel_size, self.stride, self.dilation

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, [0, 0, *self.pads]) if any(self.pads) else x

    def _by_groups(self, x: Tensor, weight: Quantized, surrogate: Tensor | None, channels_last: bool) -> Tensor:
        """The same by a linear layer of patches for each group, with gradients if they are asked for."""
        rows = patches(self._padded(x), self._geometry, self.groups, channels_last)
        size = self.out_channels // self.groups
        outs = []
        for group in range(self.groups):
            some = slice(group * size, (group + 1) * size)
            bias = None if self.bias is None else self.bias[some]
            latent = None if surrogate is None else surrogate[some]
            outs.append(int_linear(rows[..., group, :], weight.rows(some), bias, latent, self.a_bits))
        return torch.cat(outs, -1) if self.groups > 1 else outs[0]


class QuantConv1d(QuantConv, nn.Conv1d):
    """nn.Conv1d with a quantized weight."""


class QuantConv2d(QuantConv, nn.Conv2d):
    """nn.Conv2d with a quantized weight."""


def relu_of(conv: nn.Module, x: Tensor) -> Tensor:
    """relu(conv(x))."""
    if isinstance(conv, QuantConv):
        return conv.rectified(x)
    out: Tensor = conv(x)
    return torch.relu(out) if torch.is_grad_enabled() else out.relu_()


def patches(x: Tensor, geometry: Geometry, groups: int, channels_last: bool) -> Tensor:
    """What each output frame of a convolution sees.

    Args:
        x: (N, ..., C), padded.
        geometry: kernel, stride and dilation of every dimension between N and C.
        channels_last: the channels of a tap stand side by side, which is several times as fast to copy; else the taps
            of a channel, as in a convolution's weight.
    Returns:
        (N, ..., groups, C / groups * prod(kernel)).
    """
    kernel = geometry[0]
    x = _windows(x, geometry)
    place = 1 + len(kernel)  # of the channels
    x = x.reshape(*x.shape[:place], groups, x.shape[place] // groups, *kernel)
    return (x.movedim(place + 1, -1) if channels_last else x).flatten(place + 1)


def _windows(x: Tensor, geometry: Geometry) -> Tensor:
    """(N, ..., C) to (N, ..., C, *kernel), without a copy."""
    for axis, tap in enumerate(zip(*geometry, strict=True), 1):
        x = _taps(x, axis, *tap)
    return x


def _taps(x: Tensor, axis: int, size: int, stride: int, dilation: int) -> Tensor:
    """What a kernel of that size sees along one dimension, as a last one more, without a copy."""
    return x.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]


def int8_patches(x: Tensor, geometry: Geometry, channels_last: bool, n_bits: int) -> tuple[Tensor, Tensor]:
    """`int8_rows` of `patches` in one group, with the numbers of neither: what is largest in a patch is found by place.

    Args:
        x: (N, ..., C), padded.
    Returns:
        codes (M, C * prod(kernel)) int8, and scale (N, ...) float32, M numbers.
    """
    x = x.to(torch.float32)
    windows, place = _windows(x, geometry), 1 + len(geometry[0])
    if channels_last and (found := int8_windows(windows, n_bits)):
        return found
    sizes = largest(x.abs()).squeeze(-1)
    for axis, tap in enumerate(zip(*geometry, strict=True), 1):
        sizes = reduce(torch.maximum, _taps(sizes, axis, *tap).unbind(-1))
    scale = scale_of(sizes.contiguous(), n_bits)
    if not channels_last:  # each tap's numbers side by side, and so a product with the transposed codes
        taps_first = windows.movedim(tuple(range(place, windows.dim())), tuple(range(windows.dim() - place)))
        codes = torch.div(taps_first, scale, out=x.new_empty(taps_first.shape)).round_().to(torch.int8)
        return codes.view(-1, scale.numel()).t(), scale
    windows = windows.movedim(place, -1)
    codes = torch.empty(windows.shape, dtype=torch.int8, device=x.device)
    each = scale.view(*scale.shape, *[1] * (windows.dim() - place))
    for part, part_scale, out in parts(windows, each, codes):
        out.copy_((part / part_scale).round_())
    return codes.view(scale.numel(), -1), scale


def _channels_last(weight: Tensor, taps: int) -> Tensor:
    """Columns of a weight (rows, channels * taps) in the order of `patches` with `channels_last`."""
    return weight.view(len(weight), -1, taps).transpose(1, 2).flatten(1)


def _by_places(weight: Quantized, taps: int) -> Quantized:
    """Its codes in that order."""
    return weight._replace(codes=_channels_last(weight.codes, taps))


def int_depthwise(
    x: Tensor, weight: Quantized, bias: Tensor | None, surrogate: Tensor | None, geometry: Geometry, a_bits: int = 8
) -> Tensor:
    """Each channel of x convolved with its own kernel, with x rounded to integers by utterance and channel.

    Args:
        x: (N, C, ...) float, padded.
        weight: (C, K): the kernels.
        bias: (C,) float.
        surrogate: (C, K) float, the weight that takes the gradients; none: x and bias alone take them.
        geometry: kernel, stride and dilation of every dimension.
        a_bits: bits of the rounded x.
    Returns:
        (N, C, ...) float32.
    """
    if not asks_gradients(x, bias, surrogate):
        return _depthwise(x, weight, bias, geometry, a_bits)[0]
    if surrogate is None:
        surrogate = weight.dequantize()
    result: Tensor = _IntDepthwise.apply(x, weight, bias, surrogate, geometry, a_bits)  # type: ignore[no-untyped-call]
    return result


def _depthwise(
    x: Tensor, weight: Quantized, bias: Tensor | None, geometry: Geometry, a_bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass of `int_depthwise`, and the int8 rows (N, C, L) with their scales (N, C, 1)."""
    rows, row_scale = int8_rows(x.flatten(2), a_bits)
    codes, scale, offset = weight
    width = codes.shape[1] // scale.shape[1]
    total: Tensor | None = None
    for g in range(scale.shape[1]):
        taps = torch.zeros_like(codes)
        taps[:, g * width : (g + 1) * width] = 1
        sums = _integer_sums(rows.view(x.shape), taps * codes, geometry)
        shape, sums = sums.shape, sums.flatten(2).mul_(scale[:, g : g + 1])
        total = sums if total is None else total.add_(sums)
        if offset is not None:
            ones = _integer_sums(rows.view(x.shape), taps, geometry).flatten(2)
            total.addcmul_(ones, offset[:, g : g + 1])
    assert total is not None
    out = total.mul_(row_scale) if bias is None else torch.addcmul(bias.float()[:, None], total, row_scale)
    return out.view(shape), rows, row_scale


def _integer_sums(rows: Tensor, codes: Tensor, geometry: Geometry) -> Tensor:
    """The convolution of integers (N, C, ...) and (C, K), as float numbers that have lost no digit."""
    kernel, stride, dilation = geometry
    dtype = torch.float32 if codes.shape[1] <= EXACT else torch.float64
    conv = F.conv1d if len(kernel) == 1 else F.conv2d
    with torch.autocast(rows.device.type, enabled=False):
        filters = codes.to(dtype).view(-1, 1, *kernel)
        sums = conv(rows.to(dtype), filters, None, stride, 0, dilation, len(codes))
    return sums.to(torch.float32)


class _IntDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Quantized,
        bias: Tensor | None,
        surrogate: Tensor,
        geometry: Geometry,
        a_bits: int,
    ) -> Tensor:
        out, rows, row_scale = _depthwise(x, weight, bias, geometry, a_bits)
        ctx.save_for_backward(rows, row_scale, surrogate)
        ctx.shape, ctx.geometry = x.shape, geometry
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, row_scale, surrogate = ctx.saved_tensors
        kernel, stride, dilation = ctx.geometry
        seen = rows.to(torch.float32).mul_(row_scale).view(ctx.shape)
        channels, none = len(surrogate), [0] * len(kernel)
        grads = torch.ops.aten.convolution_backward(
            grad.contiguous(), seen, surrogate.view(channels, 1, *kernel), [channels], stride, none, dilation, False,
            none, channels, [ctx.needs_input_grad[0], ctx.needs_input_grad[3], ctx.needs_input_grad[2]],
        )  # fmt: skip
        grad_x, grad_weight, grad_bias = grads
        return grad_x, None, grad_bias, None if grad_weight is None else grad_weight.flatten(1), None, None
