"""Word error rate: counts by utterance and speaker, summed; equal to NIST sclite's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpq.io import BadInput, PathLike, atomic_write
from mpq.score.align import Pair, align

Texts = Mapping[str, Sequence[str]]

_LISTED = 3
_BLANK = "***"


@dataclass(frozen=True, slots=True)
class WerResult:
    """Reference words and errors of one or more utterances; results can be added.

    Attributes:
        words: words of the reference.
        ins: insertions.
        dels: deletions.
        subs: substitutions.
    """

    words: int = 0
    ins: int = 0
    dels: int = 0
    subs: int = 0

    @property
    def errors(self) -> int:
        """Insertions, deletions and substitutions together."""
        return self.ins + self.dels + self.subs

    @property
    def rate(self) -> float:
        """Word error rate in percent; infinite for errors against an empty reference."""
        if self.words:
            return 100 * self.errors / self.words
        return math.inf if self.errors else 0.0

    def __add__(self, other: WerResult) -> WerResult:
        return WerResult(self.words + other.words, self.ins + other.ins, self.dels + other.dels, self.subs + other.subs)

    def __str__(self) -> str:
        return (
            f"%WER {self.rate:.2f} [ {self.errors} / {self.words}, {self.ins} ins, {self.dels} del, {self.subs} sub ]"
        )


def wer(ref: Texts, hyp: Texts) -> WerResult:
    """Word error rate of ``hyp`` against ``ref``, both ``{utterance: words}`` with the same utterances.

    Raises:
        BadInput: the utterances differ.

    Example:
        >>> str(wer({"u1": ["a", "b"]}, {"u1": ["a", "c"]}))
        '%WER 50.00 [ 1 / 2, 0 ins, 0 del, 1 sub ]'
    """
    return total(utterance_counts(ref, hyp).values())


def total(counts: Iterable[WerResult]) -> WerResult:
    """The sum of results."""
    return sum(counts, WerResult())


def utterance_counts(ref: Texts, hyp: Texts) -> dict[str, WerResult]:
    """Words and errors of each utterance, in the order of ``ref``."""
    return {utt: count(pairs) for utt, pairs in align_all(ref, hyp).items()}


def align_all(ref: Texts, hyp: Texts) -> dict[str, list[Pair]]:
    """The alignment of each utterance, in the order of ``ref``."""
    check_ids(ref, hyp)
    return {utt: align(words, hyp[utt]) for utt, words in ref.items()}


def count(pairs: Iterable[Pair]) -> WerResult:
    """Words and errors of one alignment."""
    ops = Counter(pair.op for pair in pairs)
    return WerResult(ops["C"] + ops["S"] + ops["D"], ins=ops["I"], dels=ops["D"], subs=ops["S"])


def speaker_counts(counts: Mapping[str, WerResult], utt2spk: Mapping[str, str]) -> dict[str, WerResult]:
    """Words and errors of each speaker; an utterance without a speaker is BadInput."""
    speakers: dict[str, WerResult] = {}
    for utt, result in counts.items():
        if utt not in utt2spk:
            raise BadInput(f"utterance {utt!r} has no speaker; add it to the utt2spk file")
        speakers[utt2spk[utt]] = speakers.get(utt2spk[utt], WerResult()) + result
    return speakers


def check_ids(
    ref: Iterable[str],
    hyp: Iterable[str],
    ref_name: object = "the reference",
    hyp_name: object = "the hypothesis",
) -> None:
    """Raise BadInput unless both hold the same utterances, at least one; it lists a few and counts the rest."""
    ref_ids, hyp_ids = dict.fromkeys(ref), dict.fromkeys(hyp)
    if not ref_ids and not hyp_ids:
        raise BadInput(f"{ref_name} and {hyp_name} hold no utterances; expected at least one")
    missing = [utt for utt in ref_ids if utt not in hyp_ids]
    unknown = [utt for utt in hyp_ids if utt not in ref_ids]
    problems = []
    if missing:
        problems.append(f"lacks {_listed(missing)} of {ref_name}")
    if unknown:
        problems.append(f"has {_listed(unknown)} that {ref_name} lacks")
    if problems:
        raise BadInput(f"{hyp_name} {' and '.join(problems)}; both need the same utterance ids")


def write_alignments(path: PathLike, alignments: Mapping[str, Sequence[Pair]]) -> None:
    """Write alignments as Kaldi's ``per_utt``: a ref, hyp, op and #csid line for each utterance."""
    with atomic_write(path) as file:
        for utt, pairs in alignments.items():
            ref = [_BLANK if pair.ref is None else pair.ref for pair in pairs]
            hyp = [_BLANK if pair.hyp is None else pair.hyp for pair in pairs]
            widths = [max(len(r), len(h)) for r, h in zip(ref, hyp, strict=True)]
            for name, cells in (("ref", ref), ("hyp", hyp), ("op ", [pair.op for pair in pairs])):
                padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
                file.write(f"{utt} {name}  {'  '.join(padded)}".rstrip(" ") + "\n")
            result = count(pairs)
            correct = result.words - result.subs - result.dels
            file.write(f"{utt} #csid {correct} {result.subs} {result.ins} {result.dels}\n")


def write_confusions(path: PathLike, alignments: Mapping[str, Sequence[Pair]]) -> None:
    """Write how often each word was correct, inserted, deleted or taken for another, as Kaldi's ``ops``."""
    names = {"C": "correct", "S": "substitution", "I": "insertion", "D": "deletion"}
    counts = Counter(pair for pairs in alignments.values() for pair in pairs)
    # Errors of one kind together, the frequent ones first, then by the alphabet.
    order = sorted(counts.items(), key=lambda item: (names[item[0].op], -item[1], *map(str, item[0])))
    with atomic_write(path) as file:
        for pair, times in order:
            ref, hyp = (_BLANK if word is None else word for word in (pair.ref, pair.hyp))
            file.write(f"{names[pair.op]:<12}  {ref}  {hyp}  {times}\n")


def _listed(utts: Sequence[str]) -> str:
    shown = ", ".join(utts[:_LISTED])
    rest = f" and {len(utts) - _LISTED} more" if len(utts) > _LISTED else ""
    return f"{len(utts)} utterance{'s' if len(utts) > 1 else ''} ({shown}{rest})"
