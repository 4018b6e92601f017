"""Scores are filled in where they belong; lists of other words are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpq.data.lmtext import Tokenizer, pad_sentences
from mpq.io import BadInput, Hyp, NBest
from mpq.lm import LanguageModel, LmConfig, build_lm
from mpq.rescore import add_lm_scores

WORDS = ["one", "two", "three", "four"]


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return Tokenizer(path)


@pytest.fixture
def model(words: Tokenizer) -> LanguageModel:
    torch.manual_seed(0)
    return build_lm(LmConfig("transformer", dim=16, heads=2, dim_ff=32), len(words)).eval()


def test_nnlm_is_filled_in(model: LanguageModel, words: Tokenizer) -> None:
    nbests = [NBest("u1", [Hyp("one two", -1.0, -2.0), Hyp("", -3.0, -4.0)]), NBest("u2", [Hyp("one two", 0.0, 0.0)])]
    scored = list(add_lm_scores(model, words, nbests))
    assert [nbest.utt for nbest in scored] == ["u1", "u2"]
    alone = model.score(pad_sentences([words.encode("one two")], words.bos, words.eos)).item()
    assert scored[0].hyps[0].nnlm == scored[1].hyps[0].nnlm == pytest.approx(alone)
    assert (scored[0].hyps[1].am, scored[0].hyps[1].lm) == (-3.0, -4.0)


def test_words_of_another_language_are_refused(model: LanguageModel, words: Tokenizer) -> None:
    nbests = [NBest("u1", [Hyp("ONE TWO THREE", 0.0, 0.0), Hyp("one", 0.0, 0.0)])]
    with pytest.raises(BadInput, match=r"3 of the n-best lists' 4 words are unknown to .*words.txt"):
        list(add_lm_scores(model, words, nbests))
