"""Training of language models: the task that `fit` runs, for float models and for quantized ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.data.batches import read_ahead
from mpq.data.lmtext import LmBatch, LmText, Tokenizer, open_lm_text
from mpq.io import check_ranges
from mpq.lm import LanguageModel, LmConfig, LoadedLm, build_lm, perplexity
from mpq.quant import BitPlan, quantizable
from mpq.train.admm import AdmmConfig
from mpq.train.loop import FitConfig, FitResult, fit, world
from mpq.train.quantized import fit_quantized, load_start


@dataclass
class LmTrainConfig:
    """How to train a language model.

    Attributes:
        model: its kind and size.
        fit: epochs, learning rate, seed and so on.
        batch_tokens: most tokens of a batch, padding included.
        epoch_part: part (above 0, up to 1) of the training text that an epoch takes, each the next part of it. A
            checkpoint is written after every epoch: with a twentieth and 20 epochs a kill costs a twentieth of a pass.
    """

    model: LmConfig = field(default_factory=LmConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    batch_tokens: int = 1024
    epoch_part: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, batch_tokens="[1, inf)", epoch_part="(0, 1]")


@dataclass
class QuantTrainConfig:
    """How to train a quantized language model.

    Attributes:
        fit: epochs, learning rate, seed and so on.
        batch_tokens: most tokens of a batch, padding included.
        distill: weight (0 to 1) of the divergence from the float model's predictions; cross entropy has the rest.
        epoch_part: part (above 0, up to 1) of the training text that an epoch takes, each the next part of it.
        scratch: start from random weights instead of the float model's.
        admm: how ADMM is run, where it is what trains.
    """

    fit: FitConfig = field(default_factory=FitConfig)
    batch_tokens: int = 1024
    distill: float = 0.5
    epoch_part: float = 1.0
    scratch: bool = False
    admm: AdmmConfig = field(default_factory=AdmmConfig)

    def __post_init__(self) -> None:
        check_ranges(self, batch_tokens="[1, inf)", distill="[0, 1]", epoch_part="(0, 1]")


@dataclass(frozen=True)
class LmTexts:
    """Tokenized text to train on, and held-out text."""

    train: LmText
    dev: LmText

    @classmethod
    def open(cls, train: str | Path, dev: str | Path, tokenizer: Tokenizer, cache_dir: str | Path) -> LmTexts:
        """Tokenizes both, if `cache_dir` does not hold them yet."""
        return cls(open_lm_text(train, tokenizer, cache_dir), open_lm_text(dev, tokenizer, cache_dir))

    @property
    def key(self) -> dict[str, str]:
        """What identifies them."""
        return {"train": self.train.key, "dev": self.dev.key}


class LmTask:
    """Next-unit prediction by cross entropy, or by a mixture with the predictions of a teacher.

    Args:
        name: shown beside the progress bar.
        model: what is trained.
        texts: the loss on the held-out one decides which epoch is kept.
        batch_tokens: most tokens of a batch, padding included.
        seed: of the order of the data.
        teacher: a float model; it is not trained.
        distill: weight of the Kullback-Leibler divergence from the teacher (Hinton et al. 2015, temperature 1), 0 to 1;
            cross entropy has the rest.
        epoch_part: part of the batches that an epoch takes: with a quarter, four epochs are one pass over the text,
            which is shuffled anew for each pass. An epoch begins where the last one ended: parts of whatever size take
            every sentence once in a pass.
    """

    def __init__(
        self,
        name: str,
        model: LanguageModel,
        texts: LmTexts,
        batch_tokens: int,
        seed: int,
        teacher: LanguageModel | None = None,
        distill: float = 0.0,
        epoch_part: float = 1.0,
    ) -> None:
        self.name = name
        self.model: nn.Module = model
        self._lm = model
        self.teacher = teacher.eval() if teacher is not None else None
        self._texts = texts
        self._batch_tokens, self._seed, self._distill = batch_tokens, seed, distill
        self._n_pass = texts.train.n_batches(batch_tokens)
        self._n_batches = int(epoch_part * self._n_pass)

    def steps_per_epoch(self) -> int:
        """Batches of an epoch in each process."""
        return max(1, self._n_batches // world()[1])

    def batches(self, epoch: int) -> Iterator[LmBatch]:
        """Every n-th batch of the epoch for each of n processes."""
        rank, processes = world()
        size = self.steps_per_epoch() * processes
        first, skip = divmod(epoch * size, self._n_pass)
        text, n_tokens = self._texts.train, self._batch_tokens
        passes = (text.batches(n_tokens, self._seed, number, 0 if number > first else skip) for number in count(first))
        return read_ahead(islice(chain.from_iterable(passes), rank, size, processes))

    def loss(self, model: nn.Module, batch: LmBatch, done: float) -> Tensor:
        """Mean over the units of the batch."""
        batch = batch.to(self._lm.device)
        log_probs = model(batch.inputs, batch.mask).log_softmax(-1)
        loss = F.nll_loss(log_probs, batch.targets[batch.mask])
        if self.teacher is None or not self._distill:
            return loss
        with torch.no_grad():
            self.teacher.to(batch.inputs.device)
            expected = self.teacher(batch.inputs, batch.mask).float().log_softmax(-1)
        divergence = F.kl_div(log_probs, expected, log_target=True, reduction="batchmean")
        return (1.0 - self._distill) * loss + self._distill * divergence

    def validate(self) -> dict[str, float]:
        """Mean loss per unit and perplexity per word on the held-out text."""
        result = perplexity(self._lm, self._texts.dev)
        return {"loss": -result.logprob / result.units, "perplexity": result.value}


def train_lm(config: LmTrainConfig, texts: LmTexts, exp_dir: str | Path) -> tuple[LanguageModel, FitResult]:
    """Trains a float language model; `exp_dir` takes checkpoints and logs, and a killed run continues from there."""
    torch.manual_seed(config.fit.seed)
    model = build_lm(config.model, len(texts.train.tokenizer))
    name, part = f"train {config.model.arch}", config.epoch_part
    task = LmTask(name, model, texts, config.batch_tokens, config.fit.seed, epoch_part=part)
    return model, fit(task, config.fit, exp_dir, key={"config": asdict(config), "texts": texts.key})


def train_quantized_lm(
    lm: LoadedLm,
    plan: BitPlan,
    config: QuantTrainConfig,
    texts: LmTexts,
    exp_dir: str | Path,
    key: Any,
    method: str = "ste",
    init: Mapping[str, Tensor] | None = None,
) -> tuple[LanguageModel, FitResult]:
    """Trains a quantized language model, by straight-through estimation or by ADMM.

    Straight-through (`ste`): the forward pass is the integer arithmetic of serving; gradients pass the rounding
    unchanged and move latent float weights (2111.14479 section 3.2).  ADMM (`admm`): see `mpq.train.admm`; its record
    of convergence goes to `admm.jsonl`.  Both start from the float model or from `init`, unless `config.scratch`,
    without dropout.

    Args:
        lm: the float model; it is left as it is and teaches if `config.distill` is above 0.
        plan: bits of its weights.
        config: how to train.
        texts: as for the float model.
        exp_dir: takes checkpoints and logs; a killed run continues from there.
        key: identifies the float model, and `init`.
        method: `ste` or `admm`.
        init: weights to start from, by name, and perhaps learned scales, such as a one-stage search leaves them.

    Raises:
        BadInput: the plan is of another model.
    """
    plan.check(quantizable(lm.model))
    size = replace(lm.model.config, dropout=0.0)  # rounding regularizes enough
    torch.manual_seed(config.fit.seed)
    model = build_lm(size, len(lm.tokenizer))
    if not config.scratch:
        load_start(model, init or lm.model.state_dict())
    name = f"train {lm.model.config.arch}, {plan.budget:g} bits" if plan.budget else f"train {lm.model.config.arch}"
    teacher = lm.model if config.distill else None
    seed, part = config.fit.seed, config.epoch_part
    run_key = {"config": asdict(config), "plan": plan.to_dict(), "texts": texts.key, "float": key, "method": method}

    def task() -> LmTask:
        return LmTask(name, model, texts, config.batch_tokens, seed, teacher, config.distill, part)

    return model, fit_quantized(model, task, plan, method, config.fit, config.admm, exp_dir, run_key, init)
