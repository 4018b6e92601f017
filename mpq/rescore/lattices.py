"""Lattice rescoring: word lattices composed with a language model, histories merged at an n-gram order.

Every state of the lattice is split by the histories that reach it (as composing with the model would), which asks for
the model's scores of a forest of histories; these are computed together for many lattices, and added to the arcs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from mpq.data.lmtext import Tokenizer, warn_misfit
from mpq.io import BadInput, Lattice, SymbolTable
from mpq.lm import LanguageModel
from mpq.rescore.combine import Weights
from mpq.rescore.forest import Paths
from mpq.rescore.history import Histories
from mpq.rescore.scoring import check_vocabulary
from mpq.rescore.tree import Budget, score_edges

ORDER = 4
GROUP = 1 << 17  # arcs that share a forest
_SAMPLE = 2000  # words that tell whether the model was made for them

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LatticeScoring:
    """How to rescore lattices.

    Attributes:
        weights: of the scores; they also rank paths when arcs are pruned, without the neural model.
        merge_order: histories of the same last `merge_order` - 1 words are one.
        beam: arcs that are only on paths worse than the best one by more than this, by first-pass scores, are
            left out; none: all stay.
        max_arcs: of a lattice after splitting its states.
        budget: memory for the model's activations.
    """

    weights: Weights
    merge_order: int = ORDER
    beam: float | None = None
    max_arcs: int = 1_000_000
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.merge_order < 1:
            raise BadInput(f"--merge-order: {self.merge_order} must be at least 1")
        if self.beam is not None and not self.beam > 0:
            raise BadInput(f"--beam: {self.beam} must be above 0")


@dataclass(slots=True)
class _Split:
    """A lattice whose states are told apart by history: arcs as (source, destination, arc of the lattice).

    Attributes:
        edges: the language model's edges of every arc, then of every final state.
        finals: (state, final state's place in the lattice).
    """

    lattice: Lattice
    arcs: list[tuple[int, int, int]]
    finals: list[tuple[int, int]]
    edges: list[tuple[int, ...]]


def rescore_lattices(
    model: LanguageModel,
    tokenizer: Tokenizer,
    lattices: Iterable[Lattice],
    words: SymbolTable,
    scoring: LatticeScoring,
) -> Iterator[Lattice]:
    """Rescored lattices: graph cost = -(ngram_weight * lm + lm_weight * nnlm + word_bonus), acoustic cost unchanged.

    The cheapest path of each is the best hypothesis (`best_words`).

    Raises:
        BadInput: a lattice without a complete path or with a cycle, or one that grows beyond `max_arcs`.
    """
    lattices = iter(lattices)
    vocabulary = (word for word in words.ids if word[0] not in "<#")  # without <eps>, #0 and the like
    warn_misfit(tokenizer, islice(vocabulary, _SAMPLE), "words of the lattices")
    while True:
        histories = Histories(tokenizer.encode, tokenizer.eos, scoring.merge_order)
        splits: list[_Split] = []
        while sum(len(split.arcs) for split in splits) < GROUP and (lattice := next(lattices, None)):
            splits.append(_split(lattice, words, histories, histories.start([tokenizer.bos]), scoring))
        if not splits:
            break
        labels = {label for split in splits for label in split.lattice.labels.tolist() if label}
        check_vocabulary(tokenizer, {words.words[label] for label in labels}, "lattices")
        yield from _rescored(model, histories, splits, scoring)


def _rescored(
    model: LanguageModel, histories: Histories, splits: list[_Split], scoring: LatticeScoring
) -> Iterator[Lattice]:
    """The lattices with the model's scores on their arcs."""
    forest, moved = histories.build()
    paths = Paths.of([edges for split in splits for edges in split.edges])
    scores = Paths(moved[paths.edges], paths.starts).total(score_edges(model, forest, scoring.budget))
    first = 0
    for split in splits:
        last = first + len(split.edges)
        yield _with_scores(split, scores[first:last], scoring.weights)
        first = last


def _with_scores(split: _Split, nnlm: Floats, weights: Weights) -> Lattice:
    old, n_arcs = split.lattice, len(split.arcs)
    src, dst, arc = np.array(split.arcs, np.int32).reshape(-1, 3).T
    state, final = np.array(split.finals, np.int32).reshape(-1, 2).T
    bonus = weights.word_bonus * (old.labels[arc] != 0)
    return Lattice(
        utt=old.utt,
        n_states=int(max(dst.max(initial=0), state.max(initial=0))) + 1,
        start=0,
        src=src,
        dst=dst,
        labels=old.labels[arc],
        graph=weights.ngram_weight * old.graph[arc] - weights.lm_weight * nnlm[:n_arcs] - bonus,
        acoustic=old.acoustic[arc],
        strings=[old.strings[i] for i in arc],
        final_states=state,
        final_graph=weights.ngram_weight * old.final_graph[final] - weights.lm_weight * nnlm[n_arcs:],
        final_acoustic=old.final_acoustic[final],
        final_strings=[old.final_strings[i] for i in final],
    )


def _split(lattice: Lattice, words: SymbolTable, histories: Histories, root: int, scoring: LatticeScoring) -> _Split:
    """Splits every state by the histories that reach it; cheaper ones first, so that a merged history is theirs."""
    weight = scoring.weights.ngram_weight
    arc_cost = weight * lattice.graph + lattice.acoustic - scoring.weights.word_bonus * (lattice.labels != 0)
    kept, order = _prune(lattice, arc_cost, weight * lattice.final_graph + lattice.final_acoustic, scoring.beam)
    finals = {int(state): i for i, state in enumerate(lattice.final_states)}
    result = _Split(lattice, [], [], [])
    final_edges: list[tuple[int, ...]] = []
    number = {(lattice.start, root): 0}
    reached: dict[int, dict[int, float]] = {lattice.start: {root: 0.0}}  # state -> history -> cost
    done: list[int] = []
    for state in order:
        for node, cost in sorted(reached.pop(state, {}).items(), key=lambda item: item[1]):
            here = number[state, node]
            done.append(here)
            for arc in kept[state]:
                label = int(lattice.labels[arc])
                after, edges = histories.step(node, words.words[label]) if label else (node, ())
                dst = int(lattice.dst[arc])
                there = number.setdefault((dst, after), len(number))
                known = reached.setdefault(dst, {})
                known[after] = min(known.get(after, math.inf), cost + float(arc_cost[arc]))
                result.arcs.append((here, there, arc))
                result.edges.append(edges)
            if state in finals:
                result.finals.append((here, finals[state]))
                final_edges.append((histories.end(node),))
        if len(result.arcs) > scoring.max_arcs:
            raise BadInput(
                f"utterance '{lattice.utt}': its lattice grows beyond {scoring.max_arcs} arcs when histories of "
                f"{scoring.merge_order - 1} words are told apart; give a smaller --merge-order or a --beam"
            )
    result.edges += final_edges
    # states in the order in which they were done: topological, and arcs by their source
    rank = {here: i for i, here in enumerate(done)}
    result.arcs = [(rank[src], rank[dst], arc) for src, dst, arc in result.arcs]
    result.finals = [(rank[state], final) for state, final in result.finals]
    return result


def best_words(lattice: Lattice, words: SymbolTable) -> list[str]:
    """Words of the path with the lowest sum of graph and acoustic costs."""
    order, leaving = topological(lattice)
    cost, targets = (lattice.graph + lattice.acoustic).tolist(), lattice.dst.tolist()
    forward = [math.inf] * lattice.n_states
    forward[lattice.start] = 0.0
    best_arc = [-1] * lattice.n_states
    for state in order:
        for arc in leaving[state]:
            dst, total = targets[arc], forward[state] + cost[arc]
            if total < forward[dst]:
                forward[dst], best_arc[dst] = total, arc
    ends = np.array([forward[state] for state in lattice.final_states])
    state = int(lattice.final_states[np.argmin(ends + lattice.final_graph + lattice.final_acoustic)])
    labels: list[int] = []
    while best_arc[state] >= 0:
        labels.append(int(lattice.labels[best_arc[state]]))
        state = int(lattice.src[best_arc[state]])
    return [words.words[label] for label in reversed(labels) if label]


def _prune(
    lattice: Lattice, arc_cost: Floats, final_cost: Floats, beam: float | None
) -> tuple[list[list[int]], list[int]]:
    """Arcs on complete paths within the beam, by source state, and the states in topological order."""
    order, leaving = topological(lattice)
    costs, targets = arc_cost.tolist(), lattice.dst.tolist()
    forward, backward = [math.inf] * lattice.n_states, [math.inf] * lattice.n_states
    forward[lattice.start] = 0.0
    for state in order:
        for arc in leaving[state]:
            forward[targets[arc]] = min(forward[targets[arc]], forward[state] + costs[arc])
    for state, cost in zip(lattice.final_states.tolist(), final_cost.tolist(), strict=True):
        backward[state] = cost
    for state in reversed(order):
        for arc in leaving[state]:
            backward[state] = min(backward[state], costs[arc] + backward[targets[arc]])
    limit = backward[lattice.start]
    if not math.isfinite(limit):
        raise BadInput(f"utterance '{lattice.utt}': its lattice has no path to a final state; decode it again")
    limit += math.inf if beam is None else beam + 1e-6  # the best path itself must not be lost to rounding

    def stays(state: int, arc: int) -> bool:
        through: float = forward[state] + costs[arc] + backward[targets[arc]]
        return through < math.inf and through <= limit  # a dead end costs infinity

    kept = [[arc for arc in arcs if stays(state, arc)] for state, arcs in enumerate(leaving)]
    return kept, order


def topological(lattice: Lattice) -> tuple[list[int], list[list[int]]]:
    """States that the start reaches, each after all that lead to it, and the arcs that leave each state."""
    if lattice.start < 0 or not len(lattice.final_states):
        raise BadInput(f"utterance '{lattice.utt}': its lattice has no final state; expected a complete lattice")
    leaving: list[list[int]] = [[] for _ in range(lattice.n_states)]
    for arc, state in enumerate(lattice.src.tolist()):
        leaving[state].append(arc)
    targets = lattice.dst.tolist()
    seen, open_states = {lattice.start}, [lattice.start]
    n_in = [0] * lattice.n_states
    while open_states:
        for arc in leaving[open_states.pop()]:
            n_in[targets[arc]] += 1
            if targets[arc] not in seen:
                seen.add(targets[arc])
                open_states.append(targets[arc])
    order = [] if n_in[lattice.start] else [lattice.start]
    for state in order:
        for arc in leaving[state]:
            n_in[targets[arc]] -= 1
            if not n_in[targets[arc]]:
                order.append(targets[arc])
    if len(order) < len(seen):
        raise BadInput(f"utterance '{lattice.utt}': its lattice has a cycle; expected what a decoder writes")
    return order, leaving
