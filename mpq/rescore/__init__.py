"""N-best rescoring: language-model scores, combination weights tuned on a development set, oracle WER."""

from __future__ import annotations

from mpq.rescore.combine import Weights, best_texts, oracle, rerank
from mpq.rescore.scoring import add_lm_scores, score_texts
from mpq.rescore.tune import Tuned, tune

__all__ = [
    "Tuned",
    "Weights",
    "add_lm_scores",
    "best_texts",
    "oracle",
    "rerank",
    "score_texts",
    "tune",
]
