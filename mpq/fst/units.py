"""What an acoustic model tells apart: phones, or phones by their left neighbour (left biphones).

Full left biphones need neither alignments nor a decision tree (Hadian et al. 2018, "End-to-end speech recognition
using lattice-free MMI"): with P phones there are P (P + 1) of them, the further left neighbour being the beginning of
the utterance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mpq.fst.fsa import Fsa, Ints
from mpq.io import BadInput, PathLike, SymbolTable, read_symbols, write_symbols
from mpq.lang.lexicon import BLANK

_BEGIN = "<s>"
Index = TypeVar("Index", int, Ints)


class Units:
    """The outputs 1, 2, ... of an acoustic model; output 0 is the blank.

    Attributes:
        phones: names of phone classes 1..P.
        biphones: whether units are pairs of phones.
        names: names of the units.
    """

    def __init__(self, phones: Sequence[str], biphones: bool = False) -> None:
        self.phones, self.biphones = list(phones), biphones
        lefts = [_BEGIN, *self.phones]
        self.names = [f"{left}_{phone}" for left in lefts for phone in self.phones] if biphones else self.phones

    def __len__(self) -> int:
        return len(self.names)

    def unit(self, left: Index, phone: Index) -> Index:
        """Unit of a phone class after another (0: at the beginning); for numbers and for arrays of them."""
        return left * len(self.phones) + phone if self.biphones else phone

    def phone(self, unit: Index) -> Index:
        """Phone class of a unit; for numbers and for arrays of them."""
        return (unit - 1) % len(self.phones) + 1

    def expand(self, phones: Fsa) -> Fsa:
        """An acceptor over phones as one over units: states are split by the last phone where it matters."""
        if not self.biphones:
            return phones
        entered, of_arc = np.unique(np.stack((phones.dst, phones.label)), axis=1, return_inverse=True)
        home = np.concatenate(([phones.start], entered[0]))
        last = np.concatenate(([0], entered[1]))
        # Every arc leaves each copy of its source.
        order = np.argsort(home, kind="stable")
        begin, end = (np.searchsorted(home[order], phones.src, side) for side in ("left", "right"))
        copies = end - begin
        arc = np.repeat(np.arange(len(phones.src)), copies)
        source = order[np.repeat(begin, copies) + np.arange(len(arc)) - np.repeat(np.cumsum(copies) - copies, copies)]
        units = self.unit(last[source], phones.label[arc])
        target = of_arc.reshape(-1)[arc] + 1
        return Fsa(source, target, units, phones.weight[arc], phones.final[home]).trimmed()

    def write(self, folder: PathLike) -> None:
        """Write `units.txt`, beside the `phones.txt` of the lexicon."""
        names = [BLANK, *self.names]
        write_symbols(Path(folder) / "units.txt", SymbolTable((name, number) for number, name in enumerate(names)))


def read_units(folder: PathLike, phones: Sequence[str]) -> Units:
    """Read `units.txt` of a folder made by `mpq lang`; without one, the units are the phones.

    Raises:
        BadInput: the units are not made of these phones.
    """
    path = Path(folder) / "units.txt"
    if not path.exists():
        return Units(phones)
    names = list(read_symbols(path).ids)[1:]
    for biphones in (False, True):
        if Units(phones, biphones).names == names:
            return Units(phones, biphones)
    raise BadInput(
        f"{path}: {len(names)} units that are neither the {len(phones)} phones of phones.txt nor their left "
        "biphones; the files of a lang folder belong together: run mpq lang again"
    )
