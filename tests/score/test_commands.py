"""`mpq score` and `mpq compare` as a user runs them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mpq.io import write_text
from mpq.score import mapsswe
from tests.score.sctk import texts

MpqCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    ref = {"u1": ["the", "cat", "sat"], "u2": ["on", "the", "mat"], "u3": []}
    write_text(tmp_path / "ref", ref)
    write_text(tmp_path / "hyp.gz", {"u3": [], "u2": ["on", "a", "the", "mat"], "u1": ["the", "cap"]})
    (tmp_path / "utt2spk").write_text("u1 s1\nu2 s2\nu3 s2\n")
    return tmp_path


def test_score(files: Path, mpq_cli: MpqCli) -> None:
    done = mpq_cli("score", "--ref", "ref", "--hyp", "hyp.gz")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "%WER 50.00 [ 3 / 6, 1 ins, 1 del, 1 sub ]\n"


def test_score_options(files: Path, mpq_cli: MpqCli) -> None:
    names = ("--utt2spk", "utt2spk", "--details", "per_utt", "--confusions", "ops", "--interval")
    done = mpq_cli("score", "--ref", "ref", "--hyp", "hyp.gz", *names)
    assert done.stdout.splitlines() == [
        "s1 %WER 66.67 [ 2 / 3, 0 ins, 1 del, 1 sub ]",
        "s2 %WER 33.33 [ 1 / 3, 1 ins, 0 del, 0 sub ]",
        "%WER 50.00 [ 3 / 6, 1 ins, 1 del, 1 sub ] [ 95 %: 33.33 to 66.67 ]",
    ]
    assert "u2 ref  on  ***  the  mat\n" in (files / "per_utt").read_text()
    assert len((files / "ops").read_text().splitlines()) == 6


def test_score_json(files: Path, mpq_cli: MpqCli) -> None:
    done = mpq_cli("score", "--ref", "ref", "--hyp", "hyp.gz", "--json")
    assert json.loads(done.stdout) == {
        "wer": 50.0, "errors": 3, "words": 6, "ins": 1, "del": 1, "sub": 1, "interval": None, "speakers": {},
    }  # fmt: skip


def test_compare(tmp_path: Path, mpq_cli: MpqCli) -> None:
    ref, hyp_a, hyp_b = texts("ten words")
    for name, content in (("ref", ref), ("a", hyp_a), ("b", hyp_b)):
        write_text(tmp_path / name, content)
    result = mapsswe(ref, hyp_a, hyp_b)
    words = ("compare", "--ref", "ref", "--hyp", "a", "--hyp", "b")
    lines = mpq_cli(*words).stdout.splitlines()
    assert lines[0].startswith("A a: %WER ")
    assert lines[2] == (f"MAPSSWE: {result.segments} segments, Z {result.z:.3f}, p {result.p:.3g}: {result.verdict()}")
    answer = json.loads(mpq_cli(*words, "--json").stdout)
    assert (answer["z"], answer["p"], answer["segments"]) == (result.z, result.p, result.segments)
    assert [system["file"] for system in answer["systems"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("score", "--ref", "ref", "--hyp", "none"), "none: no such file; check the path"),
        (("score", "--ref", "ref", "--hyp", "other"), "other lacks 1 utterance (u3) of ref and has 1 utterance (u4)"),
        (("score", "--ref", "ref", "--hyp", "twice"), "twice:2: utterance 'u1' is given twice"),
        (("score", "--ref", "ref", "--hyp", "ref", "--utt2spk", "ref"), "expected one speaker"),
        (("score", "--ref", "ref", "--hyp", "ref", "--details", "ref/x"), "ref"),
        (("compare", "--ref", "ref", "--hyp", "ref"), "--hyp is given 1 times; expected twice"),
        (("compare", "--ref", "ref", "--hyp", "ref", "--hyp", "other"), "other lacks 1 utterance (u3) of ref"),
        (
            ("compare", "--ref", "ref", "--hyp", "ref", "--hyp", "ref", "--level", "2"),
            "--level: 2.0 must be above 0 and below 1",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(files: Path, mpq_cli: MpqCli, words: tuple[str, ...], message: str) -> None:
    (files / "other").write_text("u1 a\nu2 b\nu4 c\n")
    (files / "twice").write_text("u1 a\nu1 b\n")
    done = mpq_cli(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
