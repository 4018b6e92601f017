"""Tuned weights are the best of the smoothed grid, by brute force."""

from __future__ import annotations

from dataclasses import astuple, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mpq.io import BadInput, Hyp, NBest
from mpq.rescore import Weights, best_texts, oracle, rerank, tune
from mpq.rescore.combine import error_count
from mpq.rescore.tune import SHARES, TOTALS, WORD_BONUSES, ErrorSurface, smooth

WORDS = ["a", "b", "c", "d"]


def made_up(seed: int, with_lm: bool = True) -> tuple[list[NBest], dict[str, list[str]]]:
    """Lists of different lengths whose scores say something about the errors."""
    rng = np.random.default_rng(seed)
    nbests, refs = [], {}
    for u in range(25):
        ref = list(rng.choice(WORDS, rng.integers(1, 7)))
        hyps = []
        for _ in range(rng.integers(1, 12)):
            hyp = [str(rng.choice(WORDS)) if rng.random() < 0.3 else str(word) for word in ref if rng.random() < 0.9]
            wrong = abs(len(ref) - len(hyp)) + sum(a != b for a, b in zip(ref, hyp, strict=False))
            am, lm, nnlm = (float(-wrong + rng.normal() * spread) for spread in (3.0, 3.0, 1.0))
            hyps.append(Hyp(" ".join(hyp), am, lm, nnlm if with_lm else None))
        nbests.append(NBest(f"u{u}", hyps))
        refs[f"u{u}"] = [str(word) for word in ref]
    return nbests, refs


def errors_of(nbests: list[NBest], refs: dict[str, list[str]], weights: Weights) -> int:
    best = best_texts(rerank(nbest, weights) for nbest in nbests)
    return sum(error_count(words, " ".join(best[utt])) for utt, words in refs.items())


@pytest.mark.parametrize("seed", range(5))
def test_surface_equals_reranking_and_scoring(seed: int) -> None:
    nbests, refs = made_up(seed)
    surface = ErrorSurface(nbests, refs)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        weights = Weights(*map(float, rng.normal(size=3)))
        assert surface.errors(weights) == errors_of(nbests, refs, weights)


def test_smoothing_is_a_weighted_mean_of_the_points_around() -> None:
    errors = np.random.default_rng(3).integers(0, 50, (4, 1, 6)).astype(float)
    weights = {-2: 1 / 16, -1: 4 / 16, 0: 6 / 16, 1: 4 / 16, 2: 1 / 16}
    found = smooth(errors)
    for a, b, c in np.ndindex(errors.shape):
        around = [
            weights[i] * weights[k] * errors[min(max(a + i, 0), 3), b, min(max(c + k, 0), 5)]
            for i, k in product(weights, weights)
        ]
        assert found[a, b, c] == pytest.approx(sum(around))


def test_a_good_region_wins_over_a_lucky_point() -> None:
    errors = np.full((1, 1, 12), 20.0)
    errors[0, 0, 2], errors[0, 0, 6:11] = 9.0, 10.0
    assert errors.argmin() == 2 and smooth(errors).argmin() == 8


def weights_at(share: float, total: float, bonus: float, unit: float = 1.0) -> Weights:
    return Weights(unit * total * (1 - share), unit * total * share, unit * bonus)


@pytest.mark.parametrize("with_lm", [True, False])
def test_tuning_finds_the_least_smoothed_errors(with_lm: bool) -> None:
    nbests, refs = made_up(25, with_lm)
    tuned = tune(nbests, refs)
    axes = (SHARES if with_lm else (0.0,), TOTALS, WORD_BONUSES)
    surface = ErrorSurface(nbests, refs)
    points = {point: surface.errors(weights_at(*point)) for point in product(*axes)}
    errors = np.reshape(list(points.values()), tuple(map(len, axes))).astype(float)
    assert (surface.grid(axes[0], 1.0) == errors).all()
    smoothed = dict(zip(points, smooth(errors).ravel(), strict=True))
    best = [weights_at(*point) for point, value in smoothed.items() if value <= min(smoothed.values()) + 1e-9]
    assert tuned.weights == min(best, key=lambda w: (sum(map(abs, astuple(w))), astuple(w)))
    assert tuned.errors == errors_of(nbests, refs, tuned.weights)
    assert tuned.rate == pytest.approx(100 * tuned.errors / sum(map(len, refs.values())))
    assert tune(nbests, refs) == tuned
    if not with_lm:
        assert tuned.weights.lm_weight == 0.0
    assert oracle(nbests, refs).errors <= tuned.errors


@pytest.mark.parametrize("scale", [0.125, 8.0])
def test_acoustic_scores_of_another_scale(scale: float) -> None:
    nbests, refs = made_up(25)
    scaled = [NBest(n.utt, [replace(hyp, am=scale * hyp.am) for hyp in n.hyps]) for n in nbests]
    usual, found = tune(nbests, refs), tune(scaled, refs)
    assert found.errors <= usual.errors * 1.15
    assert found.weights.lm_weight / usual.weights.lm_weight == pytest.approx(scale, rel=0.7)


def test_ties_go_to_the_smallest_weights() -> None:
    nbests = [NBest("u", [Hyp("a b", -1.0, -1.0, -1.0), Hyp("a", -9.0, -9.0, -9.0)])]
    assert tune(nbests, {"u": ["a", "b"]}).weights == Weights(0.0, 0.0, 0.0)


def test_the_useful_score_gets_the_weight() -> None:
    nbests = [
        NBest("u1", [Hyp("a b", -1.0, -1.0, -9.0), Hyp("a c", -2.0, -1.0, -1.0)]),
        NBest("u2", [Hyp("d", -1.0, -1.0, -8.0), Hyp("c", -2.0, -1.0, -1.0)]),
    ]
    tuned = tune(nbests, {"u1": ["a", "c"], "u2": ["c"]})
    assert tuned.errors == 0
    assert tuned.weights.lm_weight > 1 / 7


def test_oracle_finds_the_best_of_each_list() -> None:
    nbests = [NBest("u1", [Hyp("a b", 0.0, 0.0), Hyp("a c", 0.0, 0.0)]), NBest("u2", [Hyp("", 0.0, 0.0)])]
    result = oracle(nbests, {"u1": ["a", "c"], "u2": ["d"]})
    assert (result.errors, result.dels, result.words) == (1, 1, 3)


def test_rerank_sorts_and_keeps_ties_in_order() -> None:
    nbest = NBest("u", [Hyp("a", -1.0, 0.0), Hyp("b", -1.0, 0.0), Hyp("c d", 0.0, -2.0)])
    ranked = rerank(nbest, Weights(ngram_weight=1.0, word_bonus=0.25))
    assert [hyp.text for hyp in ranked.hyps] == ["a", "b", "c d"]
    assert [hyp.score for hyp in ranked.hyps] == [-0.75, -0.75, -1.5]


def test_weights_file(tmp_path: Path) -> None:
    weights = Weights(0.125, 0.3, -1.5)
    weights.write(tmp_path / "w.yaml")
    assert Weights.read(tmp_path / "w.yaml") == weights


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lm_wieght: 1", "unknown key 'lm_wieght'"),
        ("lm_weight: high", "expected a finite number"),
        ("lm_weight: 1" + "0" * 400, "expected a finite number"),
        ("", "holds no weights; expected ngram_weight"),
        ("lm_weight: .nan", "finite"),
    ],
)
def test_bad_weights_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "w.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        Weights.read(tmp_path / "w.yaml")


def test_scores_of_some_hypotheses_only_are_refused() -> None:
    nbests, refs = made_up(0)
    utt, hyps = nbests[7].utt, nbests[7].hyps
    nbests[7] = NBest(utt, [replace(hyps[0], nnlm=None), *hyps[1:]])
    with pytest.raises(BadInput, match=rf"^utterance '{utt}': a hypothesis has no nnlm, but \d+ of \d+ have one; give"):
        tune(nbests, refs)


def test_bad_lists() -> None:
    with pytest.raises(BadInput, match="utterance 'u': the n-best list is empty"):
        rerank(NBest("u", []), Weights())
    with pytest.raises(BadInput, match="give --lm"):
        rerank(NBest("u", [Hyp("a", 0.0, 0.0)]), Weights(lm_weight=0.5))
    with pytest.raises(BadInput, match="v"):
        tune([NBest("u", [Hyp("a", 0.0, 0.0)])], {"v": ["a"]})
