"""One-stage mixed precision: weights and bits are learned together, in one run (arXiv 2501.03643).

    min  (1 - η) L(ŵ) + η KL( p_float || p_ŵ ),   ŵ_l = Σ_n a_n^l f_n(Θ_l),   Σ_l N_l Σ_n p_n^l n = B Σ_l N_l

Each weight matrix has one latent float weight Θ_l, shared by all candidates, which have learned scales each, and a
Gumbel-softmax sample a^l of probabilities p^l, whose temperature falls. Every step moves the weights, straight through
the rounding, their scales and the probabilities; the bits of a weight that these expect are the budget's throughout.
So pass 1 ends with a plan, projected on the exact budget, and with weights and scales that are used to it: pass 2 fixes
the bits and trains on from there (`mpq quantize --init`). Where bits are searched in a stage of their own, by
sensitivity or on a copy of the model, training starts anew afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.io import check_ranges
from mpq.search.costs import Costs, Grid
from mpq.search.data import SearchData
from mpq.search.supernet import BudgetNet, MixConfig
from mpq.train.loop import FitConfig, fit


@dataclass
class OneStageConfig(MixConfig):
    """How weights and bits are learned together.

    Attributes:
        distill: weight (0 to 1) of the divergence from the float model's predictions; the model's loss has the rest.
    """

    # a seed of its own: part of an epoch is other data than those that pass 2 begins with
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(epochs=1, lr=5e-3, weight_decay=0.0, schedule="constant", seed=2)
    )
    t_start: float = 1.0
    t_end: float = 0.3
    logit_speed: float = 10.0
    distill: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, distill="[0, 1]")


class OneStageTask:
    """Training of a supernet's weights and logits together, as a task of `fit`."""

    name = "one-stage search"

    def __init__(self, net: BudgetNet, data: SearchData, config: OneStageConfig) -> None:
        self.model: nn.Module = net
        self._net, self._data, self._config = net, data, config
        self._n_batches = config.steps(data.n_batches(config.batch_tokens))

    def steps_per_epoch(self) -> int:
        """Training batches."""
        return self._n_batches

    def batches(self, epoch: int) -> Iterator[Any]:
        """Training batches, in a new order each epoch."""
        batches = self._data.training(self._config.batch_tokens, self._config.fit.seed, epoch)
        return self._config.part(batches, self._n_batches)

    def loss(self, model: nn.Module, batch: Any, done: float) -> Tensor:
        """Mean over the units of the batch."""
        mixture, distill = self._net.draw(done), self._config.distill
        self._net.use(mixture, weights=True, logits=True)
        outputs = self._data.run(model, batch)
        loss = (1.0 - distill) * self._data.loss(outputs, batch) if distill < 1.0 else torch.zeros(())
        if distill:
            found = self._data.scores(outputs).float().log_softmax(-1)
            with torch.no_grad():
                teacher = self._data.model.to(found.device)
                expected = self._data.scores(self._data.run(teacher, batch)).float().log_softmax(-1)
            divergence = F.kl_div(found, expected, log_target=True, reduction="batchmean")
            loss = loss + distill * divergence
        return loss

    def validate(self) -> dict[str, float]:
        """Held-out loss of the likeliest bits, and these."""
        return self._net.validate(self._data)


def search_one_stage(
    data: SearchData, grid: Grid, config: OneStageConfig, exp_dir: str | Path, key: Any, budget: float
) -> tuple[Costs, BudgetNet]:
    """Pass 1: what each number of bits costs each matrix, as of `nas_costs`, and the latent weights and scales.

    Args:
        data: the float model, which is left as it is and teaches; data to train.
        grid: candidates; layer level only.
        config: how weights and bits are learned.
        exp_dir: takes checkpoints and logs; a killed search continues from there.
        key: identifies the float model.
        budget: average bits of a weight.
    Returns:
        the costs, to be projected on the budget by `Costs.plan`, and what was trained, for `BudgetNet.latent`.
    """
    torch.manual_seed(config.fit.seed)
    data.model.eval()
    net = BudgetNet(data.trainee(), grid, config, budget)
    run_key = {"method": "one-stage", "config": asdict(config), "grid": asdict(grid), "data": data.key, "float": key}
    fit(OneStageTask(net, data, config), config.fit, exp_dir, key={**run_key, "budget": budget})
    return net.costs("one-stage"), net
