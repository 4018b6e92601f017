"""torchaudio's Conformer layer, by modules of integers where all its weights are quantized."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mpq.quant import fused, steps


class Layer(nn.Module):
    """A layer of Gulati et al. 2020: half a feed-forward module, attention, convolution, half a feed-forward module.

    Its modules are those of torchaudio's ConformerLayer, and by their names. Where `mpq.quant.fused` cannot take them,
    they run as they do there. Where it can, the layers inside are not called, nor are their hooks.

    Args:
        dim: width.
        feed_forward: inner width of the feed-forward modules.
        heads: of the attention.
        kernel: frames that the convolution sees.
        dropout: in all of them.
    """

    ffn1: Any
    self_attn_layer_norm: Any
    self_attn: Any
    self_attn_dropout: Any
    conv_module: Any
    ffn2: Any
    final_layer_norm: Any

    def __init__(self, dim: int, feed_forward: int, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        from torchaudio.models.conformer import ConformerLayer

        for name, module in ConformerLayer(dim, feed_forward, heads, kernel, dropout).named_children():
            self.add_module(name, module)

    def forward(self, input: Tensor, key_padding_mask: Tensor) -> Tensor:
        """(T, N, D) to the same; key_padding_mask (N, T) is true on padding."""
        if not fused.can_fuse(input, self):
            return self._plain(input, key_padding_mask)
        x = input.transpose(0, 1).contiguous()
        once = fused.without_gradients(x, self)
        bias = x.new_zeros(key_padding_mask.shape).masked_fill_(key_padding_mask, -math.inf)
        x = self._feed_forward(x, self.ffn1.sequential, once)
        x = self._attention(x, bias, once)
        x = self._convolution(x, bias.exp(), once)
        x = self._feed_forward(x, self.ffn2.sequential, once)
        return steps.layer_norm(x, self.final_layer_norm).transpose(0, 1)

    def _plain(self, x: Tensor, key_padding_mask: Tensor) -> Tensor:
        x = self.ffn1(x) * 0.5 + x
        normed = self.self_attn_layer_norm(x)
        mixed = self.self_attn(normed, normed, normed, key_padding_mask=key_padding_mask, need_weights=False)[0]
        x = self.self_attn_dropout(mixed) + x
        x = x + self.conv_module(x.transpose(0, 1)).transpose(0, 1)
        x = self.ffn2(x) * 0.5 + x
        out: Tensor = self.final_layer_norm(x)
        return out

    def _feed_forward(self, x: Tensor, module: Any, once: bool) -> Tensor:
        norm, first, _, inner_dropout, second, dropout = module
        if once:
            out = torch.empty_like(x) if module is self.ffn1.sequential else x  # the input is the caller's
            return fused.feed_forward(x, norm, first, second, 0.5, out)
        active = inner_dropout(steps.silu(first(steps.layer_norm(x, norm))))
        return torch.add(x, dropout(second(active)), alpha=0.5)

    def _attention(self, x: Tensor, bias: Tensor, once: bool) -> Tensor:
        if once:
            return fused.attention(x, self.self_attn_layer_norm, self.self_attn, bias)
        normed = steps.layer_norm(x, self.self_attn_layer_norm).transpose(0, 1)
        mixed: Tensor = self.self_attn(normed, normed, normed, bias.isinf())[0]
        return torch.add(x, self.self_attn_dropout(mixed.transpose(0, 1)))

    def _convolution(self, x: Tensor, mask: Tensor, once: bool) -> Tensor:
        norm = self.conv_module.layer_norm
        first, _, depthwise, batch_norm, _, last, dropout = self.conv_module.sequential
        if once:
            return fused.convolution(x, norm, first, depthwise, batch_norm, last, mask)
        gated = steps.glu(first(steps.layer_norm(x, norm).transpose(1, 2)).transpose(1, 2)) * mask[:, :, None]
        between = depthwise(gated.transpose(1, 2))
        if batch_norm.training:
            normed = batch_norm(between)
        else:
            gain, offset = fused.stretch(batch_norm)
            normed = torch.addcmul(offset[:, None], between, gain[:, None])
        active = steps.silu(normed.transpose(1, 2))
        return torch.add(x, dropout(last(active.transpose(1, 2)).transpose(1, 2)))
