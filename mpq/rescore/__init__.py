"""N-best rescoring: language-model scores, combination weights tuned on a development set, oracle WER."""

from __future__ import annotations

from mpq.rescore.combine import Weights, best_texts, oracle, rerank
from mpq.rescore.scoring import Scoring, add_lm_scores
from mpq.rescore.tree import Budget
from mpq.rescore.tune import Tuned, tune

__all__ = [
    "Budget",
    "Scoring",
    "Tuned",
    "Weights",
    "add_lm_scores",
    "best_texts",
    "oracle",
    "rerank",
    "tune",
]
