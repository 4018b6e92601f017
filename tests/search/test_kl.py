"""KL sensitivities against a direct computation, and rows against rounding each row alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from mpq.data.lmtext import LmText
from mpq.lm import LanguageModel
from mpq.quant import project
from mpq.search import kl, kl_costs, row_divergences
from mpq.search.costs import Grid, named_weights
from mpq.search.data import LmSearchData, sample


def predictions(model: LanguageModel, text: LmText) -> Tensor:
    """(M, V) probabilities of the whole text."""
    with torch.no_grad():
        return torch.cat([model(b.inputs, b.mask).double().softmax(-1) for b in text.batches(100, 0, 0)])


def divergence(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


def test_costs_are_divergences_of_one_matrix_at_a_time(model: LanguageModel, text: LmText) -> None:
    before = copy.deepcopy(model.state_dict())
    grid = Grid((1, 2, 8))
    table = kl_costs(LmSearchData(model, text), grid, n_units=10**9).table
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "left as it was"
    p = predictions(model, text)
    for name, costs in table.items():
        for column, n_bits in enumerate(grid.candidates):
            changed = copy.deepcopy(model)
            weight = named_weights(changed)[name]
            with torch.no_grad():
                weight.copy_(project(weight, grid.precision(n_bits)).dequantize())
            assert costs[0, column].item() == pytest.approx(divergence(p, predictions(changed, text)), rel=1e-3)
        assert costs[0, 0] > costs[0, 2]


def test_more_text_costs_more_and_the_sample_is_bounded(
    model: LanguageModel, text: LmText, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = [int(batch.mask.sum()) for batch in sample(LmSearchData(model, text), 100, 40)]
    assert 100 <= sum(units) <= 140 and max(units) <= 40
    monkeypatch.setattr(kl, "BATCH_UNITS", 40)
    few, all_ = (kl_costs(LmSearchData(model, text), Grid((1,)), n).table["output.weight"].item() for n in (50, 10**9))
    assert 0 < few < all_


def test_rows_share_the_cost_of_their_matrix(
    model: LanguageModel, text: LmText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured against rounding one row of the output layer and of the embedding at a time."""
    monkeypatch.setattr(kl, "FISHER_UNITS", 8)  # little text: many small batches, drawn many times
    grid = Grid((4,), level="node")
    layer = kl_costs(LmSearchData(model, text), Grid((4,)), 10**9).table
    draws = [kl_costs(LmSearchData(model, text), grid, 10**9, seed).table for seed in range(12)]
    node = {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in layer}
    p = predictions(model, text)
    for name in ("output.weight", "embedding.weight"):
        assert node[name].sum().item() == pytest.approx(layer[name].item(), rel=1e-6)
        direct = []
        changed = copy.deepcopy(model)
        weight = named_weights(changed)[name]
        rounded = project(weight, grid.precision(4)).dequantize()
        for row in range(len(weight)):
            kept = weight[row].detach().clone()
            with torch.no_grad():
                weight[row] = rounded[row]
                direct.append(divergence(p, predictions(changed, text)))
                weight[row] = kept
        both = torch.stack([node[name][:, 0], torch.tensor(direct)])
        assert torch.corrcoef(both)[0, 1] > 0.9, name


def test_row_divergences_of_the_output_layer(model: LanguageModel, text: LmText) -> None:
    """There the second-order form has a closed expression: 1/2 Σ_t p_v (1 - p_v) (h_t · δ_v)^2."""
    grid = Grid((1, 4))
    for column, n_bits in enumerate(grid.candidates):
        weight = model.output.weight.detach()
        error = project(weight, grid.precision(n_bits)).dequantize() - weight
        exact = torch.zeros(len(weight))
        for batch in sample(LmSearchData(model, text), 10**9, 64):
            with torch.no_grad():
                h = model.hidden(batch.inputs)[batch.mask]
                p = model.output(h).softmax(-1)
                exact += (p * (1 - p) * (h @ error.t()).square()).sum(0) / 2
        found = torch.stack(
            [row_divergences(LmSearchData(model, text), grid, 10**9, s)["output.weight"][:, column] for s in range(30)]
        )
        spread = found.std(0) / 30**0.5
        assert ((found.mean(0) - exact).abs() < 4 * spread + 1e-9).all()
        assert found.mean(0).sum().item() == pytest.approx(exact.sum().item(), rel=0.15)
