"""MAPSSWE against NIST sc_stats, to every printed digit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.io import BadInput
from mpq.score import MapssweResult, mapsswe, wer
from tests.score.sctk import CASES, Sctk, texts

SENTENCES = st.lists(st.lists(st.sampled_from("ab"), max_size=6), min_size=1, max_size=8)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equal_to_sc_stats(sctk: Sctk, case: str, swap: bool) -> None:
    ref, hyp_a, hyp_b = texts(case)
    if swap:
        hyp_a, hyp_b = hyp_b, hyp_a
    result = mapsswe(ref, hyp_a, hyp_b)
    theirs, p, better = sctk.mapsswe(ref, hyp_a, hyp_b)
    assert line(result, len(ref)) == theirs
    # sc_stats looks p up in a table, for |Z| cut to two digits behind the point
    cut = math.floor(100 * abs(result.z)) / 100
    table_p = math.erfc(cut / math.sqrt(2))
    assert p == ("<0.001" if table_p < 0.001 else f"{table_p:.3f}")
    verdict = result.verdict()
    assert verdict == (f"{better} is significantly better than {'B' if better == 'A' else 'A'} at 0.05" if better else
                       "no significant difference at 0.05")  # fmt: skip


def line(result: MapssweResult, sentences: int) -> str:
    """The numbers of sc_stats's machine-readable line."""
    return (
        f"(# segs: {result.segments}) (Seg per Sent: {result.segments / sentences:5.3f}) "
        f"(% Error: {100 * result.errors_a / result.words:5.2f} {100 * result.errors_b / result.words:5.2f}) "
        f"(mean: {result.mean:5.3f}) (std dev: {result.std:5.3f}) (Z Stat: {result.z:5.3f})"
    )


def test_a_segment_ends_where_both_have_two_words_right() -> None:
    ref = {"u": list("abcdefghij")}
    # errors at c (A) and h (B): f, g between them are right in both, so are d, e
    result = mapsswe(ref, {"u": list("abXdefghij")}, {"u": list("abcdefgXij")})
    assert (result.segments, result.errors_a, result.errors_b, result.mean) == (2, 1, 1, 0.0)
    # only d is right between the errors at c and e: one segment
    result = mapsswe(ref, {"u": list("abXdefghij")}, {"u": list("abcdXfghij")})
    assert (result.segments, result.words, result.errors_a, result.errors_b) == (1, 7, 1, 1)


def test_an_insertion_between_right_words_keeps_the_segment_open() -> None:
    ref = {"u": list("abcdef")}
    result = mapsswe(ref, {"u": list("aXbYcdef")}, {"u": list("abcdef")})
    assert (result.segments, result.errors_a, result.errors_b) == (1, 2, 0)


@given(ref=SENTENCES, data=st.data())
def test_swapping_the_systems_changes_the_sign_only(ref: list[list[str]], data: st.DataObject) -> None:
    sizes = st.lists(st.lists(st.sampled_from("ab"), max_size=6), min_size=len(ref), max_size=len(ref))
    texts_ = [dict(enumerate(rows)) for rows in (ref, data.draw(sizes), data.draw(sizes))]
    named = [{str(utt): words for utt, words in rows.items()} for rows in texts_]
    forth, back = mapsswe(named[0], named[1], named[2]), mapsswe(named[0], named[2], named[1])
    assert (forth.mean, forth.z, forth.p) == pytest.approx((-back.mean, -back.z, back.p))
    assert (forth.segments, forth.errors_a, forth.errors_b) == (back.segments, back.errors_b, back.errors_a)
    assert (forth.errors_a, forth.errors_b) == (wer(named[0], named[1]).errors, wer(named[0], named[2]).errors)


def test_equal_systems_and_no_errors() -> None:
    ref = {"u": ["a", "b"], "v": []}
    assert mapsswe(ref, ref, ref) == MapssweResult(0, 0, 0, 0, 0.0, 0.0, 0.0, 1.0)
    wrong = {"u": ["a", "c"], "v": []}
    assert mapsswe(ref, wrong, wrong).p == 1.0


def test_p_is_two_sided() -> None:
    ref = {f"u{i}": ["a"] for i in range(100)}
    hyp = {utt: ["b"] if i < 60 else ["a"] for i, utt in enumerate(ref)}
    other = {utt: ["b"] if i >= 60 else ["a"] for i, utt in enumerate(ref)}
    result = mapsswe(ref, hyp, other)
    std = math.sqrt((100 - 100 * 0.2**2) / 99)
    assert result.z == pytest.approx(0.2 / (std / 10))
    assert result.p == pytest.approx(math.erfc(result.z / math.sqrt(2)))
    assert result.verdict(names=("base", "new")) == "new is significantly better than base at 0.05"
    assert result.verdict(0.01) == "no significant difference at 0.01"


def test_different_utterances() -> None:
    with pytest.raises(BadInput, match=r"hypothesis B lacks 1 utterance \(u\) of the reference"):
        mapsswe({"u": []}, {"u": []}, {})
