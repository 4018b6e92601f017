"""MAPSSWE, NIST's matched pairs test of the word errors of two systems in sentence segments.

L. Gillick and S. J. Cox, "Some statistical issues in the comparison of speech recognition algorithms",
ICASSP 1989; as in ``sc_stats -t mapsswe`` of NIST's sctk 2.4, whose segments are followed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mpq.score.align import Pair, align
from mpq.score.wer import Texts, check_ids

_CORRECT_BETWEEN_SEGMENTS = 2


@dataclass(frozen=True, slots=True)
class MapssweResult:
    """What the matched pairs test found for systems A and B.

    Attributes:
        segments: number of segments with an error of at least one system.
        words: reference words in the segments, their bounding correct words included.
        errors_a: errors of system A in the segments.
        errors_b: errors of system B in the segments.
        mean: mean of A's errors minus B's over segments; negative if A is better.
        std: standard deviation of that difference (divisor: segments minus one).
        z: ``mean / (std / sqrt(segments))``; 0, as in sctk, where the standard deviation is 0.
        p: two-sided probability of a ``|z|`` as large if both systems were equally good.  It is exact;
            sc_stats prints that of ``|z|`` cut to two decimals.
    """

    segments: int
    words: int
    errors_a: int
    errors_b: int
    mean: float
    std: float
    z: float
    p: float

    def verdict(self, level: float = 0.05, names: tuple[str, str] = ("A", "B")) -> str:
        """One sentence: which system is better at this level of significance, if any."""
        if self.p >= level:
            return f"no significant difference at {level:g}"
        better, worse = names if self.mean < 0 else names[::-1]
        return f"{better} is significantly better than {worse} at {level:g}"


def mapsswe(ref: Texts, hyp_a: Texts, hyp_b: Texts) -> MapssweResult:
    """Test whether systems A and B differ in word errors.

    Errors closer than two words that both systems have right are not independent, so the unit is the
    segment between such pairs of words.  The difference of the errors of A and B in a segment is taken as
    normally distributed, which needs some 50 segments or more.

    Args:
        ref: reference, ``{utterance: words}``.
        hyp_a: words of system A for the same utterances.
        hyp_b: words of system B for the same utterances.

    Raises:
        BadInput: the utterances differ.
    """
    check_ids(ref, hyp_a, hyp_name="hypothesis A")
    check_ids(ref, hyp_b, hyp_name="hypothesis B")
    segments = [
        segment
        for utt, words in ref.items()
        for segment in _segments(align(words, hyp_a[utt]), align(words, hyp_b[utt]))
    ]
    words, errors_a, errors_b = (sum(column) for column in zip((0, 0, 0), *segments, strict=True))
    mean, std, z = _z_statistic([a - b for _, a, b in segments])
    p = math.erfc(abs(z) / math.sqrt(2))
    return MapssweResult(len(segments), words, errors_a, errors_b, mean, std, z, p)


def _segments(a: Sequence[Pair], b: Sequence[Pair]) -> Iterator[tuple[int, int, int]]:
    """Yield reference words, A's errors and B's errors of each segment of one utterance.

    A segment holds the errors up to where both systems have two successive words right, and is counted
    with the (at most two) correct words before its first error.
    """
    start = errors_a = errors_b = correct = 0
    *steps_a, (tail_a, _) = _steps(a)
    *steps_b, (tail_b, _) = _steps(b)
    for word, ((inserted_a, wrong_a), (inserted_b, wrong_b)) in enumerate(zip(steps_a, steps_b, strict=True)):
        errors_a += inserted_a + wrong_a
        errors_b += inserted_b + wrong_b
        if wrong_a or wrong_b:
            correct = 0
            continue
        correct = 1 if inserted_a or inserted_b else correct + 1
        if errors_a or errors_b:
            if correct < _CORRECT_BETWEEN_SEGMENTS:
                continue
            yield word + 1 - start, errors_a, errors_b
            errors_a = errors_b = 0
        start = max(word + 1 - _CORRECT_BETWEEN_SEGMENTS, 0)
    errors_a, errors_b = errors_a + tail_a, errors_b + tail_b
    if errors_a or errors_b:
        yield len(steps_a) - start, errors_a, errors_b


def _steps(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """For each reference word, and for the end: insertions before it, and 1 if the word itself is wrong."""
    steps, inserted = [], 0
    for pair in pairs:
        if pair.op == "I":
            inserted += 1
        else:
            steps.append((inserted, int(pair.op != "C")))
            inserted = 0
    return [*steps, (inserted, 0)]


def _z_statistic(differences: Sequence[int]) -> tuple[float, float, float]:
    """Mean, standard deviation and Z of the differences; Z is 0 where they do not vary."""
    n = len(differences)
    if n == 0:
        return 0.0, 0.0, 0.0
    mean = sum(differences) / n
    squares = sum((difference - mean) ** 2 for difference in differences)
    if squares == 0:
        return mean, 0.0, 0.0
    std = math.sqrt(squares / (n - 1))
    return mean, std, mean / (std / math.sqrt(n))
