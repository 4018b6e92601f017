"""Finite-state acceptors over acoustic-model classes, in the log semiring, for lattice-free MMI.

An :class:`Fsa` is a list of arcs; every arc consumes one frame and emits one class. :func:`ctc_graph`
turns an acceptor over phones into one over frames (blank and repeated phones), the CTC topology
of Graves et al. 2006, section 3.1, written as a transducer as in Hadian et al. 2018, "End-to-end
speech recognition using lattice-free MMI", section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StateForm:
    """An acceptor whose states own their label: what the frame recursions run on.

    Attributes:
        label: class emitted whenever the state is entered, ``(K,)``.
        init: natural-log weight of entering the state at the first frame, ``(K,)``.
        final: natural-log weight of ending in the state after the last frame, ``(K,)``.
        src, dst, weight: arcs, at most one for each pair of states, sorted by destination, ``(A,)``.
    """

    label: Ints
    init: Floats
    final: Floats
    src: Ints
    dst: Ints
    weight: Floats


@dataclass(frozen=True, eq=False)
class Fsa:
    """Weighted acceptor: each arc consumes one frame of class ``label``.

    Attributes:
        src, dst: states that the arcs join, ``(A,)``.
        label: class of each arc (a column of the acoustic model's output), ``(A,)``; no epsilon.
        weight: natural-log weight of each arc, ``(A,)``.
        final: natural-log final weight of each state, ``(S,)``; ``-inf`` where one cannot end.
        start: the start state.

    Raises:
        ValueError: arrays of different lengths, a state out of range or a negative label.
    """

    src: Ints
    dst: Ints
    label: Ints
    weight: Floats
    final: Floats
    start: int = 0

    def __post_init__(self) -> None:
        n_arcs, n_states = len(self.src), len(self.final)
        if not len(self.dst) == len(self.label) == len(self.weight) == n_arcs:
            raise ValueError(
                f"arc arrays must have equal lengths, not {n_arcs}, {len(self.dst)}, "
                f"{len(self.label)} and {len(self.weight)}"
            )
        if not 0 <= self.start < n_states:
            raise ValueError(f"start state ({self.start}) must be one of the {n_states} states")
        for name, values in (("src", self.src), ("dst", self.dst)):
            if n_arcs and (values.min() < 0 or values.max() >= n_states):
                raise ValueError(f"{name} holds states {values.min()} to {values.max()}; expected 0 to {n_states - 1}")
        if n_arcs and self.label.min() < 0:
            raise ValueError(f"label {self.label.min()} is negative: epsilon and final arcs are not allowed")

    @classmethod
    def from_arcs(
        cls,
        arcs: Sequence[tuple[int, int, int, float]],
        final: dict[int, float],
        n_states: int | None = None,
        start: int = 0,
    ) -> Fsa:
        """Build from ``(src, dst, label, weight)`` tuples and a map of final weights (natural log)."""
        src, dst, label, weight = zip(*arcs, strict=True) if arcs else ((), (), (), ())
        if n_states is None:
            n_states = max((*src, *dst, *final, start)) + 1
        finals = np.full(n_states, -np.inf)
        for state, value in final.items():
            finals[state] = value
        return cls(
            np.array(src, np.int64),
            np.array(dst, np.int64),
            np.array(label, np.int64),
            np.array(weight, np.float64),
            finals,
            start,
        )

    @cached_property
    def state_form(self) -> StateForm:
        """The same weighted paths with labels on states; states with k incoming labels become k."""
        order = np.lexsort((self.label, self.dst))
        dst, label = self.dst[order], self.label[order]
        fresh = np.ones(len(dst), bool)
        fresh[1:] = (dst[1:] != dst[:-1]) | (label[1:] != label[:-1])
        of_arc = np.empty(len(dst), np.int64)
        of_arc[order] = np.cumsum(fresh) - 1  # new state that each arc enters
        home, new_label = dst[fresh], label[fresh]  # old state and label of each new state
        n_new = len(home)
        init = np.full(n_new, -np.inf)
        from_start = self.src == self.start
        np.logaddexp.at(init, of_arc[from_start], self.weight[from_start])
        arc, source = _arcs_of_copies(self.src, home, len(self.final))
        src, dst, weight = _merge_arcs(source, of_arc[arc], self.weight[arc], n_new)
        return StateForm(new_label, init, self.final[home], src, dst, weight)

    def trimmed(self) -> Fsa:
        """The same paths without the states that no path from the start to an end visits."""
        n = len(self.final)
        forward = coo_array((np.ones(len(self.src)), (self.src, self.dst)), (n, n)).tocsr()
        # One more state behind all final ones makes "can end" the same search backwards.
        ending = np.flatnonzero(self.final > -np.inf)
        rows, columns = np.concatenate((self.dst, np.full(len(ending), n))), np.concatenate((self.src, ending))
        backward = coo_array((np.ones(len(rows)), (rows, columns)), (n + 1, n + 1)).tocsr()
        kept = np.intersect1d(
            breadth_first_order(forward, self.start, return_predecessors=False),
            [*breadth_first_order(backward, n, return_predecessors=False), self.start],
        )
        number = np.full(n, -1)
        number[kept] = np.arange(len(kept))
        arcs = (number[self.src] >= 0) & (number[self.dst] >= 0)
        return Fsa(
            number[self.src[arcs]],
            number[self.dst[arcs]],
            self.label[arcs],
            self.weight[arcs],
            self.final[kept],
            int(number[self.start]),
        )

    @cached_property
    def min_frames(self) -> float:
        """Length of the shortest path in frames; infinite if no path ends."""
        distance = np.full(len(self.final), np.inf)
        distance[self.start] = 0
        ending = self.final > -np.inf
        for _ in range(len(self.final)):
            nearer = distance.copy()
            np.minimum.at(nearer, self.dst, distance[self.src] + np.where(self.weight > -np.inf, 1, np.inf))
            if np.array_equal(nearer, distance):
                break
            distance = nearer
        return float(distance[ending].min()) if ending.any() else float("inf")


def ranks(count: Ints) -> Ints:
    """0, 1, ... count - 1 for each of several counts, in one array."""
    return np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)


def _arcs_of_copies(src: Ints, home: Ints, n_states: int) -> tuple[Ints, Ints]:
    """Arcs of a graph whose states are copied, each copy with all arcs of its original.

    Args:
        src: state that each arc leaves, ``(A,)``.
        home: original of each copy, ascending, ``(K,)``.
        n_states: number of originals.

    Returns:
        for each new arc the old one, and the copy that it leaves.
    """
    copies = np.bincount(home, minlength=n_states)
    first = np.cumsum(copies) - copies
    repeats = copies[src]
    arc = np.repeat(np.arange(len(src)), repeats)
    return arc, first[src[arc]] + ranks(repeats)


def _merge_arcs(src: Ints, dst: Ints, weight: Floats, n_states: int) -> tuple[Ints, Ints, Floats]:
    """Log-add parallel arcs; result sorted by (dst, src)."""
    key = dst * n_states + src
    order = np.argsort(key, kind="stable")
    key, weight = key[order], weight[order]
    fresh = np.ones(len(key), bool)
    fresh[1:] = key[1:] != key[:-1]
    if not fresh.all():
        weight = np.logaddexp.reduceat(weight, np.flatnonzero(fresh))
        key = key[fresh]
    return key % max(n_states, 1), key // max(n_states, 1), weight


def ctc_graph(phones: Fsa, blank: int = 0) -> Fsa:
    """CTC topology composed with an acceptor over phones.

    A phone may be held for several frames, any number of blanks may stand before, between and after
    phones, and equal neighbours need a blank between them. If ``phones`` is unambiguous (one path for
    a phone sequence), so is the result: each frame sequence has one path.

    Args:
        phones: acceptor whose labels are phone classes (not ``blank``).
        blank: class of the blank.

    Returns:
        Acceptor over frames. With M distinct (state, incoming phone) pairs and S states it has
        M + S states.

    Raises:
        ValueError: a phone is the blank.
    """
    if (phones.label == blank).any():
        raise ValueError(f"the phone graph emits the blank ({blank})")
    n_old = len(phones.final)
    pairs, of_arc = np.unique(np.stack((phones.dst, phones.label)), axis=1, return_inverse=True)
    of_arc = of_arc.reshape(-1)
    home, label = pairs
    emit = n_old + np.arange(len(home))  # blank states are 0..S-1
    zeros = np.zeros(n_old)
    # From emitting state (s, p) along each arc of s whose phone is not p.
    arc, source = _arcs_of_copies(phones.src, home, n_old)
    differs = label[source] != phones.label[arc]
    arc, source = arc[differs], source[differs]
    old = np.arange(n_old)
    parts = (
        (old, old, np.full(n_old, blank), zeros),  # hold a blank
        (emit, emit, label, np.zeros(len(emit))),  # hold a phone
        (emit, home, np.full(len(emit), blank), np.zeros(len(emit))),  # phone to blank
        (phones.src, emit[of_arc], phones.label, phones.weight),  # blank to phone
        (emit[source], emit[of_arc[arc]], phones.label[arc], phones.weight[arc]),  # phone to phone
    )
    src, dst, labels, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    final = np.concatenate((phones.final, phones.final[home]))
    return Fsa(src, dst, labels.astype(np.int64), weight.astype(np.float64), final, phones.start)


def pronunciation_graph(
    words: Sequence[Sequence[Sequence[int]]], silence: int | None = None, silence_prob: float = 0.5
) -> Fsa:
    """Acceptor of every way to pronounce a sentence.

    Args:
        words: for each word its pronunciations, each a non-empty sequence of phone classes.
        silence: class of a silence that may stand before, between and after words (None: no silence;
            with the CTC topology the blank takes that part).
        silence_prob: probability of the silence at each place.

    Returns:
        Acceptor over phones; pronunciations carry no weight of their own.

    Raises:
        ValueError: a word without a pronunciation, or an empty pronunciation.
    """
    arcs: list[tuple[int, int, int, float]] = []
    entries, n_states = [(0, 0.0)], 1

    def offer_silence(state: int) -> list[tuple[int, float]]:
        nonlocal n_states
        if silence is None:
            return [(state, 0.0)]
        arcs.append((state, n_states, silence, float(np.log(silence_prob))))
        n_states += 1
        return [(state, float(np.log1p(-silence_prob))), (n_states - 1, 0.0)]

    entries = offer_silence(0)
    for position, variants in enumerate(words):
        if not variants or any(len(variant) == 0 for variant in variants):
            raise ValueError(f"word {position + 1} of {len(words)} has no pronunciation or an empty one")
        n_states += 1
        end = n_states - 1
        for variant in dict.fromkeys(tuple(v) for v in variants):
            inner = [*range(n_states, n_states + len(variant) - 1), end]
            n_states += len(variant) - 1
            arcs += [(state, inner[0], variant[0], weight) for state, weight in entries]
            arcs += [(inner[i], inner[i + 1], variant[i + 1], 0.0) for i in range(len(variant) - 1)]
        entries = offer_silence(end)
    return Fsa.from_arcs(arcs, dict(entries), n_states)
