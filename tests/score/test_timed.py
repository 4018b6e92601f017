"""Scoring by time against NIST's hubscr.pl: every step of every alignment, and the sums."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpq.score import align_segments, count, read_glm, run_hubscr, speaker_counts, total
from tests.score.timed_cases import corpus, steps, write_glm_text


@pytest.mark.parametrize(("seed", "with_rules"), [(1, True), (2, True), (3, True), (4, False)])
def test_every_alignment_is_hubscrs(sctk_bin: Path, tmp_path: Path, seed: int, with_rules: bool) -> None:
    segments, words, _ = corpus(seed)
    glm = write_glm_text(tmp_path / "rules.glm") if with_rules else None
    theirs = run_hubscr(sctk_bin, segments, words, glm, reports=tmp_path / "sctk")
    rules = [read_glm(glm, kind) for kind in ("stm", "ctm")] if glm else []
    ours = align_segments(segments, words, *rules)
    assert {item.utt: "".join(pair.op for pair in item.pairs) for item in ours} == steps(
        tmp_path / "sctk" / "hyp.ctm.filt.sgml"
    )
    counts = {item.utt: count(item.pairs) for item in ours}
    speakers = speaker_counts(counts, {item.utt: item.segment.speaker.lower() for item in ours})
    assert {**speakers, "sum": total(counts.values())} == theirs
