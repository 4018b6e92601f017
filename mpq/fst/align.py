"""Forced alignment: when the words of a known sentence were spoken, by the best path through all its pronunciations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mpq.fst.fsa import Fsa, Ints, ctc_graph, pronunciation_graph
from mpq.fst.units import Units

Span = tuple[int, int]
"""First frame, and the frame after the last one."""


def align_words(
    log_probs: npt.NDArray[np.float32], words: Sequence[Sequence[Sequence[int]]], units: Units
) -> list[Span] | None:
    """Frames of each word of a sentence.

    The path is the best one of the CTC topology over all pronunciations (Viterbi); a word lasts from the first
    to the last frame of its phones.

    Args:
        log_probs: natural-log probabilities of the units ``(T, C)``; unit 0 is the blank.
        words: for each word its pronunciations, as phone classes.
        units: what the acoustic model tells apart.

    Returns:
        One span for each word; None if the words need more frames than there are.
    """
    if not words:
        return []
    path = best_path(log_probs, ctc_graph(units.expand(pronunciation_graph(words))))
    if path is None:
        return None
    # A phone begins where a unit follows another one or a blank; CTC puts a blank between equal units.
    last = np.concatenate(([0], path[:-1]))
    begins = np.flatnonzero((path != 0) & (path != last))
    ends = np.flatnonzero((path != 0) & (path != np.concatenate((path[1:], [0])))) + 1
    phones = tuple(units.phone(int(unit)) for unit in path[begins])
    spans, at = [], 0
    for n_phones in _cut(phones, words):
        spans.append((int(begins[at]), int(ends[at + n_phones - 1])))
        at += n_phones
    return spans


def best_path(log_probs: npt.NDArray[np.float32], graph: Fsa) -> Ints | None:
    """Classes ``(T,)`` of the best path through an acceptor over frames; None if it has no path of T frames.

    Args:
        log_probs: natural-log probabilities ``(T, C)``.
        graph: the acceptor.
    """
    form, n_frames = graph.state_form, len(log_probs)
    if not n_frames or not len(form.label):
        return None
    first = np.flatnonzero(np.concatenate(([True], form.dst[1:] != form.dst[:-1]))) if len(form.dst) else form.dst
    entered = form.dst[first]  # states with an arc into them; arcs are sorted by state
    of_state = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(form.dst))))
    emission = log_probs.astype(np.float64)[:, form.label]
    scores = form.init + emission[0]
    arcs = np.full((n_frames, len(form.label)), -1)
    for t in range(1, n_frames):
        through = scores[form.src] + form.weight
        scores = np.full(len(form.label), -np.inf)
        if len(first):
            best = np.maximum.reduceat(through, first)
            # the first arc that reaches the maximum of its state
            is_best = np.flatnonzero(through == best[of_state])
            states, where = np.unique(of_state[is_best], return_index=True)
            arcs[t, entered[states]] = is_best[where]
            scores[entered] = best
        scores += emission[t]
    scores = scores + form.final
    state = int(scores.argmax())
    if not scores[state] > -np.inf:
        return None
    path = np.empty(n_frames, np.int64)
    for t in range(n_frames - 1, -1, -1):
        path[t] = form.label[state]
        if t:
            state = int(form.src[arcs[t, state]])
    return path


def _cut(phones: tuple[int, ...], words: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """How many phones each word has, where the phones are those of one pronunciation of each word in turn.

    Where several cuts are possible, they are cuts of the same path, and the first is taken.
    """
    reached: list[dict[int, int]] = [{0: 0}]  # for each word: ends of the words before it, and their last length
    for variants in words:
        ends: dict[int, int] = {}
        for begin in reached[-1]:
            for variant in variants:
                end = begin + len(variant)
                if phones[begin:end] == tuple(variant):
                    ends.setdefault(end, len(variant))
        reached.append(ends)
    sizes, end = [], len(phones)
    for ends in reversed(reached[1:]):
        sizes.append(ends[end])
        end -= ends[end]
    return sizes[::-1]
