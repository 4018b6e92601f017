"""The text: cleaning, and a split by book that leaks nothing."""

from __future__ import annotations

import re

import pytest

from local.verses import DEV_BOOKS, TEST_BOOKS, Split, clean, read_verses, runs, split_verses


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return split_verses(read_verses(), 4, 18)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('God said, "Let there be light," and there was light.', "god said, let there be light, and there was light."),
        ("Write, `Blessed are those` (now)", "write, blessed are those now"),
        ("God`s Spirit; the disciples\u2019 feet [didn\u2019t]", "god's spirit; the disciples feet didn't"),
        ("Beth-el  and\nAi!", "beth el and ai!"),
        ("Caf\u00e9 -- 12", "caf"),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_every_word_can_be_spoken(splits: dict[str, Split]) -> None:
    for split in splits.values():
        for verse in split.text:
            assert verse.words and all(re.fullmatch(r"[a-z]+('[a-z]+)*", word) for word in verse.words)
            assert re.findall(r"[a-z']+", verse.spoken) == list(verse.words)


def test_sizes(splits: dict[str, Split]) -> None:
    assert sum(len(split.text) for split in splits.values()) == 31_099
    test = splits["test"].spoken
    assert len(test) >= 1000 and sum(len(verse.words) for verse in test) >= 12_000
    assert 250 <= len(splits["dev"].spoken) <= 310
    assert sum(len(verse.words) for verse in splits["train"].text) > 600_000


def test_books_are_held_out_whole(splits: dict[str, Split]) -> None:
    books = {part: {verse.book for verse in split.text} for part, split in splits.items()}
    assert books["test"] == set(TEST_BOOKS) and books["dev"] == set(DEV_BOOKS)
    assert not books["train"] & (books["test"] | books["dev"])
    assert sum(map(len, books.values())) == 66


def test_spoken_held_out_verses_are_not_quoted_in_training(splits: dict[str, Split]) -> None:
    train = "".join(" " + " ".join(verse.words) + " \n" for verse in splits["train"].text)
    for part in ("dev", "test"):
        for verse in splits[part].spoken[::12]:  # each is a slow search
            assert 4 <= len(verse.words) <= 18
            for start in range(max(1, len(verse.words) - 7)):
                run = f" {' '.join(verse.words[start : start + 8])} "
                # a verse of fewer than eight words counts only where it is a whole training verse
                assert (f"\n{run}\n" if len(verse.words) < 8 else run) not in train


def test_runs() -> None:
    assert runs(("a", "b", "c"), 2) == {("a", "b"), ("b", "c")}
    assert runs(("a",), 2) == {("a",)}
