"""Batches of features or waveforms for acoustic training and decoding: deterministic, bucketed by length, augmented."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from lhotse import MonoCut
from numpy.typing import NDArray
from torch import Tensor, nn

from mpq.data.features import load_feature_cuts
from mpq.data.waveform import WAVEFORM
from mpq.io import BadInput, PathLike

Normalization = Literal["utterance", "speaker", "none"]
_SPEED_AFFIX = re.compile(r"_sp[0-9.]+$")
FLOOR = 1e-5  # of standard deviations
_FULL_SCALE = 1 << 15  # of 16-bit samples
FRAME_SHIFT = 0.01  # seconds between frames of features
IVECTOR_PERIOD = 10  # frames to one i-vector
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Utterances of similar length.

    Attributes:
        features: (N, T, C) float32, zero (the mean) after an utterance's end.
        lengths: (N,) int64, frames of each utterance, longest first.
        texts: N transcripts, words separated by blanks; empty where there is none.
        utts: N utterance ids.
        speakers: N speaker ids.
        ivectors: (N, P, D) float32, one for every `IVECTOR_PERIOD` frames, zero after an utterance's end; None
            where the manifest has none.
    """

    features: Tensor
    lengths: Tensor
    texts: list[str]
    utts: list[str]
    speakers: list[str]
    ivectors: Tensor | None = None


@dataclass(frozen=True)
class SpecAugment:
    """Masks of SpecAugment (Park et al. 2019, section 2, policy without time warping), filled with zero.

    Attributes:
        n_feature_masks: masks of mel bands for each utterance.
        feature_mask: a mask is 0 to this many bands wide.
        n_frame_masks: most masks of frames for each utterance; a short one gets fewer and so longer ones.
        frame_mask: a mask is 0 to this many frames long.
        frame_fraction: but all frame masks together take at most this part of an utterance.
    """

    n_feature_masks: int = 2
    feature_mask: int = 27
    n_frame_masks: int = 10
    frame_mask: int = 50
    frame_fraction: float = 0.15

    def __call__(self, features: Tensor, lengths: Tensor, rng: np.random.Generator) -> Tensor:
        """Masks in place and returns `features` (N, T, C) of `lengths` (N,)."""
        for row, length in enumerate(lengths.tolist()):
            for _ in range(self.n_feature_masks):
                start, end = _interval(features.shape[2], self.feature_mask, rng)
                features[row, :, start:end] = 0.0
            budget = int(self.frame_fraction * length)
            n_masks = min(self.n_frame_masks, -(-budget // self.frame_mask))
            for _ in range(n_masks):
                start, end = _interval(length, min(self.frame_mask, budget // n_masks), rng)
                features[row, start:end] = 0.0
        return features


def _interval(size: int, longest: int, rng: np.random.Generator) -> tuple[int, int]:
    """A random stretch of 0 to `longest` of `size` places."""
    width = int(rng.integers(min(longest, size) + 1))
    start = int(rng.integers(size - width + 1))
    return start, start + width


class FeatureSet:
    """The features of one manifest, normalized, kept in memory in float16 once read if they fit.

    Args:
        cuts_path: manifest written by `mpq.data.features.extract`.
        normalization: mean and variance by utterance, by speaker (a sped-up copy is a speaker of its own), or
            none; waveforms are left as they are: it is their model that normalizes them.
        cache_bytes: keep features in memory if all of them take no more than this; else read them anew each
            time.
    """

    def __init__(
        self, cuts_path: PathLike, normalization: Normalization = "utterance", cache_bytes: int = 2 << 30
    ) -> None:
        self.path = cuts_path
        self._cuts = list(load_feature_cuts(cuts_path))
        self.is_waveform = self._cuts[0].features.type == WAVEFORM
        self.sampling_rate = int(self._cuts[0].features.sampling_rate)
        self.normalization = "none" if self.is_waveform else normalization
        self.utts = [cut.id for cut in self._cuts]
        self._texts = [cut.supervisions[0].text for cut in self._cuts]
        self.has_texts = None not in self._texts
        self.speakers = [cut.supervisions[0].speaker or cut.id for cut in self._cuts]
        self.n_without_speaker = sum(not cut.supervisions[0].speaker for cut in self._cuts)
        self.lengths = np.array([cut.num_frames for cut in self._cuts], dtype=np.int64)
        self.n_features = int(self._cuts[0].num_features)
        self.ivector_dim = _ivector_dim(self._cuts, cuts_path)
        size = 2 * self.n_features * int(self.lengths.sum())
        self._cache: dict[int, NDArray[np.float16 | np.int16]] | None = {} if size <= cache_bytes else None
        self._left_out: list[int] = []
        self._speaker_stats = self._count_speakers() if self.normalization == "speaker" else {}

    def __len__(self) -> int:
        return len(self.utts)

    @property
    def texts(self) -> list[str]:
        """Transcripts, words separated by blanks.

        Raises:
            BadInput: an utterance has none.
        """
        if not self.has_texts:
            utt, number = self.utts[self._texts.index(None)], self._texts.count(None)
            raise BadInput(
                f"{self.path}: {number} of {len(self)} utterances have no transcript, such as {utt}: they can be "
                "decoded only; prepare the data with its transcripts"
            )
        return self._texts

    def leave_out(self, indexes: Sequence[int]) -> None:
        """Keeps utterances out of all batches that are planned from now on."""
        self._left_out = list(indexes)

    def load(self, index: int) -> NDArray[np.float32]:
        """Normalized features (T, C) of one utterance."""
        if self._cache is None:
            return self._normalize(self._read(index), self.speakers[index])
        if index not in self._cache:
            self._cache[index] = self._halve(self._normalize(self._read(index), self.speakers[index]))
        # The same rounding on the first use as on every later one.
        features: NDArray[np.float32] = self._cache[index].astype(np.float32)
        if self.is_waveform:
            features /= _FULL_SCALE
        return features

    def _halve(self, features: NDArray[np.float32]) -> NDArray[np.float16 | np.int16]:
        """Features in two bytes each; samples as 16-bit audio files hold them."""
        if not self.is_waveform:
            return features.astype(np.float16)
        return np.rint(features * _FULL_SCALE).clip(-_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)

    def _read(self, index: int) -> NDArray[np.float32]:
        """Features (T, C) as stored."""
        cut = self._cuts[index]
        try:
            features = np.asarray(cut.load_features(), dtype=np.float32)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            storage = cut.features.storage_path
            reason = str(error).strip().partition("\n")[0]
            raise BadInput(
                f"{storage}: features of utterance {cut.id} cannot be read ({reason}); "
                "remove the file and run `mpq features` again"
            ) from None
        if features.shape != (self.lengths[index], self.n_features):
            expected = (int(self.lengths[index]), self.n_features)
            raise BadInput(f"{self.path}: utterance {cut.id}: features are {features.shape}, expected {expected}")
        return features

    def _normalize(self, features: NDArray[np.float32], speaker: str) -> NDArray[np.float32]:
        if self.normalization == "none":
            return features
        if self.normalization == "speaker":
            mean, std = self._speaker_stats[speaker]
        else:
            mean, std = features.mean(0), features.std(0)
        return np.asarray((features - mean) / np.maximum(std, FLOOR), dtype=np.float32)

    def _count_speakers(self) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Mean and standard deviation (C,) by speaker, over all frames of the set."""
        sums: dict[str, NDArray[np.float64]] = {}
        for index, speaker in enumerate(self.speakers):
            features = self._read(index).astype(np.float64)
            part = np.stack([np.full(self.n_features, len(features)), features.sum(0), np.square(features).sum(0)])
            sums[speaker] = sums[speaker] + part if speaker in sums else part
        stats = {}
        for speaker, (count, first, second) in sums.items():
            mean = first / count
            std = np.sqrt(np.maximum(second / count - mean**2, 0.0))
            stats[speaker] = (mean.astype(np.float32), std.astype(np.float32))
        return stats

    def batch(self, indexes: Sequence[int]) -> Batch:
        """Loads utterances and pads them, longest first."""
        indexes = sorted(indexes, key=lambda index: (-self.lengths[index], index))
        lengths = torch.from_numpy(self.lengths[indexes])
        features = torch.zeros(len(indexes), int(lengths[0]), self.n_features)
        for row, index in enumerate(indexes):
            features[row, : self.lengths[index]] = torch.from_numpy(self.load(index))
        return Batch(
            features,
            lengths,
            [self._texts[index] or "" for index in indexes],
            [self.utts[index] for index in indexes],
            [self.speakers[index] for index in indexes],
            self._ivectors(indexes) if self.ivector_dim else None,
        )

    def _ivectors(self, indexes: Sequence[int]) -> Tensor:
        """I-vectors (N, P, D) of utterances, padded with zeros."""
        parts = [torch.from_numpy(self._cuts[index].load_ivectors().astype(np.float32)) for index in indexes]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True)

    def plan(self, max_frames: int, rng: np.random.Generator | None = None, one_copy: bool = False) -> list[list[int]]:
        """Groups utterances of similar length into batches of at most `max_frames` padded frames.

        Args:
            max_frames: bound on N times T; a longer utterance is a batch of its own.
            rng: draws the grouping and the order of the batches; None groups by length, longest first.
            one_copy: take one of the speed copies of each utterance, at random, instead of all.
        """
        chosen = np.arange(len(self))
        if rng is not None and one_copy:
            chosen = self._draw_copies(rng)
        chosen = chosen[~np.isin(chosen, self._left_out)]
        keys = self.lengths[chosen].astype(np.float64)
        if rng is not None:
            keys *= rng.uniform(0.9, 1.1, len(keys))  # other neighbours every epoch, little more padding
        batches: list[list[int]] = []
        longest = 0
        for index in chosen[np.argsort(-keys, kind="stable")].tolist():
            longest = max(longest, int(self.lengths[index]))
            if batches and longest * (len(batches[-1]) + 1) <= max_frames:
                batches[-1].append(index)
            else:
                batches.append([index])
                longest = int(self.lengths[index])
        if rng is not None:
            batches = [batches[index] for index in rng.permutation(len(batches))]
        return batches

    def _draw_copies(self, rng: np.random.Generator) -> NDArray[np.int64]:
        copies: dict[str, list[int]] = {}
        for index, utt in enumerate(self.utts):
            copies.setdefault(_SPEED_AFFIX.sub("", utt), []).append(index)
        draws = rng.random(len(copies))
        return np.array([same[int(draw * len(same))] for same, draw in zip(copies.values(), draws, strict=True)])


def _ivector_dim(cuts: Sequence[MonoCut], path: PathLike) -> int:
    """Dimension of the i-vectors that all cuts have; 0: none has any."""
    dims = {cut.ivectors.shape[1] if cut.has_custom("ivectors") else 0 for cut in cuts}
    if len(dims) > 1:
        raise BadInput(f"{path}: i-vectors of dimensions {sorted(dims)} (0: none); run `mpq ivector extract` again")
    return int(dims.pop())


def batches(
    data: FeatureSet | PathLike,
    seed: int = 0,
    epoch: int = 0,
    *,
    max_frames: int = 16_000,
    augment: bool | SpecAugment = False,
    shuffle: bool | None = None,
    one_copy: bool = False,
    epoch_part: float = 1.0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yields the batches of one epoch; the same arguments give the same batches, bit for bit.

    An epoch is a pass over the data, or a part of one, which begins where the last epoch ended. The parts of a pass,
    of whatever size, are together the very batches that it has as one epoch; the next pass is drawn anew.

    Args:
        data: a `FeatureSet` (keep one over the epochs: it caches), or the path of its manifest.
        seed: seeds grouping, order and masks, together with the number of the pass.
        epoch: number of the epoch.
        max_frames: bound on padded frames, N times T, of a batch.
        augment: apply SpecAugment, the default one or the one given; not to waveforms, whose models mask hidden frames.
        shuffle: random grouping and order; by default as `augment`.
        one_copy: one random speed copy of each utterance a pass instead of all.
        epoch_part: part (above 0, up to 1) of a pass that an epoch takes; features of the others are not read.
        rank: of this process, which gets every `world_size`-th batch.
        world_size: number of processes; each gets the same number of batches (the first ones of a pass are repeated).

    Example:
        >>> train = FeatureSet("exp/features/train/cuts.jsonl.gz")
        >>> for batch in batches(train, seed=1, epoch=0, augment=True):
        ...     loss = criterion(model(batch.features), batch.lengths, batch.texts)
    """
    data = data if isinstance(data, FeatureSet) else FeatureSet(data)
    shuffle = bool(augment) if shuffle is None else shuffle
    masks = not data.is_waveform and (SpecAugment() if augment is True else augment)
    begin, end = (round(number * epoch_part, 12) for number in (epoch, epoch + 1))  # in passes: 3 x 0.1 is 0.3
    for turn in range(int(begin), math.ceil(end)):
        plan = data.plan(max_frames, np.random.default_rng((seed, turn)) if shuffle else None, one_copy)
        n_steps = max(-(-len(plan) // world_size), math.ceil(1.0 / epoch_part))  # no part is empty
        first, last = (int(min(max(0.0, at - turn), 1.0) * n_steps + 0.5) for at in (begin, end))
        for number in range(first * world_size + rank, last * world_size, world_size):
            batch = data.batch(plan[number % len(plan)])
            if masks:  # a generator of its own for each batch: masks do not depend on the batches before
                masks(batch.features, batch.lengths, np.random.default_rng((seed, turn, number)))
            yield batch


def read_ahead(items: Iterator[T], depth: int = 3) -> Iterator[T]:
    """Yields the items of an iterator in their order, up to `depth` of which a thread has made already.

    For training, where features are read while the model learns from the batch before. `items` must draw from no
    generator of random numbers that others use. The thread begins with the second item, and ends with the
    last one, when this iterator is closed, or with an exception, which is raised here in its turn.
    """
    end = object()
    first = next(items, end)
    if first is end:
        return
    yield first  # type: ignore[misc]
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        coming = deque(thread.submit(next, items, end) for _ in range(depth))
        try:
            while (item := coming.popleft().result()) is not end:
                coming.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            for future in coming:
                future.cancel()
