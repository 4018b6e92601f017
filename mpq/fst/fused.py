"""The frame loops of LF-MMI as one GPU kernel each, in Triton, which comes with torch for GPUs.

Frame by frame, some ten small kernels each, launching them would take longer than the rest of a training step. Here
one program goes through all frames of one utterance in one direction, beside those of the others. `recursion` has the
same loops in plain torch, with which the tests compare these.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

STATES, ARCS = 128, 16  # states at once, and arcs of each of them


_SIZES = ("n_frames", "n_utts", "n_classes", "n_states", "n_blocks", "degree")  # no kernels of their own for multiples


@triton.jit(do_not_specialize=_SIZES[:5])  # type: ignore[untyped-decorator]
def _shared_frames(  # type: ignore[no-untyped-def]
    entered, scales, mass, probs, label, states, weights, degrees, n_frames, n_utts, n_classes, n_states, n_blocks,
    STATES: tl.constexpr, ARCS: tl.constexpr,
):  # fmt: skip
    """`shared_frames` of the utterance and the direction that are the program's numbers."""
    utt, back = tl.program_id(0), tl.program_id(1)
    columns = 2 * n_states
    rows, arcs = tl.arange(0, STATES), tl.arange(0, ARCS)[:, None]
    now = entered + utt * columns
    here = mass + utt * columns
    frame = probs + (2 * utt + back) * n_classes
    scale_at = scales + 2 * utt + back
    for t in range(n_frames):
        total = tl.zeros([STATES], tl.float64)
        for block in range(n_blocks):
            s = block * STATES + rows
            column = back * n_states + s
            kind = tl.load(label + s, mask=s < n_states, other=0)
            value = tl.load(now + column, mask=s < n_states, other=0.0)
            value = value * tl.load(frame + kind, mask=s < n_states, other=0.0)
            tl.store(here + column, value, mask=s < n_states)
            total += value
        scale = tl.sum(total, 0)
        scale = tl.where(scale > 0.0, scale, 1.0)
        tl.store(scale_at, scale)
        tl.debug_barrier()
        if t + 1 < n_frames:
            for block in range(n_blocks):
                s = block * STATES + rows
                column = back * n_states + s
                after = tl.zeros([STATES], tl.float64)
                degree = tl.load(degrees + back * n_blocks + block)
                for d in range(0, degree, ARCS):
                    place = (d + arcs) * columns + column[None, :]
                    inside = (d + arcs < degree) & (s < n_states)[None, :]
                    source = tl.load(states + place, mask=inside, other=0)
                    weight = tl.load(weights + place, mask=inside, other=0.0)
                    after += tl.sum(weight * tl.load(here + source, mask=inside, other=0.0), 0)
                tl.store(now + n_utts * columns + column, after / scale, mask=s < n_states)
        tl.debug_barrier()
        now += n_utts * columns
        frame += 2 * n_utts * n_classes
        scale_at += 2 * n_utts


@triton.jit(do_not_specialize=(*_SIZES[:4], "degree"))  # type: ignore[untyped-decorator]
def _log_frames(  # type: ignore[no-untyped-def]
    entered, frames, label, begins, states, weights, n_frames, n_utts, n_classes, n_states, degree,
    STATES: tl.constexpr, ARCS: tl.constexpr,
):  # fmt: skip
    """`log_frames` of the utterance and the direction that are the program's numbers."""
    utt, back = tl.program_id(0), tl.program_id(1)
    columns = 2 * n_states
    rows, arcs = tl.arange(0, STATES), tl.arange(0, ARCS)[:, None]
    begin, end = tl.load(begins + utt), tl.load(begins + utt + 1)
    now = entered
    frame = frames + (2 * utt + back) * n_classes
    for _ in range(n_frames - 1):
        for first in range(begin, end, STATES):
            s = first + rows
            column = back * n_states + s
            top = tl.full([STATES], float("-inf"), tl.float64)
            total = tl.zeros([STATES], tl.float64)
            for d in range(0, degree, ARCS):
                place = (d + arcs) * columns + column[None, :]
                inside = (d + arcs < degree) & (s < end)[None, :]
                source = tl.load(states + place, mask=inside, other=0)
                value = tl.load(weights + place, mask=inside, other=float("-inf"))
                value += tl.load(now + source, mask=inside, other=float("-inf"))
                value += tl.load(frame + tl.load(label + source, mask=inside, other=0), mask=inside, other=0.0)
                higher = tl.maximum(top, tl.max(value, 0))
                shift = tl.where(higher == float("-inf"), 0.0, higher)
                total = total * tl.exp(top - shift) + tl.sum(tl.exp(value - shift[None, :]), 0)
                top = higher
            # a path's own term is 1 where it is the best: where there is none, the total is 0, and its logarithm -inf
            result = tl.where(top == float("-inf"), float("-inf"), tl.log(total) + top)
            tl.store(now + columns + column, result, mask=s < end)
        tl.debug_barrier()
        now += columns
        frame += 2 * n_utts * n_classes


def shared_frames(first: Tensor, both: Tensor, label: Tensor, arcs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Scaled probabilities of a shared graph.

    Args:
        first: mass before the first frame, ``(2K,)``.
        both: probabilities of the classes, read forwards, then backwards, ``(T, 2C, N)``.
        label: class of each state, ``(K,)``.
        arcs: states at the other end and weights, 0 for none, ``(D, 2K)``.

    Returns:
        mass before each frame's probabilities ``(T, 2K, N)`` and scales ``(T, 2, N)``.
    """
    n_frames, n_classes, n_utts = both.shape[0], both.shape[1] // 2, both.shape[2]
    (states, weights), n_states = arcs, len(label)
    probs = both.transpose(1, 2).contiguous()  # (T, N, 2C)
    entered = both.new_empty(n_frames, n_utts, 2 * n_states)
    entered[0] = first
    scales, mass = both.new_empty(n_frames, n_utts, 2), torch.empty_like(entered[0])
    n_blocks = triton.cdiv(n_states, STATES)
    degrees = torch.nn.functional.pad((weights > 0).sum(0).view(2, n_states), (0, n_blocks * STATES - n_states))
    degrees = degrees.view(2, n_blocks, STATES).amax(2).to(torch.int32).contiguous()
    _shared_frames[n_utts, 2](
        entered, scales, mass, probs, label, states, weights, degrees, n_frames, n_utts, n_classes, n_states, n_blocks,
        STATES=STATES, ARCS=ARCS, num_warps=8, num_stages=1,
    )  # fmt: skip
    return entered.transpose(1, 2), scales.transpose(1, 2)


def log_frames(first: Tensor, both: Tensor, label: Tensor, sizes: Any, arcs: tuple[Tensor, Tensor]) -> Tensor:
    """Log semiring, a graph for each utterance.

    Args:
        first: before the first frame, ``(2K,)``.
        both: log-probabilities of the classes, read forwards, then backwards, ``(T, 2C, N)``.
        label: class of each state, ``(K,)``.
        sizes: states of each utterance, ``(N,)``; theirs are side by side.
        arcs: states at the other end and weights, -inf for none, ``(D, 2K)``.

    Returns:
        sums before each frame's log-probabilities, ``(T, 2K)``.
    """
    n_frames, n_classes, n_utts = both.shape[0], both.shape[1] // 2, both.shape[2]
    states, weights = arcs
    frames = both.transpose(1, 2).contiguous()
    entered = both.new_empty(n_frames, len(first))
    entered[0] = first
    begins = torch.nn.functional.pad(torch.as_tensor(sizes).cumsum(0), (1, 0)).to(both.device, torch.int32)
    _log_frames[n_utts, 2](
        entered, frames, label.repeat(2), begins, states, weights, n_frames, n_utts, n_classes, len(label),
        len(weights), STATES=STATES, ARCS=4, num_warps=4, num_stages=1,
    )  # fmt: skip
    return entered


def check(device: torch.device) -> None:
    """Runs both kernels on a graph of one state.

    Raises:
        RuntimeError: they give wrong numbers; and whatever Triton raises where it cannot compile them.
    """
    half = torch.full((3, 2, 1), 0.5, dtype=torch.float64, device=device)
    label, one = torch.zeros(1, dtype=torch.int64, device=device), torch.ones(2, dtype=torch.float64, device=device)
    states = torch.arange(2, device=device)[None]
    entered, scales = shared_frames(one, half, label, (states, one[None]))
    logs = log_frames(one.log(), half.log(), label, [1], (states, one.log()[None]))
    if not ((entered == 1.0).all() and (scales == 0.5).all() and torch.allclose(logs[2], 2 * half[0, :, 0].log())):
        raise RuntimeError("its kernels give wrong numbers")
