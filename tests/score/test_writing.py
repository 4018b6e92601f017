"""Warnings of references and hypotheses that are written differently."""

from __future__ import annotations

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


def test_a_reference_that_mixes_cases(capsys: pytest.CaptureFixture[str]) -> None:
    ref = {"u": ["The", "king", "saw", "the", "King"]}
    warn_writing(ref, {"u": ["the", "king", "saw", "the", "king"]})
    assert "'the' for 'The'" in capsys.readouterr().err
    warn_writing({"u": []}, {"u": ["the"]})
    assert capsys.readouterr().err == ""
