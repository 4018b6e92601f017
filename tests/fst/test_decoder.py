"""Graph and decoder against exhaustive search, and what they do with unusual input."""

from __future__ import annotations

from pathlib import Path

import kaldifst
import numpy as np
import numpy.typing as npt
import pytest

from mpq.fst import paths
from mpq.fst.decoder import Decoder, DecoderConfig
from mpq.fst.graph import GRAPH_NAME, build_graph, load_graph
from mpq.fst.native import arrays_to_fst, fst_to_arrays
from mpq.io import BadInput, read_lattices, read_symbols, write_lattices
from mpq.lang.arpa import NgramLm
from mpq.lang.lexicon import Lexicon

from .tiny import all_hypotheses, make_decoder, write_language


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lexicon, NgramLm]:
    folder = tmp_path_factory.mktemp("lang")
    return (folder, *write_language(folder))


def random_scores(seed: int, n_frames: int, sharpness: float = 1.5) -> npt.NDArray[np.float32]:
    """Log-probabilities of blank, x, y, z."""
    logits = sharpness * np.random.default_rng(seed).normal(size=(n_frames, 4))
    return np.asarray(logits - np.log(np.exp(logits).sum(1, keepdims=True)), np.float32)


@pytest.mark.parametrize(("seed", "scale"), [(0, 1.0), (1, 0.6), (2, 2.0)])
def test_all_hypotheses_and_scores_equal_exhaustive_search(
    language: tuple[Path, Lexicon, NgramLm], seed: int, scale: float
) -> None:
    folder, lexicon, lm = language
    scores = random_scores(seed, 5)
    expected = all_hypotheses(lexicon, lm, scores.astype(np.float64))
    result = make_decoder(folder, lm, acoustic_scale=scale).decode("u", scores)
    assert result.problem is None
    assert {hyp.text for hyp in result.nbest.hyps} == set(expected) and len(result.nbest.hyps) == len(expected) > 400
    for hyp in result.nbest.hyps:
        assert (hyp.am, hyp.lm) == pytest.approx(expected[hyp.text], abs=2e-4)
    totals = [scale * hyp.am + hyp.lm for hyp in result.nbest.hyps]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] == pytest.approx(max(scale * am + lm for am, lm in expected.values()), abs=2e-4)


def test_hundred_best_are_the_first_hundred_of_all(language: tuple[Path, Lexicon, NgramLm]) -> None:
    folder, lexicon, lm = language
    scores = random_scores(3, 5)
    expected = sorted(
        (am + lm_score for am, lm_score in all_hypotheses(lexicon, lm, scores.astype(np.float64)).values()),
        reverse=True,
    )[:100]
    hyps = make_decoder(folder, lm, n_best=100).decode("u", scores).nbest.hyps
    assert len(hyps) == len({hyp.text for hyp in hyps}) == 100
    np.testing.assert_allclose([hyp.am + hyp.lm for hyp in hyps], expected, atol=2e-4)


def test_lattice_beam_keeps_what_is_within_it(language: tuple[Path, Lexicon, NgramLm]) -> None:
    folder, lexicon, lm = language
    scores = random_scores(4, 5, 3.0)
    totals = {
        text: am + lm_score for text, (am, lm_score) in all_hypotheses(lexicon, lm, scores.astype(np.float64)).items()
    }
    inside = {text for text, total in totals.items() if total > max(totals.values()) - 4}
    found = {hyp.text for hyp in make_decoder(folder, lm, lattice_beam=5).decode("u", scores).nbest.hyps}
    assert inside <= found and len(found) < len(totals)


def test_lattice_holds_the_hypotheses_and_survives_the_archive(
    language: tuple[Path, Lexicon, NgramLm], tmp_path: Path
) -> None:
    folder, _, lm = language
    result = make_decoder(folder, lm).decode("utt-1", random_scores(5, 5))
    assert result.lattice is not None
    write_lattices(tmp_path / "lat.gz", [result.lattice])
    (lattice,) = read_lattices(tmp_path / "lat.gz", read_symbols(folder / "words.txt"))
    assert lattice.utt == "utt-1"
    words = read_symbols(folder / "words.txt").words
    finals = dict(
        zip(lattice.final_states.tolist(), zip(lattice.final_graph, lattice.final_acoustic, strict=True), strict=True)
    )
    found: dict[str, tuple[float, float]] = {}

    def walk(state: int, text: list[str], graph: float, acoustic: float) -> None:
        if state in finals:
            found[" ".join(text)] = (-acoustic - finals[state][1], -graph - finals[state][0])
        for arc in np.flatnonzero(lattice.src == state):
            walk(
                int(lattice.dst[arc]),
                [*text, words[int(lattice.labels[arc])]],
                graph + lattice.graph[arc],
                acoustic + lattice.acoustic[arc],
            )

    walk(lattice.start, [], 0.0, 0.0)
    assert found.keys() == {hyp.text for hyp in result.nbest.hyps}
    for hyp in result.nbest.hyps:
        assert found[hyp.text] == pytest.approx((hyp.am, hyp.lm), abs=1e-4)


def test_large_lattices_are_reduced_and_keep_the_best_path(
    language: tuple[Path, Lexicon, NgramLm], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, lm = language
    scores = random_scores(6, 30)
    decoder = make_decoder(folder, lm, lattice_beam=8)
    full = decoder.decode("u", scores)
    monkeypatch.setattr(paths, "_MAX_ARCS", 300)
    monkeypatch.setattr(paths, "_MAX_STATES", 20)
    small = decoder.decode("u", scores)
    assert full.lattice is not None and small.lattice is not None
    assert small.lattice.n_arcs < full.lattice.n_arcs
    best, expected = small.nbest.hyps[0], full.nbest.hyps[0]
    assert (best.text, best.lm) == (expected.text, expected.lm) and best.am == pytest.approx(expected.am, abs=1e-4)


def test_no_surviving_path_is_an_empty_hypothesis_with_a_warning(language: tuple[Path, Lexicon, NgramLm]) -> None:
    folder, _, lm = language
    dead_end = kaldifst.compile("0 1 2 1\n1 2 3 0\n2\n", acceptor=False)  # two frames, no more
    decoder = Decoder(dead_end, lm, read_symbols(folder / "words.txt"), DecoderConfig())
    for scores in (random_scores(0, 3), np.zeros((0, 4), np.float32)):
        result = decoder.decode("u", scores)
        assert result.lattice is None and result.problem is not None and "empty" in result.problem
        (hyp,) = result.nbest.hyps
        assert hyp.text == "" and hyp.lm == pytest.approx(lm.score([])) and np.isfinite(hyp.am)


def test_zero_probabilities_give_finite_scores(language: tuple[Path, Lexicon, NgramLm]) -> None:
    folder, _, lm = language
    result = make_decoder(folder, lm, beam=11.0).decode("u", np.full((3, 4), -np.inf, np.float32))
    assert all(np.isfinite((hyp.am, hyp.lm)).all() for hyp in result.nbest.hyps)


def test_partial_paths_are_taken_with_a_warning(language: tuple[Path, Lexicon, NgramLm]) -> None:
    folder, _, lm = language
    no_end = kaldifst.compile("0 1 2 1\n1 1 3 0\n1 2 4 0\n2\n", acceptor=False)  # ends with class 3 only
    scores = np.log(np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]) * 0.97 + 0.01).astype(np.float32)
    decoder = Decoder(no_end, lm, read_symbols(folder / "words.txt"), DecoderConfig(beam=1.0))
    result = decoder.decode("u", scores)
    assert result.problem is not None and "partial" in result.problem
    assert result.nbest.hyps[0].text == "a" and result.lattice is not None


def test_a_model_that_knows_nothing_does_not_blow_up(language: tuple[Path, Lexicon, NgramLm]) -> None:
    folder, _, lm = language
    flat = np.full((200, 4), -np.log(4), np.float32)
    result = make_decoder(folder, lm, beam=11.0, lattice_beam=8.0, n_best=100).decode("u", flat)
    assert result.lattice is not None and result.lattice.n_arcs < 20_000


def test_nan_scores_are_refused(language: tuple[Path, Lexicon, NgramLm]) -> None:
    folder, _, lm = language
    with pytest.raises(BadInput, match=r"utterance u7: .* NaN"):
        make_decoder(folder, lm).decode("u7", np.full((3, 4), np.nan, np.float32))


@pytest.mark.parametrize("name", ["beam", "lattice_beam", "acoustic_scale", "n_best"])
def test_options_must_be_positive(language: tuple[Path, Lexicon, NgramLm], name: str) -> None:
    with pytest.raises(BadInput, match=f"{name}: 0 must be (above 0|at least 1)"):
        make_decoder(language[0], language[2], **{name: 0})


def test_graph_file_is_the_graph_that_was_built(language: tuple[Path, Lexicon, NgramLm], tmp_path: Path) -> None:
    folder, lexicon, _ = language
    lexicon.write(tmp_path)
    built = build_graph(lexicon, tmp_path, folder / "lm.arpa")
    assert built.to_str() == load_graph(folder).to_str()
    assert (tmp_path / GRAPH_NAME).read_bytes() == (folder / GRAPH_NAME).read_bytes()
    again = arrays_to_fst(fst_to_arrays(built))
    assert again.to_str() == built.to_str() and again.start == built.start


def test_word_of_the_model_without_pronunciation_is_named(
    language: tuple[Path, Lexicon, NgramLm], tmp_path: Path
) -> None:
    lexicon = Lexicon({"a": [["x"]], "b": [["y"]], "c": [["z"]], "bee": [["y"]]})
    lexicon.write(tmp_path)
    with pytest.raises(BadInput, match=r"1 of its words have no pronunciation \(d\)"):
        build_graph(lexicon, tmp_path, language[0] / "lm.arpa")


def test_graph_that_is_missing_or_no_graph(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"HLG.fst: no such file"):
        load_graph(tmp_path)
    (tmp_path / GRAPH_NAME).write_text("hello")
    with pytest.raises(BadInput, match=r"HLG.fst: is no OpenFst file"):
        load_graph(tmp_path)


def test_truncated_graph(language: tuple[Path, Lexicon, NgramLm], tmp_path: Path) -> None:
    data = (language[0] / GRAPH_NAME).read_bytes()
    (tmp_path / GRAPH_NAME).write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=r"HLG.fst: is cut off or damaged"):
        load_graph(tmp_path)


def test_decoders_share_nothing(language: tuple[Path, Lexicon, NgramLm]) -> None:
    folder, _, lm = language
    decoder: Decoder = make_decoder(folder, lm)
    first, second = random_scores(7, 5), random_scores(8, 5)
    alone = decoder.decode("u", first).nbest
    decoder.decode("v", second)
    assert decoder.decode("u", first).nbest == alone
