"""Sensitivity by Kullback-Leibler divergence of the model's predictions (arXiv 2112.11438; 2111.14479, eq 8).

    Ω_l(n) = Σ_t Σ_w p(w | h_t; Θ) ln [ p(w | h_t; Θ) / p(w | h_t; Θ with Θ_l <- f_n(Θ_l)) ]

One weight matrix is quantized at a time, all others stay float. The text is gone through once: a batch's float
predictions are computed once and compared with those of every matrix and every number of bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq.data.lmtext import LmBatch, LmText
from mpq.io import progress
from mpq.lm import LanguageModel
from mpq.quant import Quantized, project
from mpq.search.costs import Costs, Grid, named_weights
from mpq.search.sample import sample, sampled_loss

BATCH_TOKENS = 1024
FISHER_TOKENS = 64  # of a batch: one gradient sample each


def kl_costs(model: LanguageModel, text: LmText, grid: Grid, n_tokens: int = 20_000, seed: int = 0) -> Costs:
    """The divergence, summed over a sample of held-out text, that each candidate causes in each matrix or row.

    For rows a forward pass for each would take days. The divergence of the whole matrix, which is measured, is shared
    out among its rows in proportion to its second-order form for each (see `row_divergences`).

    Args:
        model: float.
        text: held out.
        grid: candidates and level.
        n_tokens: units to predict, at least; the whole text if it is shorter.
        seed: of the sample.
    """
    was_training = model.training
    model.eval()
    table = _layer_divergences(model, text, grid, n_tokens, seed)
    if grid.level == "node":
        for name, rows in row_divergences(model, text, grid, n_tokens, seed).items():
            total = rows.sum(0)
            shares = torch.where(total > 0, rows / total.clamp_min(1e-300), 1.0 / len(rows))
            table[name] = shares * table[name]
    model.train(was_training)
    return Costs("kl", grid, table)


@torch.no_grad()
def _layer_divergences(model: LanguageModel, text: LmText, grid: Grid, n_tokens: int, seed: int) -> dict[str, Tensor]:
    """(1, candidates) for every matrix."""
    weights = named_weights(model)
    rounded = {(name, n): project(w, grid.precision(n)) for name, w in weights.items() for n in grid.candidates}
    totals = {name: torch.zeros(1, len(grid.candidates), dtype=torch.float64) for name in weights}
    for batch in progress(sample(model, text, n_tokens, BATCH_TOKENS, seed), what="KL search"):
        expected = _log_probs(model, batch)
        for name, weight in weights.items():
            for column, n_bits in enumerate(grid.candidates):
                with quantized_weight(weight, rounded[name, n_bits]):
                    found = _log_probs(model, batch)
                divergence = F.kl_div(found, expected, log_target=True, reduction="sum")
                totals[name][0, column] += max(0.0, divergence.item())
    return totals


def _log_probs(model: LanguageModel, batch: LmBatch) -> Tensor:
    """(M, V) natural-log probabilities, float64: the divergences at 8 bits are below float32's rounding."""
    logits: Tensor = model(batch.inputs, batch.mask)
    return logits.double().log_softmax(-1)


@contextmanager
def quantized_weight(weight: Tensor, quantized: Quantized) -> Iterator[None]:
    """A weight with its quantized value in place of its own."""
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(quantized.dequantize())
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def row_divergences(model: LanguageModel, text: LmText, grid: Grid, n_tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Second-order divergence of rounding one row w alone: (rows, candidates) float64, by weight name.

    Ω(n) ~ 1/2 δ' F δ = 1/2 Σ_t E_y~p(.|h_t) [ (d ln p(y | h_t) / dw · δ)^2 ],  δ = f_n(w) - w,  F Fisher's information

    With targets drawn from the model, the gradients of different units are uncorrelated and of mean zero, so the
    squared product of δ with the gradient of a small batch's summed loss is an unbiased sample of the sum over its
    units: one backward pass a batch serves all rows and all bits.
    """
    weights = named_weights(model)
    rounded = {(name, n): project(w, grid.precision(n)) for name, w in weights.items() for n in grid.candidates}
    totals = {name: torch.zeros(len(w), len(grid.candidates), dtype=torch.float64) for name, w in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    for batch in progress(sample(model, text, n_tokens, FISHER_TOKENS, seed), what="Fisher information"):
        gradients = torch.autograd.grad(sampled_loss(model, batch, generator), list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            for column, n_bits in enumerate(grid.candidates):
                error = rounded[name, n_bits].dequantize() - weight.detach()
                totals[name][:, column] += torch.linalg.vecdot(error, gradient).double().square().cpu() / 2
    return totals
