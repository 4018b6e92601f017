"""Models on a GPU: integers are the same as on a CPU, and what training computes is what the packed file gives."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mpq.am import load_am, make_am, save_am
from mpq.data.batches import Batch
from mpq.data.lmtext import LmBatch, Tokenizer, pad_sentences
from mpq.io import Hyp, NBest
from mpq.quant import BitPlan, freeze, project, quantizable, quantize_model, uniform_plan
from mpq.quant.integer import int8_rows, int_matmul
from mpq.quant.table import Precision
from mpq.rescore import Scoring, add_lm_scores
from tests.rescore.conftest import WORDS, make_lm
from tests.search.test_acoustic import MODELS

ARCHS = ["lstm", "transformer"]
FLOATS = {"rtol": 1e-4, "atol": 1e-4}
ROUNDED = 0.02  # mean difference in nats: another last bit now and then turns a rounding to int8


@pytest.mark.parametrize("size", [(1, 1, 1), (5, 7, 3), (16, 8, 16), (17, 33, 100), (33, 16, 48), (100, 72, 4096)])
def test_integer_products_are_exact(size: tuple[int, int, int], device: torch.device) -> None:
    m, n, k = size
    generator = torch.Generator().manual_seed(m)
    a, b = (torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator) for shape in ((m, k), (n, k)))
    a[0], b[0] = 127, -127
    for one, other in ((a, b), (a.t().contiguous().t(), b), (a[:, ::2], b[:, ::2]), (a, b[n // 2 :])):
        found = int_matmul(one.to(device), other.to(device))
        assert found.dtype == torch.int32
        assert torch.equal(found.cpu().long(), one.long() @ other.long().t())


@pytest.mark.parametrize("precision", [Precision(1), Precision(2, scale=8), Precision(4, "pow2"), Precision(3, "asym"),
                                       Precision((1, 2, 4, 8) * 4)])  # fmt: skip
def test_rounding_is_the_same(precision: Precision, device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 40)
    for here, there in zip(int8_rows(x), int8_rows(x.to(device)), strict=True):
        assert torch.equal(here, there.cpu())
    here, there = project(x, precision), project(x.to(device), precision)
    assert torch.allclose(here.dequantize(), there.dequantize().cpu(), rtol=1e-3, atol=1e-3)


def lm_batch() -> LmBatch:
    torch.manual_seed(0)
    return pad_sentences([torch.randint(3, len(WORDS), (n,)).tolist() for n in (9, 5, 1, 30)], 1, 2)


def mean_difference(a: Tensor, b: Tensor) -> float:
    return (a.cpu() - b.cpu()).abs().mean().item()


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_language_models(arch: str, device: torch.device) -> None:
    batch, n_units = lm_batch(), len(WORDS) + 4
    there = batch.to(device)
    model = make_lm(arch, 32, n_units)
    expected = model.log_probs(batch)
    assert torch.allclose(model.to(device).log_probs(there).cpu(), expected, **FLOATS)
    for n_bits in (1, 2, 4, 8):
        expected = make_lm(arch, n_bits, n_units).log_probs(batch)
        found = [make_lm(arch, n_bits, n_units, packed=packed).to(device).log_probs(there) for packed in (False, True)]
        assert torch.equal(*found), "packed and not"
        assert mean_difference(found[0], expected) < ROUNDED
    node = make_lm(arch, 32, n_units)
    bits = {name: tuple((1, 2, 4, 8)[row % 4] for row in range(rows)) for name, (rows, _) in quantizable(node).items()}
    quantize_model(node, BitPlan(bits))
    held = [freeze(copy.deepcopy(node), packed=packed).to(device).log_probs(there) for packed in (False, True)]
    assert torch.equal(*held) and mean_difference(held[0], node.log_probs(batch)) < ROUNDED


def am_inputs(model: nn.Module) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 60, model.feature_dim), torch.tensor([60, 45, 31])  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("n_bits", [32, 4, 2])
def test_acoustic_models(arch: str, n_bits: int, device: torch.device, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = make_am(MODELS[arch], 5).eval()
    plan = uniform_plan(model, n_bits)
    features, lengths = am_inputs(model)
    quantize_model(model, plan)
    with torch.no_grad():
        expected, _ = model(features, lengths)
    save_am(tmp_path / "m.mpq", model, ["a", "b", "c", "d"], plan=plan)
    model.to(device)
    features, lengths = features.to(device), lengths.to(device)
    served = [load_am(tmp_path / "m.mpq", packed=packed).to(device) for packed in (False, True)]
    with torch.no_grad():
        found = [one(features, lengths)[0] for one in served]
    assert torch.equal(*found), "packed and not"
    if n_bits == 32:
        assert torch.allclose(found[0].cpu(), expected, rtol=1e-3, atol=1e-3)
        return
    assert mean_difference(found[0], expected) < ROUNDED
    # of gradients only, but for torchaudio's attention in wav2vec 2.0, whose sums are then in bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=arch != "wav2vec2"):
        trained, _ = model(features, lengths)
    assert trained.requires_grad and torch.equal(trained, found[0]), "training computes what is served"
    trained[..., 1].mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("merge_order", [None, 3])
def test_rescoring(arch: str, merge_order: int | None, device: torch.device, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n")
    units = Tokenizer(tmp_path / "words.txt")
    generator = torch.Generator().manual_seed(0)
    lists = [
        NBest(f"u{i}", [Hyp(" ".join(WORDS[w] for w in torch.randint(30, (n,), generator=generator)), 0.0, 0.0)
                        for n in (8, 7, 8, 3)])
        for i in range(6)
    ]  # fmt: skip
    for n_bits in (32, 2):
        scores = []
        for place in (torch.device("cpu"), device):
            model = make_lm(arch, n_bits, len(units)).to(place)
            scored = add_lm_scores(model, units, lists, Scoring(merge_order=merge_order))
            scores.append(torch.tensor([hyp.nnlm for nbest in scored for hyp in nbest.hyps]))
        assert mean_difference(*scores) < (1e-4 if n_bits == 32 else 8 * ROUNDED)


def test_batches_reach_the_model(device: torch.device) -> None:
    """`run_batch` moves what a batch holds."""
    from mpq.am.model import run_batch

    model = make_am(MODELS["tdnn"], 5).eval().to(device)
    features, lengths = am_inputs(model)
    log_probs, out_lengths = run_batch(model, Batch(features, lengths, ["", "", ""], ["a", "b", "c"], ["s"] * 3))
    assert log_probs.device.type == out_lengths.device.type == device.type
