"""LF-MMI, CTC and the costs of the searches on a GPU against a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from mpq.data.batches import FeatureSet
from mpq.data.lmtext import LmText
from mpq.fst.fsa import Fsa, ctc_graph, pronunciation_graph
from mpq.fst.lfmmi import lfmmi_loss, total_score
from mpq.fst.phone_lm import apply_phone_ngram, estimate_phone_ngram
from mpq.quant import quantizable
from mpq.search import AmSearchData, Costs, Grid, HessianConfig, LmSearchData, hessian_costs, kl_costs
from mpq.search.data import SearchData
from mpq.train.am import AmConfig, AmTask
from tests.search.conftest import text, trained
from tests.search.test_acoustic import LEXICON, MODELS, sets

__all__ = ["sets", "text"]
GRID = Grid((2, 4, 8))


@pytest.fixture(scope="module")
def graphs() -> tuple[list[Fsa], Fsa]:
    """Numerators of five utterances, and a denominator of some hundred states."""
    generator = torch.Generator().manual_seed(0)
    sentences = [(torch.randint(12, (n,), generator=generator) + 1).tolist() for n in (12, 9, 8, 5, 1) * 12]
    phone_lm = estimate_phone_ngram(sentences, 12, 3)
    said = [pronunciation_graph([[phones]]) for phones in sentences[:5]]
    return [ctc_graph(apply_phone_ngram(one, phone_lm)) for one in said], ctc_graph(phone_lm.fsa)


@pytest.mark.parametrize("spread", [1.0, 400.0])
def test_lfmmi(spread: float, graphs: tuple[list[Fsa], Fsa], device: torch.device) -> None:
    """With a large spread path sums leave what rescaled probabilities can hold, and the log semiring takes over."""
    numerators, denominator = graphs
    torch.manual_seed(0)
    start = spread * torch.randn(5, 90, 13, dtype=torch.float64)
    lengths = torch.tensor([90, 70, 64, 40, 3])

    def results(place: torch.device) -> list[Tensor]:
        x = start.to(place, copy=True).requires_grad_()  # start itself stays constant
        ctc = total_score(x, lengths.to(place), numerators)
        loss = lfmmi_loss(x, lengths.to(place), numerators, denominator)
        (slope,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
        (curve,) = torch.autograd.grad((slope * start.to(place)).sum(), x) if spread == 1.0 else (slope,)
        return [value.detach().cpu() for value in (ctc, loss, slope, curve)]

    for name, found, expected in zip(
        ("CTC", "loss", "gradient", "curve"), results(device), results(torch.device("cpu")), strict=True
    ):
        bound = 1e-6 * expected.abs().max() if name == "curve" else 0.0
        assert torch.allclose(found, expected, rtol=1e-6, atol=max(1e-9, float(bound))), name


def test_the_loss_of_training_under_autocast(sets: list[tuple[FeatureSet, FeatureSet]], device: torch.device) -> None:
    """CTC, LF-MMI and the cross-entropy branch see float32, whatever the model's products are in."""
    task = AmTask(AmConfig(model=MODELS["tdnn"], augment=False, xent=0.1), *sets[0], LEXICON)
    batch = next(task.batches(0))
    losses = []
    for place in (torch.device("cpu"), device):
        task.model.eval().to(place)
        losses.append([task.loss(task.model, batch, done).item() for done in (0.0, 1.0)])
    with torch.autocast(device.type, torch.bfloat16):
        mixed = [task.loss(task.model, batch, done).item() for done in (0.0, 1.0)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert mixed == pytest.approx(losses[0], rel=0.05)


def close(found: Costs, expected: Costs, data: SearchData, rel: float) -> None:
    shapes = quantizable(data.model)
    for name, costs in expected.table.items():
        assert torch.allclose(found.table[name], costs, rtol=rel, atol=rel * float(costs.max())), name
    assert found.plan(shapes, 4.0).bits == expected.plan(shapes, 4.0).bits


@pytest.mark.parametrize("arch", ["lstm", "transformer", "conformer", "cnn-tdnnf"])
def test_costs(arch: str, text: LmText, sets: list[tuple[FeatureSet, FeatureSet]], device: torch.device) -> None:
    def data(place: torch.device) -> SearchData:
        if arch not in MODELS:
            return LmSearchData(copy.deepcopy(lm).to(place), text)
        task = AmTask(AmConfig(model=MODELS[arch], augment=False), *sets[0], LEXICON)
        return AmSearchData(task.acoustic.to(place), sets[0][1], task)

    lm = trained(arch, text) if arch not in MODELS else torch.nn.Identity()
    here, there = data(torch.device("cpu")), data(device)
    close(kl_costs(there, GRID, 300), kl_costs(here, GRID, 300), here, 0.02)
    node = Grid((2, 8), level="node")
    found, expected = kl_costs(there, node, 100).table, kl_costs(here, node, 100).table
    assert all(torch.allclose(found[n].sum(0), expected[n].sum(0), rtol=0.02, atol=1e-3) for n in found)
    config = HessianConfig(max_probes=4, tokens=200, batch_tokens=100)
    close(hessian_costs(there, GRID, config), hessian_costs(here, GRID, config), here, 0.02)
