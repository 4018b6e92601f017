"""Files of language models: what is read is what was written, and only with its own units."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpq.data.lmtext import Tokenizer, load_tokenizer, pad_sentences
from mpq.io import BadInput
from mpq.lang.tokenizer import train_tokenizer
from mpq.lm import LanguageModel, LmConfig, build_lm, load_lm, save_lm
from mpq.lm.files import check_units_copy
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


def other_units(folder: Path, kind: str) -> Tokenizer:
    """Units that no model of these tests was made for."""
    if kind == "words":
        (folder / "other.txt").write_text("so\nit\nis\n")
        return Tokenizer(folder / "other.txt")
    train_tokenizer([["so", "it", "is"], ["it", "is", "so"]], folder / "other.model", 12)
    return Tokenizer(folder / "other.model")


@pytest.mark.parametrize(("kind", "back"), [("words", "words"), ("sentencepiece", "words"), ("words", "sentencepiece")])
def test_a_model_made_anew_takes_its_new_units_along(
    model: LanguageModel, words: Tokenizer, tmp_path: Path, kind: str, back: str
) -> None:
    path = tmp_path / "exp/model.mpq"
    save_lm(path, model, words)
    for units in (other_units(tmp_path, kind), other_units(tmp_path, back), words):
        check_units_copy(units, path)
        save_lm(path, build_lm(LmConfig("lstm", dim=8), len(units)), units)
        assert load_lm(path).tokenizer.hash == units.hash


@pytest.mark.parametrize("kind", ["words", "sentencepiece"])
def test_units_that_another_model_needs_are_kept(
    model: LanguageModel, words: Tokenizer, tmp_path: Path, kind: str
) -> None:
    save_lm(tmp_path / "exp/a.mpq", model, words)
    save_lm(tmp_path / "exp/b.mpq", model, words)  # the same units: two models share them
    units = other_units(tmp_path, kind)
    for name, needing in (("c.mpq", "a.mpq"), ("a.mpq", "b.mpq")):
        with pytest.raises(BadInput, match=rf"exp/words.txt: holds other units than .*other.*, needed by {needing}"):
            save_lm(tmp_path / "exp" / name, build_lm(LmConfig("lstm", dim=8), len(units)), units)
    assert load_lm(tmp_path / "exp/a.mpq").tokenizer.hash == words.hash
    assert not (tmp_path / "exp/c.mpq").exists()


def test_a_folder_of_mpq_lang_keeps_its_words(model: LanguageModel, words: Tokenizer, tmp_path: Path) -> None:
    path, units = tmp_path / "lang/model.mpq", other_units(tmp_path, "words")
    (tmp_path / "lang").mkdir()
    for name in ("words.txt", "phones.txt"):
        (tmp_path / "lang" / name).write_text("the\nking\n")
    with pytest.raises(BadInput, match=r"lang/words.txt: holds other units .*; give --out another folder, or remove"):
        save_lm(path, model, words)
    save_lm(path, model, Tokenizer(tmp_path / "lang/words.txt"))
    with pytest.raises(BadInput, match="holds other units"):
        save_lm(path, model, units)
    assert load_tokenizer(tmp_path / "lang").encode("the king") == [3, 4]


def test_sentencepiece_units_go_beside_a_word_list(tmp_path: Path) -> None:
    """Nothing there is for it to break."""
    units = other_units(tmp_path, "sentencepiece")
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp/words.txt").write_text("the\nking\n")
    save_lm(tmp_path / "exp/model.mpq", build_lm(LmConfig("lstm", dim=8), len(units)), units)
    assert load_lm(tmp_path / "exp").tokenizer.hash == units.hash
    assert (tmp_path / "exp/words.txt").read_text() == "the\nking\n"
