"""Scores of another n-gram model in the place of the first pass's: a large one over what a pruned one found.

A first pass needs its n-gram model as a graph, which must be pruned to be small; what it found is rescored with the
whole model (Kaldi's `lmrescore_const_arpa.sh`). Of an ARPA file of gigabytes only those n-grams are kept that occur
there: no other one can change a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from mpq.io import BadInput, Lattice, NBest, PathLike, SymbolTable, split_words
from mpq.lang.arpa import BOS, EOS, History, NgramLm, read_arpa, read_order
from mpq.rescore.lattices import topological


def read_needed_arpa(path: PathLike, lists: Iterable[NBest]) -> NgramLm:
    """The part of an n-gram model that scores these lists; their scores are those of the whole model.

    Args:
        path: ARPA file, gzip by suffix.
        lists: n-best lists, read once.
    """
    return read_arpa(path, occurring(lists, read_order(path)))


def read_lattices_arpa(path: PathLike, lattices: Iterable[Lattice], words: SymbolTable) -> NgramLm:
    """As `read_needed_arpa`, for word lattices."""
    return read_arpa(path, occurring_in_lattices(lattices, words, read_order(path)))


def occurring(lists: Iterable[NBest], order: int) -> set[History]:
    """All n-grams of 2 to `order` words of the hypotheses, `<s>` and `</s>` included."""
    found: set[History] = set()
    for nbest in lists:
        for hyp in nbest.hyps:
            words = (BOS, *split_words(hyp.text), EOS)
            for n in range(2, order + 1):
                found.update(zip(*(words[i:] for i in range(n)), strict=False))
    return found


def occurring_in_lattices(lattices: Iterable[Lattice], words: SymbolTable, order: int) -> set[History]:
    """As `occurring`, of all paths of word lattices."""
    found: set[History] = set()

    def add(ngram: History) -> History:
        found.update(ngram[i:] for i in range(len(ngram) - 1))
        return ngram[max(0, len(ngram) - order + 1) :]

    for lattice in lattices:
        states, leaving = topological(lattice)
        finals = set(lattice.final_states.tolist())
        reached: dict[int, set[History]] = {lattice.start: {(BOS,)}}
        for state in states:
            for history in reached.pop(state, ()):
                for arc in leaving[state]:
                    label = int(lattice.labels[arc])
                    after = add((*history, words.words[label])) if label else history
                    reached.setdefault(int(lattice.dst[arc]), set()).add(after)
                if state in finals:
                    add((*history, EOS))
    return found


def replace_lattice_scores(lattice: Lattice, lm: NgramLm, words: SymbolTable) -> Lattice:
    """A word lattice whose graph costs are those of another n-gram model, states told apart by its histories.

    What else the graph costs held is lost: those of `mpq decode` hold nothing else.

    Raises:
        BadInput: a word that the model does not have; a lattice without a final state or with a cycle.
    """
    states, leaving = topological(lattice)
    finals = {state: place for place, state in enumerate(lattice.final_states.tolist())}
    reached: dict[int, dict[History, int]] = {lattice.start: {lm.start: 0}}  # histories, numbered as they are found
    done: list[int] = []
    arcs: list[tuple[int, int, int, float]] = []
    ends: list[tuple[int, int, float]] = []
    n_found = 1
    for state in states:
        for history, here in reached.pop(state, {}).items():
            done.append(here)
            for arc in leaving[state]:
                label = int(lattice.labels[arc])
                score, after = lm.step(history, words.words[label]) if label else (0.0, history)
                there = reached.setdefault(int(lattice.dst[arc]), {}).setdefault(after, n_found)
                n_found += there == n_found
                arcs.append((here, there, arc, -score))
            if state in finals:
                ends.append((here, finals[state], -lm.step(history, EOS)[0]))
    rank = np.empty(n_found, np.int32)
    rank[done] = np.arange(n_found)  # topological
    src, dst, arc_numbers = np.array([arc[:3] for arc in arcs], np.int64).reshape(-1, 3).T
    final_states, places = np.array([end[:2] for end in ends], np.int64).T
    return replace(
        lattice,
        n_states=n_found,
        start=0,
        src=rank[src],
        dst=rank[dst],
        labels=lattice.labels[arc_numbers],
        graph=np.array([arc[3] for arc in arcs], np.float64),
        acoustic=lattice.acoustic[arc_numbers],
        strings=[lattice.strings[arc] for arc in arc_numbers],
        final_states=rank[final_states],
        final_graph=np.array([end[2] for end in ends], np.float64),
        final_acoustic=lattice.final_acoustic[places],
        final_strings=[lattice.final_strings[place] for place in places],
    )


def replace_ngram_scores(lists: Iterable[NBest], lm: NgramLm) -> Iterator[NBest]:
    """The lists with `lm` scores of another n-gram model.

    Raises:
        BadInput: a word that the model does not have.
    """
    for nbest in lists:
        try:
            hyps = [replace(hyp, lm=lm.score(split_words(hyp.text))) for hyp in nbest.hyps]
        except BadInput as error:
            raise BadInput(f"--arpa: utterance {nbest.utt!r}: {error}") from None
        yield NBest(nbest.utt, hyps)
