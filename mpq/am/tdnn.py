"""CNN-TDNN acoustic model: a small convolutional front, then dilated (time-delay) convolutions over time.

The shape is that of Kaldi's `run_cnn_tdnn.sh`, made small: two 2-D convolutions over time and frequency reduce
100 frames a second to 33, a linear layer joins the channels of a frame, and residual time-delay blocks widen
the context.  Trained by CTC and then by lattice-free MMI over the CTC topology, so output 0 is the blank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mpq.io import BadInput

SUBSAMPLING = 3


@dataclass
class TdnnConfig:
    """Size of a CNN-TDNN.

    Attributes:
        feature_dim: log-mel bins of a frame; a multiple of 4.
        channels: output channels of the two 2-D convolutions.
        hidden: width of the time-delay blocks.
        dilations: one block each, in frames at 33 a second; a block sees `-d, 0, +d`.
        dropout: after every block.
    """

    feature_dim: int = 80
    channels: tuple[int, int] = (16, 32)
    hidden: int = 256
    dilations: list[int] = field(default_factory=lambda: [1, 1, 3, 3, 6, 6])
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.feature_dim % 4:
            raise BadInput(f"feature_dim: {self.feature_dim} must be a multiple of 4 (two halvings in frequency)")
        sizes = {"feature_dim": [self.feature_dim], "hidden": [self.hidden], "channels": self.channels}
        for name, values in {**sizes, "dilations": self.dilations}.items():
            if not values or min(values) < 1:
                raise BadInput(f"{name}: {getattr(self, name)} must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise BadInput(f"dropout: {self.dropout} must be at least 0 and below 1")


class TdnnBlock(nn.Module):
    """`x + dropout(relu(norm(conv(x))))`, with a convolution of three taps `dilation` frames apart."""

    def __init__(self, hidden: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(hidden, hidden, 3, dilation=dilation, padding=dilation, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps `(N, H, T)` to `(N, H, T)`; `mask` is `(N, 1, T)`, 1 on real frames."""
        y: Tensor = self.dropout(torch.relu(self.norm(self.conv(x)))) * mask
        return x + y


class Tdnn(nn.Module):
    """CNN-TDNN over log-mel features; 33 output frames a second.

    Args:
        config: the size.
        n_outputs: units plus the blank, which is unit 0.
    """

    def __init__(self, config: TdnnConfig, n_outputs: int) -> None:
        super().__init__()
        self.config, self.n_outputs = config, n_outputs
        first, second = config.channels
        self.conv1 = nn.Conv2d(1, first, 5, stride=(SUBSAMPLING, 2), padding=2)
        self.conv2 = nn.Conv2d(first, second, 3, stride=(1, 2), padding=1)
        self.norm2 = nn.BatchNorm2d(second)
        self.join = nn.Linear(second * config.feature_dim // 4, config.hidden, bias=False)
        self.norm = nn.BatchNorm1d(config.hidden)
        self.blocks = nn.ModuleList(TdnnBlock(config.hidden, d, config.dropout) for d in config.dilations)
        self.output = nn.Linear(config.hidden, n_outputs)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the units.

        Frames past an utterance's length do not change its outputs, so the batch an utterance is in does not matter.

        Args:
            features: `(N, T, feature_dim)`, mean- and variance-normalized log-mel.
            lengths: `(N,)`, real frames of each utterance.

        Returns:
            log-probabilities `(N, T', n_outputs)` with `T' = ceil(T / 3)`, and their lengths `(N,)`.
        """
        if features.shape[2] != self.config.feature_dim:
            raise BadInput(
                f"features have {features.shape[2]} bins a frame, the model expects {self.config.feature_dim}: "
                "use the features the model was trained on"
            )
        out_lengths = torch.div(lengths + SUBSAMPLING - 1, SUBSAMPLING, rounding_mode="floor")
        x = (features * _mask(lengths, features.shape[1])[:, :, None]).unsqueeze(1)
        x = torch.relu(self.conv1(x))  # (N, C, T', F/2)
        mask = _mask(out_lengths, x.shape[2])
        x = torch.relu(self.norm2(self.conv2(x * mask[:, None, :, None])))  # (N, C, T', F/4)
        x = self.join(x.permute(0, 2, 1, 3).flatten(2))  # (N, T', H)
        mask = mask[:, None, :]
        x = torch.relu(self.norm(x.transpose(1, 2))) * mask  # (N, H, T')
        for block in self.blocks:
            x = block(x, mask)
        logits = self.output(x.transpose(1, 2))
        return torch.log_softmax(logits.float(), dim=-1), out_lengths


def _mask(lengths: Tensor, n_frames: int) -> Tensor:
    """`(N, T)`: 1 on real frames, 0 on padding."""
    frames = torch.arange(n_frames, device=lengths.device)
    return (frames[None, :] < lengths[:, None]).float()
