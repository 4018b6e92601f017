"""Kaldi text files: ``utt-id word word ...``, one utterance a line, an utterance with no words allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from unicodedata import category, normalize

from mpq.io.errors import BadInput
from mpq.io.files import PathLike, atomic_write, read_lines

# Kaldi splits on ASCII blanks only: a no-break or ideographic space is part of a word.
_WORD = re.compile(r"[^ \t\r\f\v\n]+")
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\uff07"), "'")  # quotation marks, letter, full width


def is_json(line: str) -> bool:
    """Whether a line is a JSON object: of features or n-best lists, where text is expected."""
    if not line.startswith('{"'):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def split_words(text: str) -> list[str]:
    """Split at ASCII blanks, as Kaldi does."""
    return _WORD.findall(text)


def strip_punctuation(word: str) -> str:
    """A word without the punctuation marks at its ends: ``"(don't,"`` becomes ``don't``."""
    first, last = 0, len(word)
    while first < last and category(word[first])[0] == "P":
        first += 1
    while first < last and category(word[last - 1])[0] == "P":
        last -= 1
    return word[first:last]


def straighten(word: str) -> str:
    """A word with ASCII apostrophes in place of typographic ones."""
    return word.translate(_APOSTROPHES)


WRITINGS: dict[str, Callable[[str], str]] = {
    "in Unicode's form NFC": lambda word: normalize("NFC", word),  # one letter with its accents is one code
    "with straight apostrophes": straighten,
    "in lower case": str.lower,
    "in upper case": str.upper,
    "without punctuation": strip_punctuation,
    "in lower case without punctuation": lambda word: strip_punctuation(word).lower(),
    "in upper case without punctuation": lambda word: strip_punctuation(word).upper(),
}
"""Ways to write a word in which texts of different origin often differ, by what to call them."""


def read_text(path: PathLike) -> dict[str, list[str]]:
    """Read a Kaldi text file into ``{utterance: words}``, in the file's order.

    Raises:
        BadInput: an empty line, a line that starts with a blank (so has no id), JSON, or an id seen before.
    """
    texts: dict[str, list[str]] = {}
    for number, line in read_lines(path):
        if not line or line[0] in " \t\r\f\v":
            raise BadInput(f"{path}:{number}: no utterance id before {line[:40]!r}; expected 'utt-id word ...'")
        if is_json(line):
            raise BadInput(f"{path}:{number}: {line[:40]!r} looks like JSON; expected Kaldi text, 'utt-id word ...'")
        utt, *words = split_words(line)
        if utt in texts:
            raise BadInput(f"{path}:{number}: utterance {utt!r} is given twice; every id must be unique")
        texts[utt] = words
    return texts


def write_text(path: PathLike, texts: Mapping[str, Iterable[str]]) -> None:
    """Write ``{utterance: words}`` as a Kaldi text file, in the mapping's order."""
    with atomic_write(path) as file:
        for utt, words in texts.items():
            line = " ".join([utt, *words])
            if split_words(line) != [utt, *words] or "\0" in line:
                raise BadInput(f"{path}: utterance {utt!r}: empty id or word, or a blank or NUL in one: {line[:80]!r}")
            file.write(line + "\n")
