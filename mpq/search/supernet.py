"""A model whose weight matrices are mixtures of their quantized forms: what architecture search and one-stage train.

    ŵ_l = Σ_n a_n^l f_n(Θ_l),   a^l = softmax(logits^l / T), or a Gumbel-softmax sample of it (Jang et al. 2017)

All candidates share one float weight Θ_l, and one forward pass serves them all: matrices act linearly, so that the
mixed weight gives the mixture of the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.io import BadInput, check_ranges
from mpq.quant import Quantized, project
from mpq.quant.table import round_to
from mpq.search.costs import Costs, Grid, named_weights
from mpq.search.data import SearchData
from mpq.train.loop import FitConfig

SAMPLING = ("softmax", "gumbel")
REFIT = 25  # steps of the weights


@dataclass
class MixConfig:
    """How a mixture of bits is learned.

    Attributes:
        fit: epochs, learning rate, seed and so on of the supernet.
        batch_tokens: most units of a batch, padding included: tokens, or output frames of an acoustic model.
        sampling: `softmax` mixes the candidates, `gumbel` draws a mixture at every step.
        t_start: temperature at the first step; it falls exponentially.
        t_end: temperature at the last step.
        logit_speed: how many times faster than weights the logits move.
    """

    fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=1, lr=5e-4))
    batch_tokens: int = 1024
    sampling: str = "gumbel"
    t_start: float = 2.0
    t_end: float = 0.2
    logit_speed: float = 30.0

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLING:
            raise BadInput(f"sampling: '{self.sampling}' is not one of {', '.join(SAMPLING)}")
        check_ranges(self, batch_tokens="[1, inf)", t_start="(0, inf)", logit_speed="(0, inf)")
        if not 0.0 < self.t_end <= self.t_start:
            raise BadInput(f"t_end: {self.t_end} must be above 0 and at most t_start ({self.t_start})")
        if self.fit.devices != 1:
            raise BadInput(f"fit.devices: {self.fit.devices}: bits are learned in one process; expected 1")

    def temperature(self, done: float) -> float:
        """When a part `done` (0 to 1) of the training lies behind."""
        return float(self.t_start * (self.t_end / self.t_start) ** done)


class Supernet(nn.Module):
    """Takes the place of the model that it is made of: the same inputs, the same outputs, mixed weights.

    Args:
        model: float; it becomes part of the supernet and is trained with it.
        grid: candidates, at layer level.
        config: how the mixture is learned.

    Raises:
        BadInput: bits of rows are asked for.
    """

    parts: Tensor  # (L,) of all weights, by matrix
    bits: Tensor  # (n,) of the candidates

    def __init__(self, model: nn.Module, grid: Grid, config: MixConfig) -> None:
        super().__init__()
        if grid.level != "layer":
            raise BadInput(f"level: {grid.level}: bits are learned for whole matrices; expected layer")
        self.net, self.grid, self.config = model, grid, config
        # vectors, one for each matrix: weight decay is for matrices only
        self.logits = nn.ParameterList(torch.zeros(len(grid.candidates)) for _ in named_weights(model))
        sizes = torch.tensor([weight.numel() for weight in named_weights(model).values()])
        self.register_buffer("parts", sizes / sizes.sum(), persistent=False)
        self.register_buffer("bits", torch.tensor(grid.candidates, dtype=torch.float32), persistent=False)
        self._mixed: dict[str, Tensor] = {}
        self._scales: dict[tuple[str, int], Quantized] = {}
        self._values: dict[str, list[Tensor]] = {}  # of the candidates, as long as the weights stay as they are
        self._age = 0  # of the scales, in steps of the weights

    def log_alphas(self) -> dict[str, Tensor]:
        """ln a of every candidate, (n,), by weight name, at temperature 1."""
        names, speed = named_weights(self.net), self.config.logit_speed
        # Adam moves a parameter by about the learning rate a step, whatever its gradient
        return {name: (speed * row).log_softmax(-1) for name, row in zip(names, self.logits, strict=True)}

    def draw(self, done: float) -> list[Tensor]:
        """a of every matrix, (n,) each, at the temperature of that part of the training; `gumbel` draws it anew."""
        mixture = []
        for log_alpha in self.log_alphas().values():
            if self.config.sampling == "gumbel":
                uniform = torch.rand(log_alpha.shape, device=log_alpha.device).clamp_(1e-9, 1 - 1e-7)
                log_alpha = log_alpha - (-uniform.log()).log()
            mixture.append((log_alpha / self.config.temperature(done)).softmax(-1))
        return mixture

    def choice(self) -> list[Tensor]:
        """The likeliest candidate of every matrix, one-hot."""
        return [F.one_hot(a.argmax(), len(a)).to(a) for a in self.log_alphas().values()]

    def average_bits(self, mixture: list[Tensor] | Tensor) -> Tensor:
        """Expected bits of a weight, a scalar; the mixture has a row (n,) for every matrix."""
        rows = mixture if isinstance(mixture, Tensor) else torch.stack(mixture)
        return self.parts @ (rows @ self.bits)

    def use(self, mixture: list[Tensor], weights: bool = False, logits: bool = False) -> Supernet:
        """Sets what the next forward pass runs with, and what it sends gradients to.

        Args:
            mixture: a (n,) of every matrix.
            weights: the weights take gradients, straight through the rounding: the shares add up to 1.
            logits: the mixture takes gradients; with `weights`, those of the candidates are theirs to pass on.
        """
        values = self._candidates()
        self._mixed = {}
        for (name, weight), a in zip(named_weights(self.net).items(), mixture, strict=True):
            if logits:
                shares = zip(a, values[name], strict=True)
                self._mixed[name] = torch.stack([share * value for share, value in shares]).sum(0)
            else:
                total = torch.zeros_like(weight)
                for share, value in zip(a.tolist(), values[name], strict=True):
                    total.add_(value, alpha=share)
                self._mixed[name] = weight + (total - weight).detach()
        if weights:
            self._values, self._age = {}, self._age + 1
        else:
            self._mixed |= {n: p.detach() for n, p in self.net.named_parameters() if n not in self._mixed}
        return self

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the model makes of its inputs with the weights that `use` mixed."""
        return torch.func.functional_call(self.net, self._mixed, inputs, named)

    def forget(self) -> None:
        """Lets the scales of all candidates be fitted anew."""
        self._values, self._age = {}, 0

    @torch.no_grad()
    def _candidates(self) -> dict[str, list[Tensor]]:
        """f_n(weight) for all candidates by weight name, of the shape of the weight.

        Scales are fitted anew every `REFIT` steps only: the fit takes most of the time, and weights move slowly.
        """
        if self._values:
            return self._values
        if self._age % REFIT == 0:
            self._scales = {}
        for name, weight in named_weights(self.net).items():
            self._values[name] = []
            for n_bits in self.grid.candidates:
                precision = self.grid.precision(n_bits)
                if (name, n_bits) in self._scales:
                    _, scale, offset = self._scales[name, n_bits]
                    quantized = round_to(weight, scale, precision, offset)
                else:
                    quantized = project(weight, precision)
                    self._scales[name, n_bits] = quantized
                self._values[name].append(quantized.dequantize().view_as(weight))
        return self._values

    @torch.no_grad()
    def validate(self, data: SearchData) -> dict[str, float]:
        """Held-out loss of a unit with the likeliest bits, and their average.

        No `loss` to choose an epoch by: the temperature falls, and what was learned last counts.
        """
        choice, total, units = self.choice(), 0.0, 0
        for batch in data.held_out(self.config.batch_tokens, 0):
            outputs = data.run(self.use(choice, logits=True), batch)
            total += data.n_units(batch) * data.loss(outputs, batch).item()
            units += data.n_units(batch)
        return {"unit_loss": total / units, "bits": self.average_bits(choice).item()}

    def costs(self, method: str) -> Costs:
        """-ln of the probability that so many bits are enough, of every matrix and candidate, times its weights.

        Each weight counts, as each is paid for: were each matrix as much as another, small ones would be given what
        they hardly need, at the cost of the large ones.

        Raises:
            BadInput: a probability is not a number.
        """
        enough = {name: a.detach().double().logcumsumexp(-1) for name, a in self.log_alphas().items()}  # bits ascend
        sizes = {name: weight.numel() for name, weight in named_weights(self.net).items()}
        table = {name: sizes[name] * (log_p[-1] - log_p).cpu()[None] for name, log_p in enough.items()}
        if not all(isfinite(rows.sum().item()) for rows in table.values()):
            raise BadInput("the search diverged: a probability is not a finite number; lower lr or logit_speed")
        return Costs(method, self.grid, table)
