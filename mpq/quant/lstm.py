"""The recurrence of an LSTM layer on integers, with its gradients written out.

At every step the hidden row is rounded to integers and multiplied by the integer weight. Backpropagation through
time is written by hand: one small product a step, and one large product for the weight gradient at the end.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpq.quant.activation import sigmoid_
from mpq.quant.compiled import at, library_for, share
from mpq.quant.floats import float_linear
from mpq.quant.integer import MANY, asks_gradients, gradient_dtype, gradient_product, int_product, ready
from mpq.quant.kernels import TINY, top_of
from mpq.quant.panels import Matrix, done, fit, fused_for
from mpq.quant.table import Quantized


def recurrence(
    gates: Tensor, h: Tensor, c: Tensor, weight: Quantized | Matrix | Tensor, surrogate: Tensor | None, a_bits: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one LSTM layer over time, gates in torch's order i, f, g, o.

    i, f, o = sigmoid, g = tanh of gates[t] + h[t-1] @ weight.T;  c[t] = f c[t-1] + i g;  h[t] = o tanh(c[t])

    Args:
        gates: (T, N, 4H) float, the input's share with both biases.
        h, c: (N, H) float, the state before the first step.
        weight: (4H, H), quantized or float; `ready` where no gradient is asked for.
        surrogate: (4H, H) float, the weight that takes the gradients; none: the other inputs alone take them.
        a_bits: bits of the rounded hidden rows, where the weight is quantized.
    Returns:
        hidden rows (T, N, H), and the state (N, H), (N, H) after the last step.
    """
    gates = gates.to(torch.float32)  # from a float layer under autocast they are not
    if not asks_gradients(gates, h, c, surrogate):
        h_all, c_all = _run(gates, h, c, weight, a_bits)[:2]
    else:
        if surrogate is None:
            assert not isinstance(weight, Matrix), "a matrix that is ready has no gradient"
            surrogate = weight.dequantize() if isinstance(weight, Quantized) else weight
        h_all, c_all = _Recurrence.apply(gates, h, c, weight, surrogate, a_bits)  # type: ignore[no-untyped-call]
    return h_all, h_all[-1], c_all[-1]


class _Steps(NamedTuple):
    """What the forward pass leaves behind, (T, N, ·)."""

    h: Tensor
    c: Tensor
    tanh_c: Tensor
    active: Tensor  # gates after their nonlinearity, (T, N, 4H)


def _run(
    gates: Tensor, h: Tensor, c: Tensor, weight: Quantized | Matrix | Tensor, a_bits: int, seen: Tensor | None = None
) -> _Steps:
    """All steps of `recurrence`; ``seen`` (T, N, H), where given, takes h[t-1] as the product saw it."""
    n_steps, batch, width = gates.shape
    size = width // 4
    learning = seen is not None
    n_kept = n_steps if learning else 1  # only gradients need more than the last step's
    steps = _Steps(
        h=gates.new_empty(n_steps, batch, size),
        c=gates.new_empty(n_kept, batch, size),
        tanh_c=gates.new_empty(n_kept, batch, size),
        active=gates.new_empty(n_steps if learning else 0, batch, width),
    )
    if isinstance(weight, Quantized) and n_steps * (batch + 8) >= MANY:
        weight = ready(weight)
    for t in range(n_steps):
        if not learning and isinstance(weight, Matrix):
            h, c = _step(gates[t], h, c, weight, a_bits, steps.h[t], steps.c[0])
            continue
        if not isinstance(weight, Tensor):
            active, rows, row_scale = int_product(h, weight, gates[t], a_bits)
            if seen is not None:
                seen[t].copy_(rows).mul_(row_scale)
        else:
            active = float_linear(h, weight).to(torch.float32).add_(gates[t])
            if seen is not None:
                seen[t] = h
        kept = t % n_kept
        if learning:
            active = steps.active[t].copy_(active)
        before, c, h = c, steps.c[kept], steps.h[t]
        _cells(active, before, c, steps.tanh_c[kept], h)
    return steps


def _step(
    gates: Tensor, h: Tensor, c: Tensor, weight: Matrix, a_bits: int, h_out: Tensor, c_out: Tensor
) -> tuple[Tensor, Tensor]:
    """A step of N rows in one call, the state (N, H) after it to `h_out` and `c_out`, which may be `c`."""
    h, c = (x.to(torch.float32).contiguous() for x in (h, c))
    gates = gates if gates.stride(1) == 1 else gates.contiguous()
    library = fused_for(gates, h, c)
    assert library is not None
    fit(gates, (len(h_out), weight.outputs), "gates")
    fit(gates, (len(h_out), 4 * weight.inputs), "gates")
    for state in (h, c, h_out, c_out):
        fit(state, (len(h_out), weight.inputs), "state")

    def work(first: int, rows: int) -> None:
        read = at(gates, first), gates.stride(0), at(h, first), at(c, first), ctypes.byref(weight)
        done(library.lstm_step(*read, TINY, top_of(a_bits), at(c_out, first), at(h_out, first), rows))

    share(work, *gates.shape)
    return h_out, c_out


def _cells(gates: Tensor, before: Tensor, c: Tensor, tanh_c: Tensor, h: Tensor) -> None:
    """A step of N cells: gates (N, 4H) become those after their nonlinearity; c, tanh c and h (N, H) are written.

    tanh(x) = 2 sigmoid(2 x) - 1; torch's own tanh takes ten times as long as a sigmoid.
    """
    before = before.to(torch.float32)
    if gates.shape == (len(c), 4 * c.shape[1]) and (library := library_for(gates, before, c, tanh_c, h)):
        before, (n_rows, size) = before.expand_as(c).contiguous(), c.shape

        def work(first: int, rows: int) -> None:
            library.lstm_cells(*(at(x, first) for x in (gates, before, c, tanh_c, h)), rows, size)

        share(work, n_rows, 4 * size)
        return
    i, f, g, o = gates.chunk(4, 1)
    g.mul_(2)
    sigmoid_(gates)
    g.mul_(2).sub_(1)
    torch.addcmul(i * g, f, before, out=c)
    sigmoid_(torch.mul(c, 2, out=tanh_c)).mul_(2).sub_(1)
    torch.mul(o, tanh_c, out=h)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, h: Tensor, c: Tensor, weight: Quantized | Tensor, surrogate: Tensor, a_bits: int
    ) -> tuple[Tensor, Tensor]:
        seen = gates.new_empty(*gates.shape[:2], h.shape[1])
        steps = _run(gates, h, c, weight, a_bits, seen)
        ctx.save_for_backward(c, steps.c, steps.tanh_c, steps.active, seen, surrogate)
        ctx.dtype = gradient_dtype(h.device)
        return steps.h, steps.c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        c_first, c_all, tanh_c, active, seen, surrogate = ctx.saved_tensors
        size, weight = c_first.shape[1], surrogate.to(ctx.dtype)
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
            dh = gradient_product(grad[t], weight, ctx.dtype)
        grad_weight = gradient_product(grad.flatten(0, 1).t(), seen.flatten(0, 1), ctx.dtype)
        return grad, dh, dc, None, grad_weight, None
