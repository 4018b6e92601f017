"""Modules of quantized networks in one call each, from normalization to residual sum, by the C of `fused.c`.

The steps of a module on a few rows stay in the processor's cache, which takes half the time of the same steps one after
the other over whole tensors. Where gradients are asked for they are taken one after the other, by the same C, and so
with the same numbers, bit for bit: what is trained is what is served.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor, nn

from mpq.quant.attention import QuantAttention
from mpq.quant.compiled import COUNT, POINTER, at, share
from mpq.quant.conv import QuantConv1d
from mpq.quant.integer import EXACT, asks_gradients
from mpq.quant.kernels import TINY, top_of
from mpq.quant.layers import QuantLinear, QuantModule, weight_names
from mpq.quant.panels import Matrix, done, fit, fused_for, matrix
from mpq.quant.steps import Norm


class _Depthwise(ctypes.Structure):
    _fields_ = (("codes", POINTER), ("scale", POINTER), ("bias", POINTER), ("gain", POINTER), ("offset", POINTER),
                ("taps", COUNT), ("before", COUNT))  # fmt: skip
    kept: tuple[Tensor | None, ...]


def can_fuse(x: Tensor, module: nn.Module) -> bool:
    """Whether the weights of a module are quantized so that what is below takes them, and `x` is such a tensor."""
    if fused_for(x) is None or not all(map(_is_plain, module.modules())):
        return False
    layers = [layer for layer in module.modules() if weight_names(layer)]
    return all(map(_fits, layers)) and len({layer.a_bits for layer in layers}) == 1


def _is_plain(layer: nn.Module) -> bool:
    """Whether what it holds itself is as the library reads it."""
    held = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in held):
        return False
    return not isinstance(layer, nn.LayerNorm) or (layer.bias is not None and len(layer.normalized_shape) == 1)


def _fits(layer: nn.Module) -> bool:
    if not isinstance(layer, QuantModule) or layer.a_bits == 32:
        return False
    if layer.projectors.keys() != layer.weight_shapes.keys():
        return False
    if any(p.scale_shape[1] > 1 or p.precision.kind == "asym" for p in layer.projectors.values()):
        return False
    if not isinstance(layer, QuantConv1d):
        return True
    taps = math.prod(layer.kernel_size)
    if layer.stride != (1,) or layer.dilation != (1,) or layer.pads != [taps // 2] * 2 or taps % 2 == 0:
        return False
    return taps <= EXACT if layer.is_depthwise else layer.groups == taps == 1


def without_gradients(x: Tensor, module: nn.Module) -> bool:
    """Whether nothing is being trained here, so that a module may be taken in one call."""
    return not (any(part.training for part in module.modules()) or asks_gradients(x, *module.parameters()))


def feed_forward(
    x: Tensor, norm: nn.LayerNorm, first: QuantLinear, second: QuantLinear, factor: float, out: Tensor
) -> Tensor:
    """x + factor * second(silu(first(norm(x)))), x (..., K) float32, contiguous; to `out`, which may be x."""
    rows, to = x.view(-1, x.shape[-1]), out.view(-1, x.shape[-1])
    library, by = _library(x, out), (_matrix(first), _matrix(second))
    _fit_together(x, norm, *by)
    fit(out, x.shape, "results")
    places = _norm(norm), *map(ctypes.byref, by), factor, TINY, top_of(first.a_bits)

    def work(begin: int, count: int) -> None:
        done(library.feed_forward(at(rows, begin), *places, at(to, begin), count))

    share(work, len(rows), by[0].outputs)
    return out


def attention(x: Tensor, norm: nn.LayerNorm, layer: QuantAttention, bias: Tensor) -> Tensor:
    """x + layer(norm(x)) of a sequence to itself, x (N, T, K) float32, bias (N, T) 0 or minus infinity; to x."""
    library, times, last = _library(x, bias), x.shape[1], layer.out_proj
    assert isinstance(last, QuantLinear)
    by = _matrix(layer, "in_proj_weight", layer.in_proj_bias), _matrix(last)
    _fit_together(x, norm, *by, 3)
    fit(x, (*bias.shape, by[1].inputs), "input")
    places = _norm(norm), *map(ctypes.byref, by), layer.num_heads

    def work(begin: int, count: int) -> None:
        to = at(bias, begin), TINY, top_of(layer.a_bits), at(x, begin), count, times
        done(library.attention(at(x, begin), *places, *to))

    share(work, len(x), times * by[0].outputs)
    return x


def convolution(
    x: Tensor, norm: nn.LayerNorm, first: QuantConv1d, depthwise: QuantConv1d, batch_norm: nn.BatchNorm1d,
    last: QuantConv1d, mask: Tensor,
) -> Tensor:  # fmt: skip
    """x + last(silu(batch_norm(depthwise(mask * glu(first(norm(x))))))), x (N, T, K) float32, mask (N, T); to x."""
    library, times = _library(x, mask), x.shape[1]
    by, between = (_matrix(first), _matrix(last)), _depthwise(depthwise, batch_norm)
    _fit_together(x, norm, *by, 2)
    fit(x, (*mask.shape, by[0].inputs), "input")
    for held in between.kept[1:]:
        if held is not None:
            fit(held, (by[1].inputs,), "numbers of channels")
    places = _norm(norm), ctypes.byref(by[0]), ctypes.byref(between), ctypes.byref(by[1])

    def work(begin: int, count: int) -> None:
        to = at(mask, begin), TINY, top_of(first.a_bits), at(x, begin), count, times
        done(library.convolution(at(x, begin), *places, *to))

    share(work, len(x), times * by[0].outputs)
    return x


def stretch(batch_norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """What batch normalization multiplies by and adds in use, (C,) each."""
    mean, variance = batch_norm.running_mean, batch_norm.running_var
    assert mean is not None and variance is not None
    gain = batch_norm.weight * (variance + batch_norm.eps).rsqrt()
    return gain, batch_norm.bias - mean * gain


def _library(*tensors: Tensor) -> ctypes.CDLL:
    """The library, for tensors that it can read as they lie in memory."""
    found = fused_for(*tensors)
    assert found is not None and all(x.is_contiguous() for x in tensors), "see can_fuse"
    return found


def _fit_together(x: Tensor, norm: nn.LayerNorm, first: Matrix, last: Matrix, times: int = 1) -> None:
    """See that the first layer makes `times` as many numbers of a row as the last one takes for a row of x."""
    fit(x, (*x.shape[:-1], first.inputs), "input")
    fit(norm.weight, (first.inputs,), "gains")
    if first.outputs != times * last.inputs or last.outputs != first.inputs:
        raise RuntimeError(f"{first.inputs} to {first.outputs}, {last.inputs} to {last.outputs}: do not fit together")


def _norm(norm: nn.LayerNorm) -> Any:
    """A pointer to its numbers, which it keeps."""
    weight, bias = norm.weight.detach(), norm.bias.detach()
    found = Norm(at(weight, 0), at(bias, 0), norm.eps)
    found.kept = weight, bias
    return ctypes.byref(found)


def _matrix(layer: QuantModule, name: str = "weight", bias: Tensor | None = None) -> Matrix:
    bias = layer.bias if isinstance(layer, nn.Linear | QuantConv1d) else bias
    found = matrix(layer.quantized(name), None if bias is None else bias.detach())
    assert found is not None, "see can_fuse"
    return found


def _depthwise(layer: QuantConv1d, batch_norm: nn.BatchNorm1d) -> _Depthwise:
    codes, scale, _ = layer.quantized("weight")
    gain, offset = stretch(batch_norm)
    channels, taps = codes.shape
    bias = None if layer.bias is None else layer.bias.detach()
    scale, codes = scale[:, 0].expand(channels).contiguous(), codes.t().float().contiguous()
    kept = codes, scale, bias, gain.detach(), offset.detach()
    found = _Depthwise(*(at(x, 0) for x in kept), taps, layer.pads[0])
    found.kept = kept
    return found
