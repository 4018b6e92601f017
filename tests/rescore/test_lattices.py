"""Rescored lattices against brute force over all paths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpq.data.lmtext import Tokenizer
from mpq.io import BadInput, Lattice, LatticeBuilder, SymbolTable, read_lattices, write_lattices
from mpq.lm import LanguageModel
from mpq.rescore import Weights
from mpq.rescore.lattices import LatticeScoring, best_words, rescore_lattices

from .conftest import WORDS, alone

WEIGHTS = Weights(ngram_weight=0.7, lm_weight=0.4, word_bonus=0.3)


@pytest.fixture
def symbols() -> SymbolTable:
    return SymbolTable((word, number) for number, word in enumerate(["<eps>", *WORDS]))


def made_up(utt: str, seed: int, n_states: int = 7) -> Lattice:
    """A random lattice: word and epsilon arcs forward, dead ends, several final states."""
    rng = np.random.default_rng(seed)
    builder = LatticeBuilder(utt)
    builder.add_state(0)
    for src in range(n_states - 1):
        for _ in range(int(rng.integers(1, 4))):
            dst = int(rng.integers(src + 1, min(src + 3, n_states)))
            label = int(rng.integers(0, 5))
            builder.add_arc(src, dst, label, (float(rng.normal()), float(rng.normal()), (1,) * (dst - src)))
    builder.set_final(n_states - 1, (0.5, 0.25, ()))
    builder.set_final(n_states - 2, (float(rng.normal()), 0.0, (2,)))
    builder.add_arc(1, n_states, 1, (0.0, 0.0, ()))  # a dead end
    return builder.build()


def all_paths(lattice: Lattice, symbols: SymbolTable) -> Iterator[tuple[str, float, float]]:
    """Words, graph cost and acoustic cost of every complete path."""
    finals = {int(state): i for i, state in enumerate(lattice.final_states)}

    def follow(state: int, words: list[str], graph: float, acoustic: float) -> Iterator[tuple[str, float, float]]:
        if state in finals:
            i = finals[state]
            yield " ".join(words), graph + lattice.final_graph[i], acoustic + lattice.final_acoustic[i]
        for arc in np.flatnonzero(lattice.src == state):
            label = int(lattice.labels[arc])
            more = [*words, symbols.words[label]] if label else words
            yield from follow(int(lattice.dst[arc]), more, graph + lattice.graph[arc], acoustic + lattice.acoustic[arc])

    return follow(lattice.start, [], 0.0, 0.0)


def expected(model: LanguageModel, units: Tokenizer, lattice: Lattice, symbols: SymbolTable) -> list[tuple[str, float]]:
    """Words and combined cost of every path, the language model asked for each alone."""
    result = []
    for text, graph, acoustic in all_paths(lattice, symbols):
        bonus = WEIGHTS.word_bonus * len(text.split())
        lm = WEIGHTS.lm_weight * alone(model, units, text)
        result.append((text, acoustic + WEIGHTS.ngram_weight * graph - lm - bonus))
    return sorted(result)


@pytest.mark.parametrize("seed", range(3))
def test_exact_above_the_longest_path(any_lm: LanguageModel, units: Tokenizer, symbols: SymbolTable, seed: int) -> None:
    lattices = [made_up(f"u{i}", 10 * seed + i) for i in range(3)]
    scoring = LatticeScoring(WEIGHTS, merge_order=9)
    for lattice, rescored in zip(lattices, rescore_lattices(any_lm, units, lattices, symbols, scoring), strict=True):
        want = expected(any_lm, units, lattice, symbols)
        got = sorted((text, graph + acoustic) for text, graph, acoustic in all_paths(rescored, symbols))
        assert [text for text, _ in got] == [text for text, _ in want]
        assert [cost for _, cost in got] == pytest.approx([cost for _, cost in want], abs=1e-4)
        best, cost = min(want, key=lambda item: item[1])
        ties = {text for text, other in want if other < cost + 1e-4}
        assert best in ties and " ".join(best_words(rescored, symbols)) in ties
        assert rescored.utt == lattice.utt


@pytest.mark.parametrize("order", [1, 2, 3])
def test_merging_keeps_the_paths_and_bounds_the_states(
    any_lm: LanguageModel, units: Tokenizer, symbols: SymbolTable, order: int
) -> None:
    lattice = made_up("u", 3, n_states=12)
    exact, merged = (
        next(iter(rescore_lattices(any_lm, units, [lattice], symbols, LatticeScoring(WEIGHTS, merge_order=n))))
        for n in (13, order)
    )
    texts = sorted(text for text, _, _ in all_paths(lattice, symbols))
    assert sorted(text for text, _, _ in all_paths(merged, symbols)) == texts
    assert merged.n_states < exact.n_states
    if order == 1:
        assert merged.n_states <= lattice.n_states
    acoustic = sorted(cost for _, _, cost in all_paths(lattice, symbols))
    assert sorted(cost for _, _, cost in all_paths(merged, symbols)) == pytest.approx(acoustic)


def test_beam_keeps_the_paths_within_it(any_lm: LanguageModel, units: Tokenizer, symbols: SymbolTable) -> None:
    lattice = made_up("u", 5, n_states=9)
    scoring = LatticeScoring(Weights(ngram_weight=1.0, lm_weight=0.5), merge_order=10, beam=1.5)
    (pruned,) = rescore_lattices(any_lm, units, [lattice], symbols, scoring)
    (whole,) = rescore_lattices(any_lm, units, [lattice], symbols, replace(scoring, beam=None))
    first_pass = [(text, graph + acoustic) for text, graph, acoustic in all_paths(lattice, symbols)]
    best = min(cost for _, cost in first_pass)
    left = [text for text, _, _ in all_paths(pruned, symbols)]
    assert len(left) < len(first_pass) and pruned.n_arcs < whole.n_arcs
    for text, cost in first_pass:
        if cost <= best + 1.5:
            assert text in left


def test_files(any_lm: LanguageModel, units: Tokenizer, symbols: SymbolTable, tmp_path: Path) -> None:
    (rescored,) = rescore_lattices(any_lm, units, [made_up("u", 1)], symbols, LatticeScoring(WEIGHTS))
    write_lattices(tmp_path / "lat.gz", [rescored])
    (again,) = read_lattices(tmp_path / "lat.gz", symbols)
    assert best_words(again, symbols) == best_words(rescored, symbols)
    assert again.strings == rescored.strings and again.final_strings == rescored.final_strings


def broken(kind: str) -> Lattice:
    builder = LatticeBuilder("u")
    builder.add_arc(0, 1, 1, (0.0, 0.0, ()))
    if kind == "cycle":
        builder.add_arc(1, 0, 1, (0.0, 0.0, ()))
    if kind == "out of reach":
        builder.set_final(2, (0.0, 0.0, ()))
    elif kind != "no final state":
        builder.set_final(1, (0.0, 0.0, ()))
    return builder.build()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no final state", "utterance 'u': its lattice has no final state"),
        ("out of reach", "utterance 'u': its lattice has no path to a final state"),
        ("cycle", "utterance 'u': its lattice has a cycle"),
    ],
)
def test_broken_lattices(
    any_lm: LanguageModel, units: Tokenizer, symbols: SymbolTable, kind: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        list(rescore_lattices(any_lm, units, [broken(kind)], symbols, LatticeScoring(WEIGHTS)))


def test_options(any_lm: LanguageModel, units: Tokenizer, symbols: SymbolTable) -> None:
    with pytest.raises(BadInput, match="grows beyond 20 arcs when histories of 8 words"):
        scoring = LatticeScoring(WEIGHTS, merge_order=9, max_arcs=20)
        list(rescore_lattices(any_lm, units, [made_up("u", 1, n_states=12)], symbols, scoring))
    with pytest.raises(BadInput, match="--beam: nan must be above 0"):
        LatticeScoring(WEIGHTS, beam=math.nan)
    with pytest.raises(BadInput, match="--merge-order: 0 must be at least 1"):
        LatticeScoring(WEIGHTS, merge_order=0)
