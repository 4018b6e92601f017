"""Bit plans: YAML both ways, averages, and one clear line for each way to get them wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpq.io import BadInput
from mpq.quant import BitPlan, QuantLinear, quantizable, quantize_model, read_plan, uniform_plan, write_plan

SHAPES = {"embed.weight": (10, 4), "lstm.weight_ih_l0": (16, 4)}


def test_yaml_round_trip(tmp_path: Path) -> None:
    plan = BitPlan(
        {"embed.weight": (1, 2, 3, 4, 5, 6, 7, 8, 1, 2), "lstm.weight_ih_l0": 32},
        method="kl", budget=2.5, cost=0.125, table="pow2", scale=2, a_bits=32, clipping="search",
    )  # fmt: skip
    write_plan(tmp_path / "plan.yaml", plan)
    assert read_plan(tmp_path / "plan.yaml") == plan
    assert "embed.weight: '1234567812'" in (tmp_path / "plan.yaml").read_text()


def test_average_is_weighted_by_size() -> None:
    plan = BitPlan({"embed.weight": (1, 3) * 5, "lstm.weight_ih_l0": 8})
    assert plan.average_bits(SHAPES) == pytest.approx((40 * 2 + 64 * 8) / 104)


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({"bits": {"embd.weight": 2, "lstm.weight_ih_l0": 2}}, ["embd.weight", "did you mean 'embed.weight'"]),
        ({"bits": {"embed.weight": 2}}, ["no bits for 'lstm.weight_ih_l0'"]),
        ({"bits": {"embed.weight": 9, "lstm.weight_ih_l0": 2}}, ["embed.weight: 9 bits", "1 to 8, or 32"]),
        ({"bits": {"embed.weight": 0, "lstm.weight_ih_l0": 2}}, ["embed.weight: 0 bits"]),
        ({"bits": {"embed.weight": 2.5, "lstm.weight_ih_l0": 2}}, ["embed.weight", "2.5"]),
        ({"bits": {"embed.weight": True, "lstm.weight_ih_l0": 2}}, ["embed.weight", "True"]),
        ({"bits": {"embed.weight": "2292222222", "lstm.weight_ih_l0": 2}}, ["row 2", "'9'"]),
        ({"bits": {"embed.weight": [2, 32], "lstm.weight_ih_l0": 2}}, ["row 1", "32"]),
        ({"bits": {"embed.weight": [12] * 10, "lstm.weight_ih_l0": 2}}, ["row 0: bits 12"]),
        ({"bits": {"embed.weight": [""] * 10, "lstm.weight_ih_l0": 2}}, ["row 0: bits ''"]),
        ({"bits": {"embed.weight": "two", "lstm.weight_ih_l0": 2}}, ["bits 'two'", "a digit for each row"]),
        ({"bits": {"embed.weight": "222", "lstm.weight_ih_l0": 2}}, ["bits for 3 rows", "10 rows"]),
        ({"bits": {}}, ["expected 'bits:'"]),
        ({"bit": {}}, ["unknown key 'bit'", "'bits'"]),
        ({"bits": dict.fromkeys(SHAPES, 2), "table": "log"}, ["table: 'log'", "uniform, pow2"]),
        ({"bits": dict.fromkeys(SHAPES, 2), "scale": 3}, ["4 columns", "groups of 3"]),
        ({"bits": dict.fromkeys(SHAPES, 2), "scale": "column"}, ["scale: 'column'"]),
        ({"bits": dict.fromkeys(SHAPES, 2), "scale": 0}, ["scale: 0"]),
        ({"bits": dict.fromkeys(SHAPES, 2), "clipping": "max"}, ["clipping: 'max'", "squares, search, none"]),
        ({"bits": dict.fromkeys(SHAPES, 2), "a_bits": 5}, ["a_bits: 5"]),
        ({"bits": dict.fromkeys(SHAPES, 2), "budget": "two"}, ["budget: 'two'"]),
        ({"bits": {"embed.weight": "1" * 10, "lstm.weight_ih_l0": 2}, "scale": "matrix"}, ["scale: row"]),
    ],
)
def test_wrong_plans(plain: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        BitPlan.from_dict(plain, "plan.yaml").check(SHAPES, "plan.yaml")
    message = str(caught.value)
    assert message.startswith("plan.yaml") and "\n" not in message
    assert all(word in message for word in words), message


def test_quantizable_lists_every_matrix_once(tiny_lm: nn.Module) -> None:
    assert quantizable(tiny_lm) == {
        "embed.weight": (50, 16),
        "lstm.weight_ih_l0": (64, 16),
        "lstm.weight_hh_l0": (64, 16),
        "lstm.weight_ih_l1": (64, 16),
        "lstm.weight_hh_l1": (64, 16),
        "output.weight": (50, 16),
    }
    names = list(quantizable(tiny_lm))
    quantize_model(tiny_lm, BitPlan({**dict.fromkeys(names, 4), "lstm.weight_ih_l1": 32}))
    assert list(quantizable(tiny_lm)) == names


def test_tied_weights_are_named_once_and_stay_tied() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    model[1].weight = model[0].weight
    assert quantizable(model) == {"0.weight": (7, 4)}
    quantize_model(model, uniform_plan(model, 2))
    assert model[1].weight is model[0].weight
    assert isinstance(model[1], QuantLinear)
    assert model[1].quantized("weight").codes is model[0].quantized("weight").codes


def test_layers_of_32_bits_stay_float(tiny_lm: nn.Module) -> None:
    bits = dict.fromkeys(quantizable(tiny_lm), 32)
    quantize_model(tiny_lm, BitPlan({**bits, "output.weight": 2}))
    assert type(tiny_lm.embed) is nn.Embedding and type(tiny_lm.lstm) is nn.LSTM
    assert type(tiny_lm.output) is QuantLinear


def test_a_quantized_model_takes_another_plan(tiny_lm: nn.Module) -> None:
    weights = dict(tiny_lm.named_parameters())
    quantize_model(tiny_lm, uniform_plan(tiny_lm, 8))
    quantize_model(tiny_lm, uniform_plan(tiny_lm, 1))
    assert set(tiny_lm.lstm.quantized("weight_hh_l1").codes.unique().tolist()) == {-1, 1}
    parameters = dict(tiny_lm.named_parameters())
    assert all(parameters.pop(name) is weight for name, weight in weights.items())
    assert sorted(parameters) == sorted(f"{name}_log_scale" for name in quantizable(tiny_lm))


def test_scales_are_learned() -> None:
    """The output is a * (Q x), so its derivative by log a is itself where the code does not depend on the scale."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 6.0]]))
    quantize_model(model, uniform_plan(model, 1))
    assert model[0].quantized("weight").scale.item() == 3.5
    output = model(torch.tensor([[1.0, 1.0]]))
    output.sum().backward()
    assert model[0].weight.grad.tolist() == [[1.0, 1.0]]
    assert model[0].weight_log_scale.grad.item() == pytest.approx(output.item())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert model[0].quantized("weight").scale.item() == pytest.approx(3.5 * math.exp(-0.7), rel=1e-3)


def test_a_lone_layer_is_refused() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"nn\.Sequential"):
        quantize_model(layer, uniform_plan(layer, 4))


def test_projections_follow_the_optimizer() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    quantize_model(model, uniform_plan(model, 2))
    layer = model[0]
    first = layer.quantized("weight")
    assert layer.quantized("weight") is first, "projected twice for one value"
    for foreach, fused in ((True, False), (False, False), (False, True)):
        optimizer = torch.optim.AdamW(model.parameters(), 0.5, foreach=foreach, fused=fused)
        model(torch.randn(5, 8)).square().sum().backward()
        before = layer.quantized("weight")
        optimizer.step()
        assert layer.quantized("weight") is not before
