"""Small language models and texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpq.data.lmtext import Tokenizer
from mpq.lm import LanguageModel, LmConfig, build_lm

WORDS = ["the", "a", "king", "went", "up", "to", "city", "and", "people", "said"]
CONFIGS = {
    "lstm": LmConfig("lstm", dim=16, layers=2, dropout=0.2),
    "transformer": LmConfig("transformer", dim=16, layers=2, heads=2, dim_ff=32, dropout=0.2),
}


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    """A Kaldi word list of ten words."""
    lines = ["<eps> 0", *(f"{word} {i}" for i, word in enumerate(WORDS, 1)), "#0 11", "<s> 12", "</s> 13"]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(lines) + "\n")
    return Tokenizer(path)


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest, words: Tokenizer) -> LanguageModel:
    """An untrained model of each architecture, in eval mode."""
    torch.manual_seed(0)
    return build_lm(CONFIGS[request.param], len(words)).eval()
