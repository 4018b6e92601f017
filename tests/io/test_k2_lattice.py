"""k2's files of lattices: written and read without k2, read and written by the real k2, and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given

from mpq.io import BadInput, Lattice, LatticeBuilder, SymbolTable, read_lattices, write_lattices
from tests.conftest import ROOT

from .test_lattice import ARCHIVES


def two_lattices() -> list[Lattice]:
    """The first starts in its last state and has two ends; numbers of states and arcs differ."""
    first, second = LatticeBuilder("utt-1"), LatticeBuilder("utt-2")
    first.add_state(2)
    first.add_arc(2, 0, 7, (1.25, 30.5, ()))
    first.add_arc(2, 1, 8, (2.5, -3.0, ()))
    first.add_arc(2, 1, 7, (2.0, 4.0, ()))
    first.add_arc(0, 1, 0, (0.125, 2.0, ()))
    first.set_final(0, (0.5, 0.25, ()))
    first.set_final(1, (1.0, 0.0, ()))
    second.add_arc(0, 1, 9, (4.0, 8.0, ()))
    second.set_final(1, (0.0, 0.0, ()))
    return [first.build(), second.build()]


Paths = list[tuple[tuple[int, ...], float, float]]


def paths(lattice: Lattice) -> Paths:
    """Words, graph and acoustic cost of every path."""
    final = {int(s): i for i, s in enumerate(lattice.final_states)}
    found: Paths = []

    def walk(state: int, words: tuple[int, ...], graph: float, acoustic: float) -> None:
        if state in final:
            end = final[state]
            found.append((words, graph + lattice.final_graph[end], acoustic + lattice.final_acoustic[end]))
        for arc in np.flatnonzero(lattice.src == state):
            label = int(lattice.labels[arc])
            costs = graph + lattice.graph[arc], acoustic + lattice.acoustic[arc]
            walk(int(lattice.dst[arc]), (*words, label) if label else words, *costs)

    walk(lattice.start, (), 0.0, 0.0)
    return sorted(found)


def test_paths_survive_the_file(tmp_path: Path) -> None:
    write_lattices(tmp_path / "lat.pt", two_lattices())
    again = list(read_lattices(tmp_path / "lat.pt", SymbolTable([("<eps>", 0), ("a", 7), ("b", 8), ("c", 9)])))
    assert [lattice.utt for lattice in again] == ["utt-1", "utt-2"]
    assert [paths(lattice) for lattice in again] == [paths(lattice) for lattice in two_lattices()]
    with pytest.raises(BadInput, match="utterance 'utt-1': 8 is not a word number"):
        list(read_lattices(tmp_path / "lat.pt", SymbolTable([("<eps>", 0), ("a", 7), ("c", 9)])))
    write_lattices(tmp_path / "lat.gz", read_lattices(tmp_path / "lat.pt"))  # to Kaldi's form
    assert [paths(lattice) for lattice in read_lattices(tmp_path / "lat.gz")] == [paths(x) for x in two_lattices()]


@given(archive=ARCHIVES)
def test_any_lattice_with_ends_can_be_written(
    archive: tuple[Lattice, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pt"
    whole = [lattice for lattice in archive if lattice.start >= 0 and len(lattice.final_states)]
    write_lattices(path, whole)
    for found, expected in zip(read_lattices(path), whole, strict=True):
        assert found.n_arcs == expected.n_arcs + len(expected.final_states)
        assert found.graph.sum() == pytest.approx(expected.graph.sum() + expected.final_graph.sum(), rel=1e-3, abs=1)


IN_K2 = """
import sys, torch, k2
lattices = k2.Fsa.from_dict(torch.load(sys.argv[1]))
assert lattices.shape[0] == 2 and lattices.utt == ["utt-1", "utt-2"], lattices.shape
best = k2.shortest_path(k2.top_sort(lattices), use_double_scores=True)
print(best.get_tot_scores(log_semiring=False, use_double_scores=True).tolist(), (best.scores - best.lm_scores).tolist())
words = k2.Fsa.from_dict(torch.load(sys.argv[1]))
words.aux_labels = words.labels.clone()  # as a decoder of k2 has them: tokens on labels, words on aux_labels
words.labels = torch.where(words.labels > 0, words.labels - 6, words.labels)
torch.save(words.as_dict(), sys.argv[2])
"""


@pytest.mark.k2
def test_k2_reads_what_is_written_and_what_it_writes_is_read(tmp_path: Path) -> None:
    write_lattices(tmp_path / "ours.pt", two_lattices())
    command = [ROOT / ".venv-k2/bin/python", "-c", IN_K2, tmp_path / "ours.pt", tmp_path / "theirs.pt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    best, acoustic = done.stdout.replace("] [", "]\n[").splitlines()
    assert eval(best) == [-2.5 + 3.0 - 1.0, -12.0]  # 8 and the end, 9
    assert sorted(eval(acoustic)) == [-8.0, 0.0, 0.0, 3.0]
    again = list(read_lattices(tmp_path / "theirs.pt"))
    assert [paths(lattice) for lattice in again] == [paths(lattice) for lattice in two_lattices()]


ONE = {"arcs": torch.tensor([[0, 1, 3, 0], [1, 2, -1, 0]], dtype=torch.int32), "utt": ["u"]}
BAD = {
    "no ids": ({"arcs": ONE["arcs"]}, "'utt' must be a list"),
    "other ids": ({**ONE, "utt": ["u", "v"]}, "1 lattices, but 2 ids"),
    "no arcs": ({"utt": ["u"]}, "'arcs' is not what k2 codes"),
    "cut arcs": (
        {**ONE, "arcs": torch.tensor([1, 0, 0, 3, 0, 2, 0], dtype=torch.int32)},
        "'arcs' is not what k2 codes",
    ),
    "short scores": ({**ONE, "lm_scores": torch.zeros(1)}, "'lm_scores' has 1 values for 2 arcs"),
    "a list": ([1, 2], "holds a list"),
    "code": ({**ONE, "table": Path("x")}, "is damaged, or holds more than tensors"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_lattice_is_named(tmp_path: Path, what: str) -> None:
    content, message = BAD[what]
    torch.save(content, tmp_path / "lat.pt")
    with pytest.raises(BadInput, match=f"lat.pt: {message}"):
        list(read_lattices(tmp_path / "lat.pt"))


def test_files_that_are_not_torchs_are_named(tmp_path: Path) -> None:
    torch.save(ONE, tmp_path / "whole.pt")
    assert len(list(read_lattices(tmp_path / "whole.pt"))) == 1
    data = (tmp_path / "whole.pt").read_bytes()
    for name, content in {
        "cut": data[: len(data) // 2],
        "text": b"0 1 2\n",
        "empty": b"",
    }.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
        with pytest.raises(BadInput, match=f"{name}.pt: is no file of torch.save"):
            list(read_lattices(tmp_path / f"{name}.pt"))
    with pytest.raises(BadInput, match=r"none.pt: no such file"):
        list(read_lattices(tmp_path / "none.pt"))
    with pytest.raises(BadInput, match="utterance 'u': has no path"):
        write_lattices(tmp_path / "out.pt", [LatticeBuilder("u").build()])
