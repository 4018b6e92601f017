"""Word error rate and alignment, against NIST sclite and kaldialign."""

from __future__ import annotations

import random
import sys
import tracemalloc
from pathlib import Path

import kaldialign
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.io import BadInput
from mpq.score import (
    Pair,
    WerResult,
    align,
    align_all,
    bootstrap_interval,
    count,
    speaker_counts,
    total,
    utterance_counts,
    wer,
    write_alignments,
    write_confusions,
)
from tests.score.sctk import CASES, Sctk, texts

WORDS = st.lists(st.sampled_from("abc"), max_size=9)


@pytest.mark.parametrize("case", CASES)
def test_every_alignment_is_sclites(sctk: Sctk, case: str) -> None:
    ref, hyp, _ = texts(case)
    ops = {utt: "".join(pair.op for pair in pairs) for utt, pairs in align_all(ref, hyp).items()}
    assert ops == sctk.alignments(ref, hyp)


@pytest.mark.parametrize("case", CASES)
def test_summary_line_is_sclites(sctk: Sctk, case: str) -> None:
    ref, hyp, _ = texts(case)
    result = wer(ref, hyp)
    assert (result.words, result.subs, result.dels, result.ins, result.errors) == sctk.raw_counts(ref, hyp)


@given(ref=WORDS, hyp=WORDS)
def test_alignment_is_whole_and_of_least_cost(ref: list[str], hyp: list[str]) -> None:
    pairs = align(ref, hyp)
    assert [pair.ref for pair in pairs if pair.ref is not None] == ref
    assert [pair.hyp for pair in pairs if pair.hyp is not None] == hyp
    for op, left, right in pairs:
        assert op == ("I" if left is None else "D" if right is None else "C" if left == right else "S")
    best = kaldialign.edit_distance(ref, hyp, sclite_mode=True)
    result = count(pairs)
    cost = 3 * (result.ins + result.dels) + 4 * result.subs
    assert cost == 3 * (best["ins"] + best["del"]) + 4 * best["sub"]


def test_ties_are_broken_as_sclite_does() -> None:
    assert [pair.op for pair in align(list("acbc"), list("abb"))] == list("CDCS")
    assert align(["a"], ["b", "c"]) == [Pair("I", None, "b"), Pair("S", "a", "c")]
    assert align([], []) == []


def test_long_utterances_are_aligned_as_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of numpy against the loop over words, ties included, on made-up texts of few and many words."""
    module, rng = sys.modules["mpq.score.align"], random.Random(0)
    for _ in range(2000):
        words = "abcdefghijklmnopqrst"[: rng.choice([1, 2, 3, 20])]
        ref, hyp = (rng.choices(words, k=rng.randrange(25)) for _ in range(2))
        if rng.random() < 0.5:
            hyp = [rng.choice(words) if rng.random() < 0.3 else word for word in ref if rng.random() < 0.9]
        monkeypatch.setattr(module, "_LONG", 1000)
        expected = align(ref, hyp)
        monkeypatch.setattr(module, "_LONG", 0)
        assert align(ref, hyp) == expected


def test_a_long_recording_as_one_utterance_takes_little_memory() -> None:
    rng = random.Random(0)
    ref, hyp = ([str(rng.randrange(50)) for _ in range(1500)] for _ in range(2))
    tracemalloc.start()
    pairs = align(ref, hyp)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs) >= 1500 and peak < 1500 * 1500  # bytes; a list of lists has eight each


def test_result_prints_as_kaldis() -> None:
    result = WerResult(words=997, ins=10, dels=20, subs=93)
    assert str(result) == "%WER 12.34 [ 123 / 997, 10 ins, 20 del, 93 sub ]"
    assert result + WerResult(words=3) == WerResult(words=1000, ins=10, dels=20, subs=93)


def test_empty_references() -> None:
    assert wer({"u": []}, {"u": []}).rate == 0.0
    assert wer({"u": []}, {"u": ["a"]}).rate == float("inf")
    assert str(wer({"u": [], "v": ["a"]}, {"u": ["b"], "v": []})) == "%WER 200.00 [ 2 / 1, 1 ins, 1 del, 0 sub ]"


def test_different_utterances_are_listed_and_counted() -> None:
    ref = {f"u{i}": ["a"] for i in range(10)}
    hyp = {f"u{i}": ["a"] for i in (0, 1, 2, 3, 4, 11)}
    with pytest.raises(BadInput) as caught:
        wer(ref, hyp)
    assert str(caught.value) == (
        "the hypothesis lacks 5 utterances (u5, u6, u7 and 2 more) of the reference and has 1 utterance (u11) "
        "that the reference lacks; both need the same utterance ids"
    )


def test_speakers() -> None:
    counts = utterance_counts({"u1": ["a"], "u2": ["b"], "u3": ["c"]}, {"u1": ["a"], "u2": [], "u3": ["d"]})
    speakers = speaker_counts(counts, {"u1": "s1", "u2": "s2", "u3": "s1"})
    assert speakers == {"s1": WerResult(2, subs=1), "s2": WerResult(1, dels=1)}
    assert total(speakers.values()) == total(counts.values())
    with pytest.raises(BadInput, match="'u3' has no speaker"):
        speaker_counts(counts, {"u1": "s1", "u2": "s2"})


def test_kaldi_files(tmp_path: Path) -> None:
    alignments = align_all({"u1": ["the", "cat", "sat"], "u2": []}, {"u1": ["a", "the", "cap"], "u2": []})
    write_alignments(tmp_path / "per_utt", alignments)
    assert (tmp_path / "per_utt").read_text().splitlines() == [
        "u1 ref  ***  the  cat  sat",
        "u1 hyp  a    the  ***  cap",
        "u1 op   I    C    D    S",
        "u1 #csid 1 1 1 1",
        "u2 ref",
        "u2 hyp",
        "u2 op",
        "u2 #csid 0 0 0 0",
    ]
    write_confusions(tmp_path / "ops", alignments)
    assert [line.split() for line in (tmp_path / "ops").read_text().splitlines()] == [
        ["correct", "the", "the", "1"],
        ["deletion", "cat", "***", "1"],
        ["insertion", "***", "a", "1"],
        ["substitution", "sat", "cap", "1"],
    ]


def test_bootstrap_is_kaldialigns() -> None:
    """Both are estimates by chance: they agree within the chance of 10,000 draws."""
    ref, hyp, _ = texts("many words")
    low, high = bootstrap_interval(utterance_counts(ref, hyp).values())
    theirs = kaldialign.bootstrap_wer_ci(list(ref.values()), [hyp[utt] for utt in ref], seed=1)
    assert low == pytest.approx(100 * theirs["ci95min"], abs=0.2)
    assert high == pytest.approx(100 * theirs["ci95max"], abs=0.2)
    assert low < wer(ref, hyp).rate < high


def test_bootstrap_is_repeatable_and_takes_edge_cases() -> None:
    counts = [WerResult(words=n, subs=n % 3) for n in range(1, 40)]
    assert bootstrap_interval(counts, seed=3) == bootstrap_interval(counts, seed=3)
    assert bootstrap_interval(counts, seed=3) != bootstrap_interval(counts, seed=4)
    narrow, wide = bootstrap_interval(counts, level=0.5), bootstrap_interval(counts, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_interval([WerResult(words=5, subs=1)]) == (20.0, 20.0)
    assert bootstrap_interval([]) == bootstrap_interval([WerResult()]) == (0.0, 0.0)
