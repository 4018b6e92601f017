"""Decoding graphs: CTC topology o lexicon o n-gram model, by kaldilm and kaldifst.

The construction is that of Mohri, Pereira and Riley 2008, "Speech recognition with weighted finite-state
transducers", section 3, with the CTC topology of Miao et al. 2015 (EESEN), section 3.2, in place of the
HMM. Input label k + 1 of the graph is class k of the acoustic model (0 is epsilon), output labels are the
numbers of `words.txt`, weights are minus natural logs.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import kaldifst
import kaldilm
import numpy as np

from mpq.fst.fsa import Ints
from mpq.fst.native import Arcs, arrays_to_fst, fst_to_arrays, read_fst, silent_stderr, write_fst
from mpq.fst.units import Units
from mpq.io import BadInput, PathLike, SymbolTable, read_symbols
from mpq.lang.arpa import read_arpa
from mpq.lang.lexicon import Lexicon

GRAPH_NAME = "HLG.fst"
_BACKOFF = "#0"
# Weights that differ by less are merged; larger values save little and shift scores.
_DELTA = 1e-4


def build_graph(lexicon: Lexicon, folder: PathLike, arpa: PathLike, units: Units | None = None) -> Any:
    """Compose the decoding graph of a lexicon and an n-gram model, and save it as `HLG.fst`.

    Args:
        lexicon: pronunciations; words that the n-gram model does not have are not in the graph.
        folder: where `words.txt` is and `HLG.fst` goes.
        arpa: n-gram model.
        units: what the acoustic model tells apart; the phones by default.

    Returns:
        The graph, a `kaldifst.StdVectorFst`.

    Raises:
        BadInput: a word of the n-gram model without a pronunciation, or a broken ARPA file.
    """
    words = read_symbols(Path(folder) / "words.txt")
    missing = sorted(read_arpa(arpa).words - set(lexicon.words))
    if missing:
        raise BadInput(
            f"{arpa}: {len(missing)} of its words have no pronunciation ({', '.join(missing[:5])}); "
            "build the lexicon from the n-gram model's text"
        )
    grammar = _grammar(arpa, Path(folder))
    lexicon_fst = arrays_to_fst(lexicon_transducer(lexicon, words))
    kaldifst.arcsort(lexicon_fst, sort_type="olabel")
    kaldifst.arcsort(grammar, sort_type="ilabel")
    graph = kaldifst.compose(lexicon_fst, grammar)
    kaldifst.determinize_star(graph, delta=_DELTA)
    kaldifst.minimize_encoded(graph, delta=_DELTA)
    graph = compose_ctc(graph, units or Units(lexicon.phones))
    write_fst(graph, Path(folder) / GRAPH_NAME)
    return graph


def load_graph(folder: PathLike) -> Any:
    """Read the graph of a folder made by :func:`build_graph`."""
    return read_fst(Path(folder) / GRAPH_NAME)


def _grammar(arpa: PathLike, folder: Path) -> Any:
    """The n-gram model as an acceptor with `#0` on back-off arcs."""
    with tempfile.TemporaryDirectory() as scratch, silent_stderr():
        path = Path(scratch) / "G.fst"
        try:
            kaldilm.arpa2fst(
                str(arpa), str(path), disambig_symbol=_BACKOFF, read_symbol_table=str(folder / "words.txt")
            )
        except RuntimeError as error:
            raise BadInput(f"{arpa}: kaldilm cannot make a graph of it: {str(error).splitlines()[-1]}") from None
        return read_fst(path)


def lexicon_transducer(lexicon: Lexicon, words: SymbolTable) -> Arcs:
    """Phones to words, any number of words, with markers that keep equal pronunciations apart.

    Input labels are phone classes; those above the number of phones P are markers: P + 1 is `#0` (the
    n-gram model's back-off passes through), P + 1 + k is the k-th word of one pronunciation, added where a
    pronunciation has several words or begins another one (Mohri et al. 2008, section 3.2).
    """
    n_phones = len(lexicon.phones)
    entries = [(word, tuple(variant)) for word in lexicon.words for variant in lexicon.pronunciations(word)]
    uses = Counter(variant for _, variant in entries)
    beginnings = {variant[:i] for variant in uses for i in range(1, len(variant))}
    told_apart: Counter[tuple[int, ...]] = Counter()
    arcs = [(0, n_phones + 1, words.ids[_BACKOFF], 0)]
    n_states = 1
    for word, variant in entries:
        labels = list(variant)
        if uses[variant] > 1 or variant in beginnings:
            told_apart[variant] += 1
            labels.append(n_phones + 1 + told_apart[variant])
        path = [0, *range(n_states, n_states + len(labels) - 1), 0]
        n_states += len(labels) - 1
        outputs = [words.ids[word]] + [0] * (len(labels) - 1)
        arcs += zip(path[:-1], labels, outputs, path[1:], strict=True)
    src, ilabel, olabel, dst = np.array(arcs, np.int64).T
    final = np.full((n_states, 1), np.inf, np.float32)
    final[0] = 0
    return Arcs(src, ilabel, olabel, dst, np.zeros((len(src), 1), np.float32), final, 0)


def compose_ctc(graph: Any, units: Units) -> Any:
    """Put the CTC topology over an acoustic model's units before a transducer over phones; markers become epsilons."""
    arcs = fst_to_arrays(graph)
    arcs.ilabel[arcs.ilabel > len(units.phones)] = 0
    graph = arrays_to_fst(arcs)
    kaldifst.arcsort(graph, sort_type="ilabel")
    topology = _biphone_topology(units) if units.biphones else _ctc_topology(len(units.phones))
    composed = kaldifst.compose(topology, graph)
    kaldifst.connect(composed)
    kaldifst.arcsort(composed, sort_type="ilabel")
    return composed


def _ctc_topology(n_phones: int) -> Any:
    """Frames (class + 1) to phones: state p means that the last frame was class p, 0 the blank."""
    state = np.arange(n_phones + 1)
    src, dst = np.repeat(state, n_phones + 1), np.tile(state, n_phones + 1)
    # Entering another phone writes it; staying in one, and blanks, write nothing.
    return _topology(src, dst, dst + 1, np.where(src == dst, 0, dst), n_phones + 1)


def _biphone_topology(units: Units) -> Any:
    """Frames to phones through left biphones: the CTC topology and the context transducer in one.

    State l of 0..P means that the last frame was a blank and the last phone l (0: none yet), state P + u that the
    last frame was unit u. A phone that follows itself twice is the same unit again and needs a blank between.
    """
    n_phones = len(units.phones)
    after = np.arange(n_phones + 1)  # the last phone, in the blank states
    unit = np.arange(1, len(units) + 1)
    left, phone = (grid.ravel() for grid in np.meshgrid(after, np.arange(1, n_phones + 1), indexing="ij"))
    within, then = np.repeat(unit, n_phones), np.tile(np.arange(1, n_phones + 1), len(unit))
    following = units.unit(units.phone(within), then)
    other = following != within
    within, then, following = within[other], then[other], following[other]
    parts = (
        (after, after, np.ones_like(after), np.zeros_like(after)),  # hold a blank
        (left, n_phones + units.unit(left, phone), units.unit(left, phone) + 1, phone),  # blank to unit
        (n_phones + unit, n_phones + unit, unit + 1, np.zeros_like(unit)),  # hold a unit
        (n_phones + unit, units.phone(unit), np.ones_like(unit), np.zeros_like(unit)),  # unit to blank
        (n_phones + within, n_phones + following, following + 1, then),  # unit to unit
    )
    src, dst, ilabel, olabel = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _topology(src, dst, ilabel, olabel, n_phones + 1 + len(unit))


def _topology(src: Ints, dst: Ints, ilabel: Ints, olabel: Ints, n_states: int) -> Any:
    """A transducer without weights in which every state is final, ready to be composed with what reads its output."""
    zeros = np.zeros((len(src), 1), np.float32)
    topology = arrays_to_fst(Arcs(src, ilabel, olabel, dst, zeros, np.zeros((n_states, 1), np.float32), 0))
    kaldifst.arcsort(topology, sort_type="olabel")
    return topology
