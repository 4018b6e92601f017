"""Mixed-precision architecture search: bits are learned by gradient descent (arXiv 2112.11438; 2111.14479, eq 11).

    y_l = Σ_n a_n^l y_n^l,   min L(Θ, a) + β Σ_l Σ_n a_n^l sqrt(n)

y_n^l is what matrix l gives with n bits, and a^l how much that choice counts (DARTS, Liu et al. 2019); all candidates
are one forward pass of a `Supernet`. Logits learn on held-out batches, weights on training batches, in turn. The plan
is the one within the budget that is likeliest to give every weight what it needs or more,
min -Σ_l N_l ln Σ_{m<=n} a_m^l, solved exactly: more bits than were chosen do no harm, and a budget is there to be used.

With a β the search settles at bits of its own, and a plan for another average is but a guess from there: one matrix may
have been given eight bits or none. So the penalty `budget` is none: the bits that are expected are the budget's at
every step (`BudgetNet`), and the matrices compete at that size.

One candidate of each matrix is drawn for a step (`hard`): where candidates are mixed, their errors cancel, and weights
that have learned to live with a mixture leave the logits little gradient. mini's Transformer, 2 bits on average, got 2
bits nearly everywhere from mixtures without samples (perplexity 92.5) and bits worse than these from `gumbel` (93.0);
drawn one by one it has 91.8.
"""

from __future__ import annotations

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
from mpq.search.supernet import BudgetNet, MixConfig, Supernet
from mpq.train.loop import fit

PENALTIES = ("sqrt", "size", "budget")


@dataclass
class NasConfig(MixConfig):
    """How architecture search learns bits.

    Attributes:
        beta: weight of the penalty on bits.
        penalty: `sqrt`: Σ a sqrt(n) over the matrices (2111.14479, eq 11); `size`: expected bits of a weight, which
            counts large matrices more; `budget`: none, bits are always those that the plan may have (--bits).
    """

    sampling: str = "hard"
    t_start: float = 1.0
    t_end: float = 1.0
    beta: float = 0.02
    penalty: str = "sqrt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty not in PENALTIES:
            raise BadInput(f"penalty: '{self.penalty}' is not one of {', '.join(PENALTIES)}")
        check_ranges(self, beta="[0, inf)")

    def price(self, net: Supernet, mixture: list[Tensor]) -> Tensor | float:
        """The penalty on the bits of a mixture."""
        if self.penalty == "budget":
            return 0.0
        if self.penalty == "size":
            return self.beta * net.average_bits(mixture)
        return self.beta * (torch.stack(mixture) @ net.bits.sqrt()).sum()


@dataclass
class _Batch:
    """A batch, and what it trains."""

    content: Any
    train_weights: bool


class NasTask:
    """Alternating training of a supernet, as a task of `fit`."""

    name = "bit search"

    def __init__(self, net: Supernet, data: SearchData, config: NasConfig) -> None:
        self.model: nn.Module = net
        self._net, self._data, self._config = net, data, config
        self._n_batches = config.steps(data.n_batches(config.batch_tokens))

    def steps_per_epoch(self) -> int:
        """Two for each training batch: one for the weights, one for the logits."""
        return 2 * self._n_batches

    def batches(self, epoch: int) -> Iterator[_Batch]:
        """Training batches, a held-out one after each; held-out data is gone through as often as it takes."""
        size, seed = self._config.batch_tokens, self._config.fit.seed
        rounds = (self._data.held_out(size, seed, r) for r in count(epoch * self._n_batches))
        held_out = chain.from_iterable(rounds)
        for batch in self._config.part(self._data.training(size, seed, epoch), self._n_batches):
            yield _Batch(batch, True)
            yield _Batch(next(held_out), False)

    def loss(self, model: nn.Module, batch: _Batch, done: float) -> Tensor:
        """Mean over the units of the batch, and for logits the penalty."""
        mixture = self._net.draw(done)
        self._net.use(mixture, weights=batch.train_weights, logits=not batch.train_weights)
        loss = self._data.loss(self._data.run(model, batch.content), batch.content)
        return loss if batch.train_weights else loss + self._config.price(self._net, mixture)

    def validate(self) -> dict[str, float]:
        """Held-out loss of the likeliest bits, and these."""
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
        budget: average bits of a weight, with the penalty `budget`; the other penalties take none.

    Raises:
        BadInput: bits of rows are asked for, or a budget does not go with the penalty.
    """
    if (budget is None) == (config.penalty == "budget"):
        raise BadInput(f"penalty: {config.penalty}: 'budget' needs average bits (--bits), the others take none")
    torch.manual_seed(config.fit.seed)
    model = data.trainee()
    net = Supernet(model, grid, config) if budget is None else BudgetNet(model, grid, config, budget)
    run_key = {"method": "nas", "config": asdict(config), "grid": asdict(grid), "data": data.key, "float": key}
    fit(NasTask(net, data, config), config.fit, exp_dir, key={**run_key, "budget": budget})
    return net.costs("nas")
