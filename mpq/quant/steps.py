"""The steps of a quantized network's modules one by one, with gradients, by the C that `fused.py` takes them all by.

So they have the same numbers, bit for bit: what is trained is what is served.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mpq.quant.compiled import COUNT, FLOAT, POINTER, at, share
from mpq.quant.panels import done, fit, fused_for


class Norm(ctypes.Structure):
    """What normalizes a layer's input, as `product.c` reads it."""

    _fields_ = (("gain", POINTER), ("offset", POINTER), ("epsilon", FLOAT))
    kept: tuple[Tensor, ...]


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer normalization of the last dimension of x (..., K)."""
    fit(norm.weight, x.shape[-1:], "gains")
    result: Tensor = _LayerNorm.apply(x, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return result


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        library, columns = fused_for(x, weight, bias), x.shape[-1]
        assert library is not None
        x = x.contiguous()
        out, (mean, by) = torch.empty_like(x), x.new_empty(2, *x.shape[:-1], 1)
        norm, rows = Norm(at(weight, 0), at(bias, 0), epsilon), [t.view(-1, t.shape[-1]) for t in (x, out, mean, by)]

        def work(first: int, count: int) -> None:
            to = (at(t, first) for t in rows[1:])
            library.norm_rows(at(rows[0], first), ctypes.byref(norm), *to, count, columns)

        share(work, len(rows[0]), columns)
        ctx.save_for_backward(x, mean, by, weight, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, by, weight, bias = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        grads = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), x, [x.shape[-1]], mean, by, weight, bias, wanted
        )
        return *grads, None


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    result: Tensor = _Silu.apply(x)  # type: ignore[no-untyped-call]
    return result


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        library = fused_for(x)
        assert library is not None
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        flat, to = x.view(-1), out.view(-1)
        share(lambda first, count: library.silus(at(flat, first), at(to, first), count), len(flat), 1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = torch.ops.aten.silu_backward(grad, x)
        return slope


def glu(x: Tensor) -> Tensor:
    """a sigmoid(b) of the halves a and b of the last dimension, (..., 2 K) to (..., K)."""
    result: Tensor = _Glu.apply(x)  # type: ignore[no-untyped-call]
    return result


class _Glu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        library, columns = fused_for(x), x.shape[-1] // 2
        assert library is not None
        fit(x, (*x.shape[:-1], 2 * columns), "input of a gated linear unit")
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = x.new_empty(*x.shape[:-1], columns)
        rows, to = x.view(-1, 2 * columns), out.view(-1, columns)
        share(lambda first, count: library.gate_rows(at(rows, first), at(to, first), count, columns), *to.shape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = torch.ops.aten.glu_backward(grad, x, -1)
        return slope


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v.

    Args:
        q, k, v: (N, heads, T, D), of the same strides, the last one 1.
        bias: (N, T), 0 or minus infinity.
    Returns:
        (N, heads, T, D), in the order of memory of (N, T, heads, D).
    """
    result: Tensor = _Attend.apply(q, k, v, bias)[0]  # type: ignore[no-untyped-call]
    return result


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        library, (n, heads, times, width) = fused_for(q, k, v, bias), q.shape
        assert library is not None
        if not (q.shape == k.shape == v.shape and q.stride() == k.stride() == v.stride() and q.stride(3) == 1):
            q, k, v = (x.expand(n, heads, times, width).contiguous() for x in (q, k, v))
        fit(bias, (n, times), "bias")
        bias = bias.contiguous()
        out = q.new_empty(n, times, heads, width).transpose(1, 2)
        log_sums = q.new_empty(n, heads, times)
        strides, out_strides = ((COUNT * 3)(*x.stride()[:3]) for x in (q, out))
        places = (*(at(x, 0) for x in (q, k, v)), strides, at(bias, 0), heads, times, width, at(out, 0))

        def work(first: int, count: int) -> None:
            done(library.attend(*places, out_strides, at(log_sums, 0), first, count))

        share(work, n * heads, times * times)
        ctx.save_for_backward(q, k, v, bias, out, log_sums)
        return out, log_sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, log_sums = ctx.saved_tensors
        mask = bias[:, None, None, :].expand(len(q), 1, q.shape[2], -1)
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, log_sums, 0.0, False, attn_mask=mask
        )
        return *grads, None
