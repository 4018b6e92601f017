"""Weights that make few word errors on a development set: the middle of a good region of a grid.

The fewest errors of a grid are a matter of luck: neighbouring weights differ by a handful of errors that say nothing
about other speech. So the grid is smoothed: a point's errors are averaged with those of the points around it, and the
least average wins. On mini's test set, tuned on 300 utterances of it and tried on the others, that makes fewer errors
than the best point itself (benchmarks/tune.py).

The axes of the grid are what the language models weigh together, the neural model's share of it, and the word bonus:
good weights lie along a ridge, where n-gram and neural model stand in for each other and the sum hardly changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d

from mpq.io import BadInput, NBest
from mpq.rescore.combine import Weights, error_count, n_words
from mpq.score.wer import check_ids

SHARES = tuple(i / 8 for i in range(9))
TOTALS = tuple(i / 8 for i in range(17))  # these and the next in units that fit the acoustic scores
WORD_BONUSES = tuple(i / 2 for i in range(-8, 9))
WIDER, FINER = (2.0, 4.0, 8.0, 16.0, 32.0), (1 / 2, 1 / 4, 1 / 8, 1 / 16)  # units
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

    The errors of every hypothesis are counted once; a weight vector then costs a sum and a maximum.
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

    def grid(self, shares: Sequence[float], unit: float) -> Floats:
        """Word errors at all points (share, total, word bonus) of the grid, (n, 17, 17), as `errors` counts them."""
        am, lm, nnlm, words = self._scores
        found = np.empty((len(shares), len(TOTALS), len(WORD_BONUSES)))
        for s, share in enumerate(shares):
            for t, total in enumerate(TOTALS):
                score = am + unit * total * (1 - share) * lm + unit * total * share * nnlm
                for b, bonus in enumerate(WORD_BONUSES):
                    best = (score + unit * bonus * words).argmax(axis=1)
                    found[s, t, b] = np.take_along_axis(self._errors, best[:, None], axis=1).sum()
        return found


def tune(nbests: Sequence[NBest], refs: Mapping[str, Sequence[str]]) -> Tuned:
    """Finds the weights with the fewest word errors, those of the weights around them counted in.

    Of equally good ones the smallest (sum of absolute values) is taken. The neural LM's weight is tuned if the
    hypotheses have its scores.

    Raises:
        BadInput: if references and n-best lists are not of the same utterances, or only some hypotheses have a neural
            score.
    """
    surface = ErrorSurface(nbests, refs)
    shares = SHARES if _have_lm_scores(nbests) else (0.0,)
    last = len(TOTALS) - 1
    best, place = _least(surface, shares, 1.0)
    # acoustic scores of another scale: wider grids, or finer ones
    wider = place == last
    for unit in WIDER if wider else FINER:
        if place != last if wider else place > 2:
            break
        best, place = _least(surface, shares, unit)
    return Tuned(best, surface.errors(best), sum(len(words) for words in refs.values()))


def smooth(errors: Floats) -> Floats:
    """Each point averaged with its neighbours, two to each side along every axis; edges are continued."""
    for axis in range(errors.ndim):
        errors = correlate1d(errors, np.array(KERNEL) / sum(KERNEL), axis=axis, mode="nearest")
    return errors


def _have_lm_scores(nbests: Sequence[NBest]) -> bool:
    """Whether the hypotheses have scores of a neural LM: all of them or none."""
    lacking = [nbest.utt for nbest in nbests for hyp in nbest.hyps if hyp.nnlm is None]
    if lacking and len(lacking) < (n_hyps := sum(len(nbest.hyps) for nbest in nbests)):
        n_scored = n_hyps - len(lacking)
        raise BadInput(
            f"utterance '{lacking[0]}': a hypothesis has no nnlm, but {n_scored} of {n_hyps} have one; "
            "give --lm, which scores them all"
        )
    return not lacking


def _least(surface: ErrorSurface, shares: Sequence[float], unit: float) -> tuple[Weights, int]:
    """The point of the grid with the least smoothed errors, of equal ones the smallest; which of `TOTALS` it has."""
    smoothed = smooth(surface.grid(shares, unit))
    tied = np.argwhere(smoothed <= smoothed.min() + 1e-9)  # sums in another order differ in the last digits
    return min(((_weights(shares[s], TOTALS[t], WORD_BONUSES[b], unit), int(t)) for s, t, b in tied), key=_size)


def _weights(share: float, total: float, bonus: float, unit: float) -> Weights:
    return Weights(unit * total * (1 - share), unit * total * share, unit * bonus)


def _size(point: tuple[Weights, int]) -> tuple[float, ...]:
    """What decides between equally good points."""
    values = (point[0].ngram_weight, point[0].lm_weight, point[0].word_bonus)
    return (sum(map(abs, values)), *values)
