"""N-best lists: JSON lines, ``{"utt": "id", "hyps": [{"text": "w w w", "am": -123.4, "lm": -45.6}, ...]}``.

Scores are natural logarithms (higher is better), hypotheses are best first; ``nnlm`` (the neural language
model's score) and ``score`` (the weighted sum) appear once rescoring has computed them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mpq.io.errors import BadInput
from mpq.io.files import PathLike, finite, read_jsonl, write_jsonl
from mpq.io.text import split_words

_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # JSON can hold them: NUL and halves of surrogate pairs


@dataclass(frozen=True, slots=True)
class Hyp:
    """One hypothesis: its words joined by single blanks, and its natural-log scores.

    Attributes:
        text: words, ``""`` for none.
        am: acoustic score, unscaled.
        lm: score of the first pass's graph (n-gram language model).
        nnlm: score of the neural language model, once rescored.
        score: the weighted sum that the list is sorted by, once rescored.
    """

    text: str
    am: float
    lm: float
    nnlm: float | None = None
    score: float | None = None


@dataclass(slots=True)
class NBest:
    """The hypotheses of one utterance, best first."""

    utt: str
    hyps: list[Hyp]


def read_nbest(path: PathLike) -> Iterator[NBest]:
    """Yield the n-best lists of a file, gzip by suffix.

    Raises:
        BadInput: a line that is not a JSON object of the form above, an empty list, a score that is missing,
            not a number, NaN or infinite, a text that is not a string, or an utterance seen before.
    """
    seen: set[str] = set()
    for number, row in read_jsonl(path):
        utt = row.get("utt")
        if not isinstance(utt, str) or split_words(utt) != [utt] or _NO_TEXT.search(utt):
            raise BadInput(f'{path}:{number}: "utt" is {utt!r:.60}; expected an utterance id without blanks')
        where = f"{path}:{number}: utterance {utt!r}"
        if utt in seen:
            raise BadInput(f"{where} is given twice; every id must be unique")
        seen.add(utt)
        hyps = row.get("hyps")
        if not isinstance(hyps, list) or not hyps:
            raise BadInput(f'{where}: "hyps" is {hyps!r:.60}; expected a list of at least one hypothesis')
        yield NBest(utt, [_hyp(item, f"{where}, hypothesis {rank}") for rank, item in enumerate(hyps, 1)])


def write_nbest(path: PathLike, nbests: Iterable[NBest]) -> None:
    """Write n-best lists as JSON lines, gzip by suffix; scores keep every digit."""
    write_jsonl(path, ({"utt": nbest.utt, "hyps": [_fields(hyp) for hyp in nbest.hyps]} for nbest in nbests))


def _hyp(item: Any, where: str) -> Hyp:
    """Check and convert one element of ``hyps``."""
    if not isinstance(item, dict):
        raise BadInput(f"{where}: found {item!r:.60}; expected an object with text, am and lm")
    text = item.get("text")
    if not isinstance(text, str):
        raise BadInput(f'{where}: "text" is {text!r:.60}; expected a string of words')
    if found := _NO_TEXT.search(text):
        raise BadInput(f'{where}: "text" holds {found[0]!r}, which no text file can: {text!r:.60}')
    am, lm = (_score(item, key, where) for key in ("am", "lm"))
    nnlm, score = (None if item.get(key) is None else _score(item, key, where) for key in ("nnlm", "score"))
    return Hyp(" ".join(split_words(text)), am, lm, nnlm, score)


def _score(item: dict[str, Any], key: str, where: str) -> float:
    """The finite number under ``key``."""
    if key not in item:
        raise BadInput(f'{where}: no "{key}"; expected a natural-log score')
    value = finite(item[key])
    if value is None:
        raise BadInput(f'{where}: "{key}" is {item[key]!r:.60}; expected a finite natural-log score')
    return value


def _fields(hyp: Hyp) -> dict[str, str | float]:
    """The JSON object of a hypothesis: optional scores only where they are known."""
    fields: dict[str, str | float] = {"text": hyp.text, "am": hyp.am, "lm": hyp.lm}
    if hyp.nnlm is not None:
        fields["nnlm"] = hyp.nnlm
    if hyp.score is not None:
        fields["score"] = hyp.score
    return fields
