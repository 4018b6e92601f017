"""Small acoustic models whose norms have seen some batches."""

from __future__ import annotations

from typing import TypeVar

import torch

from mpq.am.base import AcousticModel

Model = TypeVar("Model", bound=AcousticModel)


def settled(model: Model) -> Model:
    """The model, ready to serve, after three batches, so that the running statistics of its norms are not trivial."""
    ivectors = torch.randn(4, 6, model.ivector_dim) if model.ivector_dim else None
    model.train()
    for _ in range(3):
        model(torch.randn(4, 60, model.feature_dim), torch.tensor([60, 50, 40, 30]), ivectors)
    return model.eval()
