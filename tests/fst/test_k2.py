"""The k2 back end against the native one and against enumeration, on the real k2; and what a broken k2 ends in."""

from __future__ import annotations

import sys
from pathlib import Path

import kaldifst
import numpy as np
import pytest
import torch

from mpq.am.decode import decode_set
from mpq.fst import backend
from mpq.fst.backend import check_backend, path_sums
from mpq.fst.decoder import Decoder, DecoderConfig
from mpq.fst.fsa import Fsa, ctc_graph, pronunciation_graph
from mpq.fst.lfmmi import lfmmi_loss, total_score
from mpq.fst.phone_lm import apply_phone_ngram, estimate_phone_ngram
from mpq.io import BadInput, NBest, read_lattices, read_nbest, read_symbols
from mpq.lang.arpa import NgramLm
from mpq.lang.lexicon import Lexicon
from mpq.rescore import best_words
from tests.am.test_decode import Features, Spelled
from tests.conftest import MpqCli

from .test_decoder import random_scores
from .test_lfmmi import SENTENCES, brute_force, random_graph
from .tiny import all_hypotheses, make_decoder, write_language


@pytest.mark.k2
def test_k2_of_the_environment_is_checked() -> None:
    check_backend("k2")


@pytest.mark.k2
@pytest.mark.parametrize("order", [1, 2, 3])
def test_loss_and_gradient_equal_native(order: int) -> None:
    model = estimate_phone_ngram(SENTENCES, 3, order)
    texts = [[[[1, 2], [3]], [[2]]], [[[3, 1]]], [[[2]], [[2]]]]
    numerators = [ctc_graph(apply_phone_ngram(pronunciation_graph(words), model)) for words in texts]
    torch.manual_seed(order)
    logits = torch.randn(3, 60, 4, requires_grad=True)
    lengths = torch.tensor([41, 60, 5])  # unsorted: k2 wants the longest first
    results = []
    for fst in ("native", "k2"):
        loss = lfmmi_loss(
            logits.log_softmax(-1), lengths, numerators, ctc_graph(model.fsa), 0.9, path_sums=path_sums(fst)
        )
        results.append((loss, *torch.autograd.grad(loss @ torch.tensor([1.0, -2.0, 0.5]), logits)))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.k2
@pytest.mark.parametrize("start", [0, 2])
def test_score_equals_enumeration_whatever_the_start_state(start: int) -> None:
    any_graph = random_graph(start)
    graph = Fsa(any_graph.src, any_graph.dst, any_graph.label, any_graph.weight, any_graph.final, start)
    log_probs = torch.randn(1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(start))
    score = total_score(log_probs, torch.tensor([5]), graph, path_sums("k2"))
    assert score.item() == pytest.approx(brute_force(log_probs[0], graph).item(), rel=1e-6)


@pytest.mark.k2
def test_too_few_frames_and_nan_are_named_as_by_the_native_one() -> None:
    graphs = [ctc_graph(pronunciation_graph([[phones]])) for phones in ([1, 2, 3], [1])]
    log_probs = torch.zeros(2, 4, 4)
    with pytest.raises(BadInput, match=r"utterance 0 of the batch has 2 frames.* needs at least 3"):
        total_score(log_probs, torch.tensor([2, 4]), graphs, path_sums("k2"))
    log_probs[1, 3] = torch.nan
    with pytest.raises(BadInput, match="utterance 1 of the batch: path sum is nan"):
        total_score(log_probs, torch.tensor([4, 4]), graphs, path_sums("k2"))
    log_probs[1, 3] = 0.0
    assert total_score(log_probs, torch.tensor([4, 3]), graphs, path_sums("k2")).isfinite().all()


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lexicon, NgramLm]:
    folder = tmp_path_factory.mktemp("lang")
    return (folder, *write_language(folder))


@pytest.mark.k2
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_all_hypotheses_and_scores_equal_exhaustive_search(
    language: tuple[Path, Lexicon, NgramLm], scale: float
) -> None:
    folder, lexicon, lm = language
    scores = random_scores(0, 5)
    expected = all_hypotheses(lexicon, lm, scores.astype(np.float64))
    result = make_decoder(folder, lm, acoustic_scale=scale, fst="k2").decode("u", scores)
    assert result.problem is None
    assert {hyp.text for hyp in result.nbest.hyps} == set(expected) and len(result.nbest.hyps) == len(expected) > 400
    for hyp in result.nbest.hyps:
        assert (hyp.am, hyp.lm) == pytest.approx(expected[hyp.text], abs=1e-3)


def within(nbest: NBest, beam: float) -> dict[str, tuple[float, float]]:
    """Scores of the hypotheses whose sum is not further than this from the best one's."""
    best = max(hyp.am + hyp.lm for hyp in nbest.hyps)
    return {hyp.text: (hyp.am, hyp.lm) for hyp in nbest.hyps if hyp.am + hyp.lm > best - beam}


def same(found: dict[str, tuple[float, float]], expected: dict[str, tuple[float, float]]) -> bool:
    """The same hypotheses, scores within 1e-3."""
    return found.keys() == expected.keys() and all(
        scores == pytest.approx(expected[text], abs=1e-3) for text, scores in found.items()
    )


@pytest.mark.k2
def test_lattices_and_lists_equal_native_within_the_beam(language: tuple[Path, Lexicon, NgramLm]) -> None:
    folder, _, lm = language
    options = {"beam": 12.0, "lattice_beam": 6.0, "n_best": 5000}
    decoders = [make_decoder(folder, lm, fst=fst, **options) for fst in ("native", "k2")]
    words = read_symbols(folder / "words.txt")
    for seed in range(4):
        native, k2 = (decoder.decode("u", random_scores(seed, 9, 3.0)) for decoder in decoders)
        assert len(within(native.nbest, 6.0)) > 5 and same(within(k2.nbest, 6.0), within(native.nbest, 6.0))
        assert k2.nbest.hyps[0].text == native.nbest.hyps[0].text
        assert native.lattice is not None and k2.lattice is not None
        assert best_words(k2.lattice, words) == best_words(native.lattice, words)


@pytest.mark.k2
def test_nothing_found_is_an_empty_hypothesis_with_a_warning(language: tuple[Path, Lexicon, NgramLm]) -> None:
    folder, _, lm = language
    dead_end = kaldifst.compile("0 1 2 1\n1 2 3 0\n2\n", acceptor=False)  # two frames, no more
    decoder = Decoder(dead_end, lm, read_symbols(folder / "words.txt"), DecoderConfig(fst="k2"))
    result = decoder.decode("u", random_scores(0, 3))
    assert result.lattice is None and result.problem is not None and result.nbest.hyps[0].text == ""
    assert decoder.decode("u", random_scores(0, 2)).nbest.hyps[0].text == "a"


@pytest.mark.k2
def test_processes_of_a_decode_have_a_k2_each(language: tuple[Path, Lexicon, NgramLm], tmp_path: Path) -> None:
    folder, _, lm = language
    check_backend("k2")  # as `mpq decode` does before it forks
    for fst in ("native", "k2"):
        decoder = make_decoder(folder, lm, beam=12.0, lattice_beam=6.0, fst=fst)
        decode_set(Spelled(), Features(50), decoder, tmp_path / fst, "key", 2)  # type: ignore[arg-type]
    native, k2 = (list(read_nbest(tmp_path / fst / "nbest.jsonl.gz")) for fst in ("native", "k2"))
    assert len(native) == 50
    for found, expected in zip(k2, native, strict=True):
        assert same(within(found, 6.0), within(expected, 6.0))
    lattices = [list(read_lattices(tmp_path / fst / "lat.gz")) for fst in ("native", "k2")]
    assert [lattice.utt for lattice in lattices[0]] == [lattice.utt for lattice in lattices[1]]


BROKEN = {
    "built for another torch": 'raise ImportError("k2 was built using PyTorch 1.13.1\\nBut you use 2.11.0")',
    "undefined symbol": 'raise OSError("libk2.so: undefined symbol: _ZN3c1010TensorImplE")',
    "no attribute": "another_package = True",
}


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder for sys.path with a broken k2."""
    (tmp_path / "site" / "k2").mkdir(parents=True)
    (tmp_path / "site" / "k2" / "__init__.py").write_text(BROKEN[request.param] + "\n")
    return tmp_path / "site"


@pytest.mark.parametrize("site", BROKEN, indirect=True)
def test_a_broken_k2_is_named(site: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(backend, "_adapters", {})
    with pytest.raises(BadInput, match=r"^--fst k2: the k2 that is installed does not work with torch .*utils/k2_env"):
        check_backend("k2")
    sys.modules.pop("k2", None)


@pytest.mark.parametrize("site", ["built for another torch"], indirect=True)
@pytest.mark.parametrize("command", ["train-am --train F --dev F", "decode --am F --features F"])
def test_commands_end_before_they_begin(site: Path, mpq_cli: MpqCli, command: str) -> None:
    env = {"PYTHONPATH": f"{site}:{Path(backend.__file__).parents[2]}"}
    done = mpq_cli(*command.split(), "--lang", "F", "--out", "O", "--fst", "k2", env=env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "k2 was built using PyTorch 1.13.1 But you use 2.11.0" in done.stderr


def test_no_k2_at_all_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backend, "_PYTHON", tmp_path / "python")
    monkeypatch.setattr(backend, "_adapters", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"k2 is not installed; run utils/k2_env.sh"):
        check_backend("k2")


@pytest.mark.parametrize("script", ["exit 3", "echo 'libk2: no' >&2; exit 1", "kill -9 $$"])
def test_a_process_of_k2_that_dies_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(backend, "_PYTHON", python)
    monkeypatch.setattr(backend, "_adapters", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = "libk2: no" if "libk2" in script else "ended with status"
    with pytest.raises(BadInput, match=f"--fst k2: .*{reason}"):
        check_backend("k2")
