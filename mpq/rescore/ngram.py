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
from mpq.lang.arpa import BOS, EOS, History, NgramLm, find_unknown, read_arpa, read_vocabulary, stand_in
from mpq.rescore.lattices import topological


def read_needed_arpa(path: PathLike, lists: Iterable[NBest]) -> NgramLm:
    """The part of an n-gram model that scores these lists; their scores are those of the whole model.

    Args:
        path: ARPA file, gzip by suffix.
        lists: n-best lists, read once.

    Raises:
        BadInput: no ARPA file, or as `occurring`.
    """
    order, words = read_vocabulary(path)
    return read_arpa(path, occurring(lists, order, words))


def read_lattices_arpa(path: PathLike, lattices: Iterable[Lattice], words: SymbolTable) -> NgramLm:
    """As `read_needed_arpa`, for word lattices."""
    order, known = read_vocabulary(path)
    return read_arpa(path, occurring_in_lattices(lattices, words, order, known))


class _Seen:
    """Words that were seen, as a model has them: those that it does not have are its `<unk>`.

    Args:
        words: of the model.
    """

    def __init__(self, words: set[str]) -> None:
        self._words, self._unknown = words, find_unknown(words)
        self._seen: dict[str, str] = {}

    def known(self, word: str, utt: str) -> str:
        """What stands for `word`, which is of utterance `utt`."""
        if word not in self._seen:
            try:
                self._seen[word] = stand_in(word, self._words, self._unknown)
            except BadInput as error:
                raise BadInput(f"--arpa: utterance {utt!r}: {error}") from None
        return self._seen[word]

    def check(self) -> None:
        """Refuses a model that lacks most of the words: it is one of words in another writing."""
        lacking = [word for word, found in self._seen.items() if word != found]
        if len(lacking) > len(self._seen) / 2:
            raise BadInput(
                f"--arpa: {len(lacking)} of {len(self._seen)} words are not in the n-gram model, e.g. {lacking[0]!r}; "
                "expected a model of the words that were recognized (upper or lower case?)"
            )


def occurring(lists: Iterable[NBest], order: int, known: set[str]) -> set[History]:
    """All n-grams of 2 to `order` words of the hypotheses, `<s>` and `</s>` included, as a model of `known` sees them.

    Raises:
        BadInput: the model lacks a word and has no `<unk>`, or it lacks most of the words.
    """
    found: set[History] = set()
    seen = _Seen(known)
    for nbest in lists:
        for hyp in nbest.hyps:
            words = (BOS, *(seen.known(word, nbest.utt) for word in split_words(hyp.text)), EOS)
            for n in range(2, order + 1):
                found.update(zip(*(words[i:] for i in range(n)), strict=False))
    seen.check()
    return found


def occurring_in_lattices(lattices: Iterable[Lattice], words: SymbolTable, order: int, known: set[str]) -> set[History]:
    """As `occurring`, of all paths of word lattices."""
    found: set[History] = set()
    seen = _Seen(known)

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
                    after = add((*history, seen.known(words.words[label], lattice.utt))) if label else history
                    reached.setdefault(int(lattice.dst[arc]), set()).add(after)
                if state in finals:
                    add((*history, EOS))
    seen.check()
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
        yield NBest(nbest.utt, [replace(hyp, lm=lm.score(split_words(hyp.text))) for hyp in nbest.hyps])
