"""Perplexity per word equals the same computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mpq.data.lmtext import Tokenizer, open_lm_text, pad_sentences
from mpq.lm import LanguageModel, perplexity

TEXT = ["the king went up", "a stranger said", "", "people said and said"]


@torch.no_grad()
def test_perplexity_by_hand(model: LanguageModel, words: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n".join(TEXT) + "\n")
    result = perplexity(model, open_lm_text(tmp_path / "text", words, tmp_path / "cache"))
    logprob = 0.0
    for text in filter(None, TEXT):
        batch = pad_sentences([words.encode(text)], words.bos, words.eos)
        for log_prob, unit in zip(model.log_probs(batch).tolist(), [*words.encode(text), words.eos], strict=True):
            logprob += log_prob if unit != words.unk else 0.0
    assert (result.sentences, result.words, result.oov) == (3, 11, 1)
    assert result.units == 13  # 10 known words and 3 ends
    assert result.value == pytest.approx(math.exp(-logprob / 13))
    assert "1 OOV" in str(result)


def test_uniform_model_has_the_perplexity_of_its_vocabulary(
    model: LanguageModel, words: Tokenizer, tmp_path: Path
) -> None:
    torch.nn.init.zeros_(model.output.weight)
    torch.nn.init.zeros_(model.output.bias)
    (tmp_path / "text").write_text("the king\nthe people said\n")
    result = perplexity(model, open_lm_text(tmp_path / "text", words, tmp_path / "cache"))
    assert result.value == pytest.approx(len(words))
