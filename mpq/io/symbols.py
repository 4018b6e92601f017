"""Symbol tables: ``words.txt``, a word and its number on each line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mpq.io.errors import BadInput
from mpq.io.files import PathLike, atomic_write, read_lines, sha256_file
from mpq.io.text import split_words


class SymbolTable:
    """Words and their numbers, both ways.

    Attributes:
        ids: ``{word: number}``.
        words: ``{number: word}``.
    """

    def __init__(self, pairs: Iterable[tuple[str, int]]) -> None:
        self.ids = dict(pairs)
        self.words = {number: word for word, number in self.ids.items()}

    def __len__(self) -> int:
        return len(self.ids)


def read_symbols(path: PathLike) -> SymbolTable:
    """Read a symbol table; a line of another form, or a word or number given twice, is BadInput."""
    ids: dict[str, int] = {}
    words: dict[int, str] = {}
    for number, line in read_lines(path):
        fields = split_words(line)
        if len(fields) != 2 or not fields[1].isdecimal():
            raise BadInput(f"{path}:{number}: {line[:60]!r}; expected 'word number'")
        word, index = fields[0], int(fields[1])
        if word in ids or index in words:
            raise BadInput(f"{path}:{number}: {line[:60]!r}: this word or number was given before")
        ids[word], words[index] = index, word
    return SymbolTable(ids.items())


def write_symbols_hash(folder: PathLike, path: PathLike) -> None:
    """Note in ``words.sha256`` which symbol table the archives of a folder were made with: they hold numbers only."""
    with atomic_write(Path(folder) / "words.sha256") as file:
        file.write(f"{sha256_file(path)}  {Path(path).name}\n")


def check_symbols_hash(archive: PathLike, path: PathLike) -> None:
    """Refuse a symbol table that is not the one noted beside an archive; without a note, anything goes."""
    note = Path(archive).parent / "words.sha256"
    if not note.is_file():
        return
    expected = next((line.split(" ")[0] for _, line in read_lines(note)), "")
    found = sha256_file(path)
    if found != expected:
        raise BadInput(
            f"{path}: not the words that {archive} was made with (sha256 {found[:12]}, {note} says "
            f"{expected[:12] or 'nothing'}); give the words.txt of the lang folder that was decoded with"
        )


def write_symbols(path: PathLike, symbols: SymbolTable) -> None:
    """Write a symbol table, in the order of its words."""
    with atomic_write(path) as file:
        for word, number in symbols.ids.items():
            file.write(f"{word} {number}\n")
