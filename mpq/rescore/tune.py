"""Weights that make few word errors on a development set: a coarse grid, then the middle of a good region.

The fewest errors of a fine grid are a matter of luck: neighbouring weights differ by a handful of errors that say
nothing about other speech. So the fine grid is smoothed: a point's errors are averaged with those of the points around
it, and the least average wins. On mini's test set, tuned on 300 utterances of it and tried on the others, that makes
fewer errors than the best point itself (benchmarks/tune.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d

from mpq.io import NBest
from mpq.rescore.combine import Weights, error_count, n_words
from mpq.score.wer import check_ids

NGRAM_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
LM_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
WORD_BONUSES = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
STEPS = (0.125, 0.125, 0.5)  # of the fine grid
REACH = 4  # steps from the best point of the coarse grid that the fine one goes, each way
KERNEL = (1.0, 4.0, 6.0, 4.0, 1.0)  # binomial

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning found: the weights, and their word errors on `words` reference words."""

    weights: Weights
    errors: int
    words: int

    @property
    def rate(self) -> float:
        """Word error rate in percent."""
        return 100.0 * self.errors / self.words if self.words else (inf if self.errors else 0.0)


class ErrorSurface:
    """Word errors of the first-ranked hypotheses, as a function of the weights.

    The errors of every hypothesis are counted once; a weight vector then costs one matrix product and one maximum.
    """

    def __init__(self, nbests: Sequence[NBest], refs: Mapping[str, Sequence[str]]) -> None:
        check_ids(refs, [nbest.utt for nbest in nbests], hyp_name="the n-best file")
        widest = max(len(nbest.hyps) for nbest in nbests)
        # (4, U, H): am, lm, nnlm, words; am is minus infinity where a list is shorter
        self._scores = np.zeros((4, len(nbests), widest))
        self._scores[0] = -np.inf
        self._errors = np.zeros((len(nbests), widest), np.int64)
        for u, nbest in enumerate(nbests):
            for h, hyp in enumerate(nbest.hyps):
                self._scores[:, u, h] = hyp.am, hyp.lm, hyp.nnlm or 0.0, n_words(hyp.text)
                self._errors[u, h] = error_count(refs[nbest.utt], hyp.text)

    def errors(self, weights: Weights) -> int:
        """Word errors at `weights`; of equal scores the first hypothesis counts, as in `rerank`."""
        am, lm, nnlm, words = self._scores
        score = am + weights.ngram_weight * lm + weights.word_bonus * words + weights.lm_weight * nnlm
        best = score.argmax(axis=1)
        return int(np.take_along_axis(self._errors, best[:, None], axis=1).sum())

    def grid(self, axes: Sequence[Sequence[float]]) -> Floats:
        """Word errors at all points of a grid, (n, n, n)."""
        return np.array([[[self.errors(Weights(a, b, c)) for c in axes[2]] for b in axes[1]] for a in axes[0]], float)


def tune(nbests: Sequence[NBest], refs: Mapping[str, Sequence[str]]) -> Tuned:
    """Finds the weights with the fewest word errors, those of the weights around them counted in.

    Of equally good ones the smallest (sum of absolute values) is taken. The neural LM's weight is tuned only if every
    hypothesis has its score.

    Raises:
        BadInput: if references and n-best lists are not of the same utterances.
    """
    surface = ErrorSurface(nbests, refs)
    with_lm = all(hyp.nnlm is not None for nbest in nbests for hyp in nbest.hyps)
    coarse: list[Sequence[float]] = [NGRAM_WEIGHTS, LM_WEIGHTS if with_lm else (0.0,), WORD_BONUSES]
    centre = _least(surface.grid(coarse), coarse)
    fine = [
        _around(value, step) if len(axis) > 1 else [value]
        for value, step, axis in zip(centre, STEPS, coarse, strict=True)
    ]
    for axis in (0, 1):
        fine[axis] = [value for value in fine[axis] if value >= 0.0]
    best = Weights(*_least(smooth(surface.grid(fine)), fine))
    return Tuned(best, surface.errors(best), sum(len(words) for words in refs.values()))


def smooth(errors: Floats) -> Floats:
    """Each point averaged with its neighbours, two to each side along every axis; edges are continued."""
    for axis in range(errors.ndim):
        errors = correlate1d(errors, np.array(KERNEL) / sum(KERNEL), axis=axis, mode="nearest")
    return errors


def _around(value: float, step: float) -> list[float]:
    return [value + i * step for i in range(-REACH, REACH + 1)]


def _least(errors: Floats, axes: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The point of a grid with the least errors, then the smallest, then the first by the weights themselves."""
    tied = np.argwhere(errors <= errors.min() + 1e-9)  # sums in another order differ in the last digits
    points = ((axes[0][i], axes[1][j], axes[2][k]) for i, j, k in tied)
    return min(points, key=_size)


def _size(point: tuple[float, float, float]) -> tuple[float, ...]:
    """What decides between equally good points."""
    return (sum(map(abs, point)), *point)
