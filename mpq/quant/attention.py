"""Multi-head self-attention with quantized projections.

The packed projection of queries, keys and values and the one of the output run on integers; scores and their
softmax, which have no weights, stay in float.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mpq.io import cpu_line
from mpq.quant import steps
from mpq.quant.compiled import at, library_for, share
from mpq.quant.floats import onednn_products, takes_onednn
from mpq.quant.layers import Projector, QuantModule
from mpq.quant.panels import fused_for

_SCORES = 1 << 18  # at once on a CPU: more would leave the cache
_ONEDNN = 16**3  # torch takes oneDNN for products of more multiplications
_TERMS = 512  # that oneDNN adds at once


class QuantAttention(QuantModule):
    """nn.MultiheadAttention of a sequence to itself, with a quantized ``in_proj_weight``; ``out_proj`` is a layer."""

    __constants__ = ["embed_dim", "num_heads", "dropout", "batch_first"]  # noqa: RUF012
    embed_dim: int
    num_heads: int
    dropout: float
    batch_first: bool
    in_proj_bias: Tensor | None

    def __init__(self, original: nn.Module, projectors: Mapping[str, Projector], a_bits: int = 8) -> None:
        super().__init__(original, projectors, a_bits)
        self.out_proj = original.get_submodule("out_proj")
        odd = [name for name in ("q_proj_weight", "bias_k") if self._parameters.get(name) is not None]
        if odd or getattr(original, "add_zero_attn", False):
            raise ValueError(f"{original}: expected one size of queries, keys and values, no bias_k or add_zero_attn")

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, None]:
        """Attention of a sequence to itself.

        Args:
            query: (T, N, D), or (N, T, D) with ``batch_first``.
            key, value: the same tensor.
            key_padding_mask: (N, T), true on padding.
            need_weights: must be false: the weights are not kept.
        Returns:
            what ``query`` has the shape of, and None.
        """
        if key is not query or value is not query or need_weights:
            raise ValueError("quantized attention is of a sequence to itself, and does not return its weights")
        x = query.transpose(0, 1) if self.batch_first else query
        n_frames, batch, _ = x.shape
        projected = self._linear(x, "in_proj_weight", self.in_proj_bias)
        q, k, v = projected.view(n_frames, batch, 3, self.num_heads, -1).permute(2, 1, 3, 0, 4)  # (N, heads, T, D')
        with torch.autocast(x.device.type, enabled=False):  # as it will be served
            mixed = attend(q, k, v, key_padding_mask, self.dropout if self.training else 0.0)
        out: Tensor = self.out_proj(mixed.permute(2, 0, 1, 3).reshape(n_frames, batch, -1))
        return (out.transpose(0, 1) if self.batch_first else out), None


def attend(q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    On an AMD processor written out: oneDNN's products and powers of two take half the time of torch's kernel, which has
    MKL's products there; on an Intel one that kernel takes half the time of these, but it cannot drop weights.

    Args:
        q, k, v: (N, heads, T, D).
        padding: (N, T), true on keys to leave out.
        dropout: of the weights.
    Returns:
        (N, heads, T, D).
    """
    if not dropout and fused_for(q, k, v):
        bias = q.new_zeros(len(q), q.shape[2])
        return steps.attend(q, k, v, bias if padding is None else bias.masked_fill_(padding, -math.inf))
    if q.device.type != "cpu" or not (dropout or _cpu_is_amds()):
        mask = None if padding is None else ~padding[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, mask, dropout)
    n, heads, length, width = q.shape
    bias = q.new_zeros(n, 1, 1, length)
    if padding is not None:
        bias.masked_fill_(padding[:, None, None, :], -math.inf)
    queries = q * (math.log2(math.e) / math.sqrt(width))
    at_once = max(1, _SCORES // length**2)
    split = [torch.split(x.flatten(0, 1), at_once) for x in (queries, k, v, bias.expand(n, heads, 1, length))]
    with onednn_products():
        mixed = [_mix(dropout, *part) for part in zip(*split, strict=True)]
    return torch.cat(mixed).view(q.shape)


def _cpu_is_amds() -> bool:
    return "AuthenticAMD" in cpu_line("vendor_id")


def _mix(dropout: float, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """`attend` for some heads (M, T, D), with scores as logarithms to base two and a bias (M, 1, T) added to them."""
    scores = torch.bmm(q, k.transpose(1, 2)).add_(bias)
    weights, total = _powers(scores)
    return torch.bmm(F.dropout(weights, dropout), v) / total


def attend_exactly(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, the same for a query whatever else is in the tensors, for an integer layer.

    The order of a float sum depends on what is batched together. Its last bit would now and then turn a rounding to
    int8, and so give one sentence other scores in other batches. So sums are in double, but for sums of up to 512 terms
    on a CPU whose oneDNN adds one after the other, which is several times as fast: zeros between them, as padding and
    other branches of a tree are, then change nothing.

    Args:
        q: (..., Q, D) float.
        k, v: (..., K, D) float.
        bias: (Q, K), or with some of the other dimensions; minus infinity where a query does not see a key.
    Returns:
        (..., Q, D) float32.
    """
    in_order = q.device.type == "cpu" and max(k.shape[-2:]) <= _TERMS and _cpu_adds_in_order()
    q, k, v = (x.to(torch.float32 if in_order else torch.float64) for x in (q, k, v))
    queries = q * (math.log2(math.e) / math.sqrt(q.shape[-1]))
    n_queries = q.shape[-2]
    if in_order and (few := _ONEDNN // (k.numel() or 1) + 1 - n_queries) > 0:
        queries, bias = (F.pad(x, (0, 0, 0, few)) for x in (queries, bias))
    with torch.autocast(q.device.type, enabled=False), onednn_products():
        scores = (queries @ k.transpose(-2, -1)).add_(bias)
        weights, total = _powers(scores, exactly=True)
        mixed = weights @ v / total
    return mixed[..., :n_queries, :].to(torch.float32)


def _powers(scores: Tensor, exactly: bool = False) -> tuple[Tensor, Tensor]:
    """2^(scores - the largest of a row) in the memory of `scores`, and the sums of rows (..., 1).

    Args:
        exactly: the same whatever else is in the tensor, as compiled ones are anyway; by torch in double, since a
            vector's float powers have other last bits.
    """
    library = library_for(scores)
    if library and scores.is_contiguous():
        found: tuple[Tensor, Tensor] = _Powers.apply(scores, library)  # type: ignore[no-untyped-call]
        return found
    below = scores.sub_(scores.detach().amax(-1, keepdim=True))
    weights = (below.double() if exactly else below).exp2_().to(scores.dtype)
    total = weights.sum(-1, keepdim=True, dtype=torch.float64 if exactly else None)
    return weights, total.to(scores.dtype)


class _Powers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, library: ctypes.CDLL) -> tuple[Tensor, Tensor]:
        total, columns = scores.new_empty(*scores.shape[:-1], 1), scores.shape[-1]
        flat = scores.view(-1, columns)

        def work(first: int, rows: int) -> None:
            library.softmax_rows(at(flat, first), at(total.view(-1), first), rows, columns)

        share(work, len(flat), columns)
        ctx.mark_dirty(scores)
        ctx.save_for_backward(scores)
        return scores, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_total: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return (grad + grad_total).mul_(weights).mul_(math.log(2)), None


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turns the pairs (x[i], x[i + C/2]) of every head, (..., T, H, C), by `turns` (2, T, C / 2): rotary positions."""
    library, gradients = library_for(x, turns), torch.is_grad_enabled() and x.requires_grad
    times, heads, size = x.shape[-3:]
    fit = turns.shape == (2, times, size / 2) and x.is_contiguous() and x.numel()
    if library and fit and not gradients:
        turns, out = turns.contiguous(), torch.empty_like(x)

        def work(first: int, rows: int) -> None:
            library.turn_pairs(at(x, 0), at(turns, 0), at(out, 0), first, rows, times, heads, size // 2)

        share(work, x.numel() // size, size)
        return out
    cos, sin = turns.to(x.dtype).unsqueeze(2)
    a, b = x.chunk(2, dim=-1)
    return x * torch.cat([cos, cos], -1) + torch.cat([b, a], -1) * torch.cat([-sin, sin], -1)


@cache
def _cpu_adds_in_order() -> bool:
    """Whether sums of `_TERMS` float32 products by oneDNN are the same in other shapes and without zeros between."""
    if not takes_onednn():
        return False
    some = torch.arange(0, _TERMS, 3)
    a, b = torch.randn(2, 4, 48, len(some), generator=torch.Generator().manual_seed(0)).unbind(0)
    wide_a, wide_b = (torch.zeros(4, 48, _TERMS).index_copy_(2, some, x) for x in (a, b))
    with torch.no_grad(), torch.autocast("cpu", enabled=False), onednn_products():
        large, small = wide_a @ wide_b.transpose(1, 2), a[:1, :9] @ b[:1, :31].transpose(1, 2)
    return torch.equal(large[:1, :9, :31], small)
