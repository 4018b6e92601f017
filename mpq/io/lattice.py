"""Word lattices in memory, at the level of Kaldi's ``CompactLattice``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpq.io.symbols import SymbolTable

Weight = tuple[float, float, tuple[int, ...]]
"""Graph cost, acoustic cost, transition-ids."""


@dataclass(slots=True, eq=False)
class Lattice:
    """A word lattice of ``A`` arcs; a path from ``start`` to one of ``F`` final states is a hypothesis.

    Costs are minus natural logs.  Word numbers are those of the symbol table; 0 is no word.  Arcs are in the
    order of the file, which for Kaldi's own lattices is by source state.

    Attributes:
        utt: utterance id.
        n_states: states are numbered from 0 to ``n_states - 1``.
        start: start state, -1 in an empty lattice.
        src: ``(A,)`` source state of each arc.
        dst: ``(A,)`` its destination.
        labels: ``(A,)`` its word.
        graph: ``(A,)`` its graph cost (language model, pronunciation and transitions).
        acoustic: ``(A,)`` its acoustic cost.
        strings: ``A`` tuples: its transition-ids, one a frame.
        final_states: ``(F,)`` final states.
        final_graph: ``(F,)`` graph cost of ending there.
        final_acoustic: ``(F,)`` acoustic cost of ending there.
        final_strings: ``F`` tuples: transition-ids of ending there.
    """

    utt: str
    n_states: int
    start: int
    src: NDArray[np.int32]
    dst: NDArray[np.int32]
    labels: NDArray[np.int32]
    graph: NDArray[np.float64]
    acoustic: NDArray[np.float64]
    strings: list[tuple[int, ...]]
    final_states: NDArray[np.int32]
    final_graph: NDArray[np.float64]
    final_acoustic: NDArray[np.float64]
    final_strings: list[tuple[int, ...]]

    @property
    def n_arcs(self) -> int:
        """Number of arcs, ``A``."""
        return len(self.src)

    def unknown_label(self, symbols: SymbolTable) -> int | None:
        """The least number that ``symbols`` has no word for, if there is one."""
        return min(set(self.labels.tolist()) - symbols.words.keys(), default=None)


class LatticeBuilder:
    """Gathers arcs and final weights, in any order, into a :class:`Lattice`."""

    def __init__(self, utt: str) -> None:
        self.utt = utt
        self.start = -1
        self.n_states = 0
        self._arcs: list[tuple[int, int, int]] = []
        self._weights: list[Weight] = []
        self._finals: dict[int, Weight] = {}

    def add_state(self, state: int) -> None:
        """Make sure that there is this state; the first one added is the start."""
        if self.start < 0:
            self.start = state
        self.n_states = max(self.n_states, state + 1)

    def add_arc(self, src: int, dst: int, label: int, weight: Weight) -> None:
        """Add an arc, and its states."""
        self.add_state(src)
        self.add_state(dst)
        self._arcs.append((src, dst, label))
        self._weights.append(weight)

    def set_final(self, state: int, weight: Weight) -> None:
        """Make a state final."""
        self.add_state(state)
        self._finals[state] = weight

    def build(self) -> Lattice:
        """The lattice."""
        src, dst, labels = np.array(self._arcs, dtype=np.int32).reshape(-1, 3).T
        graph, acoustic, strings = _columns(self._weights)
        final_graph, final_acoustic, final_strings = _columns(list(self._finals.values()))
        return Lattice(
            utt=self.utt,
            n_states=self.n_states,
            start=self.start,
            src=src,
            dst=dst,
            labels=labels,
            graph=graph,
            acoustic=acoustic,
            strings=strings,
            final_states=np.array(list(self._finals), dtype=np.int32),
            final_graph=final_graph,
            final_acoustic=final_acoustic,
            final_strings=final_strings,
        )


def _columns(
    weights: list[Weight],
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[tuple[int, ...]]]:
    """Graph costs, acoustic costs and strings of weights."""
    graph = np.array([weight[0] for weight in weights], dtype=np.float64)
    acoustic = np.array([weight[1] for weight in weights], dtype=np.float64)
    return graph, acoustic, [weight[2] for weight in weights]
