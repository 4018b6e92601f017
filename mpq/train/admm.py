"""Training of quantized models by the alternating direction method of multipliers (ADMM).

    min F(Θ) + I(G)  such that  Θ = G,   G in the plan's tables;  scaled augmented Lagrangian (dual variable u)
    L(Θ, G, u) = F(Θ) + I(G) + ρ/2 ||Θ - G + u||^2 - ρ/2 ||u||^2

    proximal   Θ <- argmin F(Θ) + ρ/2 ||Θ - G + u||^2, some steps of the training loop: each a step of the optimizer on
               F alone, then the penalty's proximal map, Θ <- (Θ + ρ (G - u)) / (1 + ρ)
    projection G <- Π(Θ + u), per matrix, row or group as the plan says
    dual       u <- u + Θ - G

Leng et al., "Extremely Low Bit Neural Network: Squeeze the Last Bit Out with ADMM" (AAAI 2018); for language models
arXiv 2111.14836 and, with a precision for each layer, 2112.11438. The net runs in float32 with Θ while it is trained;
it is validated, kept and served with G.

The penalty is kept out of the optimizer as weight decay is in AdamW: in Adam's gradient, its size would not matter once
it is the larger part. On the mini LSTM at 2 bits, with rho grown to 94 that way, Θ stayed 17 % away from G.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpq.io import check_ranges
from mpq.quant import BitPlan, Quantized, project
from mpq.train.loop import Plugin


@dataclass
class AdmmConfig:
    """How ADMM ties the float weights to the quantized ones.

    Attributes:
        rho: weight of the penalty at first: the part, rho / (1 + rho), of the distance to G that a step takes back.
        growth: what rho is multiplied by after each projection.
        every: optimizer steps between two projections; 0: one projection an epoch.
        predict: step length of the extra-gradient predictor; 0 takes plain gradient steps.
    """

    rho: float = 0.005
    growth: float = 1.2
    every: int = 50
    predict: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, rho="(0, inf)", growth="[1, inf)", every="[0, inf)", predict="[0, inf)")


class Admm(Plugin):
    """ADMM as a plug-in of the training loop; the task's model stays float.

    Args:
        plan: bits of each weight; those of 32 bits are trained as usual.
        config: penalty and schedule.

    Attributes:
        best: codes and scales of the epoch that the loop has kept; what is to be served.
        record: for each projection the optimizer steps before it, rho, and ||Θ - G|| / ||Θ|| over all weights.
    """

    def __init__(self, plan: BitPlan, config: AdmmConfig) -> None:
        self.plan, self.config = plan, config
        self.best: dict[str, Quantized] = {}
        self.record: list[dict[str, float]] = []
        self._rho, self._steps = config.rho, 0
        self._codes: dict[str, Quantized] = {}
        self._g: dict[str, Tensor] = {}  # the codes times their scales
        self._u: dict[str, Tensor] = {}

    def before_step(self, model: nn.Module, again: Callable[[], None]) -> None:
        """Projects at the very first step; for the extra-gradient variant takes F's gradient where the predictor is.

        With J(Θ) = F(Θ) + ρ/2 ||Θ - G + u||^2: Θp = Θ - predict ∇J(Θ), and the optimizer gets ∇F(Θp) for Θ.
        """
        if not self._u:
            for name, weight in self._weights(model):
                self._u[name] = torch.zeros_like(weight)
                self._project(name, weight)
        if not self.config.predict:
            return
        start = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.no_grad():
            for name, weight in self._weights(model):
                pull = (weight - self._g[name]).add_(self._u[name]).mul_(self._rho)
                weight.grad = pull if weight.grad is None else weight.grad.add_(pull)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=self.config.predict)
        again()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), start, strict=True):
                parameter.copy_(value)

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Pulls the weights towards G - u, and projects after every `every` steps."""
        for name, weight in self._weights(model):
            weight.lerp_(self._g[name] - self._u[name], self._rho / (1.0 + self._rho))
        self._steps += 1
        if self.config.every and self._steps % self.config.every == 0:
            self._update(model)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Projects, if that is to happen once an epoch or has not happened yet."""
        if not self.config.every or not self.record:
            self._update(model)

    def evaluation(self, model: nn.Module) -> AbstractContextManager[None]:
        """The model with the quantized weights G in place of Θ."""
        return self._swapped(model)

    def kept(self) -> None:
        """Remembers the codes that belong to the kept weights."""
        self.best = dict(self._codes)

    def metrics(self) -> dict[str, float]:
        """The last projection's distance and penalty weight."""
        return {"admm_residual": self.record[-1]["residual"], "admm_rho": self.record[-1]["rho"]}

    def state_dict(self) -> dict[str, Any]:
        """Everything but the float weights, which the loop keeps."""
        return {
            "rho": self._rho,
            "steps": self._steps,
            "record": self.record,
            "u": self._u,
            "codes": {name: list(quantized) for name, quantized in self._codes.items()},
            "best": {name: list(quantized) for name, quantized in self.best.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._rho, self._steps, self.record = state["rho"], state["steps"], state["record"]
        self._u = dict(state["u"])
        self._codes = {name: Quantized(*parts) for name, parts in state["codes"].items()}
        self._g = {name: q.dequantize().view_as(self._u[name]) for name, q in self._codes.items()}
        self.best = {name: Quantized(*parts) for name, parts in state["best"].items()}

    def _weights(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The weights to quantize, by name; what this plug-in holds follows them to their device."""
        for name, parameter in model.named_parameters():
            if name in self.plan.bits and self.plan.precision(name) is not None:
                for held in (self._u, self._g):
                    if name in held:
                        held[name] = held[name].to(parameter.device)
                yield name, parameter

    def _project(self, name: str, weight: Tensor) -> None:
        """G <- Π(Θ + u) of one weight."""
        precision = self.plan.precision(name)
        if precision is not None:
            self._codes[name] = project(weight + self._u[name], precision)
            self._g[name] = self._codes[name].dequantize().view_as(weight)

    @torch.no_grad()
    def _update(self, model: nn.Module) -> None:
        """One outer iteration: projection, dual update, and the next rho."""
        distance, size = 0.0, 0.0
        for name, weight in self._weights(model):
            self._project(name, weight)
            difference = weight - self._g[name]
            self._u[name] += difference
            self._u[name] /= self.config.growth  # u = y / rho, and it is y that goes on as it is
            distance += difference.square().sum().item()
            size += weight.square().sum().item()
        self.record.append({"step": self._steps, "rho": self._rho, "residual": (distance / max(size, 1e-30)) ** 0.5})
        self._rho *= self.config.growth

    @contextmanager
    def _swapped(self, model: nn.Module) -> Iterator[None]:
        weights = dict(self._weights(model))
        start = {name: weight.detach().clone() for name, weight in weights.items()}
        try:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(self._g[name])
            yield
        finally:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(start[name])
