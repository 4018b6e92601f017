"""Co-training of two precisions that share their float weights, with a third branch of random precisions.

For 1 and 2 bits ("One-bit ASR", arXiv 2505.21245, as far as its formulas are known here): every step runs the model
at the bits of its plan (low), at more bits (high), and with each weight at the low bits by chance (mixed). A weight is
low with probability p_l, which grows log-linearly from the first weight to the last. High teaches the other two:

    L = L(high) + 1/2 [L(low) + L(mixed)] + KL(high || low) + KL(high || mixed)

Only low is saved and served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mpq.io import BadInput
from mpq.quant import QuantModule
from mpq.quant.layers import Projector

P_FIRST, P_LAST = 0.2, 0.9  # probability that the first and the last weight are low in the mixed branch
LOW_WEIGHT = 0.5


class CoTrained(nn.Module):
    """A quantized model with a second, higher precision of its weights.

    Args:
        model: quantized, not frozen; evaluated, it is run as it is.
        n_bits: the higher precision; weights that have as many bits already have no other.

    Raises:
        BadInput: all weights have as many bits already.
    """

    def __init__(self, model: nn.Module, n_bits: int) -> None:
        super().__init__()
        self.model = model
        self._high: dict[Projector, Projector] = {}
        for layer, name in _quantized(model):
            low = layer.projectors[name]
            if low not in self._high and _fewest(low) < n_bits:
                precision = replace(low.precision, n_bits=n_bits)
                self._high[low] = Projector(precision, layer.get_parameter(name))
        if not self._high:
            raise BadInput(f"cotrain_bits: {n_bits} bits are not more than any weight has; expected a higher precision")
        self.high_scales = nn.ParameterList(p for high in self._high.values() for p in high.learned().values())
        steps = max(1, len(self._high) - 1)
        self.p_low = [P_FIRST * (P_LAST / P_FIRST) ** (i / steps) for i in range(len(self._high))]

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Log-probabilities `(N, T', C)`, in training `(3, N, T', C)` of high, low and mixed, and lengths `(N,)`."""
        if not self.training:
            result: tuple[Tensor, Tensor] = self.model(*args, **kwargs)
            return result
        lows = list(self._high)
        draws = torch.rand(len(lows)).tolist()
        mixed = {low: self._high[low] for low, draw, p in zip(lows, draws, self.p_low, strict=True) if draw >= p}
        outputs = []
        for chosen in (self._high, {}, mixed):
            with self._running(chosen):
                log_probs, lengths = self.model(*args, **kwargs)
            outputs.append(log_probs)
        return torch.stack(outputs), lengths

    @contextmanager
    def _running(self, chosen: Mapping[Projector, Projector]) -> Iterator[None]:
        """The model with other projectors; only as it will be served does it count for the norms' statistics."""
        swapped = [(layer, name, layer.projectors[name]) for layer, name in _quantized(self.model)]
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if chosen else []
        momenta = [norm.momentum for norm in norms]
        try:
            for layer, name, low in swapped:
                layer.projectors[name] = chosen.get(low, low)
            for norm in norms:
                norm.momentum = 0.0
            yield
        finally:
            for layer, name, low in swapped:
                layer.projectors[name] = low
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def cotraining_loss(
    branches: Tensor, loss: Callable[[Tensor], Tensor], divergence: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The loss of the three branches.

    Args:
        branches: `(3, N, T', C)` of `CoTrained`.
        loss: of log-probabilities `(N, T', C)`.
        divergence: of log-probabilities from target ones.
    """
    high, *lower = branches.unbind(0)
    total = loss(high)
    for branch in lower:
        total = total + LOW_WEIGHT * loss(branch) + divergence(branch, high.detach())
    return total


def _quantized(model: nn.Module) -> list[tuple[QuantModule, str]]:
    """Layers and names of all quantized weights."""
    layers = [module for module in model.modules() if isinstance(module, QuantModule)]
    return [(layer, name) for layer in layers for name in layer.projectors]


def _fewest(projector: Projector) -> int:
    bits = projector.precision.n_bits
    return bits if isinstance(bits, int) else min(bits)
