"""Warnings of references and hypotheses that are written differently."""

from __future__ import annotations

from unicodedata import normalize

import pytest

from mpq.score import warn_writing

REF = "and the king said don't go up to the house of judah"


@pytest.mark.parametrize(
    ("hyp", "told"),
    [
        (REF, None),
        ("and a king said so don't go to house of jude", None),  # other words, and none at its place
        ("le roi est mort", None),
        ("And the King said: don't go up to the house of Judah.", "'And' for 'and': word error rate of 2 utterances"),
        (REF.upper(), "100.0 %, both in lower case 0.0 %"),
        ("and the king, said, don't go up to the house of judah.", "'king,' for 'king'"),
        ("and the king - said - don't go up to the house of judah", "'-' alone"),
    ],
)
def test_errors_by_writing_alone_are_told(hyp: str, told: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    for ref, other in ((REF, hyp), (REF.upper(), hyp.upper())) if told is None else ((REF, hyp),):
        warn_writing({"u1": ref.split(), "u2": []}, {"u2": [], "u1": other.split()}, "ref", "hyp.txt")
    warned = capsys.readouterr().err
    if told is None:
        assert warned == ""
    else:
        assert warned.startswith("warning: hyp.txt writes words otherwise than ref") and warned.count("\n") == 1
        assert told in warned


@pytest.mark.parametrize("swapped", [False, True])
def test_accents_in_two_codes(swapped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    ref = ["l'été", "déjà", "passé", "à", "côté"]
    hyp = [normalize("NFD", word) for word in ref]
    warn_writing({"u": hyp if swapped else ref}, {"u": ref if swapped else hyp})
    warned = capsys.readouterr().err
    assert "word error rate of 1 utterances 100.0 %, both in Unicode's form NFC 0.0 %" in warned
    assert f"'{ref[0]}' for '{hyp[0]}'" in warned or f"'{hyp[0]}' for '{ref[0]}'" in warned


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("don\u2019t", "such as 'don't' for 'don\u2019t'"),
        ("don\u02bct", "such as 'don't' for 'don\u02bct'"),
        ("dont", None),
        ("DON'T", "such as 'don't' for 'DON'T'"),
    ],
)
def test_a_mark_that_the_texts_never_agree_on_is_told_where_it_is_rare(
    typed: str, told: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four words of a thousand, and other errors besides."""
    texts = ["the king said i don't know"] * 4 + ["he went up to the house"] * 163
    words = [text.split() for text in texts]
    hyp = {f"u{i}": ["a" if i % 5 == 0 and word == "the" else word for word in ref] for i, ref in enumerate(words)}
    ref = {f"u{i}": [typed if word == "don't" else word for word in ref] for i, ref in enumerate(words)}
    warn_writing(ref, hyp)
    warned = capsys.readouterr().err
    assert (told in warned) if told else warned == ""
    ref["u100"] = hyp["u100"] = [typed, *ref["u100"]]  # they agree elsewhere: not a matter of writing
    warn_writing(ref, hyp)
    assert capsys.readouterr().err == ""


def test_a_reference_that_mixes_cases(capsys: pytest.CaptureFixture[str]) -> None:
    ref = {"u": ["The", "king", "saw", "the", "King"]}
    warn_writing(ref, {"u": ["the", "king", "saw", "the", "king"]})
    assert "'the' for 'The'" in capsys.readouterr().err
    warn_writing({"u": []}, {"u": ["the"]})
    assert capsys.readouterr().err == ""
