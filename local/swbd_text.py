"""Words of Switchboard, Fisher and the Hub5 references, in one spelling.

Everything is lower case. Acronyms that are spelled are their letters (``ibm's`` is ``i b m's``), as NIST's GLM files
spell them too. Noises and laughter are no words: the blank of the acoustic model covers them. A word that was broken
off (``ab-``) is trained as it sounds, and is in no language model, so that none is ever recognized: scoring does not
count them (Hub5 takes them as optional). The spellings of hesitations are those of Switchboard.

The marks in the transcripts of Mississippi State University (ms98): ``[laughter]``, ``[laughter-word]``,
``[said/meant]``, ``wor[d]-``, ``-[a]bout``, ``{coined}``, ``them_1``, ``<b_aside> ... <e_aside>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from local.check import Checks
from mpq.io import BadInput, read_lines
from mpq.lang.lexicon import Pronunciations, read_cmudict

HESITATIONS = {"hmm": "hum", "mmm": "um", "mm": "um", "mhm": "um-hum", "mm-hm": "um-hum", "mm-hmm": "um-hum"}
# Phones of Mississippi State's dictionary that CMUdict does not have
_PHONES = {"ax": "AH", "el": "AH L", "en": "AH N"}
_LAUGHED = re.compile(r"^(-?)\[laughter-(.+)\](-?)$", re.IGNORECASE)
_VARIANT = re.compile(r"_\d+")
_SAID_MEANT = re.compile(r"^\[(.+?)/(.+)\](-?)$")
_ACRONYM = re.compile(r"^([A-Z]{2,})('s|s)?$")
_ALTERNATIVES = re.compile(r"\{\s*([^{}]*?)\s*/[^{}]*\}")
_SPELLED = re.compile(r"^(?:(?:[a-z]\._?)+('s|s|'d|'ll)?|(?:[a-z]\._)+[a-z])$")


def plain_word(token: str) -> tuple[str, str]:
    """One token of an ms98 transcript or dictionary as it was said and as it was meant.

    Both keep their case. What was broken off ends or begins with ``-``; noises and marks are empty.

    Example:
        >>> plain_word("[laughter-abso[lutely]-]"), plain_word("[weekened/weekend]"), plain_word("[noise]")
        (('abso-', 'abso-'), ('weekened', 'weekend'), ('', ''))
    """
    if token.lower() in ("[silence]", "[noise]", "[laughter]", "[vocalized-noise]") or token.startswith("<"):
        return "", ""
    if laughed := _LAUGHED.match(token):
        token = "".join(laughed.groups())
    token = _VARIANT.sub("", token)
    if pair := _SAID_MEANT.match(token):
        said = _without_unspoken(pair[1] + pair[3])
        # a fragment of a known word is still a fragment
        return said, said if _is_fragment(said) else _without_unspoken(pair[2])
    word = _without_unspoken(token)
    return word, word


def _without_unspoken(token: str) -> str:
    """A token without the letters that were not said (``ab[solute]-`` is ``ab-``) and without braces."""
    token = re.sub(r"^-?\[[^\[\]]+\](?=.)", "-", token)
    token = re.sub(r"(?<=.)\[[^\[\]]+\]-?(/.*)?$", "-", token)
    return re.sub(r"\[[^\[\]]*\]|[{}\[\]]", "", token)


def _is_fragment(word: str) -> bool:
    return word.startswith("-") or word.endswith("-")


class Speller:
    """Turns transcripts into words; knows which words in capitals are spelled.

    Args:
        pronunciations: of the corpus' dictionary, by plain word in its case. A word in capitals that it says
            as a word (``AIDS``) is one; all others are spelled.

    Attributes:
        letter_names: how the letters are said.
    """

    def __init__(self, pronunciations: Mapping[str, Sequence[Sequence[str]]] | None = None) -> None:
        letters = read_cmudict()
        self.letter_names = {chr(code): letters[chr(code)] for code in range(ord("a"), ord("z") + 1)}
        self._pronunciations = pronunciations or {}
        self._known: dict[str, str] = {}

    def spell(self, word: str) -> str:
        """Lower case, an acronym as its letters, hesitations in one spelling."""
        if word not in self._known:
            match = _ACRONYM.match(word)
            letters = match and self._is_spelled(word, match[1])
            lower = f"{' '.join(match[1].lower())}{match[2] or ''}" if match and letters else word.lower()
            self._known[word] = HESITATIONS.get(lower, lower)
        return self._known[word]

    def _is_spelled(self, word: str, letters: str) -> bool:
        """Whether a pronunciation is that of the letters; true for a word that the dictionary does not have."""
        variants = self._pronunciations.get(word)
        if variants is None:
            return True
        spelled: set[tuple[str, ...]] = {()}
        for letter in letters.lower():
            names = [name for name in self.letter_names[letter] if letter != "a" or name == ("EY",)]
            spelled = {(*so_far, *name) for so_far in spelled for name in names}
        return any(tuple(variant[: len(name)]) == name for variant in variants for name in spelled)

    def transcript(self, tokens: Iterable[str]) -> tuple[list[str], list[str]]:
        """Words of an ms98 transcript: for the acoustic model, and for the language model."""
        said: list[str] = []
        meant: list[str] = []
        for token in tokens:
            pair = plain_word(token)
            for words, word in zip((said, meant), pair, strict=True):
                if word.strip("-") and not (words is meant and _is_fragment(word)):
                    words += self.spell(word).split()
        return said, meant


def fisher_words(text: str, hesitations: Mapping[str, str] = HESITATIONS, stop: str = "") -> list[str]:
    """Words for the language model of a line of Fisher's transcripts, without its times and speaker.

    Args:
        text: the line.
        hesitations: how the corpus that is recognized spells them, by Fisher's spelling.
        stop: what follows every letter of an acronym that is spelled.
    """
    text = re.sub(r"\[\[?[^\]]*\]\]?|<[^>]*>", " ", text.lower())  # [laughter] [[skip]] <german (( ja )) >
    words = []
    for token in re.sub(r"[()*?!,]|(?<!\w)'(?=\w[^' ]*')", " ", text).split():
        token = token.strip('"').removesuffix(";")
        if _is_fragment(token) or not re.search(r"[a-z0-9]", token):
            continue
        words += _letters_of(token, stop).split() if "." in token else [hesitations.get(token, token)]
    return words


def reference_words(text: str) -> list[str]:
    """Words of an STM reference: the first of alternatives, hesitations as ``uh``, broken words left out."""
    text = _ALTERNATIVES.sub(r" \1 ", text.lower())
    text = re.sub(r"<[^>]*>|[()]", " ", text).replace("%hesitation", "uh")
    words = []
    for token in text.split():
        if token == "@" or _is_fragment(token) or not re.search(r"[a-z0-9]", token):
            continue
        words += _letters_of(token).split() if "." in token else [HESITATIONS.get(token, token)]
    return words


def _letters_of(token: str, stop: str = "") -> str:
    """``c._n._n.'s`` as ``c n n's``, `stop` after each letter; a token that is not spelled without its dots."""
    match = _SPELLED.match(token)
    if match is None:
        return token.replace(".", "").replace("_", "")
    ending = match[1] or ""
    letters = token[: len(token) - len(ending)] if ending else token
    return " ".join(letter + stop for letter in re.findall(r"[a-z]", letters)) + ending


def read_ms98_dictionary(path: Path, checks: Checks) -> tuple[Pronunciations, Pronunciations]:
    """Reads ``sw-ms98-dict.text``: ``token phone phone ...``, ``#`` before comments; lines without phones are left out.

    Args:
        path: the file.
        checks: told of what was left out.

    Returns:
        Pronunciations by plain word in its case, and by word as `Speller` spells it. Its 42 phones become the 39 of
        CMUdict, so that words of both, and of espeak, fit together. Acronyms that are spelled are not in the second:
        letters are words with pronunciations of their own.

    Raises:
        BadInput: no pronunciations.
    """
    by_case: Pronunciations = {}
    without: list[str] = []
    total = 0
    for number, line in read_lines(path):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        total += 1
        if len(fields) < 2:
            without.append(f"{path}:{number}: {fields[0]!r}; expected 'word phone phone ...'")
            continue
        word = plain_word(fields[0])[0]
        phones = tuple(" ".join(_PHONES.get(phone.lower(), phone.upper()) for phone in fields[1:]).split())
        if word.strip("-") and "SIL" not in phones:
            by_case.setdefault(word, []).append(phones)
    checks.odd("lines of the dictionary without phones", without, total, "left out")
    if not by_case:
        raise BadInput(f"{path}: no pronunciations; expected lines 'word phone phone ...'")
    speller = Speller(by_case)
    spelled: Pronunciations = {}
    for word, variants in by_case.items():
        key = speller.spell(word)
        if " " not in key:
            spelled.setdefault(key, []).extend(variant for variant in variants if variant not in spelled.get(key, []))
    for letter, variants in speller.letter_names.items():
        spelled.setdefault(letter, []).extend(variant for variant in variants if variant not in spelled[letter])
    return by_case, spelled
