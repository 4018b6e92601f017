"""Rescoring: prefix trees of n-best lists, lattices, combination weights tuned on a development set, oracle WER."""

from __future__ import annotations

from mpq.rescore.carry import Place, carry_over, read_recordings
from mpq.rescore.combine import Weights, best_texts, check_refs, oracle, rerank
from mpq.rescore.lattices import LatticeScoring, best_words, rescore_lattices
from mpq.rescore.ngram import read_lattices_arpa, read_needed_arpa, replace_lattice_scores, replace_ngram_scores
from mpq.rescore.scoring import Scoring, add_lm_scores, check_units
from mpq.rescore.tree import Budget
from mpq.rescore.tune import Tuned, tune

__all__ = [
    "Budget",
    "LatticeScoring",
    "Place",
    "Scoring",
    "Tuned",
    "Weights",
    "add_lm_scores",
    "best_texts",
    "best_words",
    "carry_over",
    "check_refs",
    "check_units",
    "oracle",
    "read_lattices_arpa",
    "read_needed_arpa",
    "read_recordings",
    "replace_lattice_scores",
    "replace_ngram_scores",
    "rerank",
    "rescore_lattices",
    "tune",
]
