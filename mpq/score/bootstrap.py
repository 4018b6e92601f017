"""Bootstrap confidence interval of a word error rate.

M. Bisani and H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP
2004. kaldialign's ``bootstrap_wer_ci`` does the same with counts of its own alignment and a loop
in Python; this takes the counts of :mod:`mpq.score.wer`, so that interval and rate are of the same errors.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mpq.score.wer import WerResult

_DRAWS_AT_ONCE = 1 << 20


def bootstrap_interval(
    counts: Iterable[WerResult], replications: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Lower and upper end of the interval of the word error rate, in percent.

    Utterances are drawn with replacement; the ends are quantiles of the error rates of the draws.

    Args:
        counts: words and errors of each utterance (:func:`mpq.score.utterance_counts` ``.values()``).
        replications: number of draws of a whole test set.
        seed: seed of the draws: the same seed gives the same interval.
        level: probability that the interval is to cover.

    Returns:
        ``(low, high)``, both 0.0 for a reference without words.
    """
    table = np.array([(count.errors, count.words) for count in counts], dtype=np.int64).reshape(-1, 2)
    if table[:, 1].sum() == 0:
        return 0.0, 0.0
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // len(table))
    rates = []
    for start in range(0, replications, at_once):
        draws = rng.integers(len(table), size=(min(at_once, replications - start), len(table)))
        errors, words = table[draws].sum(axis=1).T
        rates.append(100 * errors[words > 0] / words[words > 0])
    low, high = np.quantile(np.concatenate(rates), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
