"""Language models: LSTM and Transformer, their scores, perplexity and files."""

from __future__ import annotations

from mpq.lm.files import LoadedLm, load_float_lm, load_lm, save_lm
from mpq.lm.model import LanguageModel, LmConfig, LstmLm, TransformerLm, build_lm
from mpq.lm.ppl import Perplexity, max_tokens, perplexity

__all__ = [
    "LanguageModel",
    "LmConfig",
    "LoadedLm",
    "LstmLm",
    "Perplexity",
    "TransformerLm",
    "build_lm",
    "load_float_lm",
    "load_lm",
    "max_tokens",
    "perplexity",
    "save_lm",
]
