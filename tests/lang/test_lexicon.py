"""Lexicon: dictionaries, espeak, files, coverage; and sentencepiece units."""

from __future__ import annotations

from pathlib import Path

import kaldialign
import pytest
import sentencepiece

from mpq.io import BadInput, read_symbols
from mpq.lang.espeak import espeak_pronouncer, map_phonemes
from mpq.lang.lexicon import Lexicon, Pronunciations, build_lexicon, read_cmudict, read_dictionary, read_lexicon, spell
from mpq.lang.tokenizer import train_tokenizer

NAMES = ["nebuchadnezzar", "zerubbabel", "jehoshaphat", "melchizedek", "habakkuk's"]


@pytest.fixture(scope="module")
def cmudict() -> Pronunciations:
    return read_cmudict()


def test_cmudict_has_39_phones_without_stress(cmudict: Pronunciations) -> None:
    assert len(cmudict) > 120_000
    assert len({p for variants in cmudict.values() for v in variants for p in v}) == 39
    assert cmudict["hello"] == [("HH", "AH", "L", "OW"), ("HH", "EH", "L", "OW")]


def test_espeak_pronounces_what_the_dictionary_lacks(cmudict: Pronunciations) -> None:
    lexicon, guessed = build_lexicon(["the", "dog", *NAMES], [cmudict], espeak_pronouncer())
    assert guessed == sorted(name for name in NAMES if name not in cmudict) and len(guessed) >= 3
    assert len(lexicon.phones) == 39 and lexicon.words == sorted(["the", "dog", *NAMES])
    phones = [lexicon.phones[p - 1] for p in lexicon.pronunciations("nebuchadnezzar")[0]]
    assert " ".join(phones) == "N EH B AH CH AE D N IH Z AA R"


def test_espeak_agrees_with_the_dictionary(cmudict: Pronunciations) -> None:
    """About 10 % phone errors on words drawn evenly from the dictionary; every symbol is known."""
    pronounce = espeak_pronouncer()
    errors = phones = 0
    for word in sorted(cmudict)[::120]:
        said = pronounce(word)
        best = min(cmudict[word], key=lambda variant: kaldialign.edit_distance(variant, said)["total"])
        errors += kaldialign.edit_distance(best, said)["total"]
        phones += len(best)
    assert phones > 5000 and errors / phones < 0.12


def test_r_after_an_r_coloured_vowel_is_one_sound() -> None:
    assert map_phonemes(["o@", "r", "I", "s"]) == ["AO", "R", "IH", "S"]
    assert map_phonemes(["f", "3:", "r-", "i"]) == ["F", "ER", "IY"]


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("whaaat", "W AA AE T"),
        ("aaah", "AA AH"),
        ("ie", "AY IY"),
        ("it'-", "IH T"),
        ("-'bout", "B AW T"),
        ("i'-", "AY"),
    ],
)
def test_odd_words_are_pronounced(word: str, phones: str) -> None:
    assert " ".join(espeak_pronouncer()(word)) == phones


def test_all_words_that_espeak_cannot_say_are_told_at_once() -> None:
    with pytest.raises(BadInput) as error:
        build_lexicon(["a", "'", "--", "it"], [{"a": [("x",)]}], espeak_pronouncer())
    said = "2 words outside the dictionaries cannot be pronounced: "
    assert str(error.value).startswith(said + "\"'\" (espeak says nothing), '--' (espeak says nothing); ")
    assert "--dictionary FILE cmudict" in str(error.value)

    def fail(word: str) -> list[str]:
        raise BadInput(repr(word))

    with pytest.raises(BadInput, match=r"^7 words outside .*: 'a', 'b', 'c', 'd', 'e', \.\.\.; "):
        build_lexicon("abcdefg", [], fail)


def test_unknown_voice() -> None:
    with pytest.raises(BadInput, match="espeak has no voice 'martian'"):
        espeak_pronouncer("martian")


def test_files_hold_the_lexicon(tmp_path: Path) -> None:
    lexicon = Lexicon({"b": [["x", "y"], ["z"]], "a": [["z"], ["z"]], "Ä'": [["y"]]}, ["x", "y", "z", "unused"])
    lexicon.write(tmp_path)
    assert (tmp_path / "phones.txt").read_text() == "<blk> 0\nx 1\ny 2\nz 3\nunused 4\n"
    assert (tmp_path / "lexicon.txt").read_text() == "a z\nb x y\nb z\nÄ' y\n"
    assert list(read_symbols(tmp_path / "words.txt").ids) == ["<eps>", "a", "b", "Ä'", "#0", "<s>", "</s>"]
    again = read_lexicon(tmp_path)
    assert again.phones == lexicon.phones and again.words == lexicon.words and "a" in again and "c" not in again
    assert again.pronunciations("b") == [[1, 2], [3]]


def test_dictionary_formats(tmp_path: Path) -> None:
    path = tmp_path / "an4.dic"
    path.write_text(
        ";;; comment\nEIGHTH               EY T TH\nEIGHTH(2)            EY1 TH\nEIGHTH(3) EY TH # same\n(A) AH0\n"
    )
    assert read_dictionary(path) == {"eighth": [("EY", "T", "TH"), ("EY", "TH")], "(a)": [("AH",)]}


def test_first_dictionary_with_the_word_wins() -> None:
    lexicon, guessed = build_lexicon(["a", "b"], [{"a": [("x",)]}, {"a": [("y",)], "b": [("z",)]}])
    assert guessed == [] and [lexicon.phones[p - 1] for p in lexicon.pronunciations("a")[0]] == ["x"]


def test_case_does_not_matter_to_a_dictionary() -> None:
    lexicon, guessed = build_lexicon(["King", "KING", "US"], [{"king": [("x",)], "us": [("y",)], "US": [("z",)]}])
    spoken = {word: lexicon.phones[lexicon.pronunciations(word)[0][0] - 1] for word in lexicon.words}
    assert guessed == [] and spoken == {"King": "x", "KING": "x", "US": "z"}


def test_words_without_pronunciation_are_named() -> None:
    with pytest.raises(BadInput, match="2 words have no pronunciation: bad, worse; add them"):
        build_lexicon(["good", "worse", "bad"], [{"good": [("x",)]}])
    with pytest.raises(BadInput, match="word 'zebra' is not in the lexicon of 1 words"):
        Lexicon({"a": [["x"]]}).pronunciations("zebra")
    with pytest.raises(BadInput, match="word 'a' has no pronunciation"):
        Lexicon({"a": [[]]})
    with pytest.raises(BadInput, match="word 'a' holds 'q'"):
        Lexicon({"a": [["q"]]}, ["x"])


def test_broken_files_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("a x\nb\n")
    with pytest.raises(BadInput, match=r"d.txt:2: word 'b' has no phones"):
        read_dictionary(tmp_path / "d.txt")
    (tmp_path / "d.txt").write_text("")
    with pytest.raises(BadInput, match=r"d.txt: no pronunciations"):
        read_dictionary(tmp_path / "d.txt")
    (tmp_path / "phones.txt").write_text("x 1\n<blk> 0\n")
    (tmp_path / "lexicon.txt").write_text("a x\n")
    with pytest.raises(BadInput, match=r"phones.txt: expected the numbers"):
        read_lexicon(tmp_path)
    with pytest.raises(BadInput, match=r"no such file"):
        read_lexicon(tmp_path / "nowhere")


def test_tokenizer_is_deterministic_and_keeps_words(tmp_path: Path) -> None:
    sentences = [line.split() for line in ["in the beginning god created", "the heavens and the earth's"] * 20]
    for name in ("a.model", "b.model"):
        train_tokenizer(sentences, tmp_path / name, 60)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()) == (0, 1, 2)
    assert pieces.decode(pieces.encode("the earth's heavens")) == "the earth's heavens"


def test_tokenizer_with_fewer_units_than_letters(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="sentencepiece cannot train 5 units"):
        train_tokenizer([["abcdefghijk"]], tmp_path / "t.model", 5)
    assert not (tmp_path / "t.model").exists()


def test_words_spelled_in_sentencepiece_units(tmp_path: Path) -> None:
    train_tokenizer([["so", "it", "is"], ["it", "so"]] * 20, tmp_path / "tokenizer.model", 12)
    lexicon = spell(["so", "it", "toss"], tmp_path / "tokenizer.model")
    units = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert not {"<unk>", "<s>", "</s>"} & set(lexicon.phones) and len(lexicon.phones) == units.piece_size() - 3
    for word in lexicon.words:
        (pieces,) = lexicon.pronunciations(word)
        assert [lexicon.phones[p - 1] for p in pieces] == units.encode(word, out_type=str)
    with pytest.raises(BadInput, match=r"tokenizer.model: its units cannot spell 2 words: king, queen; train it"):
        spell(["so", "queen", "king"], tmp_path / "tokenizer.model")
