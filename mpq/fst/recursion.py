"""LF-MMI's graphs as tensors, and the loops over frames that its recursions are.

A mass is what enters a state at a frame, summed over all paths, before the frame's own score. Both directions go
through their loop together: the states of a graph stand there twice, first for the way forwards, then for the way back.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mpq.fst.fsa import Floats, Fsa, Ints, StateForm

CHUNK = 64  # frames whose class probabilities are spread over states at once
# A kernel gives an utterance one of the GPU's processors, which pays for few arcs only. On an H100, 16 utterances of
# 300 frames: 4,186 arcs 3.4 ms against 26 of the loop; 36,755 arcs 86 against 47 (benchmarks/gpu.py --parts lfmmi).
_FEW_ARCS = 16_000
_PADDED = 1 << 24  # places for arcs: where a graph would take more, few of its states have most of its arcs


@cache
def kernels(device: torch.device) -> ModuleType | None:
    """`mpq.fst.fused` where it runs: on GPUs, if there is a Triton."""
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from mpq.fst import fused

    try:
        fused.check(device)
    except Exception as error:  # such as no C compiler, or a GPU that Triton does not know
        reason = str(error).strip().partition("\n")[0]
        print(f"warning: LF-MMI runs without its GPU kernels, which takes longer: Triton: {reason}", file=sys.stderr)
        return None
    return fused


@dataclass
class SharedGraph:
    """Tensors of a shared graph on one device; K states.

    Attributes:
        step: both directions as one sparse matrix, block-diagonal ``(2K, 2K)``.
        first: weights of entering at the first frame, then of ending (the backward entry), ``(2K,)``.
        label: class of each state, ``(K,)``.
        arcs: for a kernel: states at the other end and weights, 0 for none, ``(D, 2K)``; None: too many for it.
    """

    step: Tensor
    first: Tensor
    label: Tensor
    arcs: tuple[Tensor, Tensor] | None


_shared_graphs: WeakKeyDictionary[Fsa, dict[torch.device, SharedGraph]] = WeakKeyDictionary()


def shared_graph(graph: Fsa, device: torch.device) -> SharedGraph:
    """The graph's tensors on ``device``, made once."""
    known = _shared_graphs.setdefault(graph, {})
    if device not in known:
        form = graph.state_form
        n = len(form.label)
        rows = np.concatenate((form.dst, form.src + n))
        columns = np.concatenate((form.src, form.dst + n))
        values = np.exp(np.concatenate((form.weight, form.weight)))
        step = _matrix(rows, columns, values, 2 * n).to(device)
        first = torch.from_numpy(np.exp(np.concatenate((form.init, form.final)))).to(device)
        arcs = None
        few = len(form.dst) <= _FEW_ARCS and 2 * n * np.bincount(rows).max(initial=0) <= _PADDED
        if few and kernels(device) is not None:
            states, weights = _pad_arcs(rows, columns, values, 2 * n, 0.0)
            arcs = torch.from_numpy(states.T.copy()).to(device), torch.from_numpy(weights.T.copy()).to(device)
        known[device] = SharedGraph(step, first, torch.from_numpy(form.label).to(device), arcs)
    return known[device]


def _matrix(rows: Ints, columns: Ints, values: Floats, n: int) -> Tensor:
    """A sparse matrix ``(n, n)``."""
    order = np.lexsort((columns, rows))
    row_ends = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=n))))
    ends, places, entries = (torch.from_numpy(array) for array in (row_ends, columns[order], values[order]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse ")  # torch calls its CSR layout beta
        return torch.sparse_csr_tensor(ends, places, entries, (n, n), check_invariants=True)


def shared_frames(shared: SharedGraph, both: Tensor) -> tuple[Tensor, Tensor]:
    """Masses in probabilities, rescaled at every frame.

    Args:
        shared: the graph.
        both: probabilities of the classes, read forwards, then backwards, ``(T, 2C, N)``.

    Returns:
        masses ``(T, 2K, N)`` and scales ``(T, 2, N)``.
    """
    fused = kernels(both.device)
    if fused is not None and shared.arcs is not None:
        found: tuple[Tensor, Tensor] = fused.shared_frames(shared.first, both, shared.label, shared.arcs)
        return found
    n_frames, n_classes, n_utts = both.shape[0], both.shape[1] // 2, both.shape[2]
    n = len(shared.label)
    tiny = torch.finfo(torch.float64).tiny
    label = torch.cat((shared.label, shared.label + n_classes))
    entered = both.new_empty(n_frames, 2 * n, n_utts)
    scales = both.new_empty(n_frames, 2, n_utts)
    entered[0] = shared.first[:, None]
    for begin in range(0, n_frames, CHUNK):
        spread = both[begin : begin + CHUNK].index_select(1, label)
        for t in range(begin, begin + len(spread)):
            mass = spread[t - begin].mul_(entered[t])
            scale = torch.sum(mass.view(2, n, n_utts), 1, out=scales[t]).clamp_(min=tiny)
            mass.view(2, n, n_utts).div_(scale[:, None])
            if t + 1 < n_frames:
                torch.mm(shared.step, mass, out=entered[t + 1])
    return entered, scales


@dataclass(frozen=True)
class Neighbours:
    """The arcs of a batch of acceptors side by side, by state; 2K columns: into it, then out of it."""

    state: Tensor  # (D * 2K,) the state at the other end, in the direction's own half
    weight: Tensor  # (D, 2K), -inf where a state has fewer than D arcs: sums over D run along vectors of states
    first: Tensor  # (2K,)
    label: Tensor  # (K,)
    utt: Tensor  # (K,)
    sizes: list[int]  # states of each utterance


def _pad_arcs(near: Ints, far: Ints, weight: Floats, n: int, none: float = -np.inf) -> tuple[Ints, Floats]:
    """Rows of ``far`` and ``weight`` by ``near``, padded to the largest number of arcs by ``none``: ``(n, D)``."""
    order = np.argsort(near, kind="stable")
    near, far, weight = near[order], far[order], weight[order]
    degree = np.bincount(near, minlength=n)
    column = np.arange(len(near)) - np.repeat(np.cumsum(degree) - degree, degree)
    states = np.zeros((n, max(1, degree.max(initial=0))), np.int64)
    weights = np.full(states.shape, none)
    states[near, column] = far
    weights[near, column] = weight
    return states, weights


def side_by_side(forms: Sequence[StateForm], device: torch.device) -> Neighbours:
    """Concatenate acceptors, one for each utterance."""
    sizes = [len(form.label) for form in forms]
    n = sum(sizes)
    offsets = np.repeat(np.cumsum([0, *sizes[:-1]]), [len(form.src) for form in forms])
    src = np.concatenate([form.src for form in forms]) + offsets
    dst = np.concatenate([form.dst for form in forms]) + offsets
    weight = np.concatenate([form.weight for form in forms])
    states, weights = _pad_arcs(
        np.concatenate((dst, src + n)), np.concatenate((src, dst + n)), np.concatenate((weight, weight)), 2 * n
    )
    first = np.concatenate([form.init for form in forms] + [form.final for form in forms])
    label = np.concatenate([form.label for form in forms])
    utt = np.repeat(np.arange(len(forms)), sizes)
    arrays = (states.T.flatten(), np.ascontiguousarray(weights.T), first, label, utt)
    far, arc_weights, into, kind, owner = (torch.from_numpy(array).to(device) for array in arrays)
    return Neighbours(far, arc_weights, into, kind, owner, sizes)


def log_frames(arcs: Neighbours, both: Tensor) -> Tensor:
    """Masses as logarithms, for a graph for each utterance.

    Args:
        arcs: of the graphs.
        both: log-probabilities of the classes, read forwards, then backwards, ``(T, 2C, N)``.

    Returns:
        ``(T, 2K)``.
    """
    fused = kernels(both.device)
    weights = arcs.weight
    if fused is not None:
        found: Tensor = fused.log_frames(
            arcs.first, both, arcs.label, arcs.sizes, (arcs.state.view_as(weights), weights)
        )
        return found
    n_frames, n_classes, n_utts = both.shape[0], both.shape[1] // 2, both.shape[2]
    column = arcs.label * n_utts + arcs.utt  # of a flat (C, N) frame
    columns = torch.cat((column, column + n_classes * n_utts))
    entered = both.new_empty(n_frames, len(arcs.first))
    entered[0] = arcs.first
    for begin in range(0, n_frames, CHUNK):
        spread = both[begin : begin + CHUNK].flatten(1).index_select(1, columns)
        for t in range(begin, min(begin + CHUNK, n_frames - 1)):
            mass = spread[t - begin].add_(entered[t])
            incoming = mass.index_select(0, arcs.state).view_as(weights).add_(weights)
            torch.logsumexp(incoming, 0, out=entered[t + 1])
    return entered
