"""Sensitivity by the trace of the loss's Hessian (arXiv 2112.11438, 2112.11540; 2111.14479, eqs 9 and 10).

    Ω_l(n) = Tr(H_l) ||f_n(Θ_l) - Θ_l||^2,   H_l = d²L / dΘ_l²

The trace is Hutchinson's estimate, without the Hessian itself: z' H z with random z of mean zero and covariance 1,
H z by differentiating <dL/dΘ, z>. All matrices get their z at once, since the terms between matrices vanish on
average; the sum of z * Hz over one row estimates the trace of that row's block.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpq.io import BadInput, check_ranges, progress
from mpq.search.costs import Costs, Grid, named_weights, per_cluster, squared_errors
from mpq.search.data import SearchData, mean_loss, sample

PROBES = ("rademacher", "gaussian")
_PATIENCE = 3  # probes in a row that must change the traces little


@dataclass
class HessianConfig:
    """How the trace is estimated.

    Attributes:
        probe: distribution of the random vectors; `rademacher` (plus or minus 1) varies less than the paper's
            `gaussian`.
        max_probes: most random vectors; each sees one batch of the sample, in turn.
        tolerance: stop when three probes in a row have changed every matrix's trace by less than this part of it.
        normalize: use the trace's mean over the weights of a matrix or row, Tr(H) / N, instead of the trace, which
            favours large matrices.
        batch_tokens: most units of a batch: tokens, or output frames.
        tokens: units of the sample of held-out data.
    """

    probe: str = "rademacher"
    max_probes: int = 200
    tolerance: float = 0.01
    normalize: bool = True
    batch_tokens: int = 512
    tokens: int = 20_000

    def __post_init__(self) -> None:
        if self.probe not in PROBES:
            raise BadInput(f"probe: '{self.probe}' is not one of {', '.join(PROBES)}")
        check_ranges(self, max_probes="[1, inf)", tolerance="[0, inf)", batch_tokens="[1, inf)", tokens="[1, inf)")


def hessian_costs(data: SearchData, grid: Grid, config: HessianConfig | None = None, seed: int = 0) -> Costs:
    """Trace times squared quantization error, of every matrix or row and every candidate.

    A trace below zero (the model is at no minimum, or the estimate is noisy) counts as zero.

    Args:
        data: trained model and held-out data.
        grid: candidates and level.
        config: how the trace is estimated.
        seed: of sample and probes.
    """
    config = config or HessianConfig()
    traces = row_traces(data, config, seed)
    table = {}
    for name, weight in named_weights(data.model).items():
        trace = per_cluster(traces[name][:, None], grid.level).clamp_min(0.0)
        if config.normalize:
            trace = trace / (weight.numel() // len(trace))
        table[name] = trace * per_cluster(squared_errors(weight, grid), grid.level)
    return Costs("hessian", grid, table)


def row_traces(data: SearchData, config: HessianConfig, seed: int = 0) -> dict[str, Tensor]:
    """The trace of every row's block of the Hessian of the mean loss: (rows,) float64 for each weight name.

    The trace of a matrix is the sum over its rows. Every probe sees one batch, weighted by its units; no stop before
    every batch was seen.
    """
    weights = named_weights(data.model)
    generator = torch.Generator().manual_seed(seed)
    batches = list(sample(data, config.tokens, config.batch_tokens, seed))
    sums = {name: torch.zeros(len(weight), dtype=torch.float64) for name, weight in weights.items()}
    n_units, quiet = 0, 0
    before = torch.zeros(len(weights), dtype=torch.float64)
    was_training = data.model.training
    data.model.eval()
    probes = zip(range(1, config.max_probes + 1), cycle(batches), strict=False)
    for n_probes, batch in progress(probes, total=config.max_probes, what="Hessian traces"):
        units = data.n_units(batch)
        n_units += units
        for name, estimate in _probe(data, weights, batch, config.probe, generator).items():
            sums[name] += units * estimate
        after = torch.stack([total.sum() for total in sums.values()]) / n_units
        changed = ((after - before).abs() / after.abs().clamp_min(1e-30)).max().item()
        quiet, before = (quiet + 1 if changed < config.tolerance else 0), after
        if quiet >= _PATIENCE and n_probes >= len(batches):
            break
    data.model.train(was_training)
    return {name: total / n_units for name, total in sums.items()}


def _probe(
    data: SearchData, weights: dict[str, torch.nn.Parameter], batch: Any, probe: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """One Hutchinson sample: the row sums of z * Hz."""
    parameters = list(weights.values())
    with twice_differentiable():
        gradients = torch.autograd.grad(mean_loss(data, batch), parameters, create_graph=True)
        z = [_draw(weight, probe, generator) for weight in parameters]
        products = torch.autograd.grad(gradients, parameters, grad_outputs=z)
    return {
        name: (vector * product).double().flatten(1).sum(1).cpu()
        for name, vector, product in zip(weights, z, products, strict=True)
    }


def _draw(weight: Tensor, probe: str, generator: torch.Generator) -> Tensor:
    if probe == "gaussian":
        return torch.randn(weight.shape, generator=generator).to(weight)
    return torch.randint(0, 2, weight.shape, generator=generator).mul_(2).sub_(1).to(weight)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Without the fused kernels that have no second derivative: oneDNN's and cuDNN's LSTM, flash attention."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # oneDNN's switch warns about Intel GPUs
        with (
            torch.backends.mkldnn.flags(enabled=False),
            torch.backends.cudnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
