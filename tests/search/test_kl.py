"""KL sensitivities against a direct computation, and rows against rounding each row alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from mpq.data.lmtext import LmText
from mpq.lm import LanguageModel
from mpq.quant import project
from mpq.search import fisher_diagonal, kl_costs
from mpq.search.costs import Grid, named_weights
from mpq.search.sample import sample


def predictions(model: LanguageModel, text: LmText) -> Tensor:
    """(M, V) probabilities of the whole text."""
    with torch.no_grad():
        return torch.cat([model(b.inputs, b.mask).double().softmax(-1) for b in text.batches(100, 0, 0)])


def divergence(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


def test_costs_are_divergences_of_one_matrix_at_a_time(model: LanguageModel, text: LmText) -> None:
    before = copy.deepcopy(model.state_dict())
    grid = Grid((1, 2, 8))
    table = kl_costs(model, text, grid, n_tokens=10**9).table
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


def test_more_text_costs_more_and_the_sample_is_bounded(model: LanguageModel, text: LmText) -> None:
    units = [int(batch.mask.sum()) for batch in sample(model, text, 100, 40)]
    assert 100 <= sum(units) <= 140 and max(units) <= 40
    few, all_ = (kl_costs(model, text, Grid((1,)), n).table["output.weight"].item() for n in (50, 10**9))
    assert 0 < few < all_


def test_rows_share_the_cost_of_their_matrix(model: LanguageModel, text: LmText) -> None:
    """Measured against rounding one row of the output layer and of the embedding at a time."""
    layer = kl_costs(model, text, Grid((2,)), 10**9).table
    node = kl_costs(model, text, Grid((2,), level="node"), 10**9).table
    p = predictions(model, text)
    for name in ("output.weight", "embedding.weight"):
        assert node[name].sum().item() == pytest.approx(layer[name].item(), rel=1e-6)
        direct = []
        changed = copy.deepcopy(model)
        weight = named_weights(changed)[name]
        rounded = project(weight, Grid().precision(2)).dequantize()
        for row in range(len(weight)):
            kept = weight[row].detach().clone()
            with torch.no_grad():
                weight[row] = rounded[row]
                direct.append(divergence(p, predictions(changed, text)))
                weight[row] = kept
        ranks = torch.corrcoef(
            torch.stack([node[name][:, 0].argsort().argsort(), torch.tensor(direct).argsort().argsort()]).double()
        )
        assert ranks[0, 1] > 0.8, (name, node[name][:, 0], direct)


def test_fisher_information_of_the_output_bias_like_rows(model: LanguageModel, text: LmText) -> None:
    """Of the output layer it has a closed form: F_vj = Σ_t p_v (1 - p_v) h_j^2."""
    exact = torch.zeros_like(model.output.weight)
    for batch in sample(model, text, 10**9, 64):
        with torch.no_grad():
            h = model.hidden(batch.inputs)[batch.mask]
            p = model.output(h).softmax(-1)
            exact += (p * (1 - p)).t() @ h.square()
    found = sum(fisher_diagonal(model, text, 10**9, seed)["output.weight"] for seed in range(20)) / 20
    assert found.sum().item() == pytest.approx(exact.sum().item(), rel=0.1)
    assert torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1] > 0.95
