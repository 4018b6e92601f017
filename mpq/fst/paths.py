"""From a decoder's raw lattice to a word lattice with exact scores, and to its best paths.

The raw lattice (one arc a frame) becomes a deterministic acceptor of word sequences that keeps the best
acoustic score of each; the n-gram model's scores are then put on again, exactly, by following its histories.
So every path is a distinct word sequence, `am` is the score of its best alignment in the raw lattice, and
`lm` is the n-gram model's own score, without the graph's approximations (back-off taken where it is cheaper,
merged weights).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import kaldifst
import numpy as np

from mpq.fst.fsa import Floats, Ints
from mpq.fst.native import Arcs, arrays_to_fst, fst_to_arrays
from mpq.io import Hyp, Lattice, SymbolTable
from mpq.lang.arpa import EOS, History, NgramLm

_MAX_ARCS = 20_000  # of a raw lattice; of a larger one the best are taken
_MAX_STATES = 3_000  # of a determinized lattice; if it has more, half the raw arcs are left out
_DELTA = 1e-5  # acoustic scores that differ by less are the same


@dataclass
class WordLattice:
    """Acyclic deterministic acceptor of word sequences, natural-log scores.

    Attributes:
        src, dst: states of arcs, numbered in topological order, 0 is the start, ``(A,)``.
        word: numbers of `words.txt`, ``(A,)``.
        am, lm: scores of arcs, ``(A,)``.
        final_am, final_lm: scores of ending in a state, ``-inf`` where one cannot, ``(S,)``.
    """

    src: Ints
    dst: Ints
    word: Ints
    am: Floats
    lm: Floats
    final_am: Floats
    final_lm: Floats


def make_word_lattice(raw: Arcs, lm: NgramLm, words: SymbolTable, acoustic_scale: float, beam: float) -> WordLattice:
    """Word lattice of a raw lattice.

    Args:
        raw: `LatticeSimpleDecoder`'s raw lattice with (graph, acoustic) costs; output labels are words.
        lm: the n-gram model of the decoding graph.
        words: the graph's words.
        acoustic_scale: factor that the raw lattice's acoustic costs hold; it is taken out.
        beam: arcs on no path within this of the best one (scaled sum of scores) are removed.
    """
    return prune(_apply_lm(_determinize(raw), lm, words, acoustic_scale), acoustic_scale, beam)


def _determinize(raw: Arcs) -> Arcs:
    """Deterministic acceptor of the words with the best acoustic cost; halves its input until it is small."""
    n_arcs = _MAX_ARCS
    while True:
        if len(raw.src) > n_arcs:
            raw = _keep_best(raw, n_arcs)
        final = np.where(raw.final.sum(1) < np.inf, raw.final[:, 1], np.inf)[:, None].astype(np.float32)
        fst = arrays_to_fst(Arcs(raw.src, raw.olabel, raw.olabel, raw.dst, raw.weight[:, 1:], final, raw.start))
        try:
            kaldifst.determinize_star(fst, delta=_DELTA, max_states=_MAX_STATES)
            return fst_to_arrays(fst)
        except RuntimeError:  # more states than allowed
            n_arcs = len(raw.src) // 2


def _keep_best(raw: Arcs, n_arcs: int) -> Arcs:
    """Keep the ``n_arcs`` arcs of a raw lattice with the best paths through them, and those that score as well."""
    order = _topological_order(raw.src, raw.dst, raw.start)
    place = np.full(len(raw.final), -1)
    place[order] = np.arange(len(order))
    reached = np.flatnonzero(place[raw.src] >= 0)
    score = -raw.weight[reached].sum(1, dtype=np.float64)
    final = -raw.final[order].sum(1, dtype=np.float64)
    through = _through(place[raw.src[reached]], place[raw.dst[reached]], score, final)
    worst = -np.partition(-through, min(n_arcs, len(through)) - 1)[min(n_arcs, len(through)) - 1]
    # Sums along one path differ in their last digits; the best path must stay whole.
    kept = reached[through >= min(worst, through.max() - 1e-6)]
    return Arcs(
        raw.src[kept], raw.ilabel[kept], raw.olabel[kept], raw.dst[kept], raw.weight[kept], raw.final, raw.start
    )


def _through(src: Ints, dst: Ints, score: Floats, final: Floats) -> Floats:
    """Score of the best path through each arc; states in topological order, 0 is the start."""
    forward = np.full(len(final), -np.inf).tolist()
    forward[0] = 0.0
    order = np.argsort(src, kind="stable")
    triples = list(zip(src[order].tolist(), dst[order].tolist(), score[order].tolist(), strict=True))
    for s, d, x in triples:
        if forward[s] + x > forward[d]:
            forward[d] = forward[s] + x
    backward = final.tolist()
    for s, d, x in reversed(triples):
        if x + backward[d] > backward[s]:
            backward[s] = x + backward[d]
    return np.asarray(np.array(forward)[src] + score + np.array(backward)[dst])


def _topological_order(src: Ints, dst: Ints, start: int) -> list[int]:
    """States that can be reached from ``start``, each before those its arcs lead to."""
    after: dict[int, list[int]] = defaultdict(list)
    for s, d in zip(src.tolist(), dst.tolist(), strict=True):
        after[s].append(d)
    seen, order, stack = {start}, [], [(start, iter(after[start]))]
    while stack:
        state, rest = stack[-1]
        for target in rest:
            if target not in seen:
                seen.add(target)
                stack.append((target, iter(after[target])))
                break
        else:
            order.append(state)
            stack.pop()
    return order[::-1]


def _apply_lm(acceptor: Arcs, lm: NgramLm, words: SymbolTable, acoustic_scale: float) -> WordLattice:
    """Split states by n-gram history and put the model's scores on arcs."""
    leaving: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
    for s, word, d, cost in zip(
        acceptor.src.tolist(),
        acceptor.olabel.tolist(),
        acceptor.dst.tolist(),
        acceptor.weight[:, 0].tolist(),
        strict=True,
    ):
        leaving[s].append((word, d, -cost / acoustic_scale))
    final = (-acceptor.final[:, 0].astype(np.float64) / acoustic_scale).tolist()
    numbers: dict[int, dict[History, int]] = defaultdict(dict)  # by state and history, as they are found
    numbers[acceptor.start][lm.start] = 0
    order: list[int] = []
    arcs: list[tuple[int, int, int, float, float]] = []
    ends: list[tuple[float, float]] = []
    n_found = 1
    for state in _topological_order(acceptor.src, acceptor.dst, acceptor.start):
        for history, number in numbers[state].items():
            order.append(number)
            ending = final[state] > -np.inf
            ends.append((final[state], lm.step(history, EOS)[0]) if ending else (-np.inf, -np.inf))
            for word, target, am in leaving[state]:
                score, following = lm.step(history, words.words[word])
                found = numbers[target].setdefault(following, n_found)
                n_found += found == n_found
                arcs.append((number, found, word, am, score))
    place = np.empty(n_found, np.int64)
    place[order] = np.arange(n_found)
    columns = np.array(arcs, np.float64).reshape(-1, 5).T
    src, dst, word_ids = columns[:3].astype(np.int64)
    finals = np.array(ends, np.float64).T
    return WordLattice(place[src], place[dst], word_ids, columns[3], columns[4], finals[0], finals[1])


def prune(lattice: WordLattice, acoustic_scale: float, beam: float) -> WordLattice:
    """Remove arcs and states that no path within ``beam`` of the best one uses."""
    score = acoustic_scale * lattice.am + lattice.lm
    final = acoustic_scale * lattice.final_am + lattice.final_lm
    through = _through(lattice.src, lattice.dst, score, final)
    # The best path may be the empty one, which has no arc.
    arcs = through >= max(through.max(initial=-np.inf), final[0]) - beam
    kept = np.union1d([0], np.concatenate((lattice.src[arcs], lattice.dst[arcs])))
    number = np.full(len(final), -1)
    number[kept] = np.arange(len(kept))
    return WordLattice(
        number[lattice.src[arcs]],
        number[lattice.dst[arcs]],
        lattice.word[arcs],
        lattice.am[arcs],
        lattice.lm[arcs],
        lattice.final_am[kept],
        lattice.final_lm[kept],
    )


def best_paths(lattice: WordLattice, n: int, words: SymbolTable, acoustic_scale: float) -> list[Hyp]:
    """The ``n`` best word sequences (fewer if the lattice has fewer), best first.

    Scores are summed in float64 along each path; hypotheses are ordered by ``acoustic_scale * am + lm``.
    """
    cost = -(acoustic_scale * lattice.am + lattice.lm)
    final = -(acoustic_scale * lattice.final_am + lattice.final_lm)
    # Arc numbers as labels tell the paths; 0 would be epsilon.
    numbers = np.arange(1, len(cost) + 1)
    fst = arrays_to_fst(
        Arcs(
            lattice.src,
            numbers,
            numbers,
            lattice.dst,
            cost[:, None].astype(np.float32),
            final[:, None].astype(np.float32),
            0,
        )
    )
    hyps = []
    for linear in kaldifst.convert_nbest_to_vector(kaldifst.shortest_path(fst, n=n)):
        arcs = np.array(kaldifst.get_linear_symbol_sequence(linear)[1], np.int64) - 1
        end = lattice.dst[arcs[-1]] if len(arcs) else 0
        am = float(lattice.am[arcs].sum() + lattice.final_am[end])
        lm = float(lattice.lm[arcs].sum() + lattice.final_lm[end])
        hyps.append(Hyp(" ".join(words.words[int(w)] for w in lattice.word[arcs]), am, lm))
    return sorted(hyps, key=lambda hyp: (-(acoustic_scale * hyp.am + hyp.lm), hyp.text))


def to_kaldi(utt: str, lattice: WordLattice) -> Lattice:
    """As a Kaldi `CompactLattice`: minus the scores, acoustic scale 1, no transition-ids."""
    ends = np.flatnonzero(lattice.final_am > -np.inf)
    return Lattice(
        utt=utt,
        n_states=len(lattice.final_am),
        start=0,
        src=lattice.src.astype(np.int32),
        dst=lattice.dst.astype(np.int32),
        labels=lattice.word.astype(np.int32),
        graph=-lattice.lm,
        acoustic=-lattice.am,
        strings=[()] * len(lattice.src),
        final_states=ends.astype(np.int32),
        final_graph=-lattice.final_lm[ends],
        final_acoustic=-lattice.final_am[ends],
        final_strings=[()] * len(ends),
    )
