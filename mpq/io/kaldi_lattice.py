"""Kaldi's lattice archives, text and binary.

A ``CompactLattice`` is an acceptor of words whose weights hold a graph cost, an acoustic cost and the
transition-ids of the frames.  A plain ``Lattice`` can be read too; each input label becomes a string of one
id. The formats are those of Kaldi's ``lat/kaldi-lattice.cc`` and ``fstext/lattice-weight.h`` and of OpenFst's
``VectorFst``; numbers in binary are little-endian.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import IO, NoReturn

from mpq.io.errors import BadInput
from mpq.io.files import PathLike, atomic_write, open_bytes
from mpq.io.lattice import Lattice, LatticeBuilder, Weight
from mpq.io.symbols import SymbolTable

_FST_MAGIC = struct.pack("<i", 2125659606)
_HEADER_END = struct.Struct("<iiQqqq")  # version, flags, properties, start, states, arcs
_HAS_SYMBOLS = 3  # flag bits: input and output symbol table
_EXPANDED_MUTABLE = 3  # property bits that every VectorFst has
_ARC = struct.Struct("<ii")
_INT = struct.Struct("<i")
_LONG = struct.Struct("<q")
_COSTS = struct.Struct("<ff")
# OpenFst's names of the arc types: the form of the two costs, and whether a string follows them
_ARC_TYPES = {
    "compactlattice44": (_COSTS, True),
    "compactlattice84": (struct.Struct("<dd"), True),
    "lattice4": (_COSTS, False),
    "lattice8": (struct.Struct("<dd"), False),
}
_ONE: Weight = (0.0, 0.0, ())


def read_kaldi_lattices(path: PathLike, symbols: SymbolTable | None = None) -> Iterator[Lattice]:
    """Yield the lattices of a Kaldi archive: text or binary, found out by itself; gzip by suffix.

    Args:
        path: archive, as ``lattice-copy ark:- ark:FILE`` or ``ark,t:FILE`` writes it.
        symbols: with it, words in a text archive may stand for their numbers (``int2sym.pl -f 3``), and every
            number must have a word.

    Raises:
        BadInput: broken or cut-off data, or an utterance seen before; it tells the utterance and the line
            or byte.
    """
    with open_bytes(path) as stream:
        source = _Source(path, stream)
        seen: set[str] = set()
        while utt := source.key():
            is_text = source.is_text()
            if utt in seen:
                source.fail("is given twice; every id must be unique")
            seen.add(utt)
            lattice = _read_text(source, symbols) if is_text else _read_binary(source)
            unknown = lattice.unknown_label(symbols) if symbols is not None else None
            if unknown is not None:
                source.fail(f"{unknown} is not a word number of the symbol table")
            yield lattice


def write_kaldi_lattices(
    path: PathLike, lattices: Iterable[Lattice], symbols: SymbolTable | None = None, binary: bool = True
) -> None:
    """Write a Kaldi archive of ``CompactLattice``, gzip by suffix; costs are stored in single precision.

    Args:
        path: archive to write.
        lattices: what to write.
        symbols: for text: write words for their numbers.
        binary: Kaldi's binary form, else its text form.
    """
    with atomic_write(path, "wb") as file:
        for lattice in lattices:
            file.write(f"{lattice.utt} ".encode())
            if binary:
                _write_binary(file, lattice)
            else:
                file.write(_text(lattice, symbols).encode())


class _Source:
    """An archive being read, which knows where it is."""

    def __init__(self, path: PathLike, stream: IO[bytes]) -> None:
        self.path = path
        self.stream = stream
        self.utt = ""
        self.offset = 0
        self.line_number = 0  # 0 in binary data, where only the offset means something

    def fail(self, problem: str) -> NoReturn:
        """Raise BadInput that says where."""
        place = f":{self.line_number}:" if self.line_number else f": byte {self.offset}:"
        raise BadInput(f"{self.path}{place} lattice of utterance {self.utt!r}: {problem}")

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        data = self._take(lambda: self.stream.read(size))
        if len(data) != size:
            self.fail(f"the data ends where {size} bytes were expected; write the archive again")
        return data

    def line(self) -> bytes:
        """The next line of text, empty at the end."""
        self.line_number += 1
        return self._take(self.stream.readline)

    def key(self) -> str:
        """The next utterance id, empty at the end of the archive; the blank after it is taken too."""
        key = bytearray()
        while (char := self._take(lambda: self.stream.read(1))) not in (b"", b" ", b"\n"):
            key += char
            if len(key) > 4096:
                self.utt = key[:16].decode(errors="replace")
                self.fail("no blank within 4096 bytes of an utterance id; is this a lattice archive?")
        self.utt = key.decode(errors="replace")
        if char == b"\n" or (not key and char):
            self.fail("expected an utterance id, a blank and a lattice")
        return self.utt

    def is_text(self) -> bool:
        """Whether a text lattice follows, which starts on a new line; else the magic number is taken."""
        first = self.read(1)
        if first == b"\n":
            self.line_number += 1
            return True
        if first + self.read(3) != _FST_MAGIC:
            self.fail("neither a new line nor the magic number of an FST follows the id; is this a lattice archive?")
        self.line_number = 0
        return False

    def _take(self, read: Callable[[], bytes]) -> bytes:
        try:
            data = read()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.fail(f"broken gzip data ({error}); write the archive again")
        self.offset += len(data)
        return data


def _read_text(source: _Source, symbols: SymbolTable | None) -> Lattice:
    """Read the lines of one lattice, up to an empty line."""
    rows = []
    while fields := source.line().split():
        if len(fields) > 5:
            source.fail(f"{len(fields)} columns; expected at most 5")
        rows.append((source.line_number, [field.decode(errors="replace") for field in fields]))
    # 4 columns are "from to word weight" of a CompactLattice or "from to input output" of a Lattice
    plain = any(len(row) == 5 or (len(row) == 4 and "," not in row[3]) for _, row in rows)
    builder = LatticeBuilder(source.utt)
    last_line = source.line_number
    for source.line_number, row in rows:
        try:
            _add_row(builder, row, plain, symbols)
        except (ValueError, KeyError, OverflowError, struct.error):
            kind = "Lattice" if plain else "CompactLattice"
            source.fail(f"{' '.join(row)[:80]!r} is not a line of a {kind}")
    source.line_number = last_line
    return builder.build()


def _add_row(builder: LatticeBuilder, row: list[str], plain: bool, symbols: SymbolTable | None) -> None:
    """Add the arc or final state of one line; an exception if it is neither."""
    state = _state(row[0])
    if len(row) <= 2:
        builder.set_final(state, _weight(row[1], plain) if len(row) == 2 else _ONE)
        return
    dst, *labels = _state(row[1]), *row[2 : 4 if plain else 3]
    graph, acoustic, string = _weight(row[-1], plain) if len(row) == (5 if plain else 4) else _ONE
    if plain:
        input_label = int(labels[0])
        string = (input_label,) if input_label else ()
    word = labels[-1]
    label = int(word) if word.isdecimal() or symbols is None else symbols.ids[word]
    builder.add_arc(state, dst, label, (graph, acoustic, string))


def _state(field: str) -> int:
    if not field.isdecimal():
        raise ValueError(field)
    return int(field)


def _weight(field: str, plain: bool) -> Weight:
    """Parse ``graph,acoustic`` or ``graph,acoustic,id_id_id``; costs must be finite in single precision."""
    costs, string = (field, "") if plain else field.rsplit(",", 1)
    graph, acoustic = _COSTS.unpack(_COSTS.pack(*map(float, costs.split(","))))
    if not (math.isfinite(graph) and math.isfinite(acoustic)):
        raise ValueError(field)
    return graph, acoustic, tuple(map(int, string.split("_"))) if string else ()


def _text(lattice: Lattice, symbols: SymbolTable | None) -> str:
    """The text form of a lattice: the start state first, each state's arcs before its final weight."""
    lines: list[list[str]] = [[] for _ in range(lattice.n_states)]
    for src, dst, label, weight in _arcs(lattice):
        word = label if symbols is None else symbols.words[label]
        lines[src].append(f"{src} {dst} {word} {_weight_text(weight)}\n")
    for state, weight in _finals(lattice).items():
        lines[state].append(f"{state} {_weight_text(weight)}\n")
    if lattice.start > 0:
        lines.insert(0, lines.pop(lattice.start))
    return "\n" + "".join(chain.from_iterable(lines)) + "\n"


def _weight_text(weight: Weight) -> str:
    graph, acoustic, string = weight
    return f"{graph:.9g},{acoustic:.9g},{'_'.join(map(str, string))}"


def _read_binary(source: _Source) -> Lattice:
    """Read one ``VectorFst``, whose magic number is already taken."""
    fst_type, arc_type = _read_string(source), _read_string(source)
    if fst_type != "vector" or arc_type not in _ARC_TYPES:
        source.fail(f"an FST of type {fst_type!r} with arcs {arc_type!r}; expected a CompactLattice or Lattice")
    _, flags, _, start, n_states, _ = _HEADER_END.unpack(source.read(_HEADER_END.size))
    if flags & _HAS_SYMBOLS:
        source.fail("holds symbol tables of its own; write it without them")
    if n_states < 0 or not -1 <= start < max(n_states, 1):
        source.fail(f"{n_states} states and start state {start}; the data is broken")
    costs, has_string = _ARC_TYPES[arc_type]
    builder = LatticeBuilder(source.utt)
    builder.start = start
    for state in range(n_states):
        weight = _read_weight(source, costs, has_string)
        builder.add_state(state)
        if not math.isinf(weight[0]):
            builder.set_final(state, weight)
        (n_arcs,) = _LONG.unpack(source.read(_LONG.size))
        for _ in range(n_arcs):
            input_label, label = _ARC.unpack(source.read(_ARC.size))
            graph, acoustic, string = _read_weight(source, costs, has_string)
            (dst,) = _INT.unpack(source.read(_INT.size))
            if not 0 <= dst < n_states or math.isinf(graph) or label < 0:
                source.fail(f"an arc to state {dst} with word {label} and cost {graph}; the data is broken")
            if not has_string and input_label:
                string = (input_label,)
            builder.add_arc(state, dst, label, (graph, acoustic, string))
    return builder.build()


def _read_string(source: _Source) -> str:
    (size,) = _INT.unpack(source.read(_INT.size))
    if not 0 <= size < 256:
        source.fail(f"a name of {size} bytes in the header; the data is broken")
    return source.read(size).decode(errors="replace")


def _read_weight(source: _Source, costs: struct.Struct, has_string: bool) -> Weight:
    """Two costs and, in a CompactLattice, a string; infinite costs stand for a state that is not final."""
    graph, acoustic = costs.unpack(source.read(costs.size))
    if math.isnan(graph) or math.isnan(acoustic) or math.isinf(graph) != math.isinf(acoustic):
        source.fail(f"costs {graph} and {acoustic}; expected finite numbers")
    if not has_string:
        return graph, acoustic, ()
    (size,) = _INT.unpack(source.read(_INT.size))
    if size < 0:
        source.fail(f"a string of {size} transition-ids; the data is broken")
    return graph, acoustic, struct.unpack(f"<{size}i", source.read(4 * size))


def _write_binary(file: IO[bytes], lattice: Lattice) -> None:
    """Write one ``VectorFst`` of ``CompactLattice`` arcs."""
    file.write(_FST_MAGIC)
    for name in (b"vector", b"compactlattice44"):
        file.write(_INT.pack(len(name)) + name)
    version, flags = 2, 0
    file.write(_HEADER_END.pack(version, flags, _EXPANDED_MUTABLE, lattice.start, lattice.n_states, lattice.n_arcs))
    arcs: list[list[bytes]] = [[] for _ in range(lattice.n_states)]
    for src, dst, label, weight in _arcs(lattice):
        arcs[src].append(_ARC.pack(label, label) + _weight_bytes(weight) + _INT.pack(dst))
    finals = _finals(lattice)
    for state, packed in enumerate(arcs):
        file.write(_weight_bytes(finals.get(state, (math.inf, math.inf, ()))))
        file.write(_LONG.pack(len(packed)) + b"".join(packed))


def _weight_bytes(weight: Weight) -> bytes:
    graph, acoustic, string = weight
    return _COSTS.pack(graph, acoustic) + struct.pack(f"<i{len(string)}i", len(string), *string)


def _arcs(lattice: Lattice) -> Iterator[tuple[int, int, int, Weight]]:
    """Source, destination, word and weight of every arc."""
    weights = zip(lattice.graph.tolist(), lattice.acoustic.tolist(), lattice.strings, strict=True)
    return zip(lattice.src.tolist(), lattice.dst.tolist(), lattice.labels.tolist(), weights, strict=True)


def _finals(lattice: Lattice) -> dict[int, Weight]:
    weights = zip(lattice.final_graph.tolist(), lattice.final_acoustic.tolist(), lattice.final_strings, strict=True)
    return dict(zip(lattice.final_states.tolist(), weights, strict=True))
