"""Weights that make the fewest word errors on a development set: a grid, then finer grids around the best point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf

import numpy as np
import numpy.typing as npt

from mpq.io import NBest
from mpq.rescore.combine import Weights, error_count, n_words
from mpq.score.wer import check_ids

NGRAM_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
LM_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
WORD_BONUSES = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
FIRST_STEPS = (0.125, 0.125, 0.5)  # of the finer grids; halved from one to the next
REFINEMENTS = 3

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


def tune(nbests: Sequence[NBest], refs: Mapping[str, Sequence[str]]) -> Tuned:
    """Finds the weights with the fewest word errors; of equally good ones the smallest (sum of absolute values).

    The neural LM's weight is tuned only if every hypothesis has its score.

    Raises:
        BadInput: if references and n-best lists are not of the same utterances.
    """
    surface = ErrorSurface(nbests, refs)
    with_lm = all(hyp.nnlm is not None for nbest in nbests for hyp in nbest.hyps)
    axes: list[Sequence[float]] = [NGRAM_WEIGHTS, LM_WEIGHTS if with_lm else (0.0,), WORD_BONUSES]
    best = _best(surface, axes)
    steps = np.array(FIRST_STEPS) * (1.0, float(with_lm), 1.0)
    for _ in range(REFINEMENTS):
        centre = (best.ngram_weight, best.lm_weight, best.word_bonus)
        axes = [_around(value, step) for value, step in zip(centre, steps, strict=True)]
        axes[0], axes[1] = ([value for value in axis if value >= 0.0] for axis in axes[:2])
        best = _best(surface, axes)
        steps = steps / 2
    return Tuned(best, surface.errors(best), sum(len(words) for words in refs.values()))


def _around(value: float, step: float) -> list[float]:
    return [value + i * step for i in range(-2, 3)] if step else [value]


def _best(surface: ErrorSurface, axes: Sequence[Sequence[float]]) -> Weights:
    """The best point of a grid, by errors, then by size, then by the weights themselves."""
    points = (Weights(*map(float, point)) for point in product(*axes))
    return min(points, key=lambda weights: (surface.errors(weights), *_size(weights)))


def _size(weights: Weights) -> tuple[float, ...]:
    """What decides between equally good points."""
    values = (weights.ngram_weight, weights.lm_weight, weights.word_bonus)
    return (sum(abs(value) for value in values), *values)
