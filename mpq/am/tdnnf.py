"""CNN-TDNN-F acoustic model: convolutions over time and frequency, then factorized time-delay layers.

The shape is that of Kaldi's `run_cnn_tdnn.sh` for telephone speech: six 3 by 3 convolutions at 100
frames a second, the last of which leaves 33, layers factorized into a semi-orthogonal matrix to a bottleneck and a
free one back (Povey et al. 2018, "Semi-orthogonal low-rank matrix factorization for deep neural networks"), a
prefinal layer, and an output. An i-vector comes in as further channels beside the features.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.am.base import AcousticModel, frame_mask, scale_units, spread_ivectors
from mpq.io import BadInput, check_ranges

IVECTOR_CHANNELS = 5
IVECTOR_SCALE = 0.1  # their channels are weak at first, so that the features are learned first


@dataclass
class TdnnfConfig:
    """Size of a CNN-TDNN-F; the defaults are those of Kaldi's mini_librispeech, for 80 mel filters.

    Attributes:
        feature_dim: log-mel bins of a frame.
        ivector_dim: dimension of the i-vectors; 0: none.
        channels: output channels of the convolutions.
        height_strides: steps of the convolutions over frequency, one each.
        hidden: units of the factorized layers.
        bottleneck: rank of their factors.
        first_bottleneck: rank of the first one, which sees one frame only and has no bypass.
        strides: one further factorized layer each, in frames at 33 a second: a layer sees `-2d, -d, 0` and `0, d`.
        bypass: part of a layer's input that is added to its output.
        prefinal: bottleneck before the output.
        dropout: of the factorized layers: units of an utterance are scaled by random factors in `1 - 2p` to
            `1 + 2p`, the same for all frames.
    """

    feature_dim: int = 80
    ivector_dim: int = 0
    channels: list[int] = field(default_factory=lambda: [48, 48, 64, 64, 64, 128])
    height_strides: list[int] = field(default_factory=lambda: [2, 1, 2, 1, 2, 2])
    hidden: int = 768
    bottleneck: int = 96
    first_bottleneck: int = 192
    strides: list[int] = field(default_factory=lambda: [1] * 8)
    bypass: float = 0.66
    prefinal: int = 192
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.channels or len(self.channels) != len(self.height_strides):
            raise BadInput(
                f"height_strides: {len(self.height_strides)} numbers for {len(self.channels)} channels; "
                "expected one for each convolution, and at least one convolution"
            )
        positive = dict.fromkeys(("feature_dim", "channels", "height_strides", "hidden", "bottleneck"), "[1, 1e6]")
        check_ranges(self, **positive, first_bottleneck="[1, 1e6]", strides="[1, 1e6]", prefinal="[1, 1e6]")
        check_ranges(self, ivector_dim="[0, 1e6]", bypass="[0, 1]", dropout="[0, 0.5]")


class UnitDropout(nn.Module):
    """Scales each unit by a random factor in `1 - 2p` to `1 + 2p`, the same for all frames of an utterance.

    Kaldi's GeneralDropoutComponent with `dropout-per-dim-continuous`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, T)` to the same shape."""
        if not self.training or not self.p:
            return x
        return x * (1.0 + 2.0 * self.p * (2.0 * torch.rand(*x.shape[:2], 1, dtype=x.dtype, device=x.device) - 1.0))


class ConvLayer(nn.Module):
    """`norm(relu(conv(x)))` over time and frequency, padded to keep the size before the strides."""

    def __init__(self, inputs: int, outputs: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=strides, padding=1)
        self.norm = nn.BatchNorm2d(outputs, affine=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps `(N, C, T, F)` to `(N, C', T', F')`; `mask` is `(N, T')`."""
        y: Tensor = self.norm(torch.relu(self.conv(x)))
        return y * mask[:, None, :, None]


class FactorizedLayer(nn.Module):
    """Two factors, a nonlinearity and a bypass: `bypass x + dropout(norm(relu(expand(reduce(x)))))`.

    Args:
        inputs: channels that come in; other than `outputs`: there is no bypass.
        outputs: units.
        bottleneck: rank.
        stride: `reduce` sees frames `-stride, 0` and `expand` `0, stride`; 0: one frame only.
        bypass: part of the input that is added.
        dropout: of `UnitDropout`.
    """

    def __init__(self, inputs: int, outputs: int, bottleneck: int, stride: int, bypass: float, dropout: float) -> None:
        super().__init__()
        taps = 2 if stride else 1
        self.stride, self.bypass = stride, bypass
        self.reduce = nn.Conv1d(inputs, bottleneck, taps, dilation=max(1, stride), bias=False)
        self.expand = nn.Conv1d(bottleneck, outputs, taps, dilation=max(1, stride))
        self.norm = nn.BatchNorm1d(outputs, affine=False)
        self.dropout = UnitDropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, scales: Tensor | None, layer: int) -> Tensor:
        """Maps `(N, C, T)` to `(N, C', T)`; `mask` is `(N, 1, T)`, `scales` LHUC's amplitudes."""
        bottleneck = self.reduce(F.pad(x, (self.stride, 0))) * mask
        y = self.norm(torch.relu(self.expand(F.pad(bottleneck, (0, self.stride)))))
        y = scale_units(self.dropout(y), scales, layer) * mask
        return y + self.bypass * x if self.bypass else y


class PrefinalLayer(nn.Module):
    """Kaldi's prefinal layer and output: widen, relu, norm, a semi-orthogonal matrix back, norm, classify."""

    def __init__(self, width: int, hidden: int, n_outputs: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, hidden)
        self.norm1 = nn.BatchNorm1d(hidden, affine=False)
        self.reduce = nn.Linear(hidden, width, bias=False)
        self.norm2 = nn.BatchNorm1d(width, affine=False)
        self.classify = nn.Linear(width, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, T, width)` to logits `(N, T, n_outputs)`."""
        x = self.norm1(torch.relu(self.widen(x)).transpose(1, 2)).transpose(1, 2)
        x = self.norm2(self.reduce(x).transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.classify(x)
        return logits


class Tdnnf(AcousticModel):
    """CNN-TDNN-F over log-mel features; 33 output frames a second.

    Args:
        config: the size.
        n_outputs: units plus the blank, which is unit 0.
    """

    def __init__(self, config: TdnnfConfig, n_outputs: int) -> None:
        super().__init__(config.feature_dim, config.ivector_dim, n_outputs, (1 + len(config.strides), config.hidden))
        self.config = config
        if config.ivector_dim:
            size = IVECTOR_CHANNELS * config.feature_dim
            self.ivector_linear = nn.Linear(config.ivector_dim, size, bias=False)
            self.ivector_norm = nn.BatchNorm1d(size, affine=False)
        inputs = [1 + IVECTOR_CHANNELS * bool(config.ivector_dim), *config.channels[:-1]]
        last = len(inputs) - 1
        self.convs = nn.ModuleList(
            ConvLayer(n_in, n_out, (self.subsampling if i == last else 1, stride))
            for i, (n_in, n_out, stride) in enumerate(zip(inputs, config.channels, config.height_strides, strict=True))
        )
        height = config.feature_dim
        for stride in config.height_strides:
            height = -(-height // stride)
        self.first = FactorizedLayer(
            height * config.channels[-1], config.hidden, config.first_bottleneck, 0, 0.0, config.dropout
        )
        self.layers = nn.ModuleList(
            FactorizedLayer(config.hidden, config.hidden, config.bottleneck, stride, config.bypass, config.dropout)
            for stride in config.strides
        )
        self.prefinal = nn.Linear(config.hidden, config.prefinal, bias=False)
        self.output = self.make_output()

    def make_output(self) -> nn.Module:
        """A prefinal layer with a classifier."""
        return PrefinalLayer(self.config.prefinal, self.config.hidden, self.n_outputs)

    def semi_orthogonal(self) -> list[Tensor]:
        """The first factor of each factorized layer, and the linear layers before the outputs."""
        factors = [module.reduce.weight for module in self.modules() if isinstance(module, FactorizedLayer)]
        return [*factors, self.prefinal.weight]

    @property
    def context(self) -> tuple[int, int]:
        """Input frames that an output frame sees before and after its own, which is `subsampling` times its number."""
        side = self.subsampling * sum(self.config.strides) + len(self.config.channels)
        return side, side

    def encode(self, features: Tensor, lengths: Tensor, ivectors: Tensor | None, scales: Tensor | None) -> Tensor:
        """Hidden frames `(N, T', prefinal)`."""
        mask = frame_mask(lengths, features.shape[1])
        x = features[:, None] * mask[:, None, :, None]
        if self.ivector_dim and ivectors is not None:
            x = torch.cat((x, self._ivector_channels(ivectors, features.shape[1]) * mask[:, None, :, None]), 1)
        out_mask = frame_mask(self.out_lengths(lengths), -(-features.shape[1] // self.subsampling))
        for conv in self.convs:
            x = conv(x, out_mask if conv is self.convs[-1] else mask)
        x = x.transpose(2, 3).flatten(1, 2)  # (N, C F', T')
        out_mask = out_mask[:, None]
        x = self.first(x, out_mask, scales, 0)
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, out_mask, scales, number)
        hidden: Tensor = self.prefinal(x.transpose(1, 2))
        return hidden

    def _ivector_channels(self, ivectors: Tensor, n_frames: int) -> Tensor:
        """I-vectors `(N, P, D)` as channels beside the features, `(N, 5, T, F)`."""
        normal: Tensor = self.ivector_norm(self.ivector_linear(ivectors).transpose(1, 2))
        x = IVECTOR_SCALE * spread_ivectors(normal.transpose(1, 2), n_frames)
        return x.reshape(*x.shape[:2], IVECTOR_CHANNELS, self.feature_dim).transpose(1, 2)
