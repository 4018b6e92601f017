"""Scoring: word error rate, significance, result records, tables and plots."""

from __future__ import annotations

from mpq.score.align import Pair, align
from mpq.score.bootstrap import bootstrap_interval
from mpq.score.mapsswe import MapssweResult, mapsswe
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
    "MapssweResult",
    "Pair",
    "WerResult",
    "align",
    "align_all",
    "bootstrap_interval",
    "check_ids",
    "count",
    "mapsswe",
    "speaker_counts",
    "total",
    "utterance_counts",
    "wer",
    "write_alignments",
    "write_confusions",
]
