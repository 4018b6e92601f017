"""Linear interpolation of back-off n-gram models into one, with weights found by EM on held-out text.

The models are tries of sorted arrays, so that models of tens of millions of n-grams take some 30 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mpq.io import BadInput, PathLike, atomic_write
from mpq.lang.arpa import BOS, EOS, arpa_entries

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Vocabulary = dict[str, int]
_NEVER = -99.0 * np.log(10)  # how ARPA files write the logarithm of 0
_WORDS = 1 << 31  # above every word number
_EMPTY = 1e-6  # mass of a history below which nothing is left to give away


class NgramTrie:
    """A back-off n-gram model as sorted arrays; n-gram number i of order n stands at index i of ``keys[n - 1]``.

    Attributes:
        keys: of each order, ``parent * 2^31 + word``, ascending; the parent is the number of the first n - 1 words.
        log_prob, backoff: natural logarithms, of each order, in the order of ``keys``.
    """

    def __init__(self, keys: list[Ints], log_prob: list[Floats], backoff: list[Floats]) -> None:
        self.keys, self.log_prob, self.backoff = keys, log_prob, backoff

    @property
    def order(self) -> int:
        """Largest n."""
        return len(self.keys)

    def rows(self) -> list[Ints]:
        """The words of all n-grams, of each order (N, n)."""
        rows = [self.keys[0][:, None]]
        for keys in self.keys[1:]:
            parent, word = np.divmod(keys, _WORDS)
            rows.append(np.column_stack([rows[-1][parent], word]))
        return rows

    def find(self, rows: Ints) -> Ints:
        """Numbers (N,) of n-grams given as word numbers (N, n); -1 where the model does not list one."""
        node = np.zeros(len(rows), np.int64)
        for keys, words in zip(self.keys, rows.T, strict=False):
            wanted = node * _WORDS + words  # below every key where the node is -1
            place = np.searchsorted(keys, wanted)
            place[place == len(keys)] = 0
            node = np.where(keys[place] == wanted, place, -1)
        return node

    def score(self, rows: Ints) -> Floats:
        """Natural-log probability (N,) of the last word of each row (N, n) after the words before it.

        Minus infinity where the model does not have the word.
        """
        length = rows.shape[1]
        if length > self.order:
            return self.score(rows[:, length - self.order :])
        node = self.find(rows)
        result = np.where(node >= 0, self.log_prob[length - 1][node], -np.inf)
        missing = np.flatnonzero(node < 0)
        if length > 1 and len(missing):
            history = self.find(rows[missing, :-1])
            weight = np.where(history >= 0, self.backoff[length - 2][history], 0.0)
            result[missing] = weight + self.score(rows[missing, 1:])
        return result


def read_trie(path: PathLike, vocabulary: Vocabulary) -> NgramTrie:
    """Read an ARPA file; new words are appended to ``vocabulary``.

    Args:
        path: the file, gzip by suffix.
        vocabulary: numbers of words, shared by the models that are to be mixed.

    Raises:
        BadInput: a broken file (see `arpa_entries`), an n-gram whose beginning is not listed, or one listed twice.
    """
    columns: list[tuple[list[int], list[float], list[float]]] = []
    for ngram, value, weight in arpa_entries(path):
        n = len(ngram)
        if n > len(columns) + 1:
            raise BadInput(f"{path}: {n}-grams without {n - 1}-grams before them; the file is damaged")
        if n > len(columns):
            columns.append(([], [], []))
        words, values, weights = columns[n - 1]
        words.extend(vocabulary.setdefault(word, len(vocabulary)) for word in ngram)
        values.append(value)
        weights.append(0.0 if weight is None else weight)
    model = NgramTrie([], [], [])
    for n, (words, values, weights) in enumerate(columns, start=1):
        rows = np.array(words, np.int64).reshape(-1, n)
        parent = model.find(rows[:, :-1]) if n > 1 else np.zeros(len(rows), np.int64)
        key = parent * _WORDS + rows[:, -1]
        by_key = np.argsort(key, kind="stable")
        model.keys.append(key[by_key])
        model.log_prob.append(np.array(values)[by_key])
        model.backoff.append(np.array(weights)[by_key])
        _check_order(path, n, model.keys[-1], rows, parent, vocabulary)
    return model


def _check_order(path: PathLike, n: int, keys: Ints, rows: Ints, parent: Ints, vocabulary: Vocabulary) -> None:
    """Refuses n-grams that no trie can hold."""
    names = list(vocabulary)
    for bad in rows[parent < 0][:1]:
        words = " ".join(names[word] for word in bad)
        raise BadInput(f"{path}: {n}-gram {words!r} is listed and its first {n - 1} words are not; the file is damaged")
    if (keys[1:] == keys[:-1]).any():
        raise BadInput(f"{path}: a {n}-gram is listed twice; the file is damaged")


def held_out_rows(sentences: Iterable[Sequence[str]], order: int, vocabulary: Vocabulary) -> list[Ints]:
    """Every word and sentence end of a text with the words before it, as arrays (N, n) for n = 1 to ``order``.

    New words are appended to ``vocabulary``.
    """
    rows: list[list[list[int]]] = [[] for _ in range(order)]
    for sentence in sentences:
        numbers = [vocabulary.setdefault(word, len(vocabulary)) for word in (BOS, *sentence, EOS)]
        for end in range(2, len(numbers) + 1):
            row = numbers[max(0, end - order) : end]
            rows[len(row) - 1].append(row)
    return [np.array(some, np.int64).reshape(-1, n) for n, some in enumerate(rows, start=1)]


def em_weights(log_probs: Floats, tolerance: float = 1e-6) -> Floats:
    """Interpolation weights (K,) that maximize the likelihood of a text; they sum to 1.

    Expectation maximization (Jelinek and Mercer 1980, "Interpolated estimation of Markov source parameters from
    sparse data"): w_k <- mean over t of w_k p_k(t) / sum_j w_j p_j(t). The likelihood is concave in the weights, so
    that the best ones are found from any start.

    Args:
        log_probs: natural-log probability of each word by each model (T, K); words that no model has are left out.
        tolerance: iteration ends where no weight moves by more than this part of one.
    """
    known = log_probs[np.isfinite(log_probs).any(axis=1)]
    if not len(known):
        raise BadInput("no word of the held-out text is in any of the models; is it text of the same language?")
    probs = np.exp(known - known.max(axis=1, keepdims=True))
    weights = np.full(probs.shape[1], 1 / probs.shape[1])
    for _ in range(10000):
        joint = probs * weights
        updated = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
        moved = np.abs(updated - weights).max()
        weights = updated
        if moved < tolerance:
            break
    return np.asarray(weights)


def interpolate(models: Sequence[NgramTrie], weights: Sequence[float], bos: int) -> NgramTrie:
    """One back-off model of all n-grams that any of ``models`` lists, each with the exact interpolated probability.

    Back-off weights are those that make the probabilities after every history sum to 1.

    Args:
        models: word numbers mean the same in all of them.
        weights: of the models, sum 1.
        bos: number of ``<s>``, which is never predicted.
    """
    union = NgramTrie(_union_keys(models), [], [])
    for n, rows in enumerate(union.rows(), start=1):
        scores = np.full(len(rows), -np.inf)
        for model, weight in zip(models, weights, strict=True):
            if weight > 0:
                scores = np.logaddexp(scores, np.log(weight) + model.score(rows))
        scores[rows[:, -1] == bos] = _NEVER
        union.log_prob.append(np.maximum(scores, _NEVER))
        if n > 1:
            union.backoff.append(_backoff_weights(union, rows))
    return union


def _union_keys(models: Sequence[NgramTrie]) -> list[Ints]:
    """The keys of each order of a model that lists all n-grams of ``models``."""
    keys: list[Ints] = []
    places = [np.zeros(1, np.int64) for _ in models]  # where the n-grams of each model stand in the union
    for n in range(max(model.order for model in models)):
        moved = []
        for model, place in zip(models, places, strict=True):
            parent, word = np.divmod(model.keys[n] if n < model.order else np.zeros(0, np.int64), _WORDS)
            moved.append(place[parent] * _WORDS + word)
        keys.append(np.unique(np.concatenate(moved)))
        places = [np.searchsorted(keys[-1], wanted) for wanted in moved]
    return keys


def _backoff_weights(union: NgramTrie, rows: Ints) -> Floats:
    """Back-off weights of the histories of n-grams ``rows`` (N, n), the longest that have probabilities so far."""
    n = rows.shape[1]
    parent = union.keys[n - 1] // _WORDS
    n_histories = len(union.keys[n - 2])
    left = 1 - np.bincount(parent, np.exp(union.log_prob[n - 1]), n_histories)
    owed = 1 - np.bincount(parent, np.exp(union.score(rows[:, 1:])), n_histories)
    weights = np.log(np.maximum(left, _EMPTY) / np.maximum(owed, _EMPTY))
    weights[left < _EMPTY] = _NEVER
    weights[owed < _EMPTY] = 0.0  # every word is listed after this history: nothing backs off
    return np.asarray(weights)


def write_arpa(path: PathLike, model: NgramTrie, words: Sequence[str]) -> None:
    """Write a model as an ARPA file, gzip by suffix.

    Args:
        path: file to write.
        model: what to write.
        words: names of the word numbers.
    """
    with atomic_write(path) as file:
        file.write("\\data\\\n")
        for n, keys in enumerate(model.keys, start=1):
            file.write(f"ngram {n}={len(keys)}\n")
        for n, rows in enumerate(model.rows(), start=1):
            file.write(f"\n\\{n}-grams:\n")
            values = model.log_prob[n - 1] / np.log(10)
            tails = _backoff_column(model, n)
            for row, value, tail in zip(rows.tolist(), values.tolist(), tails, strict=True):
                file.write(f"{value:.7f}\t{' '.join(words[word] for word in row)}{tail}\n")
        file.write("\n\\end\\\n")


def _backoff_column(model: NgramTrie, n: int) -> list[str]:
    """What stands behind the n-grams of one order: a weight where longer ones begin with it, even if it is 0."""
    column = [""] * len(model.keys[n - 1])
    if n < model.order:
        for number in np.unique(model.keys[n] // _WORDS).tolist():
            column[number] = f"\t{model.backoff[n - 1][number] / np.log(10):.7f}"
    return column


def mix_arpa(paths: Sequence[PathLike], sentences: Sequence[Sequence[str]], out: PathLike) -> list[float]:
    """Interpolate ARPA models, with the weights that suit a held-out text best, into the ARPA file ``out``.

    Args:
        paths: the models, at least two.
        sentences: text that none of the models was trained on.
        out: file to write.

    Returns:
        The weights of the models.
    """
    vocabulary: Vocabulary = {BOS: 0, EOS: 1}
    for word in chain.from_iterable(sentences):
        vocabulary.setdefault(word, len(vocabulary))
    models = [read_trie(path, vocabulary) for path in paths]
    rows = held_out_rows(sentences, max(model.order for model in models), vocabulary)
    scores = np.column_stack([np.concatenate([model.score(some) for some in rows]) for model in models])
    weights = em_weights(scores)
    write_arpa(out, interpolate(models, weights.tolist(), vocabulary[BOS]), list(vocabulary))
    return [float(weight) for weight in weights]
