"""Trains an acoustic model: CTC first, then lattice-free MMI over the same graphs.

CTC (Graves et al. 2006) is the numerator of LF-MMI alone; starting with it keeps the randomly initialized
model from the flat region in which the denominator's paths all score alike.  Then the full criterion is
minimized, `-(numerator - den_scale * denominator)` (Povey et al. 2016), with a phone n-gram model estimated
from the training transcripts as the denominator's language model.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kaldialign
import numpy as np
import torch
from torch import Tensor, nn

from mpq.am.adapt import check_speakers
from mpq.am.base import AcousticModel
from mpq.am.model import ModelConfig, arch_of, check_features, make_am, run_batch
from mpq.am.tdnn import TdnnConfig
from mpq.am.tdnnf import UnitDropout
from mpq.data.batches import Batch, FeatureSet, Normalization, SpecAugment, batches, read_ahead
from mpq.fst.backend import Backend, path_sums
from mpq.fst.fsa import Fsa
from mpq.fst.lfmmi import lfmmi_loss, total_score
from mpq.fst.phone_lm import PhoneLmConfig
from mpq.fst.units import Units
from mpq.io import BadInput, check_ranges, hash_config, sha256_file
from mpq.lang.lexicon import Lexicon
from mpq.train.graphs import PhoneGraphs, phone_model
from mpq.train.loop import FitConfig, Plugin, sum_over_processes, world
from mpq.train.orthonormal import SemiOrthogonal
from mpq.train.trainee import Trainee

_MISFITS = 0.01  # part of the training utterances that may be left out since their transcripts do not fit


@dataclass
class AmConfig(PhoneLmConfig):
    """How to train an acoustic model.

    Attributes:
        model: its architecture and size.
        fit: epochs, learning rate, seed and so on.
        ctc_part: part of the training (0 to 1) by CTC alone before LF-MMI begins.
        den_scale: weight of the denominator in LF-MMI.
        max_frames: frames (10 ms) of a batch, padding included.
        epoch_part: part (above 0, up to 1) of the training utterances that an epoch takes, each the next part of them.
            A checkpoint is written after every epoch: with a quarter a kill costs a quarter of a pass.
        normalization: mean and variance of the features by utterance or by speaker, or none. A short utterance says
            little about its channel, but decoding by speaker needs all of a speaker's utterances.
        augment: SpecAugment.
        masks: its masks.
        xent: weight of a second output trained by cross-entropy on the numerator's posteriors; 0: none.
        dropout_schedule: dropout by the part of the training that is done, as Kaldi writes it:
            `0,0@0.2,0.3@0.5,0` (value@part, linear between); empty: the model's own dropout throughout.
        lhuc: speaker adaptive training: part of the utterances that are trained with their speaker's LHUC
            amplitudes, the others without; 0: no LHUC.
        fst: what computes LF-MMI: native or k2; the same numbers within float32's rounding.
    """

    model: ModelConfig = field(default_factory=TdnnConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    ctc_part: float = 0.4
    den_scale: float = 1.0
    max_frames: int = 10000
    epoch_part: float = 1.0
    normalization: Normalization = "utterance"
    augment: bool = True
    masks: SpecAugment = field(default_factory=SpecAugment)
    xent: float = 0.0
    dropout_schedule: str = ""
    lhuc: float = 0.0
    fst: Backend = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, ctc_part="[0, 1]", max_frames="[1, inf)", den_scale="[0, inf)")
        check_ranges(self, xent="[0, inf)", lhuc="[0, 1]", epoch_part="(0, 1]")
        parse_schedule(self.dropout_schedule)


class AmTask:
    """The task for `mpq.train.loop.fit`.

    Attributes:
        acoustic: the acoustic model.
        model: the same with what only its training needs.
        graphs: of LF-MMI on the training transcripts.
        held_out: of LF-MMI on the held-out ones; the same where the phone n-gram model is smooth.

    Args:
        config: how to train.
        train: training features, sped-up copies included.
        dev: held-out features; the loss on them decides which epoch is kept.
        lexicon: pronunciations.
        units: what the model tells apart; the phones by default.
        acoustic: what is trained; by default a model made by `config.model`, freshly initialized.

    Raises:
        BadInput: a word without pronunciation; more than a hundredth of the utterances have no words, or fewer frames
            than their transcripts need (fewer are left out): the first ones are named. Or features or i-vectors
            that are not those of the model.
    """

    name = "train acoustic model"

    def __init__(
        self,
        config: AmConfig,
        train: FeatureSet,
        dev: FeatureSet,
        lexicon: Lexicon,
        units: Units | None = None,
        acoustic: AcousticModel | None = None,
    ) -> None:
        torch.manual_seed(config.fit.seed)
        self.config, self.train, self.dev, self.lexicon = config, train, dev, lexicon
        self.units = units or Units(lexicon.phones)
        if acoustic is None:
            acoustic = make_am(config.model, len(self.units) + 1)
            acoustic.normalization = train.normalization
        self.acoustic = acoustic
        acoustic.sampling_rate = acoustic.sampling_rate or train.sampling_rate
        for features in (train, dev):
            check_features(self.acoustic, features)
        if config.lhuc:
            check_speakers(train)
        self._speakers = {name: i for i, name in enumerate(sorted(set(train.speakers)))} if config.lhuc else {}
        self.model: nn.Module = Trainee(self.acoustic, len(self._speakers), config.xent > 0.0)
        self.graphs = self.held_out = self._graphs(train.texts)
        if not config.phone_smooth:
            self.held_out = self._graphs([*train.texts, *filter(self._is_known, dev.texts)])
        self._path_sums = path_sums(config.fst)
        _leave_out_misfits(train, self.numerator, self.acoustic)
        if not any(self._is_known(text) for text in dev.texts):
            raise BadInput(f"{dev.path}: every utterance has a word outside the lexicon of {len(lexicon)} words")

    @property
    def plugins(self) -> list[Plugin]:
        """What the training of this model needs besides its loss."""
        return [SemiOrthogonal(self.acoustic)] if self.acoustic.semi_orthogonal() else []

    def _graphs(self, texts: Sequence[str]) -> PhoneGraphs:
        return PhoneGraphs(phone_model(texts, self.lexicon, self.config), self.lexicon, self.units)

    @property
    def denominator(self) -> Fsa:
        """Of the training transcripts."""
        return self.graphs.denominator

    def numerator(self, text: str) -> Fsa:
        """Of a training transcript."""
        return self.graphs.numerator(text)

    def _is_known(self, text: str) -> bool:
        return bool(text.split()) and all(word in self.lexicon for word in text.split())

    def fits(self, text: str, n_frames: int) -> bool:
        """Whether words of the lexicon were said, in as many output frames as they need at least (held-out speech)."""
        return self._is_known(text) and self.held_out.numerator(text).min_frames <= n_frames

    def steps_per_epoch(self) -> float:
        """Batches of an epoch in each process."""
        n_pass = len(self.train.plan(self.config.max_frames, np.random.default_rng(0), one_copy=True))
        part = self.config.epoch_part
        return part * max(-(-n_pass // world()[1]), math.ceil(1.0 / part))  # no part is empty: see `batches`

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Batches of one speed copy of each utterance, drawn with the order from the seed and the pass."""
        config = self.config
        rank, world_size = world()
        return read_ahead(batches(
            self.train, config.fit.seed, epoch, max_frames=config.max_frames,
            augment=config.augment and config.masks, shuffle=True,
            one_copy=True, epoch_part=config.epoch_part, rank=rank, world_size=world_size,
        ))  # fmt: skip

    def loss(self, model: nn.Module, batch: Batch, done: float) -> Tensor:
        """Loss per output frame."""
        if self.config.dropout_schedule:
            set_dropout(self.acoustic, float(np.interp(done, *parse_schedule(self.config.dropout_schedule))))
        device = next(model.parameters()).device
        ivectors = None if batch.ivectors is None else batch.ivectors.to(device)
        log_probs, xent, lengths = model(
            batch.features.to(device), batch.lengths.to(device), ivectors, self._draw_speakers(batch, device)
        )
        log_probs = log_probs.view_as(log_probs)  # the loop forbids gradients of the model's own output
        return self.criterion(log_probs, lengths, batch.texts, done, xent)

    def criterion(
        self, log_probs: Tensor, lengths: Tensor, texts: Sequence[str], done: float, xent: Tensor | None = None
    ) -> Tensor:
        """Loss per output frame, by CTC or LF-MMI as it is the time for, and the cross-entropy branch's.

        Args:
            log_probs: `(N, T', C)`, of the model.
            lengths: `(N,)`.
            texts: what was said.
            done: part of the training that lies behind.
            xent: `(N, T', C)`, log-probabilities of the branch.
        """
        numerators = [self.numerator(text) for text in texts]
        numerator = total_score(log_probs, lengths, numerators, self._path_sums)
        losses = -numerator
        if done >= self.config.ctc_part:
            denominator = total_score(log_probs, lengths, self.denominator, self._path_sums)
            losses = self.config.den_scale * denominator - numerator
        if xent is not None:
            # The gradient of a path sum is the posterior probability of each class at each frame.
            (posteriors,) = torch.autograd.grad(numerator.sum(), log_probs, retain_graph=True)
            losses = losses - self.config.xent * (posteriors * xent).sum((1, 2))
        mean: Tensor = losses.sum() / lengths.sum()
        return mean

    def _draw_speakers(self, batch: Batch, device: torch.device) -> Tensor | None:
        """Numbers of the speakers whose LHUC amplitudes are used, -1 for utterances without; None without LHUC."""
        if not self._speakers:
            return None
        speakers = torch.tensor([self._speakers[name] for name in batch.speakers])
        return torch.where(torch.rand(len(speakers)) < self.config.lhuc, speakers, -1).to(device)

    def validate(self) -> dict[str, float]:
        """LF-MMI loss per frame on the held-out utterances, of a training by CTC alone that of CTC, and the phone error
        rate of the best classes in percent.

        The loss decides: without a language model the best class of a frame says little about an LF-MMI model.
        Utterances with words outside the lexicon, or more phones than frames, are left out: held-out text has some.
        Of several processes each looks at its share of the batches.
        """
        loss, frames, errors, phones = 0.0, 0, 0, 0
        rank, processes = world()
        for indexes in self.dev.plan(2 * self.config.max_frames)[rank::processes]:
            batch = self.dev.batch(indexes)
            log_probs, lengths = run_batch(self.acoustic, batch)
            known = [i for i, text in enumerate(batch.texts) if self.fits(text, int(lengths[i]))]
            log_probs, lengths = log_probs[known], lengths[known]
            texts = [batch.texts[i] for i in known]
            if not texts:
                continue
            numerators = [self.held_out.numerator(text) for text in texts]
            if self.config.ctc_part < 1.0:
                denominator = self.held_out.denominator
                losses = lfmmi_loss(log_probs, lengths, numerators, denominator, path_sums=self._path_sums)
            else:
                losses = -total_score(log_probs, lengths, numerators, self._path_sums)
            loss += losses.sum().item()
            frames += int(lengths.sum())
            best = log_probs.argmax(-1).cpu()
            for row, length, text in zip(best, lengths.tolist(), texts, strict=True):
                reference = [p for word in text.split() for p in self.lexicon.pronunciations(word)[0]]
                found = [self.units.phone(unit) for unit in collapse(row[:length].tolist())]
                errors += kaldialign.edit_distance(reference, found)["total"]
                phones += len(reference)
        device = next(self.acoustic.parameters()).device
        total, *counts = sum_over_processes([loss, frames, errors, phones], device)
        return {"loss": total / max(1.0, counts[0]), "per": 100.0 * counts[1] / max(1.0, counts[2])}


def loss_name(ctc_part: float) -> str:
    """What the held-out loss of a training is that is so far by CTC alone."""
    return "LF-MMI" if ctc_part < 1.0 else "CTC"


def collapse(classes: Iterable[int], blank: int = 0) -> list[int]:
    """Phones of a CTC path: repeats joined, then blanks removed."""
    phones, last = [], blank
    for unit in classes:
        if unit not in (last, blank):
            phones.append(unit)
        last = unit
    return phones


def parse_schedule(text: str) -> tuple[list[float], list[float]]:
    """Reads `0,0@0.2,0.3@0.5,0`: the parts of the training, and the values there; a first value stands at 0, a last
    one at 1.

    Raises:
        BadInput: not numbers, parts that do not grow from 0 to 1, or values outside 0 to 0.5.
    """
    points = [point.partition("@") for point in text.split(",")] if text else []
    ends = [0.0, *([float("nan")] * (len(points) - 2)), 1.0]
    try:
        parts = [float(part) if at else end for (_, at, part), end in zip(points, ends, strict=False)]
        values = [float(value) for value, _, _ in points]
    except ValueError:
        parts, values = [1.0, 0.0], []
    inside = all(0.0 <= value <= 0.5 for value in values)
    if not (inside and all(0.0 <= part <= 1.0 for part in parts) and parts == sorted(parts)):
        raise BadInput(
            f"dropout_schedule: '{text}'; expected values of at most 0.5 at growing parts of the training, "
            "like 0,0@0.2,0.3@0.5,0"
        )
    return parts, values


def set_dropout(model: nn.Module, p: float) -> None:
    """Sets the dropout of all layers that have any."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | UnitDropout):
            module.p = p


def _leave_out_misfits(features: FeatureSet, numerator: Callable[[str], Fsa], acoustic: AcousticModel) -> None:
    """Leaves out utterances without words, or with more phones than their frames can hold, as long as they are few.

    Real corpora have some: a segment that was cut off, words said too fast for the frame rate.

    Raises:
        BadInput: they are many.
    """
    bad = {}
    out_lengths = acoustic.out_lengths(torch.from_numpy(features.lengths)).tolist()
    for index, (have, text) in enumerate(zip(out_lengths, features.texts, strict=True)):
        if not text.split():
            bad[index] = f"{features.utts[index]} (no words)"
        elif have < (need := numerator(text).min_frames):
            rate = 100 // acoustic.subsampling
            what = f"{have} frames at {rate} a second, its transcript needs {need:g}"
            bad[index] = f"{features.utts[index]} ({what})"
    if not bad:
        return
    shown = ", ".join([*bad.values()][:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    if len(bad) > _MISFITS * len(features):
        raise BadInput(f"{features.path}: transcripts that do not fit their audio: {shown}; correct or remove them")
    print(f"warning: {features.path}: left out, transcripts do not fit their audio: {shown}", file=sys.stderr)
    features.leave_out([*bad])


def run_key(config: AmConfig, manifests: Iterable[str | Path], lexicon: Lexicon, units: Units) -> dict[str, Any]:
    """What a checkpoint depends on: everything that changes the numbers of the training.

    Of `max_frames` the sum over all processes counts: a training goes on with another number of them.
    """
    batch, processes = config.max_frames, int(os.environ.get("WORLD_SIZE", "1"))  # of torchrun; they have not met yet
    if processes > 1:
        batch = round(batch * processes, -2)  # a third of 40,000 is 13,333
    prons = {word: lexicon.pronunciations(word) for word in lexicon.words}
    return {
        "config": {**asdict(config), "arch": arch_of(config.model), "max_frames": batch},
        "manifests": [sha256_file(path) for path in manifests],
        "phones": lexicon.phones,
        "units": units.names,
        "lexicon": hash_config(prons),
    }
