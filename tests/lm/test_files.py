"""Files of language models: what is read is what was written, and only with its own units."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpq.data.lmtext import Tokenizer, pad_sentences
from mpq.io import BadInput
from mpq.lm import LanguageModel, load_lm, save_lm
from mpq.quant import quantize_model, save_model, uniform_plan

IDS = [[3, 4, 5], [6, 7, 8, 9, 10]]


def scores(model: LanguageModel) -> list[float]:
    with torch.no_grad():
        return model.score(pad_sentences(IDS, 1, 2)).tolist()


@pytest.mark.parametrize("bits", [32, 8, 4, 2, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_round_trip(model: LanguageModel, words: Tokenizer, tmp_path: Path, bits: int, packed: bool) -> None:
    plan = uniform_plan(model, bits)
    n_parameters = sum(p.numel() for p in model.parameters())
    quantize_model(model, plan)
    save_lm(tmp_path / "exp/model.mpq", model, words, plan, {"perplexity": 12.5})
    lm = load_lm(tmp_path / "exp", packed=packed)
    assert scores(lm.model) == scores(model)
    assert lm.extra == {"perplexity": 12.5}
    assert lm.plan == plan
    assert lm.tokenizer.hash == words.hash
    assert lm.n_parameters == n_parameters
    assert lm.n_bytes == (tmp_path / "exp/model.mpq").stat().st_size


def test_another_tokenizer_is_refused(model: LanguageModel, words: Tokenizer, tmp_path: Path) -> None:
    save_lm(tmp_path / "exp/model.mpq", model, words)
    other = tmp_path / "other.txt"
    other.write_text(words.path.read_text() + "more 14\n")
    with pytest.raises(BadInput, match=r"not the units that .*model.mpq was trained with"):
        load_lm(tmp_path / "exp/model.mpq", other)


def test_no_tokenizer(model: LanguageModel, words: Tokenizer, tmp_path: Path) -> None:
    save_lm(tmp_path / "exp/model.mpq", model, words)
    (tmp_path / "exp/words.txt").unlink()
    with pytest.raises(BadInput, match="neither tokenizer"):
        load_lm(tmp_path / "exp/model.mpq")


def test_damaged_file(model: LanguageModel, words: Tokenizer, tmp_path: Path) -> None:
    save_lm(tmp_path / "model.mpq", model, words)
    data = (tmp_path / "model.mpq").read_bytes()
    (tmp_path / "model.mpq").write_bytes(data[:-10])
    with pytest.raises(BadInput, match="cut short or altered"):
        load_lm(tmp_path / "model.mpq")


def test_an_acoustic_model_is_no_language_model(model: LanguageModel, words: Tokenizer, tmp_path: Path) -> None:
    plan = uniform_plan(model, 32)
    save_model(tmp_path / "model.mpq", model, "tdnn", {}, plan, words.hash)  # no units beside it, as with a real one
    with pytest.raises(BadInput, match=r"model\.mpq: holds a tdnn model; expected a language model"):
        load_lm(tmp_path)
