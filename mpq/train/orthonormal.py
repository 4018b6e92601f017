"""The semi-orthogonal constraint of factorized layers, as a plug-in of the training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpq.am.base import AcousticModel
from mpq.train.loop import Plugin

_EVERY = 4  # optimizer steps, as in Kaldi
_SPEED = 0.125  # nu of Povey et al. 2018, section 2.1: convergence is quadratic


@torch.no_grad()
def constrain(weight: Tensor) -> None:
    """One step of `weight`, seen as a matrix M of its first dimension by all others, towards semi-orthogonality.

    `M <- M - 4 nu / a^2 (M M' - a^2 I) M` with the floating scale `a^2 = tr(P P') / tr(P)`, `P = M M'` (Povey et al.
    2018, eqs. 5 and 7), of the transpose if M has more rows than columns. As in Kaldi's ConstrainOrthonormal, nu is
    halved, and halved again, while P is far from a multiple of the unit matrix, where the full step would overshoot.
    """
    matrix = weight.flatten(1).float()
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    product = matrix @ matrix.T
    trace, squares = product.trace(), product.square().sum()
    ratio = squares * len(matrix) / trace.square()  # 1 where all singular values are equal
    nu = _SPEED * (0.5 if ratio > 1.02 else 1.0) * (0.5 if ratio > 1.1 else 1.0)
    scale = squares / trace
    product.diagonal().sub_(scale)
    step = (4.0 * nu / scale) * (product @ matrix)
    weight.flatten(1).sub_(step.T if weight.flatten(1).shape != step.shape else step)


class SemiOrthogonal(Plugin):
    """Keeps a model's `semi_orthogonal` weights close to semi-orthogonal: one `constrain` every few steps."""

    def __init__(self, model: AcousticModel) -> None:
        self._weights, self._steps = model.semi_orthogonal(), 0

    def after_step(self, model: nn.Module) -> None:
        """Counts the steps."""
        self._steps += 1
        if self._steps % _EVERY == 0:
            for weight in self._weights:
                constrain(weight)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps."""
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back the number of steps."""
        self._steps = int(state["steps"])
