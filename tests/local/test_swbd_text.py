"""Words of Switchboard's, Fisher's and NIST's transcripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from local.check import Checks
from local.swbd_text import Speller, fisher_words, plain_word, read_ms98_dictionary, reference_words
from mpq.io import BadInput


@pytest.mark.parametrize(
    ("token", "said", "meant"),
    [
        ("it's", "it's", "it's"),
        ("[laughter-yeah]", "yeah", "yeah"),
        ("-[laughter-yeah]", "-yeah", "-yeah"),
        ("[laughter-abso[lutely]-]", "abso-", "abso-"),
        ("[weekened/weekend]", "weekened", "weekend"),
        ("[laughter-[wuz/was]]", "wuz", "was"),
        ("[lem[guini]-/linguini]", "lem-", "lem-"),
        ("ab[solute]-", "ab-", "ab-"),
        ("-[a]bout", "-bout", "-bout"),
        ("-[40]1k", "-1k", "-1k"),
        ("ammu[n]it-", "ammuit-", "ammuit-"),
        ("ex[specially]-/especially]", "ex-", "ex-"),
        ("{yuppiedom}", "yuppiedom", "yuppiedom"),
        ("them_1", "them", "them"),
        ("uh-huh", "uh-huh", "uh-huh"),
        ("[noise]", "", ""),
        ("[vocalized-noise]", "", ""),
        ("<b_aside>", "", ""),
    ],
)
def test_marks_of_a_word(token: str, said: str, meant: str) -> None:
    assert plain_word(token) == (said, meant)


def test_acronyms_are_letters_unless_the_dictionary_says_them_as_words() -> None:
    pronunciations = {
        "AIDS": [("EY", "D", "Z")],
        "TV": [("T", "IY", "V", "IY")],
        "TVs": [("T", "IY", "V", "IY", "Z")],
        "NASA": [("N", "AE", "S", "AH")],
        "ABC": [("EY", "B", "IY", "S", "IY")],
    }
    speller = Speller(pronunciations)
    words = "AIDS NASA TV TVs IBM IBM's ABC I A Texas mhm"
    expected = "aids|nasa|t v|t vs|i b m|i b m's|a b c|i|a|texas|um-hum"
    assert "|".join(map(speller.spell, words.split())) == expected


def test_a_transcript_for_the_acoustic_and_for_the_language_model() -> None:
    text = "[silence] so [laughter-I] ab[out]- about [weekened/weekend] [noise] <b_aside> IBM - <e_aside>"
    said, meant = Speller().transcript(text.split())
    assert " ".join(said) == "so i ab- about weekened i b m"
    assert " ".join(meant) == "so i about weekend i b m"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("yeah (( i think )) so", "yeah i think so"),
        ("it's c._n._n. and p. c.s", "it's c n n and p cs"),
        ("the n._b._a.'s", "the n b a's"),
        ("[laughter] he- he was [[skip]] there", "he was there"),
        ("<german (( ja wohl )) > *mandatory, hmm? mhm mm", "mandatory hum um-hum um"),
        ("'cause they don't - like dogs'", "'cause they don't like dogs'"),
        ("(( ))", ""),
    ],
)
def test_fisher(text: str, words: str) -> None:
    assert fisher_words(text) == words.split()


def test_fisher_in_the_spelling_of_another_corpus() -> None:
    text = "mhm hmm c._n._n.'s and p. c.s t._v i"
    words = fisher_words(text, {"mhm": "mm-hmm"}, stop=".")
    assert " ".join(words) == "mm-hmm hmm c. n. n.'s and p. c.s t. v. i"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(%HESITATION) I THINK (SO)", "uh i think so"),
        ("{ A / B C } WEEK", "a week"),
        ("(BEGINN-) <B_ASIDE> UH-HUH <E_ASIDE> @", "uh-huh"),
        ("THE U._S. ARMY", "the u s army"),
        ("(%HESITATION", "uh"),
    ],
)
def test_references(text: str, words: str) -> None:
    assert reference_words(text) == words.split()


def test_the_dictionary_has_the_phones_of_cmudict_and_letters(tmp_path: Path) -> None:
    path = tmp_path / "sw-ms98-dict.text"
    path.write_text(
        "# a comment\n[noise] sil\nabout ax b aw t\nthem dh eh m\nthem_1 eh m\nbutton b ah t en\n"
        "TV t iy v iy\nAIDS ey d z\n[laughter-right] r ay t\nab[out]- ax b\nlittle l ih t el\nzyzzyva\n"
    )
    checks = Checks()
    by_case, spelled = read_ms98_dictionary(path, checks)
    assert checks.warnings == [
        f"1 of 11 lines of the dictionary without phones, left out: {path}:12: 'zyzzyva'; "
        "expected 'word phone phone ...'"
    ]
    assert by_case["TV"] == [("T", "IY", "V", "IY")] and "tv" not in spelled and spelled["t"] == [("T", "IY")]
    assert spelled["them"] == [("DH", "EH", "M"), ("EH", "M")] and spelled["about"] == [("AH", "B", "AW", "T")]
    assert spelled["button"] == [("B", "AH", "T", "AH", "N")] and spelled["little"] == [("L", "IH", "T", "AH", "L")]
    assert spelled["aids"] and spelled["right"] and spelled["ab-"] == [("AH", "B")]
    assert not any("[" in word or word != word.lower() for word in spelled)
    path.write_text("about ax b aw t\nabove\nbelow\n")
    read_ms98_dictionary(path, checks)
    assert f"{path}:2: 'above'" in checks.problems[0] and f"{path}:3: 'below'" in checks.problems[0]
    path.write_text("# nothing\n")
    with pytest.raises(BadInput, match="no pronunciations"):
        read_ms98_dictionary(path, checks)
