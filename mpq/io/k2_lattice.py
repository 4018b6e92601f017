"""k2's lattices: an `FsaVec` as `torch.save(lattices.as_dict(), FILE)` writes it, with or without k2.

The file is a dictionary of tensors, and is read as such: no pickled code runs. Of its entries these count:

- ``arcs``: k2's own coding of an `FsaVec` (or of one `Fsa`): source, destination, label and score of every arc;
- ``aux_labels``: words of arcs, one each (by `k2.expand_ragged_attributes` where arcs write several); without it the
  labels are words;
- ``lm_scores``: the part of each score that is the graph's, as icefall names it; without it all of it is;
- ``utt``: the utterances' ids, a list.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpq.io.errors import BadInput
from mpq.io.files import PathLike, atomic_write, os_errors
from mpq.io.lattice import Lattice

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


def read_k2_lattices(path: PathLike) -> Iterator[Lattice]:
    """Yield the lattices of a file of k2's; the arcs that end a path are arcs without a word, to the only final state.

    Raises:
        BadInput: no file of `torch.save`, one that holds code, or not an `FsaVec` with words and ids.
    """
    content = _load(path)
    utts = content.get("utt")
    if not isinstance(utts, list) or not all(isinstance(utt, str) for utt in utts) or len(set(utts)) < len(utts):
        raise BadInput(f"{path}: 'utt' must be a list of the utterances' ids; set lattices.utt before it is saved")
    arcs, splits = _decode(path, content.get("arcs"))
    if len(splits) != len(utts) + 1:
        raise BadInput(f"{path}: {len(splits) - 1} lattices, but {len(utts)} ids in 'utt'")
    words = _column(path, content, "aux_labels", arcs[:, 2])
    scores = np.ascontiguousarray(arcs[:, 3]).view(np.float32)
    graph = _column(path, content, "lm_scores", scores)
    for utt, first, last in zip(utts, splits[:-1].tolist(), splits[1:].tolist(), strict=True):
        part = slice(first, last)
        yield _lattice(utt, arcs[part], words[part], scores[part], graph[part])


def write_k2_lattices(path: PathLike, lattices: Iterable[Lattice]) -> None:
    """Write lattices, acceptors of words, for `k2.Fsa.from_dict(torch.load(path))`; single precision, as k2 has it.

    States keep their order, which mpq's own lattices have from start to end, as k2 wants it (else: `k2.top_sort`).

    Raises:
        BadInput: a lattice without arcs or ends, which k2 has not.
    """
    import torch

    utts, arcs, graphs = [], [], []
    for lattice in lattices:
        if lattice.start < 0 or not len(lattice.final_states):
            raise BadInput(f"{path}: lattice of utterance {lattice.utt!r}: has no path, which k2's lattices must have")
        utts.append(lattice.utt)
        columns, graph = _arcs(lattice)
        arcs.append(columns)
        graphs.append(graph)
    n_states = [int(columns[:, 1].max()) + 1 for columns in arcs]
    head = [len(utts), 0, *np.cumsum([0, *n_states]), *np.cumsum([0, *map(len, arcs)])]
    coded = np.concatenate([np.array(head, np.int32), *(columns.reshape(-1) for columns in arcs)])
    scores = np.concatenate([np.zeros(0, np.float32), *graphs])
    content = {"arcs": torch.from_numpy(coded), "lm_scores": torch.from_numpy(scores), "utt": utts}
    with atomic_write(path, "wb") as file, os_errors():
        torch.save(content, file)


def _load(path: PathLike) -> dict[str, Any]:
    """The dictionary of a file of `torch.save`, of tensors and plain values only."""
    import torch

    if not os.path.exists(path):
        raise BadInput(f"{path}: no such file; check the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True) if zipfile.is_zipfile(path) else None
    except pickle.UnpicklingError:
        raise BadInput(
            f"{path}: is damaged, or holds more than tensors (a k2 object, ragged aux_labels); save "
            "lattices.as_dict() after k2.expand_ragged_attributes(lattices)"
        ) from None
    except RuntimeError:
        content = None
    if content is None:
        raise BadInput(f"{path}: is no file of torch.save, or damaged; write it again")
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds a {type(content).__name__}; expected the dictionary of lattices.as_dict()")
    return content


def _decode(path: PathLike, coded: Any) -> tuple[Ints, NDArray[np.int64]]:
    """Arcs ``(A, 4)`` of all lattices, and where those of each begin ``(N + 1,)``."""
    arcs: Ints = np.asarray(coded, np.int32) if "int32" in str(getattr(coded, "dtype", "")) else np.zeros(0, np.int32)
    if arcs.ndim == 2 and arcs.shape[-1] == 4:  # one Fsa
        return arcs, np.array([0, len(arcs)])
    if arcs.ndim == 1 and len(arcs) >= 2:
        # the number of lattices, 0, ends of their states, ends of their arcs, arcs
        n, body = int(arcs[0]), 2 * int(arcs[0]) + 4
        splits = arcs[body - n - 1 : body].astype(np.int64)
        if n >= 0 and len(splits) == n + 1 and len(arcs) == body + 4 * splits[-1]:
            return arcs[body:].reshape(-1, 4), splits
    raise BadInput(f"{path}: 'arcs' is not what k2 codes an FsaVec as; expected the dictionary of lattices.as_dict()")


def _column(path: PathLike, content: dict[str, Any], name: str, default: NDArray[Any]) -> NDArray[Any]:
    """One value for each arc."""
    column = np.asarray(content[name]) if name in content else default
    if column.shape != default.shape:
        raise BadInput(f"{path}: {name!r} has {column.size} values for {default.size} arcs")
    return column


def _lattice(utt: str, arcs: Ints, words: Ints, scores: Floats, graph: Floats) -> Lattice:
    """One lattice of k2's arcs."""
    n_states = int(arcs[:, :2].max(initial=-1)) + 1
    zeros = np.zeros(1 if n_states else 0)
    return Lattice(
        utt=utt,
        n_states=n_states,
        start=0 if n_states else -1,
        src=arcs[:, 0].copy(),
        dst=arcs[:, 1].copy(),
        labels=np.maximum(words, 0).astype(np.int32),
        graph=-graph.astype(np.float64),
        acoustic=graph.astype(np.float64) - scores,
        strings=[()] * len(arcs),
        final_states=np.array([n_states - 1] if n_states else [], np.int32),
        final_graph=zeros,
        final_acoustic=zeros,
        final_strings=[()] * len(zeros),
    )


def _arcs(lattice: Lattice) -> tuple[Ints, Floats]:
    """k2's arcs ``(A, 4)`` of a lattice, by source, and their graph scores ``(A,)``."""
    number = np.arange(lattice.n_states)
    number[[0, lattice.start]] = lattice.start, 0  # k2 starts at 0
    ends = lattice.final_states
    src = np.concatenate((number[lattice.src], number[ends]))
    dst = np.concatenate((number[lattice.dst], np.full(len(ends), lattice.n_states)))
    label = np.concatenate((lattice.labels, np.full(len(ends), -1)))
    graph = -np.concatenate((lattice.graph, lattice.final_graph)).astype(np.float32)
    score = graph - np.concatenate((lattice.acoustic, lattice.final_acoustic)).astype(np.float32)
    order = np.argsort(src, kind="stable")
    columns = [column[order].astype(np.int32) for column in (src, dst, label, score.view(np.int32))]
    return np.stack(columns, 1), graph[order]
