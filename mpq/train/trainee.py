"""An acoustic model with what only its training needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpq.am.base import AcousticModel

_LHUC_SPEED = 5.0  # Adam moves a logit by at most this many learning rates a step


class Trainee(nn.Module):
    """An acoustic model, the cross-entropy branch that regularizes it, and the training speakers' LHUC logits.

    Args:
        acoustic: the model; it alone is saved and decodes.
        n_speakers: speakers with LHUC logits of their own; 0: none.
        xent: a second classifier, trained by cross-entropy (Povey et al. 2016, section 2.7).
    """

    def __init__(self, acoustic: AcousticModel, n_speakers: int = 0, xent: bool = False) -> None:
        super().__init__()
        self.acoustic = acoustic
        self.xent = acoustic.make_output() if xent else None
        self.lhuc = nn.Parameter(torch.zeros(n_speakers, *acoustic.lhuc_shape)) if n_speakers else None

    def forward(
        self, features: Tensor, lengths: Tensor, ivectors: Tensor | None = None, speakers: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Log-probabilities of the model and of the cross-entropy branch, both `(N, T', C)`, and lengths `(N,)`.

        Args:
            features, lengths, ivectors: as of `AcousticModel.forward`.
            speakers: `(N,)`, numbers of the training speakers; -1: without LHUC.
        """
        lhuc = None
        if self.lhuc is not None and speakers is not None:
            lhuc = _LHUC_SPEED * torch.where(speakers[:, None, None] >= 0, self.lhuc[speakers], 0.0)
        hidden, out_lengths = self.acoustic.hidden(features, lengths, ivectors, lhuc)
        log_probs = torch.log_softmax(self.acoustic.output(hidden).float(), dim=-1)
        xent = None if self.xent is None else torch.log_softmax(self.xent(hidden).float(), dim=-1)
        return log_probs, xent, out_lengths
