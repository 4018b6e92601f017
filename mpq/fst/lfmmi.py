"""Exact lattice-free MMI in plain torch: path sums over acceptors, their gradients, and the loss.

The score of an utterance is the log of the sum over all paths of exp(weights + frame log-probabilities),
Povey et al. 2016, "Purely sequence-trained neural networks for ASR based on lattice-free MMI", eq. (1) and
section 2.5. Its gradient is the posterior probability of each class at each frame, so one forward-backward
pass gives both, and nothing is approximated: no beam, no leaky HMM, no boundary weights.

Two recursions compute the same numbers:

- a graph shared by a batch (denominator): probabilities in float64, rescaled at every frame, one sparse
  matrix product a frame for both directions of the whole batch. It cannot tell states apart that differ
  by more than a factor of 1e-300; totals of all frames are compared, and utterances where that lost
  anything go to the second recursion.
- one graph for each utterance (numerator): log semiring in float64, all graphs of the batch side by side.

Time is linear in arcs and in frames; memory grows with states times frames, not with arcs times frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpq.fst.fsa import Fsa
from mpq.fst.recursion import CHUNK, log_frames, shared_frames, shared_graph, side_by_side
from mpq.io import BadInput

_TOLERANCE = 1e-7  # disagreement between frames' totals that sends an utterance to the log semiring
_STEP = 1e-5  # of the differences that are second derivatives, in log-probabilities
_SMALLEST = 1e-250  # as does a product of the directions' scaled masses that is smaller than this


def _reverse(frames: Tensor, lengths: Tensor) -> Tensor:
    """Frame numbers ``(T, N)`` that read each utterance backwards; padding stays at frame 0."""
    return (lengths - 1 - torch.arange(frames.shape[0], device=frames.device)[:, None]).clamp(min=0)


def _both_ways(frames: Tensor, turn: Tensor) -> Tensor:
    """Frames ``(T, C, N)`` read forwards, then backwards: ``(T, 2C, N)``; `turn` is of `_reverse`."""
    return torch.cat((frames, frames.gather(0, turn[:, None].expand(-1, frames.shape[1], -1))), 1)


def _score_shared(log_probs: Tensor, lengths: Tensor, graph: Fsa) -> tuple[Tensor, Tensor, Tensor]:
    """Path sums over one graph in scaled probabilities.

    Args:
        log_probs: ``(T, C, N)``, float64, finite.
        lengths: ``(N,)``.
        graph: the acceptor that all utterances share.

    Returns:
        totals ``(N,)``, posteriors ``(T, C, N)``, and whether each total can be trusted ``(N,)``.
    """
    shared = shared_graph(graph, log_probs.device)
    top = log_probs.amax(1)  # (T, N)
    probs = (log_probs - top[:, None]).exp_()
    turn = _reverse(probs, lengths)  # (T, N)
    entered, scales = shared_frames(shared, _both_ways(probs, turn))
    return _collect_shared(probs, top, turn, entered, scales, shared.label, lengths)


def _collect_shared(
    probs: Tensor, top: Tensor, turn: Tensor, entered: Tensor, scales: Tensor, label: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Totals, posteriors and trust from what :func:`_score_shared` collected; the same shapes."""
    n_frames, n_utts = top.shape
    n = len(label)
    posteriors = torch.zeros_like(probs)
    sums = probs.new_empty(n_frames, n_utts)
    for begin in range(0, n_frames, CHUNK):
        end = min(begin + CHUNK, n_frames)
        backward = entered[:, n:].gather(0, turn[begin:end, None].expand(-1, n, -1))
        joint = backward.mul_(entered[begin:end, :n]).mul_(probs[begin:end].index_select(1, label))
        sums[begin:end] = joint.sum(1)
        posteriors[begin:end].index_add_(1, label, joint)
    inside = torch.arange(n_frames, device=probs.device)[:, None] < lengths  # (T, N)
    posteriors *= (inside / sums.clamp(min=torch.finfo(sums.dtype).tiny))[:, None]
    # Scales of the frames before t, in each direction.
    past = torch.nn.functional.pad(scales.log().cumsum(0), (0, 0, 0, 0, 1, 0))[:-1]
    totals = sums.log() + past[:, 0] + past[:, 1].gather(0, turn)  # all frames agree
    total = totals.gather(0, (lengths - 1)[None])[0]
    spread = torch.where(inside, (totals - total).abs(), 0.0).amax(0)
    # False for NaN and -inf; rounding of the running sums grows with the total.
    trusted = (spread <= _TOLERANCE + 1e-12 * total.abs()) & (sums > _SMALLEST).logical_or(~inside).all(0)
    return total + (top * inside).sum(0), posteriors, trusted


def _score_each(log_probs: Tensor, lengths: Tensor, graphs: Sequence[Fsa]) -> tuple[Tensor, Tensor]:
    """Path sums over one graph for each utterance in the log semiring.

    Args:
        log_probs: ``(T, C, N)``, float64.
        lengths: ``(N,)``.
        graphs: N acceptors.

    Returns:
        totals ``(N,)``, ``-inf`` where there is no path, and posteriors ``(T, C, N)``.
    """
    arcs = side_by_side([graph.state_form for graph in graphs], log_probs.device)
    n_frames, _, n_utts = log_probs.shape
    n = len(arcs.label)
    turn = _reverse(log_probs, lengths)
    entered = log_frames(arcs, _both_ways(log_probs, turn))
    column = arcs.label * n_utts + arcs.utt  # of a flat (C, N) frame
    joint = entered[:, n:].gather(0, turn[:, arcs.utt])  # (T, K)
    joint.add_(entered[:, :n]).add_(log_probs.flatten(1).index_select(1, column))
    last = joint.gather(0, (lengths - 1)[arcs.utt][None])[0]
    total = _logsumexp_by(last, arcs.utt, n_utts)
    safe = torch.where(total.isfinite(), total, 0.0)
    inside = torch.arange(n_frames, device=log_probs.device)[:, None] < lengths[arcs.utt]
    joint = joint.sub_(safe[arcs.utt]).masked_fill_(~inside, -torch.inf).exp_()
    posteriors = torch.zeros_like(log_probs)
    posteriors.flatten(1).index_add_(1, column, joint)
    return total, posteriors


def _logsumexp_by(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Log of the sum of exp of ``values (K,)`` in each group ``(n_groups,)``; ``-inf`` for an empty one."""
    top = values.new_full((n_groups,), -torch.inf).scatter_reduce_(0, group, values, "amax")
    top = torch.where(top == -torch.inf, 0.0, top)
    return torch.zeros_like(top).index_add_(0, group, (values - top[group]).exp()).log() + top


PathSums = Callable[[Tensor, Tensor, "Fsa | Sequence[Fsa]"], tuple[Tensor, Tensor]]
"""What computes totals ``(N,)`` and posteriors ``(N, T, C)`` of log-probabilities, lengths and graphs."""


def native_path_sums(log_probs: Tensor, lengths: Tensor, graphs: Fsa | Sequence[Fsa]) -> tuple[Tensor, Tensor]:
    """Totals ``(N,)`` and posteriors ``(N, T, C)`` in float64; ``-inf`` where there is no path."""
    inside = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
    frames = torch.where(inside[..., None], log_probs.detach().double(), 0.0).permute(1, 2, 0).contiguous()
    if not isinstance(graphs, Fsa):
        total, posteriors = _score_each(frames, lengths, graphs)
        return total, posteriors.permute(2, 0, 1)
    total, posteriors, trusted = _score_shared(frames, lengths, graphs)
    again = torch.nonzero(~trusted)[:, 0]
    if len(again):
        total[again], posteriors[:, :, again] = _score_each(
            frames[:, :, again].contiguous(), lengths[again], [graphs] * len(again)
        )
    return total, posteriors.permute(2, 0, 1)


class _TotalScore(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, lengths: Tensor, graphs: Fsa | Sequence[Fsa], path_sums: PathSums
    ) -> Tensor:
        total, posteriors = path_sums(log_probs, lengths, graphs)
        _check_total(total, lengths, graphs)
        ctx.save_for_backward(log_probs, lengths, posteriors.to(log_probs.dtype))
        ctx.others = graphs, path_sums
        return total.to(log_probs.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        posteriors: Tensor = _Posteriors.apply(*ctx.saved_tensors, *ctx.others)  # type: ignore[no-untyped-call]
        return grad[:, None, None] * posteriors, None, None, None


class _Posteriors(torch.autograd.Function):
    """The gradient of path sums, for a second derivative.

    The Hessian of a path sum is symmetric, so its product with a direction is how the posteriors change along it, which
    central differences in float64 tell: posteriors are smooth, and their direction is short.
    """

    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, lengths: Tensor, posteriors: Tensor, graphs: Fsa | Sequence[Fsa], sums: PathSums
    ) -> Tensor:
        ctx.save_for_backward(log_probs, lengths)
        ctx.others = graphs, sums
        return posteriors.view_as(posteriors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (log_probs, lengths), (graphs, path_sums) = ctx.saved_tensors, ctx.others
        direction = grad.double()
        step = _STEP / direction.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        ahead, behind = (path_sums(log_probs.double() + s * direction, lengths, graphs)[1] for s in (step, -step))
        return ((ahead - behind) / (2.0 * step)).to(grad.dtype), None, None, None, None


def _check_total(total: Tensor, lengths: Tensor, graphs: Fsa | Sequence[Fsa]) -> None:
    """One line for the first utterance without a finite score."""
    bad = torch.nonzero(~total.isfinite())[:, 0].tolist()
    if not bad:
        return
    utt, frames = bad[0], int(lengths[bad[0]])
    needed = (graphs if isinstance(graphs, Fsa) else graphs[utt]).min_frames
    if needed > frames:
        raise BadInput(
            f"utterance {utt} of the batch has {frames} frames after subsampling; its transcript "
            f"needs at least {needed:g}: remove it, or check that its audio belongs to its text"
        )
    raise BadInput(
        f"utterance {utt} of the batch: path sum is {total[utt].item()} over {frames} frames: the "
        "acoustic model's output holds NaN or infinities, or the graph has no path of that length"
    )


def total_score(
    log_probs: Tensor, lengths: Tensor, graphs: Fsa | Sequence[Fsa], path_sums: PathSums = native_path_sums
) -> Tensor:
    r"""Log of the summed weight of all paths of each utterance, differentiable.

    .. math:: \log \sum_{\pi \in G,\, |\pi| = T_n} \exp\Big(w(\pi) + \sum_t x_{n,t,\pi_t}\Big)

    Args:
        log_probs: acoustic model's output, natural log, ``(N, T, C)``; need not be normalized.
        lengths: frames of each utterance, ``(N,)``, at least 1.
        graphs: one acceptor that all utterances share, or one for each of them.
        path_sums: what computes them, see :func:`mpq.fst.backend.path_sums`.

    Returns:
        Scores ``(N,)`` in the dtype of ``log_probs``; the gradient with respect to ``log_probs`` is the
        posterior probability of each class at each frame. Computed in float64 whatever the input's dtype.
        It can be differentiated twice.

    Raises:
        BadInput: an utterance has no path (fewer frames than its graph needs), or NaN came in.
        ValueError: shapes do not fit.

    Example:
        >>> graph = ctc_graph(pronunciation_graph([[[1, 2]]]))
        >>> total_score(torch.zeros(1, 2, 3), torch.tensor([2]), [graph])   # one path: phones 1 2
        tensor([0.])
    """
    if log_probs.dim() != 3 or lengths.shape != log_probs.shape[:1]:
        raise ValueError(
            f"log_probs must be (N, T, C) and lengths (N,), not {tuple(log_probs.shape)} and {tuple(lengths.shape)}"
        )
    if not isinstance(graphs, Fsa) and len(graphs) != len(log_probs):
        raise ValueError(f"{len(graphs)} graphs for {len(log_probs)} utterances")
    lengths = lengths.to(log_probs.device, torch.int64)
    if lengths.min() < 1 or lengths.max() > log_probs.shape[1]:
        utt = int(((lengths < 1) | (lengths > log_probs.shape[1])).nonzero()[0, 0])
        raise BadInput(
            f"utterance {utt} of the batch has {int(lengths[utt])} frames; expected 1 to "
            f"{log_probs.shape[1]}: remove it"
        )
    largest = max(int(g.label.max(initial=0)) for g in ([graphs] if isinstance(graphs, Fsa) else graphs))
    if largest >= log_probs.shape[2]:
        raise ValueError(f"a graph emits class {largest}; log_probs has {log_probs.shape[2]} classes")
    score: Tensor = _TotalScore.apply(log_probs, lengths, graphs, path_sums)  # type: ignore[no-untyped-call]
    return score


def lfmmi_loss(
    log_probs: Tensor,
    lengths: Tensor,
    numerators: Sequence[Fsa],
    denominator: Fsa,
    den_scale: float = 1.0,
    path_sums: PathSums = native_path_sums,
) -> Tensor:
    """Lattice-free MMI loss of each utterance: denominator score minus numerator score.

    Not negative if every numerator is part of the denominator (same topology and phone language model).

    Args:
        log_probs: natural log, ``(N, T, C)``.
        lengths: frames, ``(N,)``.
        numerators: one acceptor for each utterance, its transcript's pronunciations.
        denominator: acceptor of everything that can be said.
        den_scale: weight of the denominator's score.
        path_sums: what computes the scores.

    Returns:
        Loss ``(N,)``, summed over frames; divide its sum by ``lengths.sum()`` for a mean over frames.

    Raises:
        BadInput: an utterance is shorter than its transcript; the message holds its place in the batch.
    """
    numerator = total_score(log_probs, lengths, numerators, path_sums)
    return den_scale * total_score(log_probs, lengths, denominator, path_sums) - numerator
