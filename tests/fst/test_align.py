"""Forced alignment, against every path of small problems."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from mpq.fst.align import align_words, best_path
from mpq.fst.fsa import ctc_graph, pronunciation_graph
from mpq.fst.units import Units


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(unit for i, unit in enumerate(path) if unit and (i == 0 or unit != path[i - 1]))


@pytest.mark.parametrize("seed", range(8))
def test_the_best_of_all_paths(seed: int) -> None:
    words = [[[1], [1, 2]], [[2, 1]], [[1, 1]]][: 2 + seed % 2]
    log_probs = np.log(np.random.default_rng(seed).dirichlet([1, 1, 1], 7)).astype(np.float32)
    sentences = {tuple(p for variant in chosen for p in variant) for chosen in product(*words)}
    paths = [path for path in product(range(3), repeat=7) if collapse(path) in sentences]
    best = max(paths, key=lambda path: sum(float(log_probs[t, unit]) for t, unit in enumerate(path)))
    assert tuple(best_path(log_probs, ctc_graph(pronunciation_graph(words))).tolist()) == best  # type: ignore[union-attr]


def certain(path: list[int], n_units: int) -> np.ndarray:  # type: ignore[type-arg]
    """Log-probabilities that are sure of a path."""
    return np.log(np.full((len(path), n_units), 0.01) + np.eye(n_units)[path]).astype(np.float32)


def test_words_last_from_their_first_to_their_last_phone() -> None:
    units = Units(["a", "b"])
    words = [[[1, 2], [1]], [[2]], [[2, 1]]]
    # a variant is told by what follows: the first word is "a b" here, and "a" below
    assert align_words(certain([0, 1, 2, 0, 2, 2, 0, 2, 0, 1], 3), words, units) == [(1, 3), (4, 6), (7, 10)]
    assert align_words(certain([1, 1, 0, 2, 0, 0, 2, 1, 1, 0], 3), words, units) == [(0, 2), (3, 4), (6, 9)]


def test_biphones() -> None:
    units = Units(["a", "b"], biphones=True)
    path = [units.unit(0, 1), 0, units.unit(1, 1), units.unit(1, 2), units.unit(1, 2)]
    assert align_words(certain(path, len(units) + 1), [[[1]], [[1, 2]]], units) == [(0, 1), (2, 5)]


def test_no_words_and_too_few_frames() -> None:
    units = Units(["a"])
    assert align_words(certain([0, 0], 2), [], units) == []
    assert align_words(certain([1, 1], 2), [[[1]], [[1]]], units) is None  # equal phones need a blank between them
    assert align_words(certain([], 2), [[[1]]], units) is None
