"""The recurrence of an LSTM layer on integers, with its gradients written out.

At every step the hidden row is rounded to int8 and multiplied by the integer weight. Backpropagation through
time is written by hand: one small product a step, and one large product for the weight gradient at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mpq.quant.integer import _product
from mpq.quant.table import Quantized


def recurrence(
    gates: Tensor, h: Tensor, c: Tensor, weight: Quantized | Tensor, surrogate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one LSTM layer over time, gates in torch's order i, f, g, o.

    i, f, o = sigmoid, g = tanh of gates[t] + h[t-1] @ weight.T;  c[t] = f c[t-1] + i g;  h[t] = o tanh(c[t])

    Args:
        gates: (T, N, 4H) float, the input's share with both biases.
        h, c: (N, H) float, the state before the first step.
        weight: (4H, H), quantized or float.
        surrogate: (4H, H) float, the weight that takes the gradients; none: no gradients.
    Returns:
        hidden rows (T, N, H), and the state (N, H), (N, H) after the last step.
    """
    if surrogate is None or not torch.is_grad_enabled():
        h_all, c_all, _ = _run(gates, h, c, weight, None)
    else:
        h_all, c_all = _Recurrence.apply(gates, h, c, weight, surrogate)  # type: ignore[no-untyped-call]
    return h_all, h_all[-1], c_all[-1]


def _run(
    gates: Tensor, h: Tensor, c: Tensor, weight: Quantized | Tensor, seen: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden and cell rows (T, N, H) of every step, and the activated gates (T, N, 4H).

    ``seen`` (T, N, H), where given, is filled with the hidden rows as the product saw them.
    """
    steps, batch, width = gates.shape
    size = width // 4
    # sigmoid(x) = tanh(x / 2) / 2 + 1 / 2: one tanh serves all gates, and unlike torch's vectorised sigmoid
    # its result for an element does not depend on where in the tensor the element stands
    half = torch.full((width,), 0.5, device=gates.device)
    half[2 * size : 3 * size] = 1.0
    shift = 1.0 - half
    active = torch.empty_like(gates)
    h_all, c_all = gates.new_empty(steps, batch, size), gates.new_empty(steps, batch, size)
    for t in range(steps):
        if isinstance(weight, Quantized):
            product, rows, row_scale = _product(h, weight.codes, weight.scale, None)
        else:
            product, rows, row_scale = h @ weight.t(), h, None
        if seen is not None:
            seen[t] = rows if row_scale is None else rows * row_scale
        product += gates[t]
        a = active[t]
        torch.tanh(product.mul_(half), out=a)
        a.mul_(half).add_(shift)
        i, f, g, o = a.chunk(4, 1)
        c = torch.add(f * c, i * g, out=c_all[t])
        h = torch.mul(o, c.tanh(), out=h_all[t])
    return h_all, c_all, active


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, gates: Tensor, h: Tensor, c: Tensor, weight: Quantized | Tensor, surrogate: Tensor
    ) -> tuple[Tensor, Tensor]:
        seen = gates.new_empty(*gates.shape[:2], h.shape[1])
        h_all, c_all, active = _run(gates, h, c, weight, seen)
        ctx.save_for_backward(active, c, c_all, seen, surrogate)
        return h_all, c_all

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        active, c_first, c_all, seen, surrogate = ctx.saved_tensors
        size = c_first.shape[1]
        tanh_c = c_all.tanh()
        slope = active * (1 - active)  # derivative of a gate by what goes into it
        torch.sub(1, active[..., 2 * size : 3 * size].square(), out=slope[..., 2 * size : 3 * size])
        grad = torch.empty_like(active)
        dh, dc = torch.zeros_like(c_first), torch.zeros_like(c_first)
        for t in reversed(range(active.shape[0])):
            i, f, g, o = active[t].chunk(4, 1)
            dh = dh + grad_h[t]
            dc = dc + grad_c[t] + dh * o * (1 - tanh_c[t].square())
            into = grad[t].view(-1, 4, size)
            torch.mul(dc, g, out=into[:, 0])
            torch.mul(dc, c_all[t - 1] if t else c_first, out=into[:, 1])
            torch.mul(dc, i, out=into[:, 2])
            torch.mul(dh, tanh_c[t], out=into[:, 3])
            grad[t] *= slope[t]
            dc = dc * f
            dh = grad[t] @ surrogate
        grad_weight = grad.flatten(0, 1).t() @ seen.flatten(0, 1)
        return grad, dh, dc, None, grad_weight
