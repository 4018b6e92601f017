"""Scoring: word error rate, significance, result records, tables and plots."""

from __future__ import annotations

from mpq.score.align import Pair, align
from mpq.score.bootstrap import bootstrap_interval
from mpq.score.mapsswe import MapssweResult, mapsswe
from mpq.score.page import Curves, Report, highlights, render_html
from mpq.score.plot import SizeWer, size_wer, size_wer_plot
from mpq.score.records import ResultRecord, read_results, update_results
from mpq.score.report import load_report, render_results, write_report
from mpq.score.table import Table, make_table, print_table, render_markdown, verdict
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

__all__ = [
    "Curves",
    "MapssweResult",
    "Pair",
    "Report",
    "ResultRecord",
    "SizeWer",
    "Table",
    "WerResult",
    "align",
    "align_all",
    "bootstrap_interval",
    "check_ids",
    "count",
    "highlights",
    "load_report",
    "make_table",
    "mapsswe",
    "print_table",
    "read_results",
    "render_html",
    "render_markdown",
    "render_results",
    "size_wer",
    "size_wer_plot",
    "speaker_counts",
    "total",
    "update_results",
    "utterance_counts",
    "verdict",
    "wer",
    "write_alignments",
    "write_confusions",
    "write_report",
]
