"""OpenFst's binary format as numpy arrays: the bridge between kaldifst's objects and vectorized code; and the search
by kaldi-decoder.

kaldifst gives arcs one Python object at a time, and its text form rounds weights to six digits; its binary
files hold everything.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol

import kaldi_decoder
import kaldifst
import numpy as np
import numpy.typing as npt

from mpq.fst.fsa import Ints, ranks
from mpq.io import BadInput, PathLike, atomic_path

Weights = np.ndarray[tuple[int, int], np.dtype[np.float32]]
_MAGIC = 2125659606


@dataclass
class Arcs:
    """A transducer as arrays, arcs in the order of their source states.

    Attributes:
        src, ilabel, olabel, dst: ``(A,)``.
        weight: costs of arcs, ``(A, W)``; W = 1 for the tropical semiring, 2 (graph, acoustic) for lattices.
        final: final costs, ``(S, W)``; infinite where a state is not final.
        start: start state, -1 if there is none.
    """

    src: Ints
    ilabel: Ints
    olabel: Ints
    dst: Ints
    weight: Weights
    final: Weights
    start: int


@contextmanager
def _memory_file() -> Iterator[tuple[IO[bytes], str]]:
    """A file in memory, open at its beginning, and its name; files on disk cost 5 ms a graph."""
    with open(os.memfd_create("fst"), "w+b") as file:
        yield file, f"/proc/self/fd/{file.fileno()}"


def _arc_type(width: int) -> np.dtype[np.void]:
    return np.dtype([("ilabel", "<i4"), ("olabel", "<i4"), ("weight", "<f4", (width,)), ("dst", "<i4")])


def fst_to_arrays(fst: Any) -> Arcs:
    """Arrays of a `kaldifst.StdVectorFst` or `kaldifst.Lattice`."""
    with _memory_file() as (file, path):
        if not fst.write(path):
            raise MemoryError("no memory for a copy of a graph")
        data = file.read()
    (size,) = struct.unpack_from("<i", data, 4)
    (arc_size,) = struct.unpack_from("<i", data, 8 + size)
    width = 1 if data[12 + size : 12 + size + arc_size] == b"standard" else 2
    at = 12 + size + arc_size
    _version, _flags, _properties, start, n_states, _n_arcs = struct.unpack_from("<iiQqqq", data, at)
    at += 40
    arc_type, entry = _arc_type(width), struct.Struct("<q")
    counts, begins = [], []
    for _ in range(n_states):
        (count,) = entry.unpack_from(data, at + 4 * width)
        counts.append(count)
        begins.append(at)
        at += 4 * width + 8 + count * arc_type.itemsize
    raw = np.frombuffer(data, np.uint8)
    states = np.array(begins, np.int64)
    final = raw[states[:, None] + np.arange(4 * width)].view("<f4").reshape(n_states, width)
    count = np.array(counts, np.int64)
    where = np.repeat(states + 4 * width + 8, count) + ranks(count) * arc_type.itemsize
    arcs = raw[where[:, None] + np.arange(arc_type.itemsize)].view(arc_type)[:, 0]
    return Arcs(
        np.repeat(np.arange(n_states), count),
        arcs["ilabel"].astype(np.int64),
        arcs["olabel"].astype(np.int64),
        arcs["dst"].astype(np.int64),
        arcs["weight"].copy(),
        final.copy(),
        start,
    )


def arrays_to_fst(arcs: Arcs) -> Any:
    """A `kaldifst.StdVectorFst` of arrays with one weight an arc; arcs may come in any order."""
    n_states, arc_type = len(arcs.final), _arc_type(1)
    order = np.argsort(arcs.src, kind="stable")
    count = np.bincount(arcs.src, minlength=n_states)
    packed = np.empty(len(order), arc_type)
    for name in ("ilabel", "olabel", "weight", "dst"):
        packed[name] = getattr(arcs, name)[order]
    sizes = 12 + count * arc_type.itemsize
    begins = np.cumsum(sizes) - sizes
    body = np.zeros(int(sizes.sum()), np.uint8)
    body[begins[:, None] + np.arange(4)] = arcs.final.astype("<f4").view(np.uint8).reshape(n_states, 4)
    body[begins[:, None] + np.arange(4, 12)] = count.astype("<i8").view(np.uint8).reshape(n_states, 8)
    where = np.repeat(begins + 12, count) + ranks(count) * arc_type.itemsize
    body[where[:, None] + np.arange(arc_type.itemsize)] = packed.view(np.uint8).reshape(-1, arc_type.itemsize)
    header = struct.pack(
        "<ii6si8siiQqqq", _MAGIC, 6, b"vector", 8, b"standard", 2, 0, 3, arcs.start, n_states, len(order)
    )
    with _memory_file() as (file, path):
        file.write(header + body.tobytes())
        file.flush()
        return kaldifst.StdVectorFst.read(path)


def write_fst(fst: Any, path: PathLike) -> None:
    """Save a graph in OpenFst's binary format."""
    with atomic_path(path) as temporary:
        if not fst.write(str(temporary)):
            raise OSError(f"{path}: cannot be written; is the disk full?")


def read_fst(path: PathLike) -> Any:
    """Read a `kaldifst.StdVectorFst`.

    Raises:
        BadInput: no such file, or not an OpenFst file.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; make it with `mpq lang`") from None
    if magic != struct.pack("<i", _MAGIC):
        raise BadInput(f"{path}: is no OpenFst file; make it again with `mpq lang`")
    with silent_stderr():
        graph = kaldifst.StdVectorFst.read(str(path))
    if graph is None:
        raise BadInput(f"{path}: is cut off or damaged; make it again with `mpq lang`")
    return graph


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep what C++ libraries tell there off standard error."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


class Search(Protocol):
    """A decoding graph that can be searched."""

    def search(self, scores: npt.NDArray[np.float32], beam: float, lattice_beam: float) -> tuple[Arcs | None, bool]:
        """Raw lattice of one utterance.

        Args:
            scores: scaled log-probabilities ``(T, C)``.
            beam: hypotheses that are worse than the best at a frame by more than this are dropped.
            lattice_beam: so are paths that are worse than the best one by more than this.

        Returns:
            the lattice with (graph, acoustic) costs, words as output labels, None if no path survived; and whether its
            paths reach an end of the graph.
        """
        ...


class NativeSearch:
    """Search by kaldi-decoder's lattice decoder."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def search(self, scores: npt.NDArray[np.float32], beam: float, lattice_beam: float) -> tuple[Arcs | None, bool]:
        """As :meth:`Search.search`; where no path reaches an end, the partial ones."""
        config = kaldi_decoder.LatticeSimpleDecoderConfig(beam=beam, lattice_beam=lattice_beam)
        decoder = kaldi_decoder.LatticeSimpleDecoder(self._graph, config)
        finished = decoder.decode(kaldi_decoder.DecodableCtc(scores))
        found, raw = decoder.get_raw_lattice()
        return (fst_to_arrays(raw) if found and raw.num_states else None), finished
