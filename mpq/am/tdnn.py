"""CNN-TDNN acoustic model: a small convolutional front, then dilated (time-delay) convolutions over time.

The shape is that of Kaldi's `run_cnn_tdnn.sh`, made small: two 2-D convolutions over time and frequency reduce
100 frames a second to 33, a linear layer joins the channels of a frame, and residual time-delay blocks widen
the context.  Trained by CTC and then by lattice-free MMI over the CTC topology, so output 0 is the blank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mpq.am.base import AcousticModel, frame_mask, scale_units, spread_ivectors
from mpq.io import BadInput, check_ranges


@dataclass
class TdnnConfig:
    """Size of a CNN-TDNN.

    Attributes:
        feature_dim: log-mel bins of a frame; a multiple of 4.
        channels: output channels of the two 2-D convolutions.
        hidden: width of the time-delay blocks.
        dilations: one block each, in frames at 33 a second; a block sees `-d, 0, +d`.
        dropout: after every block.
        ivector_dim: dimension of the i-vectors; 0: none.
    """

    feature_dim: int = 80
    channels: tuple[int, int] = (16, 32)
    hidden: int = 256
    dilations: list[int] = field(default_factory=lambda: [1, 1, 3, 3, 6, 6])
    dropout: float = 0.1
    ivector_dim: int = 0

    def __post_init__(self) -> None:
        if self.feature_dim % 4:
            raise BadInput(f"feature_dim: {self.feature_dim} must be a multiple of 4 (two halvings in frequency)")
        if not self.dilations:
            raise BadInput("dilations: [] must hold at least one number")
        check_ranges(self, feature_dim="[1, 1e6]", hidden="[1, 1e6]", channels="[1, 1e6]", dilations="[1, 1e6]")
        check_ranges(self, dropout="[0, 1)", ivector_dim="[0, 1e6]")


class TdnnBlock(nn.Module):
    """`x + dropout(relu(norm(conv(x))))`, with a convolution of three taps `dilation` frames apart."""

    def __init__(self, hidden: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(hidden, hidden, 3, dilation=dilation, padding=dilation, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, scales: Tensor | None, layer: int) -> Tensor:
        """Maps `(N, H, T)` to `(N, H, T)`; `mask` is `(N, 1, T)`, 1 on real frames; `scales` LHUC's amplitudes."""
        y = scale_units(self.dropout(torch.relu(self.norm(self.conv(x)))), scales, layer) * mask
        return x + y


class Tdnn(AcousticModel):
    """CNN-TDNN over log-mel features; 33 output frames a second.

    Args:
        config: the size.
        n_outputs: units plus the blank, which is unit 0.
    """

    def __init__(self, config: TdnnConfig, n_outputs: int) -> None:
        super().__init__(config.feature_dim, config.ivector_dim, n_outputs, (len(config.dilations), config.hidden))
        self.config = config
        first, second = config.channels
        self.conv1 = nn.Conv2d(1, first, 5, stride=(self.subsampling, 2), padding=2)
        self.conv2 = nn.Conv2d(first, second, 3, stride=(1, 2), padding=1)
        self.norm2 = nn.BatchNorm2d(second)
        self.join = nn.Linear(second * config.feature_dim // 4, config.hidden, bias=False)
        self.norm = nn.BatchNorm1d(config.hidden)
        self.blocks = nn.ModuleList(TdnnBlock(config.hidden, d, config.dropout) for d in config.dilations)
        self.output = self.make_output()
        if config.ivector_dim:
            self.ivector = nn.Linear(config.ivector_dim, config.hidden, bias=False)

    def make_output(self) -> nn.Module:
        """One linear layer."""
        return nn.Linear(self.config.hidden, self.n_outputs)

    def encode(self, features: Tensor, lengths: Tensor, ivectors: Tensor | None, scales: Tensor | None) -> Tensor:
        """Hidden frames `(N, T', hidden)`."""
        x = (features * frame_mask(lengths, features.shape[1])[:, :, None]).unsqueeze(1)
        x = torch.relu(self.conv1(x))  # (N, C, T', F/2)
        mask = frame_mask(self.out_lengths(lengths), x.shape[2])
        x = torch.relu(self.norm2(self.conv2(x * mask[:, None, :, None])))  # (N, C, T', F/4)
        x = self.join(x.permute(0, 2, 1, 3).flatten(2))  # (N, T', H)
        if self.ivector_dim and ivectors is not None:
            x = x + spread_ivectors(self.ivector(ivectors), x.shape[1], self.subsampling)
        mask = mask[:, None, :]
        x = torch.relu(self.norm(x.transpose(1, 2))) * mask  # (N, H, T')
        for number, block in enumerate(self.blocks):
            x = block(x, mask, scales, number)
        return x.transpose(1, 2)
