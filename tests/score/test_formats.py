"""CTM, STM and GLM files: round trips, rules against NIST's csrfilt.sh, and broken files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpq.io import BadInput
from mpq.score import (
    Glm,
    Rule,
    StmSegment,
    TimedWord,
    align_segments,
    read_ctm,
    read_glm,
    read_stm,
    read_timed,
    write_ctm,
    write_glm,
    write_stm,
)
from mpq.score.network import parse_text

NAMES = st.sampled_from(["en_1", "sw_1-A", "fe", "é"])
MILLISECONDS = st.integers(0, 10**6).map(lambda number: number / 1000)
PIECES = st.sampled_from(["A", "AB", "B-", "A-B", "-C", "(A)", "(A B)", "(B-A)", "'", "A'B"])
SIDES = st.sampled_from(["A", "B", "AB", "A-", "A B", "( A )"])
IN_A_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@IN_A_FOLDER
@given(rows=st.lists(st.tuples(NAMES, st.sampled_from("AB1"), MILLISECONDS, MILLISECONDS, NAMES), max_size=5))
def test_ctm_round_trip(tmp_path: Path, rows: list[tuple[str, str, float, float, str]]) -> None:
    words = [TimedWord(*row) for row in rows]
    write_ctm(tmp_path / "hyp.ctm", words)
    assert read_ctm(tmp_path / "hyp.ctm") == sorted(words, key=lambda item: (item.recording, item.channel, item.start))


def test_ctm_with_confidences_and_comments(tmp_path: Path) -> None:
    (tmp_path / "hyp.ctm").write_text(";; comment\n\nr 1 0.5 0.25 a 0.9\nr 1 1 .5 b NA\n")
    words = read_ctm(tmp_path / "hyp.ctm")
    assert words == [TimedWord("r", "1", 0.5, 0.25, "a", 0.9), TimedWord("r", "1", 1.0, 0.5, "b")]
    write_ctm(tmp_path / "copy.ctm", words)
    assert (tmp_path / "copy.ctm").read_text() == "r 1 0.500 0.250 a 0.9000\nr 1 1.000 0.500 b\n"


@IN_A_FOLDER
@given(rows=st.lists(st.tuples(NAMES, NAMES, MILLISECONDS, st.sampled_from(["", "a { b / c }", "(a)"])), min_size=1))
def test_stm_round_trip(tmp_path: Path, rows: list[tuple[str, str, float, str]]) -> None:
    segments = [
        StmSegment(name, "A", speaker, start, start + 1, text, labels, 1)
        for (name, speaker, start, text), labels in zip(rows, ["<o,f0>", ""] * len(rows), strict=False)
    ]
    write_stm(tmp_path / "ref.stm", segments, ['LABEL "O" "Overall" "all"'])
    again = read_stm(tmp_path / "ref.stm")
    places = [(s.recording, s.speaker, s.start, s.text, s.labels) for s in segments]
    assert sorted((s.recording, s.speaker, s.start, s.text, s.labels) for s in again) == sorted(places)
    assert again[0].line == 2


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rules=st.lists(st.builds(Rule, SIDES, SIDES, *[st.sampled_from(["", " ", "A", "B "])] * 2), min_size=1, max_size=8),
    texts=st.lists(st.lists(PIECES, max_size=6).map(" ".join), min_size=1, max_size=20),
)
def test_rules_are_applied_as_csrfilt_does(sctk_bin: Path, tmp_path: Path, rules: list[Rule], texts: list[str]) -> None:
    write_glm(tmp_path / "rules.glm", rules, "made by hypothesis")
    stm = "".join(f"r A s {i} {i + 1} <o> {text}\n" for i, text in enumerate(texts))
    done = subprocess.run(
        [sctk_bin / "csrfilt.sh", "-dh", "-i", "stm", "-t", "ref", "rules.glm"],
        input=stm, cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{sctk_bin}:{os.environ['PATH']}"},
    )  # fmt: skip
    theirs = [" ".join(line.split()[6:]) for line in done.stdout.splitlines()]
    glm = read_glm(tmp_path / "rules.glm", "stm")
    assert list(glm.rules) == rules
    assert [glm.apply(text) for text in texts] == theirs


def test_rules_apply_to_one_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "glm").write_text(
        ';; first\n* CASE_SENSITIVE = "T"\nA => B\n;; INPUT_DEPENDENT_APPLICATION = "ctm|other"\n[C] => []\n'
    )
    assert read_glm(tmp_path / "glm", "stm") == Glm([Rule("A", "B")], case_sensitive=True)
    assert read_glm(tmp_path / "glm", "ctm").apply("a c x") == "B X"


def test_alternatives_within_alternatives() -> None:
    assert parse_text("A {B/C D / { E / @ } F}") == ["a", [["b"], ["c", "d"], [[["e"], ["@"]], "f"]]]
    assert parse_text("and/or") == ["and/or"]


GOOD = {
    "stm": "r A s 0 2 <o> A\nr A s 2 4 B\nr B s 0 4 C\n",
    "ctm": "r A 0.5 0.5 a\nr B 2.5 0.5 b\n",
    "glm": ";; rules\n[A] => [B] / [ ] __ [ ]\n",
}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("stm", "r A s 0\n", "stm:1: 4 fields; expected 'recording channel speaker start end"),
        ("stm", "r A s 0 x A\n", "stm:1: found 'x'; expected seconds, a number of at least 0"),
        ("stm", ";; c\nr A s 3 2 A\n", "stm:2: ends at 2, before its start at 3; correct the times"),
        ("stm", "r A s 0 nan A\n", "stm:1: found 'nan'"),
        ("stm", ";; nothing\n", "stm: no segments"),
        ("stm", GOOD["stm"] + "q A s 0 1 A\n", "stm:4: recording 'q' has no words in ctm"),
        ("stm", "r A s 0 2 A\n", "ctm: recording 'r', channel 'b' has no segment in stm"),
        ("stm", GOOD["stm"] + "r A t 3.5 5 A\n", "stm:4: begins at 3.5, before line 2 of the same channel ends at 4"),
        ("stm", GOOD["stm"].replace("C", "{ C / D"), "line 3 of the reference: '{ c / d': a brace that is not closed"),
        ("stm", GOOD["stm"].replace("C", "C }"), "line 3 of the reference: 'C }': a closing brace too many"),
        ("stm", GOOD["stm"].replace("C", "(C"), "line 3 of the reference: '(C': parentheses without a partner"),
        ("ctm", "r A 0.5 0.5\n", "ctm:1: 4 fields; expected 'recording channel start duration word"),
        ("ctm", "r A * * <ALT_BEGIN>\n", "ctm:1: found '*'; expected seconds"),
        ("ctm", "r A 1 -1 a\n", "ctm:1: found '-1'; expected seconds, a number of at least 0"),
        ("ctm", "r A 1 1 a high\n", "ctm:1: found 'high'; expected confidence, a number"),
        (
            "ctm",
            GOOD["ctm"] + "r A 1 1 a(\n",
            "recognized words, recording 'r', channel 'A', 1 s: 'a(': parentheses without",
        ),
        ("glm", "", "glm: is empty"),
        ("glm", ";; rules\n[A] = [B]\n", "glm:2: no '=>' in '[A] = [B]'"),
        ("glm", ";; rules\n[] => [B]\n", "glm:2: nothing before '=>'"),
        ("glm", ";; rules\n[A] => [{B / C}]\n", "glm:2: a rule with '/' needs its contexts"),
        ("glm", ";; rules\n* MAX_NRULES = '1'\nA => B\nB => C\n", "glm:4: rule 2, but MAX_NRULES is 1"),
        ("glm", ";; rules\n* MAX_NRULES = 1\n", "glm:2: no value in quotes"),
        ("glm", ';; rules\n;; INPUT_DEPENDENT_APPLICATION = "("\n', "glm:2: '(' is no regular expression"),
    ],
)
def test_broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for file, content in {**GOOD, name: text}.items():
        Path(file).write_text(content)
    with pytest.raises(BadInput) as caught:
        align_segments(read_timed("stm", "ctm", "glm"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
