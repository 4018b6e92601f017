"""Files of lattices, whatever their form: Kaldi archives, or k2's where the name ends in ``.pt``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from mpq.io.errors import BadInput
from mpq.io.files import PathLike
from mpq.io.k2_lattice import read_k2_lattices, write_k2_lattices
from mpq.io.kaldi_lattice import read_kaldi_lattices, write_kaldi_lattices
from mpq.io.lattice import Lattice
from mpq.io.symbols import SymbolTable


def read_lattices(path: PathLike, symbols: SymbolTable | None = None) -> Iterator[Lattice]:
    """Yield the lattices of a file, see :mod:`mpq.io.kaldi_lattice` and :mod:`mpq.io.k2_lattice`.

    Args:
        path: archive of Kaldi's, text or binary, gzip by suffix; or ``.pt``.
        symbols: with it, every number must have a word, and words in a text archive may stand for numbers.

    Raises:
        BadInput: broken data, an utterance seen before, or a number without a word.
    """
    if not _is_k2(path):
        yield from read_kaldi_lattices(path, symbols)
        return
    for lattice in read_k2_lattices(path):
        unknown = lattice.unknown_label(symbols) if symbols is not None else None
        if unknown is not None:
            raise BadInput(
                f"{path}: lattice of utterance {lattice.utt!r}: {unknown} is not a word number of the symbol table"
            )
        yield lattice


def write_lattices(
    path: PathLike, lattices: Iterable[Lattice], symbols: SymbolTable | None = None, binary: bool = True
) -> None:
    """Write a Kaldi archive (gzip by suffix; text with words where `binary` is off), or k2's file for ``.pt``."""
    if _is_k2(path):
        write_k2_lattices(path, lattices)
    else:
        write_kaldi_lattices(path, lattices, symbols, binary)


def _is_k2(path: PathLike) -> bool:
    return os.fspath(path).endswith(".pt")
