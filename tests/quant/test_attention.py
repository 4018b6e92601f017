"""Quantized attention: torch's at 8 bits, the same numbers in training and serving, what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.quant import (
    BitPlan,
    QuantAttention,
    QuantLinear,
    attend_exactly,
    attention,
    freeze,
    quantizable,
    quantize_model,
    uniform_plan,
)


class Attending(nn.Module):
    """Self-attention as torchaudio's Conformer calls it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.attention = nn.MultiheadAttention(12, 3, **options)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        result: Tensor = self.attention(query=x, key=x, value=x, key_padding_mask=mask, need_weights=False)[0]
        return result


def inputs(batch_first: bool = False) -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9)[None, :] >= torch.tensor([9, 7, 4, 1])[:, None]
    return (x if batch_first else x.transpose(0, 1)), mask


@pytest.mark.parametrize("batch_first", [False, True])
def test_8_bits_are_close_to_torchs(batch_first: bool) -> None:
    model = Attending(batch_first=batch_first).eval()
    quantized = copy.deepcopy(model)
    quantize_model(quantized, uniform_plan(quantized, 8))
    assert isinstance(quantized.attention, QuantAttention) and isinstance(quantized.attention.out_proj, QuantLinear)
    x, mask = inputs(batch_first)
    for some in (mask, None):
        expected = model(x, some)
        torch.testing.assert_close(quantized(x, some), expected, rtol=0, atol=0.02)
    grads = []
    for module in (model, quantized):
        module(x, mask).square().sum().backward()
        grads.append(module.attention.in_proj_weight.grad)
    assert (grads[1] - grads[0]).norm() < 0.05 * grads[0].norm()


@pytest.fixture(params=["written out", "torch's kernel"])
def by_both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as on AMD's processors, and as on others."""
    monkeypatch.setattr(attention, "_cpu_is_amds", lambda: request.param == "written out")


@pytest.mark.usefixtures("by_both_ways")
@pytest.mark.parametrize("at_once", [1, 200, 1 << 18])
def test_scores_and_softmax_are_torchs(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SCORES", at_once)
    q, k, v = torch.randn(3, 4, 2, 9, 6, generator=torch.Generator().manual_seed(3)).requires_grad_().unbind(0)
    padding = inputs()[1]
    mixed = attention.attend(q, k, v, padding, 0.0)
    expected = F.scaled_dot_product_attention(q, k, v, ~padding[:, None, None, :])
    torch.testing.assert_close(mixed, expected)
    ours, theirs = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (mixed, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.get_float32_matmul_precision() == "highest"  # as it was, and can be asked for


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize(("length", "width"), [(23, 24), (5, 3)])
def test_exact_attention_is_that_of_each_sentence_alone(
    length: int, width: int, in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_order:  # as on a GPU
        monkeypatch.setattr(attention, "_cpu_adds_in_order", lambda: False)
    causal = torch.full((length, length), -torch.inf).triu(1)
    q, k, v = torch.randn(3, 4, 2, length, width, generator=torch.Generator().manual_seed(3)).unbind(0)
    mixed = attend_exactly(q, k, v, causal)
    torch.testing.assert_close(mixed, F.scaled_dot_product_attention(q, k, v, causal))
    for sentence, end in ((0, length), (2, length), (3, length // 2), (1, 1)):
        part = (x[sentence, :, :end] for x in (q, k, v))
        assert torch.equal(attend_exactly(*part, causal[:end, :end]), mixed[sentence, :, :end])


@pytest.mark.usefixtures("by_both_ways")
@pytest.mark.parametrize(("n_bits", "a_bits"), [(w, a) for w in (8, 4, 2, 1) for a in (8, 4)])
def test_training_and_serving_agree_bit_for_bit(n_bits: int, a_bits: int) -> None:
    model = Attending(dropout=0.0)
    quantize_model(model, uniform_plan(model, n_bits, a_bits=a_bits))
    trained = model(*inputs())
    assert trained.requires_grad
    served = freeze(copy.deepcopy(model), packed=True).eval()
    with torch.inference_mode():
        assert torch.equal(served(*inputs()), trained)


def test_autocast_changes_gradients_only() -> None:
    model = Attending(dropout=0.0)
    quantize_model(model, uniform_plan(model, 4))
    exact = model(*inputs())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(*inputs()), exact)


@pytest.mark.parametrize("quantized", ["attention.in_proj_weight", "attention.out_proj.weight"])
def test_either_weight_may_stay_float(quantized: str) -> None:
    model = Attending().eval()
    assert quantizable(model) == {"attention.in_proj_weight": (36, 12), "attention.out_proj.weight": (12, 12)}
    exact = model(*inputs())
    quantize_model(model, BitPlan({**dict.fromkeys(quantizable(model), 32), quantized: 2}))
    assert not torch.allclose(model(*inputs()), exact, atol=0.02)
    again = quantize_model(model, uniform_plan(model, 32))
    torch.testing.assert_close(again(*inputs()), exact)


def test_dropout_only_in_training() -> None:
    model = Attending(dropout=0.5)
    quantize_model(model, uniform_plan(model, 8))
    assert not torch.equal(model(*inputs()), model(*inputs()))
    model.eval()
    assert torch.equal(model(*inputs()), model(*inputs()))


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_other_attention_is_refused(options: dict[str, Any]) -> None:
    model = Attending(**options)
    with pytest.raises(ValueError, match="bias_k"):
        quantize_model(model, uniform_plan(model, 8))


def test_attention_to_another_sequence_is_refused() -> None:
    model = Attending()
    quantize_model(model, uniform_plan(model, 8))
    x, _ = inputs()
    with pytest.raises(ValueError, match="itself"):
        model.attention(x, x.clone(), x)
