"""Multi-head self-attention with quantized projections.

The packed projection of queries, keys and values and the one of the output run on integers; scores and their
softmax, which have no weights, stay in float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.quant.floats import onednn_products
from mpq.quant.layers import Projector, QuantModule

_SCORES = 1 << 18  # at once on a CPU: more would leave the cache


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

    On a CPU written out: oneDNN's products and powers of two take half the time of torch's kernel, which has MKL's
    products and exponentials.

    Args:
        q, k, v: (N, heads, T, D).
        padding: (N, T), true on keys to leave out.
        dropout: of the weights.
    Returns:
        (N, heads, T, D).
    """
    if q.device.type != "cpu":
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


def _mix(dropout: float, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """`attend` for some heads (M, T, D), with scores as logarithms to base two and a bias (M, 1, T) added to them."""
    scores = torch.bmm(q, k.transpose(1, 2)).add_(bias)
    weights = scores.sub_(scores.detach().amax(-1, keepdim=True)).exp2_()
    return torch.bmm(F.dropout(weights, dropout), v) / weights.sum(-1, keepdim=True)
