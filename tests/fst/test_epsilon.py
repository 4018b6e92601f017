"""Removal of input epsilons against enumeration of all paths."""

from __future__ import annotations

import numpy as np
import pytest

from mpq.fst.epsilon import remove_epsilons
from mpq.fst.native import Arcs

Best = dict[tuple[tuple[int, ...], tuple[int, ...]], float]


def best_paths(
    arcs: list[tuple[int, int, tuple[int, ...], int, float]], final: dict[int, float], start: int, n_frames: int
) -> Best:
    """Lowest cost of each pair of classes and words; arcs are (source, class or -1, words, destination, cost)."""
    best: Best = {}

    def walk(state: int, labels: tuple[int, ...], words: tuple[int, ...], cost: float) -> None:
        if state in final:
            key = (labels, words)
            best[key] = min(best.get(key, np.inf), cost + final[state])
        for src, label, written, dst, weight in arcs:
            if src == state and len(labels) + (label >= 0) <= n_frames:
                walk(dst, (*labels, label) if label >= 0 else labels, words + written, cost + weight)

    walk(start, (), (), 0.0)
    return best


def random_transducer(seed: int) -> Arcs:
    """Epsilons lead to higher states only; the start is any state, and some arcs write words."""
    rng = np.random.default_rng(seed)
    n_states, n_arcs = 6, 18
    src, dst = rng.integers(0, n_states, (2, n_arcs))
    ilabel, olabel = rng.integers(0, 3, n_arcs), rng.integers(0, 3, n_arcs)
    ilabel[src >= dst] = np.maximum(ilabel[src >= dst], 1)
    final = np.full((n_states, 1), np.inf, np.float32)
    final[rng.integers(0, n_states, 3)] = rng.random((3, 1))
    weight = rng.normal(size=(n_arcs, 1)).astype(np.float32)
    return Arcs(src, ilabel, olabel, dst, weight, final, int(rng.integers(n_states)))


@pytest.mark.parametrize("seed", range(12))
def test_same_best_paths(seed: int) -> None:
    given = random_transducer(seed)
    columns = (given.src, given.ilabel - 1, given.olabel, given.dst, given.weight[:, 0])
    arcs = [(int(s), int(i), (int(o),) if o else (), int(d), float(w)) for s, i, o, d, w in zip(*columns, strict=True)]
    final = {int(state): float(given.final[state, 0]) for state in np.flatnonzero(given.final[:, 0] < np.inf)}
    expected = best_paths(arcs, final, given.start, 3)
    found = remove_epsilons(given)
    words = [tuple(found.words[a:b].tolist()) for a, b in zip(found.splits[:-1], found.splits[1:], strict=True)]
    columns = (found.src, found.label, words, found.dst, -found.score)
    end = int(found.dst[found.label < 0].max(initial=-1))
    ending = [(*row[:2], row[2], end, row[4]) for row in zip(*columns, strict=True) if row[1] < 0]
    emitting = [row for row in zip(*columns, strict=True) if row[1] >= 0]
    assert all(row[3] == end for row in zip(*columns, strict=True) if row[1] < 0)
    result = best_paths(emitting + ending, {end: 0.0}, 0, 3)
    assert result.keys() == expected.keys()
    for key, cost in expected.items():
        assert result[key] == pytest.approx(cost, abs=1e-5)


def test_a_cycle_of_epsilons_is_refused() -> None:
    zero = np.zeros(2, np.int64)
    cycle = Arcs(
        np.array([0, 1]), zero, zero, np.array([1, 0]), np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32), 0
    )
    with pytest.raises(ValueError, match="cycle"):
        remove_epsilons(cycle)
