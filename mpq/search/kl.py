"""Sensitivity by Kullback-Leibler divergence of the model's predictions (arXiv 2112.11438; 2111.14479, eq 8).

    Ω_l(n) = Σ_t Σ_w p(w | h_t; Θ) ln [ p(w | h_t; Θ) / p(w | h_t; Θ with Θ_l <- f_n(Θ_l)) ]

One weight matrix is quantized at a time, all others stay float. The data is gone through once: a batch's float
predictions are computed once and compared with those of every matrix and every number of bits. For acoustic models t
runs over output frames, and w over their classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq.io import progress
from mpq.quant import Quantized, project
from mpq.search.costs import Costs, Grid, named_weights
from mpq.search.data import SearchData, log_probs, sample, sampled_loss

BATCH_UNITS = 1024
FISHER_UNITS = 64  # of a batch, or one utterance: one gradient sample each


def kl_costs(data: SearchData, grid: Grid, n_units: int = 20_000, seed: int = 0) -> Costs:
    """The divergence, summed over a sample of held-out data, that each candidate causes in each matrix or row.

    For rows a forward pass for each would take days. The divergence of the whole matrix, which is measured, is shared
    out among its rows in proportion to its second-order form for each (see `row_divergences`).

    Args:
        data: model and held-out data.
        grid: candidates and level.
        n_units: units to predict, at least; all that there are if they are fewer.
        seed: of the sample.
    """
    was_training = data.model.training
    data.model.eval()
    table = _layer_divergences(data, grid, n_units, seed)
    if grid.level == "node":
        for name, rows in row_divergences(data, grid, n_units, seed).items():
            total = rows.sum(0)
            shares = torch.where(total > 0, rows / total.clamp_min(1e-300), 1.0 / len(rows))
            table[name] = shares * table[name]
    data.model.train(was_training)
    return Costs("kl", grid, table)


@torch.no_grad()
def _layer_divergences(data: SearchData, grid: Grid, n_units: int, seed: int) -> dict[str, Tensor]:
    """(1, candidates) for every matrix."""
    weights = named_weights(data.model)
    values = {(name, n): project(w, grid.precision(n)) for name, w in weights.items() for n in grid.candidates}
    totals = {name: torch.zeros(1, len(grid.candidates), dtype=torch.float64) for name in weights}
    for batch in progress(sample(data, n_units, BATCH_UNITS, seed), what="KL search"):
        expected = log_probs(data, batch)
        for name, weight in weights.items():
            for column, n_bits in enumerate(grid.candidates):
                with quantized_weight(weight, values[name, n_bits]):
                    found = log_probs(data, batch)
                divergence = F.kl_div(found, expected, log_target=True, reduction="sum")
                totals[name][0, column] += max(0.0, divergence.item())
    return totals


@contextmanager
def quantized_weight(weight: Tensor, quantized: Quantized) -> Iterator[None]:
    """A weight with its quantized value in place of its own."""
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(quantized.dequantize().view_as(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def row_divergences(data: SearchData, grid: Grid, n_units: int, seed: int = 0) -> dict[str, Tensor]:
    """Second-order divergence of rounding one row w alone: (rows, candidates) float64, by weight name.

    Ω(n) ~ 1/2 δ' F δ = 1/2 Σ_t E_y~p(.|h_t) [ (d ln p(y | h_t) / dw · δ)^2 ],  δ = f_n(w) - w,  F Fisher's information

    With targets drawn from the model, the gradients of different units are uncorrelated and of mean zero, so the
    squared product of δ with the gradient of a small batch's summed loss is an unbiased sample of the sum over its
    units: one backward pass a batch serves all rows and all bits.
    """
    weights = named_weights(data.model)
    values = {(name, n): project(w, grid.precision(n)) for name, w in weights.items() for n in grid.candidates}
    totals = {name: torch.zeros(len(w), len(grid.candidates), dtype=torch.float64) for name, w in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    for batch in progress(sample(data, n_units, FISHER_UNITS, seed), what="Fisher information"):
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's LSTM has gradients in training mode only
            gradients = torch.autograd.grad(sampled_loss(data, batch, generator), list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            for column, n_bits in enumerate(grid.candidates):
                error = values[name, n_bits].dequantize() - weight.detach().flatten(1)
                totals[name][:, column] += torch.linalg.vecdot(error, gradient.flatten(1)).double().square().cpu() / 2
    return totals
