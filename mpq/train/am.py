"""Trains an acoustic model: CTC first, then lattice-free MMI over the same graphs.

CTC (Graves et al. 2006) is the numerator of LF-MMI alone; starting with it keeps the randomly initialized
model from the flat region in which the denominator's paths all score alike.  Then the full criterion is
minimized, `-(numerator - den_scale * denominator)` (Povey et al. 2016), with a phone n-gram model estimated
from the training transcripts as the denominator's language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kaldialign
import numpy as np
import torch
from torch import Tensor, nn

from mpq.am.tdnn import SUBSAMPLING, Tdnn, TdnnConfig
from mpq.data.batches import Batch, FeatureSet, batches
from mpq.fst.fsa import Fsa, ctc_graph, pronunciation_graph
from mpq.fst.lfmmi import lfmmi_loss, total_score
from mpq.fst.phone_lm import PhoneNgram, apply_phone_ngram, estimate_phone_ngram
from mpq.io import BadInput, hash_config, sha256_file
from mpq.lang.lexicon import Lexicon
from mpq.train.loop import FitConfig


@dataclass
class AmConfig:
    """How to train an acoustic model.

    Attributes:
        model: its size.
        fit: epochs, learning rate, seed, ...
        ctc_part: part of the training (0 to 1) by CTC alone before LF-MMI begins.
        den_scale: weight of the denominator in LF-MMI.
        phone_order: order of the denominator's phone n-gram model.
        max_frames: frames (10 ms) of a batch, padding included.
        augment: SpecAugment.
    """

    model: TdnnConfig = field(default_factory=TdnnConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    ctc_part: float = 0.4
    den_scale: float = 1.0
    phone_order: int = 2
    max_frames: int = 10000
    augment: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.ctc_part <= 1.0:
            raise BadInput(f"ctc_part: {self.ctc_part} must be between 0 and 1")
        for name in ("phone_order", "max_frames"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}: {getattr(self, name)} must be at least 1")
        if self.den_scale < 0.0:
            raise BadInput(f"den_scale: {self.den_scale} must be at least 0")


class AmTask:
    """The task for `mpq.train.loop.fit`.

    Args:
        config: how to train.
        train: training features, sped-up copies included.
        dev: held-out features; the LF-MMI loss on them decides which epoch is kept.
        lexicon: pronunciations.

    Raises:
        BadInput: an utterance has no words, a word without pronunciation, or fewer frames than its
            transcript needs; every such utterance is counted and the first ones named.
    """

    name = "train acoustic model"

    def __init__(self, config: AmConfig, train: FeatureSet, dev: FeatureSet, lexicon: Lexicon) -> None:
        torch.manual_seed(config.fit.seed)
        self.config, self.train, self.dev, self.lexicon = config, train, dev, lexicon
        self.model: nn.Module = Tdnn(config.model, len(lexicon.phones) + 1)
        self.phone_lm = phone_model(train.texts, lexicon, config.phone_order)
        self.denominator = ctc_graph(self.phone_lm.fsa)
        self._numerators: dict[str, Fsa] = {}
        _check_lengths(train, self.numerator)
        if not any(self._is_known(text) for text in dev.texts):
            raise BadInput(f"{dev.path}: every utterance has a word outside the lexicon of {len(lexicon)} words")

    def numerator(self, text: str) -> Fsa:
        """Frame-level acceptor of all pronunciations of `text`, weighted by the phone n-gram model."""
        if text not in self._numerators:
            phones = pronunciation_graph([self.lexicon.pronunciations(word) for word in text.split()])
            self._numerators[text] = ctc_graph(apply_phone_ngram(phones, self.phone_lm))
        return self._numerators[text]

    def _is_known(self, text: str) -> bool:
        return bool(text.split()) and all(word in self.lexicon for word in text.split())

    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.train.plan(self.config.max_frames, np.random.default_rng(0), one_copy=True))

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Batches of one speed copy of each utterance, drawn with the order from the seed and the epoch."""
        seed, max_frames = self.config.fit.seed, self.config.max_frames
        return batches(
            self.train, seed, epoch, max_frames=max_frames, augment=self.config.augment, shuffle=True, one_copy=True
        )

    def loss(self, model: nn.Module, batch: Batch, done: float) -> Tensor:
        """Loss per output frame."""
        device = next(model.parameters()).device
        log_probs, lengths = model(batch.features.to(device), batch.lengths.to(device))
        numerators = [self.numerator(text) for text in batch.texts]
        if done < self.config.ctc_part:
            losses = -total_score(log_probs, lengths, numerators)
        else:
            losses = lfmmi_loss(log_probs, lengths, numerators, self.denominator, self.config.den_scale)
        mean: Tensor = losses.sum() / lengths.sum()
        return mean

    def validate(self) -> dict[str, float]:
        """LF-MMI loss per frame on the held-out utterances, and the phone error rate of the best classes in percent.

        The loss decides: without a language model the best class of a frame says little about an LF-MMI model.
        Utterances with words outside the lexicon are left out: held-out text has some.
        """
        loss, frames, errors, phones = 0.0, 0, 0, 0
        device = next(self.model.parameters()).device
        for batch in batches(self.dev, max_frames=2 * self.config.max_frames):
            log_probs, lengths = self.model(batch.features.to(device), batch.lengths.to(device))
            known = [i for i, text in enumerate(batch.texts) if self._is_known(text)]
            log_probs, lengths = log_probs[known], lengths[known]
            texts = [batch.texts[i] for i in known]
            if not texts:
                continue
            numerators = [self.numerator(text) for text in texts]
            loss += lfmmi_loss(log_probs, lengths, numerators, self.denominator).sum().item()
            frames += int(lengths.sum())
            best = log_probs.argmax(-1).cpu()
            for row, length, text in zip(best, lengths.tolist(), texts, strict=True):
                reference = [p for word in text.split() for p in self.lexicon.pronunciations(word)[0]]
                errors += kaldialign.edit_distance(reference, collapse(row[:length].tolist()))["total"]
                phones += len(reference)
        return {"loss": loss / max(1, frames), "per": 100.0 * errors / max(1, phones)}


def collapse(classes: Iterable[int], blank: int = 0) -> list[int]:
    """Phones of a CTC path: repeats joined, then blanks removed."""
    phones, last = [], blank
    for unit in classes:
        if unit not in (last, blank):
            phones.append(unit)
        last = unit
    return phones


def phone_model(texts: Iterable[str], lexicon: Lexicon, order: int) -> PhoneNgram:
    """Phone n-gram model of the training transcripts, each word by its first pronunciation."""
    sentences = [[p for word in text.split() for p in lexicon.pronunciations(word)[0]] for text in texts]
    return estimate_phone_ngram(sentences, len(lexicon.phones), order)


def _check_lengths(features: FeatureSet, numerator: Callable[[str], Fsa]) -> None:
    """Raises BadInput if an utterance has no words, or more phones than its frames can hold."""
    bad = []
    for utt, n_frames, text in zip(features.utts, features.lengths.tolist(), features.texts, strict=True):
        if not text.split():
            bad.append(f"{utt} (no words)")
            continue
        have, need = -(-n_frames // SUBSAMPLING), numerator(text).min_frames
        if have < need:
            bad.append(f"{utt} ({have} frames at 33 a second, its transcript needs {need:g})")
    if bad:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise BadInput(f"{features.path}: transcripts that do not fit their audio: {shown}; correct or remove them")


def run_key(config: AmConfig, manifests: Iterable[str | Path], lexicon: Lexicon) -> dict[str, Any]:
    """What a checkpoint depends on: everything that changes the numbers of the training."""
    prons = {word: lexicon.pronunciations(word) for word in lexicon.words}
    return {
        "config": asdict(config),
        "manifests": [sha256_file(path) for path in manifests],
        "phones": lexicon.phones,
        "lexicon": hash_config(prons),
    }
