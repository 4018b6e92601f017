"""Scores of hypotheses equal those of each text alone, and each distinct text is scored once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpq.data.lmtext import LmBatch, Tokenizer, pad_sentences
from mpq.io import BadInput, Hyp, NBest
from mpq.lm import LanguageModel, LmConfig, build_lm
from mpq.rescore import add_lm_scores, score_texts

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


TEXTS = ["one two", "three", "", "one two", "four four four four four four", "two unknown"]


def test_scores(model: LanguageModel, words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpq.lm.ppl.LOGITS_AT_ONCE", 1)  # the smallest batches
    seen: list[int] = []
    score = model.score

    def count(batch: LmBatch) -> torch.Tensor:
        seen.append(len(batch.inputs))
        return score(batch)

    monkeypatch.setattr(model, "score", count)
    scores = score_texts(model, words, TEXTS)
    assert sum(seen) == len(set(TEXTS)) == len(scores)
    for text, value in scores.items():
        alone = score(pad_sentences([words.encode(text)], words.bos, words.eos)).item()
        assert value == pytest.approx(alone, rel=1e-6)


def test_nnlm_is_filled_in(model: LanguageModel, words: Tokenizer) -> None:
    nbests = [NBest("u1", [Hyp("one two", -1.0, -2.0), Hyp("", -3.0, -4.0)]), NBest("u2", [Hyp("one two", 0.0, 0.0)])]
    scored = list(add_lm_scores(model, words, nbests))
    assert [nbest.utt for nbest in scored] == ["u1", "u2"]
    assert (
        scored[0].hyps[0].nnlm
        == scored[1].hyps[0].nnlm
        == pytest.approx(score_texts(model, words, ["one two"])["one two"])
    )
    assert (scored[0].hyps[1].am, scored[0].hyps[1].lm) == (-3.0, -4.0)


def test_words_of_another_language_are_refused(model: LanguageModel, words: Tokenizer) -> None:
    nbests = [NBest("u1", [Hyp("ONE TWO THREE", 0.0, 0.0), Hyp("one", 0.0, 0.0)])]
    with pytest.raises(BadInput, match=r"3 of the n-best lists' 4 words are unknown to .*words.txt"):
        list(add_lm_scores(model, words, nbests))


def test_nan_is_refused(model: LanguageModel, words: Tokenizer) -> None:
    torch.nn.init.constant_(model.output.bias, float("nan"))
    with pytest.raises(BadInput, match="scores 'one' as nan"):
        score_texts(model, words, ["one"])
