"""Left biphones: acceptors, decoding graph and decoder against enumeration; the file of a lang folder."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mpq.fst.fsa import Fsa, ctc_graph, pronunciation_graph
from mpq.fst.graph import build_graph
from mpq.fst.lfmmi import lfmmi_loss, total_score
from mpq.fst.phone_lm import apply_phone_ngram, estimate_phone_ngram
from mpq.fst.units import Units, read_units
from mpq.io import BadInput

from .tiny import make_decoder, write_language

PHONES = ["x", "y", "z"]
BIPHONES = Units(PHONES, biphones=True)


def best_path(graph: Fsa, log_probs: np.ndarray) -> float:
    """Score of the best path, by the Viterbi recursion."""
    score = np.full(len(graph.final), -np.inf)
    score[graph.start] = 0.0
    for frame in log_probs:
        following = np.full_like(score, -np.inf)
        np.maximum.at(following, graph.dst, score[graph.src] + graph.weight + frame[graph.label])
        score = following
    return float((score + graph.final).max())


def test_names_and_numbers() -> None:
    assert len(BIPHONES) == 12 and BIPHONES.names[:4] == ["<s>_x", "<s>_y", "<s>_z", "x_x"]
    for left, phone in itertools.product(range(4), range(1, 4)):
        unit = BIPHONES.unit(left, phone)
        assert BIPHONES.names[unit - 1] == f"{['<s>', *PHONES][left]}_{PHONES[phone - 1]}"
        assert BIPHONES.phone(unit) == phone
    plain = Units(PHONES)
    assert plain.names == PHONES and [plain.phone(p) for p in (1, 2, 3)] == [1, 2, 3] and plain.unit(2, 3) == 3


def paths(graph: Fsa, longest: int) -> dict[tuple[int, ...], float]:
    """Weights of all label sequences of at most `longest` arcs; each must have one path."""
    found: dict[tuple[int, ...], float] = {}
    queue: list[tuple[int, tuple[int, ...], float]] = [(graph.start, (), 0.0)]
    for state, labels, weight in queue:
        if graph.final[state] > -np.inf:
            assert labels not in found
            found[labels] = weight + float(graph.final[state])
        if len(labels) < longest:
            for arc in np.flatnonzero(graph.src == state):
                queue.append((int(graph.dst[arc]), (*labels, int(graph.label[arc])), weight + graph.weight[arc]))
    return found


def test_expansion_keeps_every_sequence_and_its_weight() -> None:
    model = estimate_phone_ngram([[1, 2, 2], [3, 1]], 3, order=2)
    transcript = pronunciation_graph([[[1], [2, 1]], [[1, 3], [3]]])
    for graph in (model.fsa, apply_phone_ngram(transcript, model)):
        plain, expanded = paths(graph, 4), paths(BIPHONES.expand(graph), 4)
        lefts = {labels: (0, *labels[:-1]) for labels in plain}
        expected = {tuple(map(BIPHONES.unit, lefts[labels], labels)): w for labels, w in plain.items()}
        assert expanded == pytest.approx(expected)
    assert Units(PHONES).expand(transcript) is transcript


def test_numerators_are_part_of_the_denominator() -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(2, 7, 13).log_softmax(-1)
    model = estimate_phone_ngram([[1, 2, 2], [3, 1]], 3, order=2)
    denominator = ctc_graph(BIPHONES.expand(model.fsa))
    sentences = [[[[1, 2, 2]]], [[[3], [2]], [[1]]]]
    numerators = [
        ctc_graph(BIPHONES.expand(apply_phone_ngram(pronunciation_graph(words), model))) for words in sentences
    ]
    lengths = torch.tensor([7, 6])
    assert (lfmmi_loss(log_probs, lengths, numerators, denominator) > 0).all()
    # All phone sequences that fit in four frames, each summed on its own.
    short, four = log_probs[:1, :4], torch.tensor([4])
    parts = []
    for length in range(5):
        for phones in itertools.product((1, 2, 3), repeat=length):
            one = Fsa.from_arcs([(i, i + 1, p, 0.0) for i, p in enumerate(phones)], {length: 0.0}, length + 1)
            graph = ctc_graph(BIPHONES.expand(apply_phone_ngram(one, model)))
            if graph.min_frames <= 4:
                parts.append(total_score(short, four, [graph]))
    assert total_score(short, four, denominator).item() == pytest.approx(torch.cat(parts).logsumexp(0).item(), rel=1e-5)


def test_decoder_finds_the_best_alignments_through_biphones(tmp_path: Path) -> None:
    lexicon, lm = write_language(tmp_path)
    units = Units(lexicon.phones, biphones=True)
    build_graph(lexicon, tmp_path, tmp_path / "lm.arpa", units)
    logits = 1.5 * np.random.default_rng(0).normal(size=(4, len(units) + 1))
    scores = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    expected = {}
    for length in range(5):
        for words in itertools.product(lexicon.words, repeat=length):
            graph = ctc_graph(units.expand(pronunciation_graph([lexicon.pronunciations(word) for word in words])))
            if graph.min_frames <= 4:
                expected[" ".join(words)] = (best_path(graph, scores.astype(np.float64)), lm.score(list(words)))
    hyps = make_decoder(tmp_path, lm).decode("u", scores).nbest.hyps
    assert len(hyps) > 100
    for hyp in hyps:
        assert (hyp.am, hyp.lm) == pytest.approx(expected[hyp.text], abs=2e-4)
    best = max(am + score for am, score in expected.values())
    assert hyps[0].am + hyps[0].lm == pytest.approx(best, abs=2e-4)


def test_file(tmp_path: Path) -> None:
    assert not read_units(tmp_path, PHONES).biphones  # folders made before there were units
    for units in (Units(PHONES), BIPHONES):
        units.write(tmp_path)
        read = read_units(tmp_path, PHONES)
        assert (read.names, read.biphones) == (units.names, units.biphones)
    with pytest.raises(BadInput, match=r"units.txt: 12 units that are neither the 2 phones of phones.txt nor"):
        read_units(tmp_path, PHONES[:2])
