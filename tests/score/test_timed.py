"""Scoring by time against NIST's hubscr.pl: every step of every alignment, and the sums."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mpq.io import BadInput
from mpq.score import (
    StmSegment,
    TimedSet,
    TimedWord,
    WerResult,
    align_segments,
    count,
    mapsswe_aligned,
    run_hubscr,
    sctk,
    speaker_counts,
    total,
)
from tests.score.test_mapsswe import line as printed
from tests.score.timed_cases import corpus, meeting, steps, write_glm_text


@pytest.mark.parametrize(("seed", "with_rules"), [(1, True), (2, True), (3, False)])
def test_every_alignment_is_hubscrs(sctk_bin: Path, tmp_path: Path, seed: int, with_rules: bool) -> None:
    segments, words, _ = corpus(seed)
    glm = write_glm_text(tmp_path / "rules.glm") if with_rules else None
    timed = TimedSet(segments, words, glm)
    theirs = run_hubscr(sctk_bin, timed, reports=tmp_path / "sctk")
    ours = align_segments(timed)
    assert {item.utt: "".join(pair.op for pair in item.pairs) for item in ours} == steps(
        tmp_path / "sctk" / "hyp.ctm.filt.sgml"
    )
    counts = {item.utt: count(item.pairs) for item in ours}
    speakers = speaker_counts(counts, {item.utt: item.segment.speaker.lower() for item in ours})
    assert {**speakers, "sum": total(counts.values())} == theirs


def test_segments_that_overlap_are_scored_as_by_hubscr(sctk_bin: Path) -> None:
    segments, words, _ = corpus(4)
    segments = [replace(item, end=item.end + (0.4 if n % 3 else 0.0)) for n, item in enumerate(segments)]
    timed = TimedSet(segments, words)
    assert total(count(item.pairs) for item in align_segments(timed)) == run_hubscr(sctk_bin, timed)["sum"]


@pytest.mark.parametrize("overlap", [0, 4])
def test_silence_is_deletions_and_nothing_else(sctk_bin: Path, overlap: int) -> None:
    segments = [StmSegment("r", "A", "s", 0, 1, "one"), StmSegment("r", "B", "s", 0, 2, "two three")]
    silent = [*segments, StmSegment("q", "A", "t", 0.5, 2, "four")]
    found = run_hubscr(sctk_bin, TimedSet(silent, [TimedWord("r", "A", 0.1, 0.2, "one")]), overlap)
    assert found["sum"] == WerResult(words=4, dels=3)


def test_recordings_scored_by_asclite_one_by_one_are_those_of_one_call(
    sctk_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = meeting(7)
    glm = write_glm_text(tmp_path / "rules.glm")
    for rules in (None, glm):
        timed = replace(timed, glm=rules)
        at_once = sctk._hubscr(sctk_bin, timed, 4, None)
        assert run_hubscr(sctk_bin, timed, 4, tmp_path / "reports") == at_once
        assert at_once["sum"].words > 300 and min(at_once["sum"].ins, at_once["sum"].dels, at_once["sum"].subs) > 2
        assert at_once["sum"] != sctk._hubscr(sctk_bin, timed, 1, None)["sum"], "several speak at once"
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["m_a", "m_b", "m_c"]
    assert (tmp_path / "reports" / "m_b" / "hyp.ctm.filt.sgml").stat().st_size
    segments = [*timed.segments, StmSegment("m_d", "1", "x", 0, 1, "{ a { b")]
    monkeypatch.setattr(sctk, "_AT_ONCE", 1)
    with pytest.raises(BadInput, match=r"hubscr.pl of sctk failed: .*; --tool own scores without it"):
        run_hubscr(sctk_bin, TimedSet([replace(item, speaker="x") for item in segments], timed.words), 4)


def test_matched_pairs_test_is_sc_stats(sctk_bin: Path, tmp_path: Path) -> None:
    """Also where alternatives of different lengths and words left out make the two alignments unlike."""
    segments, *systems = corpus(5)
    glm = write_glm_text(tmp_path / "rules.glm")
    alignments, sgml = [], b""
    for name, words in zip("AB", systems, strict=True):
        timed = TimedSet(segments, words, glm)
        run_hubscr(sctk_bin, timed, reports=tmp_path / name)
        text = (tmp_path / name / "hyp.ctm.filt.sgml").read_bytes()
        sgml += text.replace(b'title="hyp.ctm"', b'title="%s"' % name.encode())
        alignments.append([item.pairs for item in align_segments(timed)])
    result = mapsswe_aligned(zip(*alignments, strict=True))
    command = [sctk_bin / "sc_stats", "-p", "-t", "mapsswe", "-v", "-n", "-"]
    report = subprocess.run(command, input=sgml, capture_output=True, check=True).stdout.decode("latin-1")
    (line,) = re.findall(r"MTCH_PR_RESULTS \(systems: A B\) (.*) \(Stat Diff", report)
    assert line == printed(result, len(alignments[0]))
