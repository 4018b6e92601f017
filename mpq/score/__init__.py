"""Scoring: word error rate, significance, result records, tables and plots."""

from __future__ import annotations

from mpq.score.ablation import AblationRow, ablation_table
from mpq.score.align import Pair, align
from mpq.score.bootstrap import bootstrap_interval
from mpq.score.ctm import TimedWord, read_ctm, write_ctm
from mpq.score.glm import Glm, Rule, read_glm, write_glm
from mpq.score.mapsswe import MapssweResult, mapsswe, mapsswe_aligned
from mpq.score.page import Curves, Report, highlights, render_html
from mpq.score.plot import SizeWer, size_wer, size_wer_plot
from mpq.score.records import ResultRecord, read_results, update_results
from mpq.score.report import load_report, render_results, write_report
from mpq.score.sctk import find_sctk, run_hubscr, run_sclite
from mpq.score.stm import StmSegment, read_stm, write_stm
from mpq.score.table import Table, make_table, print_table, render_markdown, verdict
from mpq.score.timed import ScoredSegment, TimedSet, align_segments, read_timed
from mpq.score.wer import (
    WerResult,
    align_all,
    check_ids,
    count,
    speaker_counts,
    total,
    utterance_counts,
    wer,
    write_alignments,
    write_confusions,
)
from mpq.score.writing import warn_writing

__all__ = [
    "AblationRow",
    "Curves",
    "Glm",
    "MapssweResult",
    "Pair",
    "Report",
    "ResultRecord",
    "Rule",
    "ScoredSegment",
    "SizeWer",
    "StmSegment",
    "Table",
    "TimedSet",
    "TimedWord",
    "WerResult",
    "ablation_table",
    "align",
    "align_all",
    "align_segments",
    "bootstrap_interval",
    "check_ids",
    "count",
    "find_sctk",
    "highlights",
    "load_report",
    "make_table",
    "mapsswe",
    "mapsswe_aligned",
    "print_table",
    "read_ctm",
    "read_glm",
    "read_results",
    "read_stm",
    "read_timed",
    "render_html",
    "render_markdown",
    "render_results",
    "run_hubscr",
    "run_sclite",
    "size_wer",
    "size_wer_plot",
    "speaker_counts",
    "total",
    "update_results",
    "utterance_counts",
    "verdict",
    "warn_writing",
    "wer",
    "write_alignments",
    "write_confusions",
    "write_ctm",
    "write_glm",
    "write_report",
    "write_stm",
]
