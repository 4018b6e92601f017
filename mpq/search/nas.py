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

from mpq.search.costs import Costs, Grid
from mpq.search.data import SearchData
from mpq.search.supernet import MixConfig, Supernet
from mpq.train.loop import fit


@dataclass
class NasConfig(MixConfig):
    """How architecture search learns bits."""


@dataclass
class _Batch:
    """A batch, and what it trains."""

    content: Any
    train_weights: bool


class NasTask:
    """Alternating training of a supernet, as a task of `fit`."""

    name = "bit search"

    def __init__(self, net: Supernet, data: SearchData) -> None:
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
    net = Supernet(copy.deepcopy(data.model), grid, config, budget)
    run_key = {"method": "nas", "config": asdict(config), "grid": asdict(grid), "data": data.key, "float": key}
    fit(NasTask(net, data), config.fit, exp_dir, key={**run_key, "budget": budget})
    return net.costs("nas")
