"""Alignment of texts with alternatives, optionally deletable words and fragments, as NIST sclite ``-F -D`` does it.

``{ A / B C / @ }`` is any of its alternatives (``@`` is nothing), ``(WORD)`` may be left out without an error, and
``BEGINN-`` or ``-ENDING`` agrees with every word that begins or ends so.  Costs and the order in which ties are broken
are those of ``net_dp.c`` and ``word.c`` of sctk 2.4, down to its sums in float32 where ``@`` costs 0.001.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpq.io import BadInput, split_words
from mpq.score.align import Pair, align

_NOTHING = "@"
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_MARKS = frozenset("{}/@()-*")

Text = list["str | list[Text]"]
"""Words, and lists of alternatives for one place, each a text itself."""


@dataclass(frozen=True, slots=True)
class _Arc:
    """One word of a network, and the arcs that may stand before it (0 is the beginning)."""

    word: str
    before: tuple[int, ...]


Network = tuple[list[_Arc], tuple[int, ...]]
"""Arcs in topological order, the first being the beginning, and the arcs that a text may end with."""


def parse_text(text: str) -> Text:
    """The words and alternatives of a text, in lower case.

    Raises:
        BadInput: braces that do not come in pairs, or a slash outside of them.
    """
    fields = split_words(text.translate(_LOWER).replace("{", " { ").replace("}", " } "))
    parsed, at = _parse(fields, 0, inside=False)
    if at < len(fields):
        raise BadInput(f"{text[:80]!r}: a closing brace too many; expected {{ A / B }}")
    return parsed[0]


def _parse(fields: list[str], at: int, inside: bool) -> tuple[list[Text], int]:
    """Alternatives from field ``at`` to the closing brace (or to the end of the text), and the place behind it."""
    found: list[Text] = [[]]
    while at < len(fields):
        field = fields[at]
        at += 1
        if field == "{":
            alternatives, at = _parse(fields, at, inside=True)
            found[-1].append([option for option in alternatives if option])
        elif field == "}":
            return (found, at) if inside else (found, at - 1)
        elif inside:  # here a slash stands between alternatives, with or without blanks; elsewhere it is part of a word
            first, *more = field.split("/")
            found[-1] += [first] if first else []
            for word in more:
                found.append([word] if word else [])
        else:
            found[-1].append(field)
    if inside:
        raise BadInput(f"{' '.join(fields)[:80]!r}: a brace that is not closed; expected {{ A / B }}")
    return found, at


def align_texts(ref: Text, hyp: Text) -> list[Pair]:
    """Align a reference with a recognized text, either with alternatives, and say which of them were taken.

    A word that may be left out and is counts as correct, as sclite counts it: its step is ``C`` without a partner.
    """
    if all(isinstance(item, str) and _MARKS.isdisjoint(item) for item in [*ref, *hyp]):
        return align(ref, hyp)  # type: ignore[arg-type]
    return _trace(_network(ref), _network(hyp))


def _network(text: Text) -> Network:
    arcs = [_Arc("", ())]
    return arcs, _append(arcs, text, (0,))


def _append(arcs: list[_Arc], text: Text, before: tuple[int, ...]) -> tuple[int, ...]:
    """Add the arcs of a text that stands behind the arcs ``before``; returns those it may end with."""
    for item in text:
        if isinstance(item, str):
            # sclite drops the asterisk of mispronounced words
            arcs.append(_Arc(item[:-1] if len(item) > 1 and item[-1] == "*" else item, before))
            before = (len(arcs) - 1,)
        else:
            before = tuple(end for option in item for end in _append(arcs, option, before)) or before
    return before


def _trace(ref: Network, hyp: Network) -> list[Pair]:
    """The path of least cost through both networks, traced from the end."""
    table = _table(ref[0], hyp[0])
    _, a, b = min(((table[a][b][0], a, b) for a in ref[1] for b in hyp[1]), key=lambda cell: cell[0])
    pairs = []
    while a or b:
        _, back_a, back_b = table[a][b]
        pair = _pair(ref[0][a].word if a != back_a else None, hyp[0][b].word if b != back_b else None)
        pairs += [pair] if pair else []
        a, b = back_a, back_b
    return pairs[::-1]


def _pair(ref: str | None, hyp: str | None) -> Pair | None:
    """One step as sclite counts it; ``@`` on one side alone, or on both, is no step."""
    if hyp is None and ref is not None:
        return None if ref == _NOTHING else Pair("C" if _is_optional(ref) else "D", ref, None)
    if ref is None and hyp is not None:
        return None if hyp == _NOTHING else Pair("C" if _is_optional(hyp) else "I", None, hyp)
    if ref is None or hyp is None or ref == hyp == _NOTHING:
        return None
    return Pair("C" if _agree(ref, hyp) else "S", ref, hyp)


def _table(ref: Sequence[_Arc], hyp: Sequence[_Arc]) -> list[list[tuple[Any, int, int]]]:
    """Cost, and the step back, of every pair of arcs."""
    number: Callable[[float], Any] = np.float32 if any(arc.word == _NOTHING for arc in [*ref, *hyp]) else int
    zero, substitute, both_nothing = number(0), number(4), number(1)
    delete = [_alone(arc.word, number) for arc in ref]
    insert = [_alone(arc.word, number) for arc in hyp]
    table: list[list[tuple[Any, int, int]]] = [[(zero, -1, -1)]]
    for b in range(1, len(hyp)):
        cost, back = min(((table[0][p][0], p) for p in hyp[b].before), key=lambda cell: cell[0])
        table[0].append((cost + insert[b], 0, back))
    for a in range(1, len(ref)):
        before = ref[a].before
        cost, back = min(((table[p][0][0], p) for p in before), key=lambda cell: cell[0])
        row = [(cost + delete[a], back, 0)]
        table.append(row)
        for b in range(1, len(hyp)):
            inserted, by = min(((row[p][0], p) for p in hyp[b].before), key=lambda cell: cell[0])
            deleted, over = min(((table[p][b][0], p) for p in before), key=lambda cell: cell[0])
            matched, left, right = min(
                ((table[p][q][0], p, q) for p in before for q in hyp[b].before), key=lambda cell: cell[0]
            )
            if ref[a].word == hyp[b].word == _NOTHING:
                matched = matched + both_nothing
            elif not _agree(ref[a].word, hyp[b].word):
                matched = matched + substitute
            inserted, deleted = inserted + insert[b], deleted + delete[a]
            if matched <= deleted and matched <= inserted:
                row.append((matched, left, right))
            elif deleted < inserted:
                row.append((deleted, over, b))
            else:
                row.append((inserted, a, by))
    return table


def _alone(word: str, number: Callable[[float], Any]) -> Any:
    """Cost of a word that has no partner."""
    return number(0.001) if word == _NOTHING else number(2) if _is_optional(word) else number(3)


def _is_optional(word: str) -> bool:
    return word[:1] == "(" and word[-1:] == ")"


def _agree(ref: str, hyp: str) -> bool:
    """Is this the same word, or a fragment of it?"""
    first, second = (word[1:-1] if _is_optional(word) else word for word in (ref, hyp))
    for fragment, whole in ((first, second), (second, first)):
        if len(fragment) > 1 and fragment[0] == "-":
            return whole.endswith(fragment[1:])
        if len(fragment) > 1 and fragment[-1] == "-":
            return whole.startswith(fragment[:-1])
    return first == second
