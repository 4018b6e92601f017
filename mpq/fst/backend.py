"""The two back ends behind one interface: `native`, and k2 in this process or in one of its own environment.

k2 is compiled for one version of torch. Where it is installed beside mpq's torch, it is used in this process, on the
model's device; else, where `utils/k2_env.sh` has made `.venv-k2`, in a process of that environment, which numbers
reach through a pipe. Both run the same adapter, :mod:`mpq.fst.k2`.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpq.fst import k2
from mpq.fst.epsilon import remove_epsilons
from mpq.fst.fsa import Floats, Fsa, Ints, ranks
from mpq.fst.k2_server import read_message, write_message
from mpq.fst.lfmmi import PathSums, native_path_sums
from mpq.fst.native import Arcs, NativeSearch, Search, fst_to_arrays
from mpq.io import BadInput

Backend = Literal["native", "k2"]
_ROOT = Path(__file__).resolve().parents[2]
_PYTHON = _ROOT / ".venv-k2" / "bin" / "python"


class _Process:
    """The adapter in a process of `.venv-k2`; its methods are the adapter's functions."""

    def __init__(self) -> None:
        self._told = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        env = {**os.environ, "PYTHONPATH": str(_ROOT)}
        command = [str(_PYTHON), "-m", "mpq.fst.k2_server"]
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told
        )
        atexit.register(self._end)

    def path_sums(self, log_probs: Tensor, lengths: Tensor, arcs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As :func:`mpq.fst.k2.path_sums`, from any device."""
        totals, posteriors = self._call(
            "path_sums",
            log_probs=log_probs.detach().cpu().float(),
            lengths=lengths.cpu(),
            arcs=torch.cat(list(arcs)),
            sizes=np.array([*map(len, arcs)]),
        )
        return totals.to(log_probs.device), posteriors.to(log_probs.device)

    def Graph(self, arcs: Tensor, words: Tensor, splits: Tensor) -> _Process:
        """As :class:`mpq.fst.k2.Graph`; the process holds one graph, the last."""
        self._call("open", arcs=arcs, words=words, splits=splits)
        return self

    def search(self, scores: Tensor, beam: float, lattice_beam: float) -> tuple[Tensor, ...]:
        """As :meth:`mpq.fst.k2.Graph.search`."""
        return self._call("search", scores=scores, beam=beam, lattice_beam=lattice_beam)

    def _call(self, call: str, **arrays: npt.ArrayLike) -> tuple[Tensor, ...]:
        """What a function of the adapter returns.

        Raises:
            BadInput: it failed, or its process ended.
        """
        assert self._process.stdin and self._process.stdout
        try:
            write_message(self._process.stdin, call=call, **arrays)
            answer = read_message(self._process.stdout)
        except BrokenPipeError:
            answer = {}
        if answer.pop("ok", None) is None:
            raise BadInput(
                f"--fst k2: {_PYTHON}: {answer.get('error') or self._last_words()}; run utils/k2_env.sh again"
            )
        return tuple(torch.from_numpy(answer[str(i)]) for i in range(len(answer)))

    def _last_words(self) -> str:
        """Why the process ended."""
        status = self._process.wait()
        self._told.seek(0)
        lines = self._told.read().decode(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), f"k2's process ended with status {status}")

    def _end(self) -> None:
        self._process.kill()  # it holds nothing
        self._process.wait()


_adapters: dict[int, Any] = {}


def _adapter() -> Any:
    """The adapter or a process that runs it, one for each of this program's processes."""
    if os.getpid() not in _adapters:
        _adapters.clear()  # a parent's, whose pipe cannot be shared
        _adapters[os.getpid()] = _connect()
    return _adapters[os.getpid()]


def _connect() -> Any:
    if importlib.util.find_spec("k2") is not None:
        return k2
    if _PYTHON.exists():
        return _Process()
    raise BadInput(
        f"--fst k2: k2 is not installed; run utils/k2_env.sh, which needs CPython 3.9, or install the wheel that k2's "
        f"page has for torch {torch.__version__}"
    )


def check_backend(fst: Backend) -> None:
    """See that a back end works, before hours are spent.

    Raises:
        BadInput: k2 is not installed, was built for another torch, or computes something else.
    """
    if fst == "native":
        return
    graph = Fsa.from_arcs([(0, 1, 1, 0.5)], {1: -0.25})
    try:
        total, posteriors = _k2_path_sums(torch.tensor([[[-1.0, -2.0]]]), torch.tensor([1]), graph)
    except BadInput:
        raise
    except Exception as error:  # whatever a library that was built for another torch does
        raise BadInput(
            f"--fst k2: the k2 that is installed does not work with torch {torch.__version__} "
            f"({' '.join(str(error).split())}); install the wheel that k2's page has for this torch, or remove k2 and "
            "run utils/k2_env.sh"
        ) from None
    if abs(total.item() + 1.75) > 1e-5 or posteriors.tolist() != [[[0.0, 1.0]]]:
        raise BadInput(f"--fst k2: the path sum of a graph of one path is {total.item()}, not -1.75: install k2 again")


def path_sums(fst: Backend) -> PathSums:
    """What computes totals and posteriors for :func:`mpq.fst.lfmmi.total_score`."""
    return native_path_sums if fst == "native" else _k2_path_sums


def make_search(fst: Backend, graph: Any) -> Search:
    """What searches a decoding graph, a `kaldifst.StdVectorFst`."""
    return NativeSearch(graph) if fst == "native" else _K2Search(graph)


def _k2_path_sums(log_probs: Tensor, lengths: Tensor, graphs: Fsa | Sequence[Fsa]) -> tuple[Tensor, Tensor]:
    """As :func:`mpq.fst.lfmmi.native_path_sums`, by k2 in float32."""
    arcs = [k2_arcs(graph) for graph in ([graphs] if isinstance(graphs, Fsa) else graphs)]
    inside = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
    frames = torch.where(inside[..., None], log_probs.detach(), 0.0)
    totals, posteriors = _adapter().path_sums(frames, lengths, arcs)
    return torch.where(frames.isfinite().all(2).all(1), totals, torch.nan), posteriors


_packed: WeakKeyDictionary[Fsa, Tensor] = WeakKeyDictionary()


def k2_arcs(graph: Fsa) -> Tensor:
    """The acceptor as k2's arcs, made once."""
    if graph not in _packed:
        n = len(graph.final)
        number = np.arange(n)
        number[[0, graph.start]] = graph.start, 0  # k2 starts at 0
        arcs, ends = np.flatnonzero(graph.weight > -np.inf), np.flatnonzero(graph.final > -np.inf)
        _packed[graph], _ = _pack(
            np.concatenate((number[graph.src[arcs]], number[ends])),
            np.concatenate((number[graph.dst[arcs]], np.full(len(ends), n))),
            np.concatenate((graph.label[arcs], np.full(len(ends), -1))),
            np.concatenate((graph.weight[arcs], graph.final[ends])),
        )
    return _packed[graph]


def _pack(src: Ints, dst: Ints, label: Ints, score: Floats) -> tuple[Tensor, Ints]:
    """k2's arcs ``(A, 4)``, sorted by source and label, and the order in which they were sorted ``(A,)``."""
    order = np.lexsort((label.astype(np.uint32), src))  # k2 sorts -1 last
    columns = (src, dst, label, score.astype(np.float32).view(np.int32))
    return torch.from_numpy(np.stack([column[order].astype(np.int32) for column in columns], 1)), order


class _K2Search:
    """Search by k2's pruned intersection; paths that do not reach an end are not found."""

    def __init__(self, graph: Any) -> None:
        emitting = remove_epsilons(fst_to_arrays(graph))
        arcs, order = _pack(emitting.src, emitting.dst, emitting.label, emitting.score)
        count = np.diff(emitting.splits)[order]
        words = emitting.words[np.repeat(emitting.splits[:-1][order], count) + ranks(count)]
        splits = np.concatenate(([0], np.cumsum(count)))
        self._graph = arcs, *(torch.from_numpy(array.astype(np.int32)) for array in (words, splits))
        self._opened: dict[int, Any] = {}

    def search(self, scores: npt.NDArray[np.float32], beam: float, lattice_beam: float) -> tuple[Arcs | None, bool]:
        """As :meth:`mpq.fst.native.NativeSearch.search`."""
        if os.getpid() not in self._opened:  # a process that was forked has no part in its parent's k2
            self._opened = {os.getpid(): _adapter().Graph(*self._graph)}
        arcs, words, graph_scores = self._opened[os.getpid()].search(torch.from_numpy(scores), beam, lattice_beam)
        if not len(arcs):
            return None, False
        src, dst, _, bits = arcs.numpy().astype(np.int64).T
        total, graph_score = bits.astype(np.int32).view(np.float32), graph_scores.numpy()
        final = np.full((int(dst.max()) + 1, 2), np.inf, np.float32)
        final[-1] = 0.0
        word = np.maximum(words.numpy(), 0).astype(np.int64)
        weight = np.stack((-graph_score, graph_score - total), 1)
        return Arcs(src, np.zeros_like(src), word, dst, weight, final, 0), True
