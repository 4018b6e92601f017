"""Scores of another n-gram model in the place of the first pass's: a large one over the lists of a pruned one.

A first pass needs its n-gram model as a graph, which must be pruned to be small; lists are rescored with the whole
model (as Kaldi's `lmrescore_const_arpa.sh` does with lattices). Of an ARPA file of gigabytes only those n-grams are
kept that occur in the lists: no other one can change a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mpq.io import NBest, PathLike, split_words
from mpq.lang.arpa import BOS, EOS, History, NgramLm, read_arpa, read_order


def read_needed_arpa(path: PathLike, lists: Iterable[NBest]) -> NgramLm:
    """The part of an n-gram model that scores these lists; their scores are those of the whole model.

    Args:
        path: ARPA file, gzip by suffix.
        lists: n-best lists, read once.
    """
    return read_arpa(path, occurring(lists, read_order(path)))


def occurring(lists: Iterable[NBest], order: int) -> set[History]:
    """All n-grams of 2 to `order` words of the hypotheses, `<s>` and `</s>` included."""
    found: set[History] = set()
    for nbest in lists:
        for hyp in nbest.hyps:
            words = (BOS, *split_words(hyp.text), EOS)
            for n in range(2, order + 1):
                found.update(zip(*(words[i:] for i in range(n)), strict=False))
    return found


def replace_ngram_scores(lists: Iterable[NBest], lm: NgramLm) -> Iterator[NBest]:
    """The lists with `lm` scores of another n-gram model.

    Raises:
        BadInput: a word that the model does not have.
    """
    for nbest in lists:
        yield NBest(nbest.utt, [replace(hyp, lm=lm.score(split_words(hyp.text))) for hyp in nbest.hyps])
