"""Mixed-precision architecture search: bits are learned by gradient descent (arXiv 2112.11438; 2111.14479, eq 11).

    y_l = Σ_n a_n^l y_n^l,   min L(Θ, a) + β Σ_l Σ_n a_n^l sqrt(n)

y_n^l is what matrix l gives with n bits, and a^l how much that choice counts (DARTS, Liu et al. 2019); all candidates
are one forward pass of a `Supernet`. Logits learn on held-out batches, weights on training batches, in turn. The plan
is the one within the budget that is likeliest to give every weight what it needs or more,
min -Σ_l N_l ln Σ_{m<=n} a_m^l, solved exactly: more bits than were chosen do no harm, and a budget is there to be used.

With a fixed β the search settles at bits of its own, and a plan for another average is but a guess from there: one
matrix may have been given eight bits or none. So the penalty `budget` is the Lagrangian of the budget B itself,
β (Σ_l N_l Σ_n a_n^l n / Σ_l N_l - B), and β rises or falls with what is spent, until the matrices compete at that size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpq.io import BadInput, check_ranges
from mpq.search.costs import Costs, Grid
from mpq.search.data import SearchData
from mpq.search.supernet import MixConfig, Supernet
from mpq.train.loop import fit

PENALTIES = ("sqrt", "size", "budget")


@dataclass
class NasConfig(MixConfig):
    """How architecture search learns bits.

    Attributes:
        beta: weight of the penalty on bits; with `budget` at first.
        penalty: `sqrt`: Σ a sqrt(n) over the matrices (2111.14479, eq 11); `size`: expected bits of a weight, which
            counts large matrices more; `budget`: the same, with a beta that makes them what the plan may have (--bits).
        beta_speed: with `budget`, how fast ln beta moves: by this much a step where twice the budget is spent.
    """

    beta: float = 0.02
    penalty: str = "sqrt"
    beta_speed: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty not in PENALTIES:
            raise BadInput(f"penalty: '{self.penalty}' is not one of {', '.join(PENALTIES)}")
        check_ranges(self, beta="[0, inf)", beta_speed="[0, inf)")
        if self.penalty == "budget" and not self.beta:
            raise BadInput("beta: 0 can neither rise nor fall; with the penalty budget expected a number above 0")


class PricedNet(Supernet):
    """A supernet whose bits have a price.

    Args:
        model: float; it becomes part of the supernet and is trained with it.
        grid: candidates, at layer level.
        config: how the mixture is learned.
        budget: average bits of a weight that the penalty `budget` aims at; the other penalties take none.

    Raises:
        BadInput: bits of rows are asked for, or a budget does not go with the penalty.
    """

    config: NasConfig
    beta: Tensor  # scalar, float64: a state that checkpoints keep

    def __init__(self, model: nn.Module, grid: Grid, config: NasConfig, budget: float | None = None) -> None:
        super().__init__(model, grid, config)
        if (budget is None) == (config.penalty == "budget"):
            raise BadInput(
                f"penalty: {config.penalty}: 'budget' needs average bits to aim at (--bits), the others take none"
            )
        self._budget = budget
        self.register_buffer("beta", torch.tensor(config.beta, dtype=torch.float64))

    def penalty(self, mixture: list[Tensor]) -> Tensor:
        """The price of the bits of a mixture, a scalar; for a budget, beta is adapted before."""
        if self.config.penalty == "sqrt":
            roots = torch.tensor(self.grid.candidates, device=mixture[0].device, dtype=torch.float32).sqrt()
            return self.beta.float() * torch.stack([a @ roots for a in mixture]).sum()
        if self._budget is not None:
            with torch.no_grad():
                ratio = self.average_bits([a.exp() for a in self.log_alphas().values()]) / self._budget
                self.beta.mul_(torch.exp(self.config.beta_speed * (ratio - 1.0)))
        return self.beta.float() * self.average_bits(mixture)

    def validate(self, data: SearchData) -> dict[str, float]:
        """Held-out loss of the likeliest bits, their average, and beta."""
        return {**super().validate(data), "beta": self.beta.item()}


@dataclass
class _Batch:
    """A batch, and what it trains."""

    content: Any
    train_weights: bool


class NasTask:
    """Alternating training of a supernet, as a task of `fit`."""

    name = "bit search"

    def __init__(self, net: PricedNet, data: SearchData) -> None:
        self.model: nn.Module = net
        self._net, self._data, self._config = net, data, net.config
        self._n_batches = data.n_batches(self._config.batch_tokens)

    def steps_per_epoch(self) -> int:
        """Two for each training batch: one for the weights, one for the logits."""
        return 2 * self._n_batches

    def batches(self, epoch: int) -> Iterator[_Batch]:
        """Training batches, a held-out one after each; held-out data is gone through as often as it takes."""
        self._net.forget()  # an epoch begins alike whether the search has just been resumed or not
        size, seed = self._config.batch_tokens, self._config.fit.seed
        rounds = (self._data.held_out(size, seed, r) for r in count(epoch * self._n_batches))
        held_out = chain.from_iterable(rounds)
        for batch in self._data.training(size, seed, epoch):
            yield _Batch(batch, True)
            yield _Batch(next(held_out), False)

    def loss(self, model: nn.Module, batch: _Batch, done: float) -> Tensor:
        """Mean over the units of the batch, and for logits the penalty."""
        mixture = self._net.draw(done)
        self._net.use(mixture, weights=batch.train_weights, logits=not batch.train_weights)
        loss = self._data.loss(self._data.run(model, batch.content), batch.content)
        return loss if batch.train_weights else loss + self._net.penalty(mixture)

    def validate(self) -> dict[str, float]:
        """What the search is for: the held-out loss of the likeliest bits, and these."""
        return self._net.validate(self._data)


def nas_costs(
    data: SearchData, grid: Grid, config: NasConfig, exp_dir: str | Path, key: Any, budget: float | None = None
) -> Costs:
    """-ln of the probability that so many bits are enough, of every matrix and candidate, after the search.

    Args:
        data: the float model, which is left as it is; data to train the weights and, held out, the logits.
        grid: candidates; layer level only.
        config: how bits are learned.
        exp_dir: takes checkpoints and logs; a killed search continues from there.
        key: identifies the float model.
        budget: average bits of a weight that the penalty `budget` aims at; the other penalties take none.
    """
    torch.manual_seed(config.fit.seed)
    net = PricedNet(copy.deepcopy(data.model), grid, config, budget)
    run_key = {"method": "nas", "config": asdict(config), "grid": asdict(grid), "data": data.key, "float": key}
    fit(NasTask(net, data), config.fit, exp_dir, key={**run_key, "budget": budget})
    return net.costs("nas")
