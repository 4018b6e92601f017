"""Conformer acoustic model: torchaudio's layers behind a convolutional front, for CTC and LF-MMI.

The one place that imports torchaudio's models. Gulati et al. 2020, "Conformer: convolution-augmented Transformer for
speech recognition"; torchaudio's layers have no positional encoding, the convolutions tell places apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpq.am.base import AcousticModel, frame_mask, spread_ivectors
from mpq.io import BadInput, check_ranges
from mpq.quant import relu_of


@dataclass
class ConformerConfig:
    """Size of a Conformer; the defaults are the paper's small one but for its depth.

    Attributes:
        feature_dim: log-mel bins of a frame; a multiple of 4.
        dim: width of the layers; a multiple of `heads`.
        heads: of the attention.
        feed_forward: inner width of the feed-forward modules.
        layers: number of layers.
        kernel: frames at 25 a second that the convolutions see; odd.
        channels: output channels of the two convolutions of the front, which halve time and frequency.
        dropout: in the layers.
        ivector_dim: dimension of the i-vectors; 0: none.
    """

    feature_dim: int = 80
    dim: int = 144
    heads: int = 4
    feed_forward: int = 576
    layers: int = 12
    kernel: int = 31
    channels: int = 32
    dropout: float = 0.1
    ivector_dim: int = 0

    def __post_init__(self) -> None:
        positive = dict.fromkeys(("feature_dim", "dim", "heads", "feed_forward", "layers", "kernel"), "[1, 1e6]")
        check_ranges(self, **positive, channels="[1, 1e6]", dropout="[0, 1)", ivector_dim="[0, 1e6]")
        for name, value, divisor in (("feature_dim", self.feature_dim, 4), ("dim", self.dim, self.heads)):
            if value % divisor:
                raise BadInput(f"{name}: {value} must be a multiple of {divisor}")
        if self.kernel % 2 == 0:
            raise BadInput(f"kernel: {self.kernel} must be odd")


class ConformerModel(AcousticModel):
    """Conformer over log-mel features; 25 output frames a second.

    Args:
        config: the size.
        n_outputs: units plus the blank, which is unit 0.
    """

    subsampling = 4

    def __init__(self, config: ConformerConfig, n_outputs: int) -> None:
        super().__init__(config.feature_dim, config.ivector_dim, n_outputs, (config.layers, config.dim))
        from mpq.am.conformer_layer import Layer  # imports torchaudio's models

        self.config = config
        self.conv1 = nn.Conv2d(1, config.channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(config.channels, config.channels, 3, stride=2, padding=1)
        self.join = nn.Linear(config.channels * config.feature_dim // 4, config.dim)
        if config.ivector_dim:
            self.ivector = nn.Linear(config.ivector_dim, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        size = config.dim, config.feed_forward, config.heads, config.kernel, config.dropout
        self.layers = nn.ModuleList(Layer(*size) for _ in range(config.layers))
        self._gates = [module for module in self.layers.modules() if isinstance(module, nn.GLU)]
        self.output = self.make_output()

    def make_output(self) -> nn.Module:
        """One linear layer."""
        return nn.Linear(self.config.dim, self.n_outputs)

    def encode(self, features: Tensor, lengths: Tensor, ivectors: Tensor | None, scales: Tensor | None) -> Tensor:
        """Hidden frames `(N, T', dim)`."""
        x = _silence(features, lengths, 1, keep=True).unsqueeze(1)
        x = relu_of(self.conv1, x)  # (N, C, T/2, F/2)
        x = relu_of(self.conv2, _silence(x, torch.div(lengths + 1, 2, rounding_mode="floor"), 2))
        x = self.join(x.transpose(1, 2).flatten(2))  # (N, T', dim)
        if self.ivector_dim and ivectors is not None:
            x = x + spread_ivectors(self.ivector(ivectors), x.shape[1], self.subsampling)
        mask = frame_mask(self.out_lengths(lengths), x.shape[1])
        x = self.dropout(x).transpose(0, 1)  # (T', N, dim), as torchaudio's layers take it
        with self._masked_convolutions(mask):
            for number, layer in enumerate(self.layers):
                x = layer(x, mask == 0)
                x = x if scales is None else x * scales[:, number]
        hidden: Tensor = x.transpose(0, 1)
        return hidden

    @contextmanager
    def _masked_convolutions(self, mask: Tensor) -> Iterator[None]:
        """Keeps padding, `mask` `(N, T')` is 0 there, out of the depthwise convolutions, which torchaudio does not.

        Their input is what the gated linear unit before them puts out.
        """

        def zero_padding(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output * mask[:, None]

        hooks = [gate.register_forward_hook(zero_padding) for gate in self._gates]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _silence(x: Tensor, lengths: Tensor, axis: int, keep: bool = False) -> Tensor:
    """`x` (N, ..., T, ...) with zeros from the lengths on; it need not be as it was, but where it is to be kept."""
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        ends = [(i, end) for i, end in enumerate(lengths.tolist()) if end < x.shape[axis]]
        x = x.clone() if keep and ends else x
        for i, end in ends:
            x[i].narrow(axis - 1, end, x.shape[axis] - end).zero_()
        return x
    mask = frame_mask(lengths, x.shape[axis])
    return x * mask.view(mask.shape[0], *[1] * (axis - 1), -1, *[1] * (x.dim() - axis - 1))
