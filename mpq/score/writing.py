"""Reference and hypothesis in different writing: capitals, marks and accents that would count as word errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from kaldialign import edit_distance

from mpq.io import WRITINGS
from mpq.score.align import align
from mpq.score.wer import Texts

_SAMPLE = 300  # first utterances, which tell how texts are written
_PART = 0.02  # of the reference's words: errors by writing alone that are worth a warning
_FEW, _LEAST = 0.002, 3  # the same, and the least number, where the two never agree on a word in that writing


def warn_writing(
    ref: Texts, hyp: Texts, ref_name: object = "the reference", hyp_name: object = "the hypothesis"
) -> None:
    """Warns on standard error where many word errors are differences of case, punctuation or code points only.

    Nothing else tells: the error rate is a number as before, and weights tuned against it mean little.  Fewer such
    errors are enough where the texts agree nowhere, such as on apostrophes: where they agree elsewhere, ``kings`` for
    ``kings'`` is likely to be misheard.

    Args:
        ref: reference of each utterance.
        hyp: hypotheses of the same utterances.
        ref_name: what to call them, such as their files.
        hyp_name: the same.
    """
    pairs = [(words, hyp[utt]) for utt, words in islice(ref.items(), _SAMPLE)]
    n_words = sum(len(words) for words, _ in pairs)
    vocabulary = {word for pair in pairs for words in pair for word in words}
    ways = {how: change for how, change in WRITINGS.items() if any(change(word) != word for word in vocabulary)}
    if not ways:
        return
    errors = _errors(pairs, str)
    changed = {how: _errors(pairs, change) for how, change in ways.items()}
    least = min(changed.values())
    few = least + min(_PART / 4 * n_words, (errors - least) / 4)
    # of ways that come to much the same, the simplest
    how = next(way for way, count in changed.items() if count <= few)
    enough = _PART * n_words if _agree(pairs, ways[how]) else max(_LEAST - 1, _FEW * n_words)
    if errors - changed[how] <= min(enough, _PART * n_words):
        return
    before, after = (100 * count / max(1, n_words) for count in (errors, changed[how]))
    print(
        f"warning: {hyp_name} writes words otherwise than {ref_name}, such as {_example(pairs, ways[how])}: "
        f"word error rate of {len(pairs)} utterances {before:.1f} %, both {how} {after:.1f} %; "
        "write both alike, as the language models' text is",
        file=sys.stderr,
    )


def _errors(pairs: Iterable[tuple[Sequence[str], Sequence[str]]], change: Callable[[str], str]) -> int:
    """Word errors where every word is changed; a word of which nothing is left goes."""
    both = ([[new for word in words if (new := change(word))] for words in pair] for pair in pairs)
    return sum(int(edit_distance(ref, hyp, sclite_mode=True)["total"]) for ref, hyp in both)


def _agree(pairs: Iterable[tuple[Sequence[str], Sequence[str]]], change: Callable[[str], str]) -> bool:
    """Whether some reference and its hypothesis both have a word that is changed."""
    return any(change(word) != word for ref, hyp in pairs for word in {*ref} & {*hyp})


def _example(pairs: Sequence[tuple[Sequence[str], Sequence[str]]], change: Callable[[str], str]) -> str:
    """A word of the hypotheses and the same word as the reference has it, or a mark that one of them sets alone."""
    for ref, hyp in pairs:
        theirs, ours = ([word for word in words if change(word)] for words in (ref, hyp))
        left, right = iter(theirs), iter(ours)
        for step in align([change(word) for word in theirs], [change(word) for word in ours]):
            there = next(left) if step.ref is not None else ""
            here = next(right) if step.hyp is not None else ""
            if step.op == "C" and here != there:
                return f"'{here}' for '{there}'"
    return next(f"'{word}' alone" for pair in pairs for words in pair for word in words if not change(word))
