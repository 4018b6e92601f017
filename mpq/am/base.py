"""What all acoustic models share: an encoder of frames, a classifier, and inputs that tell speakers apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from mpq.data.batches import IVECTOR_PERIOD, Normalization
from mpq.io import BadInput


class AcousticModel(nn.Module, ABC):
    """An acoustic model: `encode` makes hidden frames, `output` classifies them; output 0 is the blank.

    Attributes:
        output: classifier, `(N, T', width)` to `(N, T', n_outputs)`.
        n_outputs: units plus the blank.
        subsampling: input frames to one output frame.
        config: its size, a dataclass.
        normalization: of the features it was trained on.
        sampling_rate: of the speech it was trained on, in Hz; 0 where nobody said (older files).
        lhuc_shape: layers whose units LHUC can scale, and units of each.
    """

    config: Any
    output: nn.Module
    subsampling = 3
    normalization: Normalization = "utterance"
    sampling_rate = 0

    def __init__(self, feature_dim: int, ivector_dim: int, n_outputs: int, lhuc_shape: tuple[int, int]) -> None:
        super().__init__()
        self.feature_dim, self.ivector_dim = feature_dim, ivector_dim
        self.n_outputs, self.lhuc_shape = n_outputs, lhuc_shape

    @abstractmethod
    def encode(self, features: Tensor, lengths: Tensor, ivectors: Tensor | None, scales: Tensor | None) -> Tensor:
        """Hidden frames `(N, T', width)`; arguments as of `forward`, with LHUC's amplitudes for its logits."""

    @abstractmethod
    def make_output(self) -> nn.Module:
        """A classifier of the shape of `output`, freshly initialized."""

    def hidden(
        self, features: Tensor, lengths: Tensor, ivectors: Tensor | None = None, lhuc: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `output` classifies, `(N, T', width)`, and lengths `(N,)`; arguments as of `forward`."""
        self._check(features, ivectors, lhuc)
        scales = None if lhuc is None else 2.0 * torch.sigmoid(lhuc)
        return self.encode(features, lengths, ivectors, scales), self.out_lengths(lengths)

    def forward(
        self, features: Tensor, lengths: Tensor, ivectors: Tensor | None = None, lhuc: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the units.

        Frames past an utterance's length do not change its outputs, so the batch an utterance is in does not matter.

        Args:
            features: `(N, T, feature_dim)`, mean- and variance-normalized log-mel, or the samples of frames of 10 ms.
            lengths: `(N,)`, real frames of each utterance.
            ivectors: `(N, P, ivector_dim)`, one for every `IVECTOR_PERIOD` frames; a model without i-vectors
                does not look at them.
            lhuc: `(N, layers, units)` of `lhuc_shape`: a speaker's LHUC logits r, whose amplitudes are
                `2 sigmoid(r)` (Swietojanski and Renals 2014, eq. 3); None is r = 0, amplitude 1.

        Returns:
            log-probabilities `(N, T', n_outputs)` with `T' = ceil(T / subsampling)`, where
            `out_lengths` says nothing else, and their lengths `(N,)`.

        Raises:
            BadInput: features, i-vectors or LHUC logits of another size than the model's.
        """
        hidden, out_lengths = self.hidden(features, lengths, ivectors, lhuc)
        return torch.log_softmax(self.output(hidden).float(), dim=-1), out_lengths

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Output frames of utterances of so many input frames."""
        return torch.div(lengths + self.subsampling - 1, self.subsampling, rounding_mode="floor")

    def semi_orthogonal(self) -> list[Tensor]:
        """Weights that training keeps semi-orthogonal; the first dimension is the rows of the matrix."""
        return []

    def _check(self, features: Tensor, ivectors: Tensor | None, lhuc: Tensor | None) -> None:
        if features.shape[2] != self.feature_dim:
            raise BadInput(
                f"features have {features.shape[2]} bins a frame, the model expects {self.feature_dim}: "
                "use the features the model was trained on"
            )
        if self.ivector_dim and (ivectors is None or ivectors.shape[2] != self.ivector_dim):
            have = "no i-vectors" if ivectors is None else f"i-vectors of dimension {ivectors.shape[2]}"
            raise BadInput(
                f"the features have {have}, the model expects dimension {self.ivector_dim}: "
                "use those of the extractor it was trained with (mpq ivector extract)"
            )
        if lhuc is not None and lhuc.shape[1:] != self.lhuc_shape:
            raise BadInput(
                f"LHUC logits are {tuple(lhuc.shape[1:])} (layers, units), the model expects {self.lhuc_shape}: "
                "adapt this model anew"
            )


def frame_mask(lengths: Tensor, n_frames: int) -> Tensor:
    """`(N, T)`: 1 on real frames, 0 on padding."""
    frames = torch.arange(n_frames, device=lengths.device)
    return (frames[None, :] < lengths[:, None]).float()


def spread_ivectors(ivectors: Tensor, n_frames: int, step: int = 1) -> Tensor:
    """The i-vector of each frame `0, step, 2 step, ...`: `(N, P, D)` to `(N, n_frames, D)`; the last one is held."""
    frames = torch.arange(n_frames, device=ivectors.device) * step
    return ivectors[:, (frames // IVECTOR_PERIOD).clamp(max=ivectors.shape[1] - 1)]


def scale_units(hidden: Tensor, scales: Tensor | None, layer: int) -> Tensor:
    """Units `(N, H, T)` of a layer times LHUC's amplitudes `(N, layers, H)`."""
    return hidden if scales is None else hidden * scales[:, layer, :, None]
