"""Mixed-precision architecture search: bits are learned by gradient descent (arXiv 2112.11438; 2111.14479, eq 11).

    y_l = Σ_n a_n^l y_n^l,   min L(Θ, a) + β Σ_l Σ_n a_n^l sqrt(n)

y_n^l is what matrix l gives with n bits, and a^l = softmax(logits^l / T) how much that choice counts (DARTS, Liu et al.
2019), or a Gumbel-softmax sample of it (Jang et al. 2017). The matrices act linearly, so the mixture of outputs is the
output of the mixed weight Σ_n a_n f_n(Θ_l): one forward pass for all candidates, which share the float weight Θ_l.
Logits learn on held-out batches, weights on training batches, in turn. The plan is the one within the budget that is
likeliest to give every matrix what it needs or more, min Σ_l -ln Σ_{m<=n} a_m^l, solved exactly: more bits than were
chosen do no harm, and a budget is there to be used.

With a fixed β the search settles at bits of its own, and a plan for another average is but a guess from there: one
matrix may have been given eight bits or none. So the penalty `budget` is the Lagrangian of the budget B itself,
β (Σ_l N_l Σ_n a_n^l n / Σ_l N_l - B), and β rises or falls with what is spent, until the matrices compete at that size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.data.lmtext import LmBatch
from mpq.io import BadInput, check_ranges
from mpq.lm import LanguageModel
from mpq.quant import project
from mpq.quant.table import round_to
from mpq.search.costs import Costs, Grid, named_weights
from mpq.train.lm import LmTexts
from mpq.train.loop import FitConfig, fit

SAMPLING = ("softmax", "gumbel")
PENALTIES = ("sqrt", "size", "budget")
REFIT = 25  # steps of the weights


@dataclass
class NasConfig:
    """How bits are learned.

    Attributes:
        fit: epochs, learning rate, seed, ... of the supernet.
        batch_tokens: most tokens of a batch, padding included.
        sampling: `softmax` mixes the candidates, `gumbel` draws a mixture at every step.
        beta: weight of the penalty on bits; with `budget` at first.
        penalty: `sqrt`: Σ a sqrt(n) over the matrices (eq 11); `size`: expected bits of a weight, which counts large
            matrices more; `budget`: the same, with a beta that makes them what the plan may have (--bits).
        beta_speed: with `budget`, how fast ln beta moves: by this much a step where twice the budget is spent.
        t_start, t_end: temperature at the first and the last step; it falls exponentially.
        logit_speed: how many times faster than weights the logits move.
    """

    fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=1, lr=5e-4))
    batch_tokens: int = 1024
    sampling: str = "gumbel"
    beta: float = 0.02
    penalty: str = "sqrt"
    beta_speed: float = 0.02
    t_start: float = 2.0
    t_end: float = 0.2
    logit_speed: float = 30.0

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLING:
            raise BadInput(f"sampling: '{self.sampling}' is not one of {', '.join(SAMPLING)}")
        if self.penalty not in PENALTIES:
            raise BadInput(f"penalty: '{self.penalty}' is not one of {', '.join(PENALTIES)}")
        check_ranges(
            self,
            batch_tokens="[1, inf)",
            beta="[0, inf)",
            beta_speed="[0, inf)",
            t_start="(0, inf)",
            logit_speed="(0, inf)",
        )
        if not 0.0 < self.t_end <= self.t_start:
            raise BadInput(f"t_end: {self.t_end} must be above 0 and at most t_start ({self.t_start})")
        if self.penalty == "budget" and not self.beta:
            raise BadInput("beta: 0 can neither rise nor fall; with the penalty budget expected a number above 0")
        if self.fit.devices != 1:
            raise BadInput(f"devices: {self.fit.devices}: architecture search runs in one process; expected 1")


class Supernet(nn.Module):
    """A language model whose matrices are mixtures of their quantized forms.

    Args:
        lm: float; it becomes part of the supernet and is trained with it.
        grid: candidates, at layer level.
        speed: what the stored logits are multiplied by: Adam moves a parameter by about the learning rate a step.
        beta: weight of the penalty.
    """

    beta: Tensor  # scalar, float64: a state that checkpoints keep

    def __init__(self, lm: LanguageModel, grid: Grid, speed: float, beta: float = 0.0) -> None:
        super().__init__()
        self.lm, self.grid, self.speed = lm, grid, speed
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64))
        # vectors, one for each matrix: weight decay is for matrices only
        self.logits = nn.ParameterList(torch.zeros(len(grid.candidates)) for _ in named_weights(lm))
        self._scales: dict[tuple[str, int], Tensor] = {}
        self._values: dict[str, list[Tensor]] = {}  # of the candidates, as long as the weights stay as they are
        self._age = 0  # of the scales, in steps of the weights

    def log_alphas(self) -> dict[str, Tensor]:
        """ln a of every candidate, (n,), by weight name, at temperature 1."""
        names = named_weights(self.lm)
        return {name: (self.speed * row).log_softmax(-1) for name, row in zip(names, self.logits, strict=True)}

    def mix(self, sampling: str, temperature: float) -> list[Tensor]:
        """a of every matrix, (n,) each, drawn anew where sampling is `gumbel`."""
        mixture = []
        for log_alpha in self.log_alphas().values():
            if sampling == "gumbel":
                uniform = torch.rand(log_alpha.shape, device=log_alpha.device).clamp_(1e-9, 1 - 1e-7)
                log_alpha = log_alpha - (-uniform.log()).log()
            mixture.append((log_alpha / temperature).softmax(-1))
        return mixture

    def choice(self) -> list[Tensor]:
        """The likeliest candidate of every matrix, one-hot."""
        return [F.one_hot(a.argmax(), len(a)).to(a) for a in self.log_alphas().values()]

    def penalty(self, mixture: list[Tensor], kind: str) -> Tensor:
        """The price of the bits of a mixture, a scalar."""
        bits = torch.tensor(self.grid.candidates, device=mixture[0].device, dtype=torch.float32)
        if kind == "sqrt":
            return torch.stack([a @ bits.sqrt() for a in mixture]).sum()
        sizes = [weight.numel() for weight in named_weights(self.lm).values()]
        return torch.stack([n * (a @ bits) for n, a in zip(sizes, mixture, strict=True)]).sum() / sum(sizes)

    def forward(self, tokens: Tensor, mask: Tensor, mixture: list[Tensor], train_weights: bool) -> Tensor:
        """Logits (M, V) as of `LanguageModel`.

        Args:
            tokens, mask: (N, T).
            mixture: a (n,) of every matrix.
            train_weights: gradients go to the weights; else to the mixture.
        """
        values = self._candidates()
        mixed: dict[str, Tensor] = {}
        for (name, weight), a in zip(named_weights(self.lm).items(), mixture, strict=True):
            if train_weights:  # straight through the rounding of every candidate, and the shares add up to 1
                total = torch.zeros_like(weight)
                for share, value in zip(a.tolist(), values[name], strict=True):
                    total.add_(value, alpha=share)
                mixed[name] = weight + (total - weight).detach()
            else:
                mixed[name] = torch.stack([share * value for share, value in zip(a, values[name], strict=True)]).sum(0)
        rest = {} if train_weights else {n: p.detach() for n, p in self.lm.named_parameters() if n not in mixed}
        if train_weights:
            self._values, self._age = {}, self._age + 1
        result: Tensor = torch.func.functional_call(self.lm, {**mixed, **rest}, (tokens, mask))
        return result

    def forget(self) -> None:
        """Lets the scales of all candidates be fitted anew."""
        self._values, self._age = {}, 0

    @torch.no_grad()
    def _candidates(self) -> dict[str, list[Tensor]]:
        """f_n(weight) for all candidates by weight name, (rows, columns) each.

        Scales are fitted anew every `REFIT` steps only: the fit takes most of the time, and weights move slowly.
        """
        if self._values:
            return self._values
        if self._age % REFIT == 0:
            self._scales = {}
        for name, weight in named_weights(self.lm).items():
            self._values[name] = []
            for n_bits in self.grid.candidates:
                precision = self.grid.precision(n_bits)
                if (name, n_bits) in self._scales:
                    quantized = round_to(weight, self._scales[name, n_bits], precision)
                else:
                    quantized = project(weight, precision)
                    self._scales[name, n_bits] = quantized.scale
                self._values[name].append(quantized.dequantize())
        return self._values


@dataclass
class _Batch:
    """A batch, and what it trains."""

    text: LmBatch
    train_weights: bool


class NasTask:
    """Alternating training of a supernet, as a task of `fit`.

    Validation measures what the search is for: the held-out loss of the likeliest bits, and the penalty on them.
    """

    name = "bit search"

    def __init__(self, model: Supernet, texts: LmTexts, config: NasConfig, budget: float | None = None) -> None:
        self.model: nn.Module = model
        self._net, self._texts, self._config, self._budget = model, texts, config, budget
        self._n_batches = texts.train.n_batches(config.batch_tokens)

    def steps_per_epoch(self) -> int:
        """Two for each training batch: one for the weights, one for the logits."""
        return 2 * self._n_batches

    def batches(self, epoch: int) -> Iterator[_Batch]:
        """Training batches, a held-out one after each; held-out text is gone through as often as it takes."""
        self._net.forget()  # an epoch begins alike whether the search has just been resumed or not
        size, seed = self._config.batch_tokens, self._config.fit.seed
        rounds = (self._texts.dev.batches(size, seed, r) for r in count(epoch * self._n_batches))
        held_out = chain.from_iterable(rounds)
        for batch in self._texts.train.batches(size, seed, epoch):
            yield _Batch(batch, True)
            yield _Batch(next(held_out), False)

    def loss(self, model: nn.Module, batch: _Batch, done: float) -> Tensor:
        """Mean over the units of the batch, and for logits the penalty."""
        config = self._config
        temperature = config.t_start * (config.t_end / config.t_start) ** done
        text = batch.text.to(self._net.lm.device)
        mixture = self._net.mix(config.sampling, temperature)
        logits = model(text.inputs, text.mask, mixture, batch.train_weights)
        loss = F.cross_entropy(logits, text.targets[text.mask])
        if batch.train_weights:
            return loss
        if self._budget is not None:
            self._adapt_beta(self._budget)
        return loss + self._net.beta.float() * self._net.penalty(mixture, config.penalty)

    @torch.no_grad()
    def _adapt_beta(self, budget: float) -> None:
        """Raises beta where more bits are expected than the budget has, else lowers it."""
        spent = self._net.penalty([a.exp() for a in self._net.log_alphas().values()], "size")
        self._net.beta.mul_(torch.exp(self._config.beta_speed * (spent / budget - 1.0)))

    def validate(self) -> dict[str, float]:
        """Held-out loss of a unit with the likeliest bits; their average, and beta.

        No `loss` to choose an epoch by: the temperature falls, and what was learned last counts.
        """
        choice, total, units = self._net.choice(), 0.0, 0
        for batch in self._texts.dev.batches(self._config.batch_tokens, 0, 0):
            batch = batch.to(self._net.lm.device)
            targets = batch.targets[batch.mask]
            logits = self._net(batch.inputs, batch.mask, choice, False)
            total += F.cross_entropy(logits, targets, reduction="sum").item()
            units += len(targets)
        bits = self._net.penalty(choice, "size").item()
        return {"unit_loss": total / units, "bits": bits, "beta": self._net.beta.item()}


def nas_costs(
    model: LanguageModel,
    texts: LmTexts,
    grid: Grid,
    config: NasConfig,
    exp_dir: str | Path,
    key: Any,
    budget: float | None = None,
) -> Costs:
    """-ln of the probability that so many bits are enough, of every matrix and candidate, after the search.

    Args:
        model: float; it is left as it is.
        texts: to train the weights and, held out, the logits.
        grid: candidates; layer level only.
        config: how bits are learned.
        exp_dir: takes checkpoints and logs; a killed search continues from there.
        key: identifies the float model.
        budget: average bits of a weight that the penalty `budget` aims at; the other penalties take none.
    """
    if (budget is None) == (config.penalty == "budget"):
        raise BadInput(
            f"penalty: {config.penalty}: 'budget' needs average bits to aim at (--bits), the others take none"
        )
    if grid.level != "layer":
        raise BadInput(f"level: {grid.level}: architecture search gives bits to whole matrices; expected layer")
    torch.manual_seed(config.fit.seed)
    net = Supernet(copy.deepcopy(model), grid, config.logit_speed, config.beta)
    run_key = {"config": asdict(config), "grid": asdict(grid), "texts": texts.key, "float": key, "budget": budget}
    fit(NasTask(net, texts, config, budget), config.fit, exp_dir, key=run_key)
    enough = {name: a.detach().double().logcumsumexp(-1) for name, a in net.log_alphas().items()}  # bits ascend
    table = {name: (log_p[-1] - log_p).cpu()[None] for name, log_p in enough.items()}
    if not all(math.isfinite(rows.sum().item()) for rows in table.values()):
        raise BadInput("the search diverged: a probability is not a finite number; lower lr or logit_speed")
    return Costs("nas", grid, table)
