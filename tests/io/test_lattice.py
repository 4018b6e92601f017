"""Kaldi lattice archives: round trips, OpenFst's own bytes, and broken data."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.io import BadInput, Lattice, LatticeBuilder, SymbolTable, read_lattices, write_lattices
from mpq.io.lattice import Weight

COST = st.floats(-1e6, 1e6, width=32)
IDS = st.lists(st.integers(1, 9000), max_size=4).map(tuple)
WEIGHT = st.tuples(COST, COST, IDS)
UTT = st.text("abcxyz-_0123456789", min_size=1, max_size=8)


@st.composite
def lattices(draw: st.DrawFn, utt: str) -> Lattice:
    """A lattice whose start state is the first with an arc or final weight, as a text archive needs it."""
    n_states = draw(st.integers(1, 5))
    state = st.integers(0, n_states - 1)
    builder = LatticeBuilder(utt)
    builder.set_final(0, draw(WEIGHT))
    for src, dst, label, weight in draw(st.lists(st.tuples(state, state, st.integers(0, 30), WEIGHT), max_size=6)):
        builder.add_arc(src, dst, label, weight)
    for final, weight in draw(st.dictionaries(state, WEIGHT, max_size=3)).items():
        builder.set_final(final, weight)
    return builder.build()


ARCHIVES = st.lists(UTT, max_size=3, unique=True).flatmap(lambda utts: st.tuples(*map(lattices, utts)))


def content(lattice: Lattice) -> tuple[object, ...]:
    """A lattice as plain values, arcs and final states in a fixed order."""
    columns = (lattice.src, lattice.dst, lattice.labels, lattice.graph, lattice.acoustic)
    arcs = zip(*(column.tolist() for column in columns), lattice.strings, strict=True)
    final_columns = (lattice.final_states, lattice.final_graph, lattice.final_acoustic)
    finals = zip(*(column.tolist() for column in final_columns), lattice.final_strings, strict=True)
    by_source = sorted(arcs, key=lambda arc: arc[0])
    return lattice.utt, lattice.n_states, lattice.start, by_source, sorted(finals)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@given(archive=ARCHIVES)
def test_round_trip(
    archive: tuple[Lattice, ...], binary: bool, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"lat{suffix}"
    write_lattices(path, archive, binary=binary)
    assert [content(lattice) for lattice in read_lattices(path)] == [content(lattice) for lattice in archive]


TEXT = """\
utt-1 \n0 1 7 1.5,2.25,5_5_6
0 1 8 0.5,-1,
1 2 7
2 3,0,9
1

utt-2 \n0 0,0,1_2

"""


def test_text_as_kaldi_writes_it(tmp_path: Path) -> None:
    (tmp_path / "lat").write_text(TEXT)
    first, second = read_lattices(tmp_path / "lat")
    assert (first.utt, first.n_states, first.n_arcs, first.start) == ("utt-1", 3, 3, 0)
    assert first.labels.tolist() == [7, 8, 7]
    assert first.graph.tolist() == [1.5, 0.5, 0.0]
    assert first.acoustic.tolist() == [2.25, -1.0, 0.0]
    assert first.strings == [(5, 5, 6), (), ()]
    assert dict(zip(first.final_states.tolist(), first.final_strings, strict=True)) == {2: (9,), 1: ()}
    assert (second.utt, second.n_arcs, second.final_strings) == ("utt-2", 0, [(1, 2)])


def test_words_in_text_and_their_numbers(tmp_path: Path) -> None:
    symbols = SymbolTable([("<eps>", 0), ("hello", 7), ("world", 8)])
    (tmp_path / "lat").write_text(TEXT.replace(" 7", " hello").replace(" 8", " world"))
    assert [lattice.labels.tolist() for lattice in read_lattices(tmp_path / "lat", symbols)] == [[7, 8, 7], []]
    write_lattices(tmp_path / "out", read_lattices(tmp_path / "lat", symbols), symbols, binary=False)
    assert "0 1 hello 1.5,2.25,5_5_6\n0 1 world 0.5,-1,\n" in (tmp_path / "out").read_text()
    (tmp_path / "lat").write_text(TEXT)
    with pytest.raises(BadInput, match="lattice of utterance 'utt-1': 8 is not a word number"):
        list(read_lattices(tmp_path / "lat", SymbolTable([("hello", 7)])))


def test_plain_lattice_as_text(tmp_path: Path) -> None:
    (tmp_path / "lat").write_text("utt \n0 1 5 7 1.5,2.25\n1 2 6 0\n2 1,0\n\n")
    (lattice,) = read_lattices(tmp_path / "lat")
    assert lattice.labels.tolist() == [7, 0]
    assert lattice.strings == [(5,), (6,)]
    assert lattice.graph.tolist() == [1.5, 0.0]
    assert lattice.final_graph.tolist() == [1.0]


def test_bytes_of_openfst(tmp_path: Path) -> None:
    kaldifst = pytest.importorskip("kaldifst")
    rng = np.random.default_rng(1)
    reference = kaldifst.Lattice()
    for _ in range(20):
        reference.add_state()
    reference.start = 3
    expected: list[tuple[int, int, int, float, float, tuple[int, ...]]] = []
    for src in range(20):
        for _ in range(int(rng.integers(0, 4))):
            dst, tid, word = (int(value) for value in rng.integers(0, 20, size=3))
            graph, acoustic = (float(np.float32(value)) for value in rng.normal(size=2))
            weight = kaldifst.LatticeWeight(graph, acoustic)
            reference.add_arc(src, kaldifst.LatticeArc(tid, word, weight, dst))
            expected.append((src, dst, word, graph, acoustic, (tid,) if tid else ()))
    reference.set_final(7, kaldifst.LatticeWeight(0.5, 0.25))
    reference.write(str(tmp_path / "fst"))
    (tmp_path / "lat").write_bytes(b"utt " + (tmp_path / "fst").read_bytes())
    (lattice,) = read_lattices(tmp_path / "lat")
    assert content(lattice) == ("utt", 20, 3, expected, [(7, 0.5, 0.25, ())])


def test_header_is_openfsts(tmp_path: Path) -> None:
    """What is written differs from OpenFst's header only in the arc type and in known properties."""
    kaldifst = pytest.importorskip("kaldifst")
    reference = kaldifst.Lattice()
    reference.add_state()
    reference.start = 0
    reference.set_final(0, kaldifst.LatticeWeight(1.0, 2.0))
    reference.write(str(tmp_path / "fst"))
    builder = LatticeBuilder("u")
    builder.set_final(0, (1.0, 2.0, ()))
    write_lattices(tmp_path / "lat", [builder.build()])
    theirs = (tmp_path / "fst").read_bytes().replace(b"\x08\0\0\0lattice4", b"\x10\0\0\0compactlattice44")
    ours = (tmp_path / "lat").read_bytes().removeprefix(b"u ")
    properties = slice(4 + 10 + 20 + 8, 4 + 10 + 20 + 16)
    assert ours[: properties.start] == theirs[: properties.start]
    # the final weight of a CompactLattice has an empty string behind its costs
    assert ours[properties.stop :] == theirs[properties.stop :].replace(b"\0\0\0@", b"\0\0\0@\0\0\0\0")


def one_arc(weight: Weight = (1.0, 2.0, (3, 4))) -> Lattice:
    builder = LatticeBuilder("utt-1")
    builder.add_arc(0, 1, 7, weight)
    builder.set_final(1, (0.0, 0.0, ()))
    return builder.build()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_cut_of_a_binary_archive_is_noticed(tmp_path: Path, suffix: str) -> None:
    write_lattices(tmp_path / "whole", [one_arc()])
    whole = (tmp_path / "whole").read_bytes()
    whole = gzip.compress(whole) if suffix else whole
    for size in range(1, len(whole)):
        (tmp_path / f"part{suffix}").write_bytes(whole[:size])
        with pytest.raises(BadInput, match=r"part.*: byte \d+: lattice of utterance \'.*again"):
            list(read_lattices(tmp_path / f"part{suffix}"))


@given(position=st.integers(6, 200), value=st.integers(0, 255))
def test_altered_bytes_never_raise_anything_else(
    position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "altered"
    write_lattices(path, [one_arc()])
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    try:
        list(read_lattices(path))
    except BadInput as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("utt-1 \n0 1 7 1,x,\n\n", r"lat:2: lattice of utterance 'utt-1': '0 1 7 1,x,' is not a line of a Compact"),
        ("utt-1 \n0 1 7 nan,1,\n\n", r"lat:2: .*'0 1 7 nan,1,' is not a line"),
        ("utt-1 \n0 1 7 1,2,3\n0 1 7 8 1,2\n\n", r"lat:2: .* is not a line of a Lattice"),
        ("utt-1 \n0 1 hello 1,2,3\n\n", r"lat:2: .*hello.* is not a line"),
        ("utt-1 \n0 -1 7 1,2,3\n\n", r"lat:2: .* is not a line"),
        ("utt-1 \n0 1 2 3 4 5\n\n", r"lat:2: .*6 columns; expected at most 5"),
        ("utt-1 \n0 0,0,\n\nutt-1 \n0 0,0,\n\n", r"lat:4: lattice of utterance 'utt-1': is given twice"),
        ("utt-1\n0 0,0,\n\n", r"expected an utterance id, a blank and a lattice"),
        ("utt-1 hello world\n", r"neither a new line nor the magic number"),
        ("x" * 5000, r"no blank within 4096 bytes"),
    ],
)
def test_wrong_text(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "lat").write_text(text)
    with pytest.raises(BadInput, match=message):
        list(read_lattices(tmp_path / "lat"))
