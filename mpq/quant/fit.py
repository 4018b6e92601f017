"""The fit of a weight matrix to a quantization table: its scales, and the offsets of an asymmetric one.

The default is the alternating fit of Leng et al. (AAAI 2018), the least squared error. Without clipping the largest
weight is the top level; clipping search tries parts of that and takes the one with the least absolute error, as
`google/praxis` does for arXiv 2203.15952 and 2305.16619.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpq.quant.cache import at_once
from mpq.quant.table import SCALE_DTYPE, SCALE_MAX, SCALE_MIN, Precision, Quantized, group_width, levels, nearest

_N_STARTS = 8  # scales tried before the alternating fit, which only finds the nearest local optimum
_N_ITERS = 3
_CHUNK = 2**18  # elements worked on at a time, to stay in the cache: 7 times faster on large matrices
_CLIPS = torch.linspace(1.0, 0.5, 11).tolist()  # parts of the range that clipping search tries


def fit_clusters(clusters: Tensor, n_bits: int, kind: str, clipping: str) -> tuple[Tensor, Tensor | None]:
    """Scale and, for asymmetric tables, offset of each cluster, as a file can hold them.  1 bit is never clipped.

    Args:
        clusters: (C, M) float, one row for each scale.
    Returns:
        (C, 1) float32 each; the scale is positive.
    """
    if kind == "asym":
        rows = max(1, at_once(_CHUNK, clusters) // clusters.shape[1])
        pairs = [_fit_range(part, n_bits, clipping) for part in torch.split(clusters, rows)]
        scale, offset = (torch.cat(column) for column in zip(*pairs, strict=True))
        return scale, offset
    if clipping == "squares" or n_bits == 1:
        return fit_scale(clusters, n_bits, kind), None
    top = clusters.abs().amax(1, keepdim=True) / levels(n_bits, kind)[-1]
    tries = [_storable(c * top, torch.zeros_like(top)) for c in (_CLIPS if clipping == "search" else (1.0,))]
    return _search(clusters, tries, n_bits, kind, 1)[0], None


def _storable(scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The same as a file can hold them."""
    within = scale.clamp(SCALE_MIN, SCALE_MAX), offset.clamp(-SCALE_MAX, SCALE_MAX)
    return within[0].to(SCALE_DTYPE).to(torch.float32), within[1].to(SCALE_DTYPE).to(torch.float32)


def _fit_range(v: Tensor, n_bits: int, clipping: str) -> tuple[Tensor, Tensor]:
    """Scale and offset of an asymmetric table: the range of the cluster, a part of it, or least squares from there."""
    table = levels(n_bits, "asym")
    low, high = v.amin(1, keepdim=True), v.amax(1, keepdim=True)
    tries = []
    for c in _CLIPS if clipping != "none" else (1.0,):
        scale = (c * (high - low) / (table[-1] - table[0])).clamp_min(SCALE_MIN)
        tries.append(_storable(scale, c * low - scale * table[0]))
    if clipping != "squares":
        return _search(v, tries, n_bits, "asym", 1)
    scale, offset = _search(v, tries, n_bits, "asym", 2)
    for _ in range(_N_ITERS):  # the regression of the weights on their codes
        q = nearest((v - offset) / scale, n_bits, "asym")
        q_mean, v_mean = q.mean(1, keepdim=True), v.mean(1, keepdim=True)
        slope = ((q - q_mean) * (v - v_mean)).sum(1, keepdim=True) / (q - q_mean).square().sum(1, keepdim=True)
        scale = torch.where(slope > SCALE_MIN, slope, scale)  # not where all codes are the same
        offset = v_mean - scale * q_mean
    return _storable(scale, offset)


def _search(v: Tensor, tries: list[tuple[Tensor, Tensor]], n_bits: int, kind: str, power: int) -> tuple[Tensor, Tensor]:
    """The scale and offset of each cluster, of those tried, with the least sum of |error|^power."""
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for scale, offset in tries:
        q = nearest((v - offset) / scale, n_bits, kind)
        error = (v - scale * q - offset).abs().pow(power).sum(1, keepdim=True)
        if best is None:
            best = error, scale, offset
            continue
        better = error < best[0]
        best = (
            torch.where(better, error, best[0]),
            torch.where(better, scale, best[1]),
            torch.where(better, offset, best[2]),
        )
    assert best is not None
    return best[1], best[2]


def fit_scale(clusters: Tensor, n_bits: int, kind: str = "uniform") -> Tensor:
    """The scale a of each cluster v that makes ||v - a Q||^2 small; for symmetric tables.

    The alternating fit of Leng et al. 2018: Q <- nearest(v / a), a <- <v, Q> / <Q, Q>, from the best of a few
    starts between mean |v| and max |v| (as the value of the top level). 1 bit is the closed form a = mean |v|.
    The same weights always give the same scale.

    Args:
        clusters: (C, M) float, one row for each scale.
    Returns:
        (C, 1) float32, positive, representable in float16.
    """
    rows = max(1, at_once(_CHUNK, clusters) // clusters.shape[1])
    scales = [_fit(part.abs(), n_bits, kind) for part in torch.split(clusters, rows)]
    return torch.cat(scales).clamp_(SCALE_MIN, SCALE_MAX).to(SCALE_DTYPE).to(torch.float32)


def _fit(v: Tensor, n_bits: int, kind: str) -> Tensor:
    """`fit_scale` on magnitudes: the tables are symmetric, so signs do not matter to the fit."""
    if n_bits == 1:
        return v.mean(1, keepdim=True)
    scale = _best_start(v, n_bits, kind)
    for _ in range(_N_ITERS):
        scale = _refit(v, scale, n_bits, kind)[0]
    return scale


def _best_start(v: Tensor, n_bits: int, kind: str) -> Tensor:
    """The start with the least error: after a refit that is |v|^2 - <v, Q>^2 / <Q, Q>."""
    top = levels(n_bits, kind)[-1]
    high = v.amax(1, keepdim=True).clamp_min(SCALE_MIN) / top
    low = (v.mean(1, keepdim=True) / top).clamp_min(SCALE_MIN)
    best, gain = high, torch.zeros_like(high)
    for i in range(_N_STARTS):
        start = (low.sqrt() + (high.sqrt() - low.sqrt()) * (i / (_N_STARTS - 1))).square()
        scale, candidate = _refit(v, start, n_bits, kind)
        better = candidate > gain
        best, gain = torch.where(better, scale, best), torch.where(better, candidate, gain)
    return best


def _refit(v: Tensor, scale: Tensor, n_bits: int, kind: str) -> tuple[Tensor, Tensor]:
    """One alternation: the best scale for the levels that ``scale`` selects, and <v, Q>^2 / <Q, Q>."""
    vq, qq = torch.zeros_like(scale), torch.zeros_like(scale)
    for part in torch.split(v, at_once(_CHUNK, v), 1):
        q = nearest(part / scale, n_bits, kind)
        vq += torch.linalg.vecdot(part, q).unsqueeze(1)
        qq += torch.linalg.vecdot(q, q).unsqueeze(1)
    scale = vq / qq.clamp_min_(1.0)
    return torch.where(scale > 0, scale, SCALE_MIN), vq * scale


@torch.no_grad()
def project(weight: Tensor, precision: Precision) -> Quantized:
    """The quantized matrix nearest to ``weight`` in its table: Π_C of ADMM, the rounding of the STE.

    Args:
        weight: (rows, ...) float.
    """
    weight = weight.detach().to(torch.float32).flatten(1)
    bits = precision.n_bits
    if isinstance(bits, int):
        return _project_rows(weight, bits, precision)
    row_bits = torch.tensor(bits, device=weight.device)
    parts: dict[Tensor, Quantized] = {}
    for n_bits in sorted(set(bits)):
        rows = (row_bits == n_bits).nonzero().squeeze(1)
        parts[rows] = _project_rows(weight[rows], n_bits, precision)
    order = torch.cat(list(parts)).argsort()
    columns = zip(*parts.values(), strict=True)
    codes, scale, offset = (None if column[0] is None else torch.cat(column)[order] for column in columns)
    assert codes is not None and scale is not None
    return Quantized(codes, scale, offset)


def _project_rows(weight: Tensor, n_bits: int, precision: Precision) -> Quantized:
    rows, columns = weight.shape
    shared = precision.scale == "matrix"
    clusters = weight.reshape(1, -1) if shared else weight.reshape(-1, group_width(precision.scale, columns))
    scale, offset = fit_clusters(clusters, n_bits, precision.kind, precision.clipping)
    codes = nearest((clusters if offset is None else clusters - offset) / scale, n_bits, precision.kind)
    shape = (1 if shared else rows, -1)
    offset = None if offset is None else offset.reshape(shape)
    return Quantized(codes.to(torch.int8).reshape(rows, columns), scale.reshape(shape), offset)
