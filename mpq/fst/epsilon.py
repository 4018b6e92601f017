"""Removal of input epsilons from a decoding graph, with what it writes kept: k2's intersection knows none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpq.fst.fsa import Floats, Ints, ranks
from mpq.fst.native import Arcs


@dataclass
class EmittingArcs:
    """A transducer whose arcs consume one frame or end; an arc may write several words.

    Attributes:
        src, dst: states, 0 is the start; the last one is where paths end, ``(A,)``.
        label: class of each arc, -1 on those that end, ``(A,)``.
        score: natural log, ``(A,)``.
        words: what the arcs write, one after the other, ``(W,)``.
        splits: where the words of each arc begin, and W, ``(A + 1,)``.
    """

    src: Ints
    dst: Ints
    label: Ints
    score: Floats
    words: Ints
    splits: Ints


@dataclass
class _Closure:
    """Best ways from states (`origin`) by epsilons alone to others (`state`), by the text they write."""

    origin: Ints
    state: Ints
    text: Ints  # rows of `texts`
    cost: Floats
    texts: Ints  # (texts, longest), 0 for no more words


def remove_epsilons(arcs: Arcs) -> EmittingArcs:
    """The same weighted pairs of frames and words, the best path of each, without input epsilons.

    Epsilon paths that write different words are told apart: homophones stay (a tropical removal for acceptors, such as
    k2's, keeps one of them).

    Args:
        arcs: transducer of :mod:`mpq.fst.graph`: input label k + 1 is class k, weights are costs.

    Raises:
        ValueError: a cycle of epsilons.
    """
    emits = arcs.ilabel > 0
    keeps = np.zeros(len(arcs.final), bool)
    keeps[arcs.start] = True
    keeps[arcs.dst[emits]] = True
    kept = np.flatnonzero(keeps)
    closure = _close(arcs, kept)
    number = np.empty(len(arcs.final), np.int64)
    number[kept] = np.arange(len(kept))
    first = int(number[arcs.start])
    number[kept[0]], number[arcs.start] = first, 0  # 0 is the start
    way, arc = _join(closure.state, arcs.src, np.flatnonzero(emits), len(arcs.final))
    ends = np.flatnonzero(arcs.final[closure.state, 0] < np.inf)
    src = np.concatenate((closure.origin[way], closure.origin[ends]))
    weight = np.concatenate((arcs.weight[arc, 0], arcs.final[closure.state[ends], 0]))
    last = np.concatenate((arcs.olabel[arc], np.zeros_like(ends)))
    texts = np.column_stack((closure.texts[closure.text[np.concatenate((way, ends))]], last))
    return EmittingArcs(
        src=number[src],
        dst=np.concatenate((number[arcs.dst[arc]], np.full(len(ends), len(kept)))),
        label=np.concatenate((arcs.ilabel[arc] - 1, np.full(len(ends), -1))),
        score=-(closure.cost[np.concatenate((way, ends))] + weight),
        words=texts[texts > 0],
        splits=np.concatenate(([0], np.cumsum((texts > 0).sum(1)))),
    )


def _join(state: Ints, src: Ints, candidates: Ints, n_states: int) -> tuple[Ints, Ints]:
    """Pairs of (place in `state`, arc) where the arc, one of `candidates`, leaves that state."""
    candidates = candidates[np.argsort(src[candidates], kind="stable")]
    count = np.bincount(src[candidates], minlength=n_states)
    begin = np.cumsum(count) - count
    repeats = count[state]
    place = np.repeat(np.arange(len(state)), repeats)
    return place, candidates[begin[state][place] + ranks(repeats)]


def _close(arcs: Arcs, origins: Ints) -> _Closure:
    """Epsilon closure of some states, one arc further in each round."""
    silent = np.flatnonzero(arcs.ilabel == 0)
    n_words = int(arcs.olabel.max(initial=0)) + 1
    numbers: dict[tuple[int, int], int] = {}  # of texts, by the text before and the word
    texts: list[tuple[int, ...]] = [()]
    origin, state, text, cost = origins, origins, np.zeros_like(origins), np.zeros(len(origins))
    rounds: list[tuple[Ints, Ints, Ints, Floats]] = []
    while len(origin):
        if len(rounds) > len(arcs.final):
            raise ValueError("the graph has a cycle of input epsilons")
        rounds.append((origin, state, text, cost))
        way, arc = _join(state, arcs.src, silent, len(arcs.final))
        pairs, which = np.unique(text[way] * n_words + arcs.olabel[arc], return_inverse=True)
        following = []
        for before, word in zip(*(half.tolist() for half in np.divmod(pairs, n_words)), strict=True):
            number = numbers.setdefault((before, word), len(texts)) if word else before
            if number == len(texts):
                texts.append((*texts[before], word))
            following.append(number)
        origin, state = origin[way], arcs.dst[arc]
        cost = cost[way] + arcs.weight[arc, 0]
        text = np.array(following, np.int64)[which]
    columns = [np.concatenate(column) for column in zip(*rounds, strict=True)]
    padded = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text_words in zip(padded, texts, strict=True):
        row[: len(text_words)] = text_words
    order = np.lexsort((columns[3], *columns[2::-1]))  # by origin, state, text, then cost
    origin, state, text, cost = (column[order] for column in columns)
    fresh = np.ones(len(order), bool)
    fresh[1:] = (origin[1:] != origin[:-1]) | (state[1:] != state[:-1]) | (text[1:] != text[:-1])
    return _Closure(origin[fresh], state[fresh], text[fresh], cost[fresh], padded)
