"""The smallest model whose word error rate is not significantly worse than the float model's.

Plans for a range of file sizes are trained, packed and used on the development set (a language model rescores its
n-best lists, an acoustic model decodes it), smallest file first, until one holds. Every file that is left is larger, so
that is the smallest. Bisection would train fewer models, but it takes for granted that a size that fails rules out all
below it: error rates are noisy and do not fall with every bit, and a failure by chance would cost the answer. What
keeps a small file from slipping through where the set is too small to show its loss: the interval of the difference,
which says what the set can show, and for language models a limit on the perplexity, which varies far less.

Weights of language models are tuned on the development set, for the float model too; the test set only reports.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from torch import nn

from mpq.io import NBest, hash_config, read_jsonl, write_jsonl
from mpq.lm import LoadedLm, load_lm, perplexity, save_lm
from mpq.quant import BitPlan, quantizable, write_plan
from mpq.rescore.combine import Weights, best_texts, rerank
from mpq.rescore.scoring import add_lm_scores
from mpq.rescore.tune import tune
from mpq.score import mapsswe, total, utterance_counts
from mpq.train.lm import LmTexts, QuantTrainConfig, train_quantized_lm

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Lists:
    """N-best lists of a set, none where it is decoded, and what was said.

    Attributes:
        key: identifies them.
    """

    nbests: Sequence[NBest]
    refs: Mapping[str, Sequence[str]]
    key: str


@dataclass(frozen=True)
class Rescored:
    """The weights that a language model's lists were reranked with, and the words that came out."""

    weights: Weights | None
    hyps: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Comparison:
    """Two systems on a set.

    Attributes:
        words: of the reference.
        wer: word error rate in percent.
        other_wer: that of the system to compare with.
        difference: `wer` minus `other_wer`.
        low, high: ends of the difference's 95 % interval, from the segments of the matched pairs test.
        p: two-sided, MAPSSWE.
    """

    words: int
    wer: float
    other_wer: float
    difference: float
    low: float
    high: float
    p: float

    def worse(self, alpha: float) -> bool:
        """Whether the system is significantly worse than the other."""
        return self.p < alpha and self.difference > 0

    def __str__(self) -> str:
        return (
            f"WER {self.wer:.2f} against {self.other_wer:.2f}, difference {self.difference:+.2f} "
            f"({self.low:+.2f} to {self.high:+.2f}), p {self.p:.3g}"
        )


@dataclass(frozen=True)
class Trial:
    """A model that was tried.

    Attributes:
        key: identifies plan, training, texts and lists.
        asked: ratio that the plan was made for; names its folder.
        bits: of a weight on average.
        ratio: how many times smaller than float32 its file is.
        perplexity, perplexity_increase: of a language model, and how much over the float model's, in percent.
        seconds: of training and rescoring or decoding, in this run.
        weights: of a language model.
        dev: against the float model on the development set.
    """

    key: str
    asked: float
    bits: float
    bytes: int
    ratio: float
    perplexity: float | None
    perplexity_increase: float | None
    seconds: float
    weights: Weights | None
    dev: Comparison

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Trial:
        """From what `asdict` made of it."""
        weights = row["weights"] and Weights(**row["weights"])
        return cls(**{**row, "weights": weights, "dev": Comparison(**row["dev"])})

    def failure(self, alpha: float, max_increase: float) -> str:
        """Why it does not hold; empty where it does."""
        if self.dev.worse(alpha):
            return "significantly worse"
        if self.perplexity_increase is not None and self.perplexity_increase > max_increase:
            return f"perplexity more than {max_increase:g} % above float"
        return ""

    def __str__(self) -> str:
        perplexity = "" if self.perplexity is None else f"perplexity {self.perplexity:.2f} "
        increase = "" if self.perplexity_increase is None else f"({self.perplexity_increase:+.1f} %), "
        return (
            f"{self.bits:.3f} bits, {self.bytes} bytes, {self.ratio:.2f} times smaller than float32, "
            f"{perplexity}{increase}dev {self.dev}"
        )


def rescore_set(lm: LoadedLm | None, lists: Lists, weights: Weights | None = None) -> Rescored:
    """Reranks lists with a model (none: the first pass alone), with weights tuned on them unless they are given."""
    nbests = list(add_lm_scores(lm.model, lm.tokenizer, lists.nbests)) if lm else list(lists.nbests)
    weights = weights or tune(nbests, lists.refs).weights
    return Rescored(weights, best_texts(rerank(nbest, weights) for nbest in nbests))


def compare(lists: Lists, system: Rescored, other: Rescored) -> Comparison:
    """The difference of two systems, with its significance and its interval."""
    ours, theirs = (total(utterance_counts(lists.refs, s.hyps).values()) for s in (system, other))
    test = mapsswe(lists.refs, system.hyps, other.hyps)
    difference = ours.rate - theirs.rate
    # the test's mean difference of a segment, and its standard error, in errors per hundred words
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * test.std * math.sqrt(test.segments) * 100 / max(ours.words, 1)
    wer, other_wer, low, high = (round(x, 4) for x in (ours.rate, theirs.rate, difference - half, difference + half))
    return Comparison(ours.words, wer, other_wer, round(difference, 4), low, high, test.p)


@dataclass(frozen=True)
class Made:
    """A trained and packed model on the development set; ratio and perplexity as of `Trial`."""

    system: Rescored
    bytes: int
    ratio: float
    perplexity: float | None = None
    perplexity_increase: float | None = None


class LosslessSearch(ABC):
    """Tries plans, smallest file first, and remembers what it tried in `tried.jsonl`.

    Attributes:
        uncompressed: the float model on the development set.

    Args:
        model: the float model.
        dev: what to decide on.
        folder: takes a folder for each ratio, and the record.
        parts: what a trial depends on besides its plan.
    """

    uncompressed: Rescored

    def __init__(self, model: nn.Module, dev: Lists, folder: Path, parts: Mapping[str, Any]) -> None:
        self.dev, self.folder, self._parts = dev, folder, parts
        self.shapes = quantizable(model)
        record = folder / "tried.jsonl"
        rows = [row for _, row in read_jsonl(record)] if record.exists() else []
        self.tried = {trial.key: trial for trial in map(Trial.from_row, rows)}

    @abstractmethod
    def make(self, plan: BitPlan, path: Path) -> Made:
        """Trains, packs into `path` and uses a model; killed, it goes on from the training's last checkpoint."""

    def trials(self, plans: Mapping[float, BitPlan]) -> Iterator[Trial]:
        """Tries the plans, by the ratio that each was made for, largest first; those tried before from the record."""
        seen: list[object] = []
        for asked, plan in sorted(plans.items(), reverse=True):
            if plan.bits in seen:
                continue
            seen.append(plan.bits)
            key = hash_config({**self._parts, "plan": plan.to_dict(), "asked": asked, "dev": self.dev.key})
            if key not in self.tried:
                self.tried[key] = self._try(asked, plan, key)
                write_jsonl(self.folder / "tried.jsonl", (asdict(trial) for trial in self.tried.values()))
            yield self.tried[key]

    def model_path(self, trial: Trial) -> Path:
        """Where its model is, the plan beside it."""
        return self._path(trial.asked)

    def _path(self, asked: float) -> Path:
        return self.folder / f"{asked:g}" / "model.mpq"

    def _try(self, asked: float, plan: BitPlan, key: str) -> Trial:
        began = time.monotonic()
        path = self._path(asked)
        made = self.make(plan, path)
        write_plan(path.with_name("plan.yaml"), plan)
        return Trial(
            key=key,
            asked=asked,
            bits=round(plan.average_bits(self.shapes), 4),
            bytes=made.bytes,
            ratio=round(made.ratio, 3),
            perplexity=None if made.perplexity is None else round(made.perplexity, 3),
            perplexity_increase=None if made.perplexity_increase is None else round(made.perplexity_increase, 3),
            seconds=round(time.monotonic() - began, 1),
            weights=made.system.weights,
            dev=compare(self.dev, made.system, self.uncompressed),
        )


class LmLosslessSearch(LosslessSearch):
    """Language models, used to rescore lists.

    Args:
        lm: the float model.
        texts: to train and to measure perplexity.
        dev: lists to tune the weights and to decide on.
        config: how to train; `train` is `ste` or `admm`.
        folder: as of `LosslessSearch`.
        key: identifies the float model.
    """

    def __init__(
        self, lm: LoadedLm, texts: LmTexts, dev: Lists, config: QuantTrainConfig, train: str, folder: Path, key: str
    ) -> None:
        parts = {"config": asdict(config), "train": train, "texts": texts.key, "float": key}
        super().__init__(lm.model, dev, folder, parts)
        self.lm, self.texts, self.config, self.train, self.key = lm, texts, config, train, key
        self.perplexity = perplexity(lm.model, texts.dev).value
        self.uncompressed = rescore_set(lm, dev)

    def against_first_pass(self) -> Comparison:
        """The float model against the first pass: whether the set can show what a language model does at all."""
        return compare(self.dev, self.uncompressed, rescore_set(None, self.dev))

    def make(self, plan: BitPlan, path: Path) -> Made:
        """Trains, packs and rescores."""
        model, _ = train_quantized_lm(
            self.lm, plan, self.config, self.texts, f"{path}.train", self.key, method=self.train
        )
        value = perplexity(model.eval(), self.texts.dev).value
        save_lm(path, model, self.lm.tokenizer, plan, {"train": self.train, "perplexity": round(value, 2)})
        packed = load_lm(path)
        increase = 100 * (value / self.perplexity - 1)
        return Made(rescore_set(packed, self.dev), packed.n_bytes, packed.ratio, value, increase)
