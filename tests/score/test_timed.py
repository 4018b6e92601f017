"""Scoring by time against NIST's hubscr.pl: every step of every alignment, and the sums."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mpq.score import TimedSet, align_segments, count, mapsswe_aligned, run_hubscr, speaker_counts, total
from tests.score.test_mapsswe import line as printed
from tests.score.timed_cases import corpus, steps, write_glm_text


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
