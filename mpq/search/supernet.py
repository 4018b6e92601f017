"""A model whose weight matrices are mixtures of their quantized forms: what architecture search and one-stage train.

    ŵ_l = Σ_n a_n^l f_n(Θ_l),   a^l = softmax(logits^l / T), or a Gumbel-softmax sample of it (Jang et al. 2017)

All candidates share one float weight Θ_l, with learned scales of their own, and one forward pass serves them all:
matrices act linearly, so that the mixed weight gives the mixture of the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.io import BadInput, check_ranges
from mpq.quant import BitPlan
from mpq.quant.layers import Projector
from mpq.search.costs import Costs, Grid, named_weights
from mpq.search.data import SearchData
from mpq.train.loop import FitConfig

SAMPLING = ("softmax", "gumbel", "hard")
_ENOUGH = 10_000  # held-out units to see how a search goes: nothing is decided by them
_HIGHEST = 64.0  # price of a bit, where logits differ by less: e^-64 of a chance are none
# Gradients of logits are made so much smaller that clipping leaves them alone: a matrix that needs more bits shows it
# in rare large ones (clipped, mini's LSTM was given 2 bits everywhere), weights and logits that learn together must not
# be slowed down by each other's, and Adam's steps do not depend on their unit.
CALM = 1e-4


@dataclass
class MixConfig:
    """How a mixture of bits is learned.

    Attributes:
        fit: epochs, learning rate, seed and so on of the supernet.
        batch_tokens: most units of a batch, padding included: tokens, or output frames of an acoustic model.
        sampling: `softmax` mixes the candidates, `gumbel` draws a mixture at every step; `hard` draws one candidate
            of each matrix, with the gradient of that mixture (straight-through Gumbel-softmax).
        t_start: temperature at the first step; it falls exponentially.
        t_end: temperature at the last step.
        logit_speed: how many times faster than weights the logits move.
        epoch_part: part (above 0, up to 1) of the training data that an epoch takes, drawn anew for each; a checkpoint
            is written after every epoch.
    """

    fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=1, lr=5e-4))
    batch_tokens: int = 1024
    sampling: str = "gumbel"
    t_start: float = 2.0
    t_end: float = 0.2
    logit_speed: float = 30.0
    epoch_part: float = 1.0

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLING:
            raise BadInput(f"sampling: '{self.sampling}' is not one of {', '.join(SAMPLING)}")
        check_ranges(self, batch_tokens="[1, inf)", t_start="(0, inf)", logit_speed="(0, inf)", epoch_part="(0, 1]")
        if not 0.0 < self.t_end <= self.t_start:
            raise BadInput(f"t_end: {self.t_end} must be above 0 and at most t_start ({self.t_start})")
        if self.fit.devices != 1:
            raise BadInput(f"fit.devices: {self.fit.devices}: bits are learned in one process; expected 1")

    def steps(self, n_batches: int) -> int:
        """Training batches of an epoch, of so many of a pass."""
        return max(1, int(self.epoch_part * n_batches))

    def part(self, batches: Iterator[Any], n_steps: int) -> Iterator[Any]:
        """So many of the batches of a pass; where an epoch is a pass, all, of which some have one more than others."""
        return islice(batches, n_steps) if self.epoch_part < 1.0 else batches

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
        self._projectors = {
            name: [Projector(grid.precision(n_bits), weight) for n_bits in grid.candidates]
            for name, weight in named_weights(model).items()
        }
        every = [projector.learned() for row in self._projectors.values() for projector in row]
        self.scales = nn.ParameterList(part for parts in every for part in parts.values())
        # vectors, one for each matrix: weight decay is for matrices only
        self.logits = nn.ParameterList(torch.zeros(len(grid.candidates)) for _ in self._projectors)
        sizes = torch.tensor([weight.numel() for weight in named_weights(model).values()])
        self.register_buffer("parts", sizes / sizes.sum(), persistent=False)
        self.register_buffer("bits", torch.tensor(grid.candidates, dtype=torch.float32), persistent=False)
        self._mixed: dict[str, Tensor] = {}

    def log_alphas(self) -> dict[str, Tensor]:
        """ln a of every candidate, (n,), by weight name, at temperature 1."""
        # Adam moves a parameter by about the learning rate a step, whatever its gradient
        rows = self.config.logit_speed * torch.stack(list(self.logits))  # (L, n)
        return dict(zip(self._projectors, (rows - self._price(rows) * self.bits).log_softmax(-1), strict=True))

    def _price(self, rows: Tensor) -> Tensor | float:
        """What a bit costs, in logits."""
        return 0.0

    def draw(self, done: float) -> list[Tensor]:
        """a of every matrix, (n,) each, at the temperature of that part of the training; but for `softmax` a sample."""
        mixture = []
        for log_alpha in self.log_alphas().values():
            if self.config.sampling != "softmax":
                uniform = torch.rand(log_alpha.shape, device=log_alpha.device).clamp_(1e-9, 1 - 1e-7)
                log_alpha = log_alpha - (-uniform.log()).log()
            a = (log_alpha / self.config.temperature(done)).softmax(-1)
            if self.config.sampling == "hard":
                a = F.one_hot(a.argmax(), len(a)) + (a - a.detach())  # exactly 0 and 1
            if a.requires_grad:
                a.register_hook(lambda gradient: CALM * gradient)  # type: ignore[no-untyped-call]
            mixture.append(a)
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
            weights: the weights and the scales of what is mixed take gradients, straight through the rounding.
            logits: the mixture takes gradients.
        """
        self._mixed = {} if weights else {name: p.detach() for name, p in self.net.named_parameters()}
        for (name, weight), a in zip(named_weights(self.net).items(), mixture, strict=True):
            total: Tensor | float = 0.0
            for share, size, projector in zip(a, a.tolist(), self._projectors[name], strict=True):
                if not (logits or size):
                    continue
                rounded = projector(weight)
                value = projector.surrogate(weight, rounded) if weights else rounded.dequantize()
                total = total + (share if logits else size) * value.view_as(weight)
            assert isinstance(total, Tensor)
            self._mixed[name] = total
        return self

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the model makes of its inputs with the weights that `use` mixed."""
        return torch.func.functional_call(self.net, self._mixed, inputs, named)

    @torch.no_grad()
    def validate(self, data: SearchData) -> dict[str, float]:
        """Held-out loss of a unit with the likeliest bits, of some of the held-out data, and their average.

        No `loss` to choose an epoch by: the temperature falls, and what was learned last counts.
        """
        choice, total, units = self.choice(), 0.0, 0
        for batch in data.held_out(self.config.batch_tokens, 0):
            outputs = data.run(self.use(choice), batch)
            total += data.n_units(batch) * data.loss(outputs, batch).item()
            units += data.n_units(batch)
            if units >= _ENOUGH:
                break
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

    def latent(self, plan: BitPlan) -> nn.Module:
        """The model with the latent weights, and beside each, as a buffer, the learned scales of a plan's bits."""
        for name, row in self._projectors.items():
            bits = plan.bits[name]
            assert isinstance(bits, int)
            layer, _, local = name.rpartition(".")
            for ending, part in row[self.grid.candidates.index(bits)].learned().items():
                self.net.get_submodule(layer).register_buffer(f"{local}{ending}", part.detach().clone())
        return self.net


class BudgetNet(Supernet):
    """A supernet whose expected bits, by the probabilities that samples are drawn from, are the budget's at every step.

    A bit has a price λ, `p_n^l ~ exp(logit_n^l - λ n)`, which is no weight to be tuned but what the budget makes it,
    and gradients see it move: a matrix takes bits only from others that lose less by it. At first all have the same
    chances. (A penalty that leads from the 4.7 bits of equal shares to a budget of 3 decided for 2 bits everywhere
    before the loss had said anything: mini's Conformer.)

    Args:
        model: float; it becomes part of the supernet and is trained with it.
        grid: candidates, at layer level.
        config: how the mixture is learned.
        budget: average bits of a weight.

    Raises:
        BadInput: bits of rows are asked for.
    """

    def __init__(self, model: nn.Module, grid: Grid, config: MixConfig, budget: float) -> None:
        super().__init__(model, grid, config)
        self._budget = budget

    def _price(self, rows: Tensor) -> Tensor | float:
        """What makes the bits of the budget expected."""
        with torch.no_grad():
            high = max(_HIGHEST, 2.0 * (rows.amax() - rows.amin()).item())
            low = -high
            for _ in range(40):
                price = (low + high) / 2
                low, high = (price, high) if self._spent(rows, price)[0] > self._budget else (low, price)
        spent, slope = self._spent(rows, price)
        # one step of Newton's method, which moves nothing, has the gradient of the price
        return price + (spent - spent.detach()) / slope.detach().clamp_min(1e-6)

    def _spent(self, rows: Tensor, price: float) -> tuple[Tensor, Tensor]:
        """Expected bits of a weight at a price of a bit, and how fast they fall with it, which is their variance."""
        shares = (rows - price * self.bits).softmax(-1)
        variance = shares @ self.bits.square() - (shares @ self.bits).square()
        return self.average_bits(shares), self.parts @ variance
