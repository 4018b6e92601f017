"""MAPSSWE, NIST's matched pairs test of the word errors of two systems in sentence segments.

L. Gillick and S. J. Cox, "Some statistical issues in the comparison of speech recognition algorithms",
ICASSP 1989; as in ``sc_stats -t mapsswe`` of NIST's sctk 2.4, whose segments are followed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

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

    Args:
        ref: reference, ``{utterance: words}``.
        hyp_a: words of system A for the same utterances.
        hyp_b: words of system B for the same utterances.

    Raises:
        BadInput: the utterances differ.
    """
    check_ids(ref, hyp_a, hyp_name="hypothesis A")
    check_ids(ref, hyp_b, hyp_name="hypothesis B")
    return mapsswe_aligned((align(words, hyp_a[utt]), align(words, hyp_b[utt])) for utt, words in ref.items())


def mapsswe_aligned(alignments: Iterable[tuple[Sequence[Pair], Sequence[Pair]]]) -> MapssweResult:
    """Test whether systems A and B differ in word errors, given their alignments with each sentence.

    Errors closer than two words that both systems have right are not independent, so the unit is the
    segment between such pairs of words.  The difference of the errors of A and B in a segment is taken as
    normally distributed, which needs some 50 segments or more.

    Args:
        alignments: for each sentence the steps of A and of B.
    """
    segments = [segment for a, b in alignments for segment in _segments(a, b)]
    words, errors_a, errors_b = (sum(column) for column in zip((0, 0, 0), *segments, strict=True))
    return MapssweResult(len(segments), words, errors_a, errors_b, *matched_pairs([a - b for _, a, b in segments]))


def matched_pairs(differences: Sequence[int]) -> tuple[float, float, float, float]:
    """Mean, standard deviation and Z of differences between two systems, and two-sided p."""
    mean, std, z = _z_statistic(differences)
    return mean, std, z, math.erfc(abs(z) / math.sqrt(2))


def _segments(a: Sequence[Pair], b: Sequence[Pair]) -> Iterator[tuple[int, int, int]]:
    """Yield reference words, A's errors and B's errors of each segment of one sentence.

    A segment holds the errors up to where both systems have two successive words right, and is counted
    with the (at most two) correct words before its first error.  Steps are compared by their place, insertions
    left out: where a reference has alternatives of different lengths, places can be of different words, in
    ``mtchprs.c`` of sctk as here.
    """
    at_a = at_b = start_a = start_b = correct = 0
    is_open = False
    while at_a < len(a):
        inserted_a, inserted_b = _insertions(a, at_a), _insertions(b, at_b)
        if inserted_a or inserted_b:
            is_open, correct = True, 0
        at_a, at_b = at_a + inserted_a, at_b + inserted_b
        both_right = at_a < len(a) and at_b < len(b) and a[at_a].op == b[at_b].op == "C"
        if not both_right:
            is_open, correct = True, 0
        elif not is_open:
            start_a, start_b = at_a, at_b
        else:
            correct += 1
        if correct == _CORRECT_BETWEEN_SEGMENTS:
            yield from _counted(a[max(start_a - 1, 0) : at_a + 1], b[max(start_b - 1, 0) : at_b + 1])
            start_a, start_b, is_open, correct = at_a, at_b, False, 0
        at_a, at_b = min(at_a + 1, len(a)), min(at_b + 1, len(b))
    if is_open or at_b < len(b):
        yield from _counted(a[max(start_a - 1, 0) :], b[max(start_b - 1, 0) :])


def _insertions(pairs: Sequence[Pair], at: int) -> int:
    """How many insertions stand in a row from this place on."""
    return next((n for n, pair in enumerate(islice(pairs, at, None)) if pair.op != "I"), len(pairs) - at)


def _counted(a: Sequence[Pair], b: Sequence[Pair]) -> Iterator[tuple[int, int, int]]:
    """Words and errors of one segment, if there is an error."""
    words = sum(pair.op != "I" for pairs in (a, b) for pair in pairs) // 2
    errors_a, errors_b = (sum(pair.op != "C" for pair in pairs) for pairs in (a, b))
    if errors_a or errors_b:
        yield words, errors_a, errors_b


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
