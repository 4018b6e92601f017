"""Hutchinson's traces against exact Hessians, for LSTM and Transformer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mpq.data.lmtext import LmBatch, LmText
from mpq.io import BadInput
from mpq.lm import LanguageModel
from mpq.search import hessian
from mpq.search.costs import Grid, named_weights, squared_errors
from mpq.search.data import LmSearchData, SearchData, mean_loss, sample
from mpq.search.hessian import HessianConfig, hessian_costs, row_traces, twice_differentiable

CONFIG = HessianConfig(max_probes=400, tolerance=0.0, batch_tokens=40, tokens=60)


def exact_row_traces(data: SearchData) -> dict[str, Tensor]:
    """Every diagonal element of the Hessian by its own backward pass, averaged over the text's units."""
    weights = named_weights(data.model)
    totals = {name: torch.zeros(len(weight), dtype=torch.float64) for name, weight in weights.items()}
    n_units = 0
    for batch in sample(data, CONFIG.tokens, CONFIG.batch_tokens):
        units = data.n_units(batch)
        n_units += units
        with twice_differentiable():
            gradients = torch.autograd.grad(mean_loss(data, batch), list(weights.values()), create_graph=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                flat = gradient.flatten()
                eye = torch.eye(weight.numel())
                (rows,) = torch.autograd.grad(flat, weight, eye, is_grads_batched=True, retain_graph=True)
                diagonal = rows.flatten(1).diagonal().double().view_as(weight)
                totals[name] += units * diagonal.sum(1)
    return {name: total / n_units for name, total in totals.items()}


@pytest.fixture(scope="module")
def exact(model: LanguageModel, text: LmText) -> dict[str, Tensor]:
    return exact_row_traces(LmSearchData(model, text))


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_traces_equal_the_exact_ones(model: LanguageModel, text: LmText, exact: dict[str, Tensor], probe: str) -> None:
    found = row_traces(LmSearchData(model, text), replace(CONFIG, probe=probe))
    assert list(found) == list(exact)
    whole = sum(rows.sum().item() for rows in exact.values())
    assert sum(rows.sum().item() for rows in found.values()) == pytest.approx(whole, rel=0.05)
    for name, rows in exact.items():  # the other matrices' random vectors blur the small traces
        trace = rows.sum().item()
        assert found[name].sum().item() == pytest.approx(trace, abs=0.15 * max(trace, whole / len(exact))), name
    rows = torch.stack([found["output.weight"], exact["output.weight"]])
    assert torch.corrcoef(rows)[0, 1] > 0.9


def test_it_stops_when_the_traces_settle(model: LanguageModel, text: LmText) -> None:
    seen = []

    def count(data: SearchData, batch: LmBatch) -> Tensor:
        seen.append(batch)
        return mean_loss(data, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hessian, "mean_loss", count)
        row_traces(LmSearchData(model, text), replace(CONFIG, max_probes=40, tolerance=1e9))
        assert len(seen) == 3, "at least every batch, and three quiet probes"
        seen.clear()
        row_traces(LmSearchData(model, text), replace(CONFIG, max_probes=7))
        assert len(seen) == 7


@pytest.mark.parametrize("level", ["layer", "node"])
def test_costs_are_trace_times_error(model: LanguageModel, text: LmText, level: str) -> None:
    config = replace(CONFIG, max_probes=3, normalize=False)
    grid = Grid(level=level)
    plain = hessian_costs(LmSearchData(model, text), grid, config, seed=5).table
    mean = hessian_costs(LmSearchData(model, text), grid, replace(config, normalize=True), seed=5).table
    traces = row_traces(LmSearchData(model, text), config, seed=5)
    for name, weight in named_weights(model).items():
        errors, trace = squared_errors(weight, grid), traces[name][:, None]
        clusters = len(weight) if level == "node" else 1
        if level == "layer":
            errors, trace = errors.sum(0, keepdim=True), trace.sum(0, keepdim=True)
        assert torch.allclose(plain[name], trace.clamp_min(0) * errors)
        assert torch.allclose(mean[name], plain[name] * clusters / weight.numel())
        assert (plain[name] >= 0).all(), "a negative trace counts as none"
    if level == "node":
        assert any((rows < 0).any() for rows in traces.values()), "the clamp was put to the test"


@pytest.mark.parametrize(
    "options", [{"probe": "uniform"}, {"max_probes": 0}, {"tokens": 0}, {"batch_tokens": 0}, {"tolerance": -1.0}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(options))):
        HessianConfig(**options)
