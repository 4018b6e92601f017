"""Quantized layers: the same numbers in training and serving, and gradients against a plain reference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpq.quant import (
    BitPlan,
    QuantLSTM,
    freeze,
    int8_rows,
    int_linear,
    project,
    quantizable,
    quantize_model,
    quantized_weights,
    straight_through,
    uniform_plan,
)
from mpq.quant.layers import Projector
from mpq.quant.lstm import recurrence
from mpq.quant.table import Precision
from tests.quant.quant_models import TinyLm

SETTINGS = [
    {"n_bits": 1, "scale": "matrix"},
    {"n_bits": 2, "scale": "row"},
    {"n_bits": 3, "scale": 8, "table": "pow2"},
    {"n_bits": 4, "scale": "row"},
    {"n_bits": 8, "scale": 4},
    {"n_bits": 2, "scale": 8, "table": "asym", "clipping": "search"},
    {"n_bits": 1, "scale": "row", "table": "asym", "a_bits": 4},
]


def words(seed: int, batch: int = 6, steps: int = 9) -> Tensor:
    return torch.randint(0, 50, (batch, steps), generator=torch.Generator().manual_seed(seed))


def train_a_little(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for step in range(3):
        batch = words(step)
        optimizer.zero_grad()
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_training_and_serving_agree_bit_for_bit(settings: dict[str, object], packed: bool, tied: bool) -> None:
    torch.manual_seed(0)
    model = TinyLm(tied=tied)
    quantize_model(model, uniform_plan(model, **settings))
    train_a_little(model)
    batch = words(99)
    trained = model(batch)
    assert trained.requires_grad
    served = freeze(copy.deepcopy(model), packed=packed).eval()
    with torch.inference_mode():
        assert torch.equal(served(batch), trained)
    held = {name for name, _ in served.named_parameters()}
    assert not held & set(quantizable(model)), "a float weight is still held"
    assert quantizable(served) == quantizable(model)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_results_do_not_depend_on_the_batch(settings: dict[str, object]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(50, 24), nn.LSTM(24, 24, 2, batch_first=True))
    quantize_model(model, uniform_plan(model, **settings))
    freeze(model).eval()
    batch = words(4, batch=37, steps=11)
    with torch.no_grad():
        together, (h, c) = model(batch)
        for i in (0, 17, 36):
            alone, (h_alone, c_alone) = model(batch[i : i + 1])
            assert torch.equal(alone[0], together[i])
            assert torch.equal(h_alone[:, 0], h[:, i]) and torch.equal(c_alone[:, 0], c[:, i])
        embed, lstm = model
        first, state = lstm(embed(batch[:, :5]))
        rest, state = lstm(embed(batch[:, 5:]), state)
        assert torch.equal(torch.cat([first, rest], 1), together)
        assert torch.equal(state[0], h) and torch.equal(state[1], c)


def test_float_state_dicts_load(tiny_lm: TinyLm) -> None:
    model = TinyLm()
    model.load_state_dict(tiny_lm.state_dict())
    quantize_model(model, uniform_plan(model, 4))
    assert model.load_state_dict(tiny_lm.state_dict(), strict=False).unexpected_keys == []
    quantized = quantized_weights(model)
    for name in quantizable(tiny_lm):
        expected = project(tiny_lm.get_parameter(name), Precision(4))
        assert torch.equal(quantized[name].codes, expected.codes)


def test_8_bits_are_close_to_float(tiny_lm: TinyLm) -> None:
    batch = words(1)
    expected = tiny_lm(batch)
    for a_bits in (8, 32):
        model = copy.deepcopy(tiny_lm)
        quantize_model(model, uniform_plan(model, 8, a_bits=a_bits))
        torch.testing.assert_close(model(batch), expected, rtol=0, atol=0.05)
        assert not torch.equal(model(batch), expected)


def test_weight_only_uses_the_dequantized_weights(tiny_lm: TinyLm) -> None:
    batch = words(2)
    model = copy.deepcopy(tiny_lm)
    quantize_model(model, uniform_plan(model, 2, a_bits=32))
    state = tiny_lm.state_dict()
    state.update({name: q.dequantize() for name, q in quantized_weights(model).items()})
    tiny_lm.load_state_dict(state)
    torch.testing.assert_close(model(batch), tiny_lm(batch))
    torch.testing.assert_close(freeze(model, packed=True)(batch), tiny_lm(batch))


def test_frozen_layers_pass_gradients_on(tiny_lm: TinyLm) -> None:
    """What stands before a frozen LSTM can still be trained, with the gradients of the latent one."""
    quantize_model(tiny_lm, uniform_plan(tiny_lm, 4))
    grads = []
    for model in (tiny_lm, freeze(copy.deepcopy(tiny_lm))):
        x = torch.ones(2, 5, 16, requires_grad=True)
        model.output(model.lstm(x)[0]).square().sum().backward()
        grads.append(x.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[1], grads[0])


def test_autocast_changes_gradients_only(tiny_lm: TinyLm) -> None:
    """Gradient products may be in bfloat16, the forward pass of integer layers is the same to the bit."""
    model = nn.Sequential(tiny_lm.embed, tiny_lm.lstm)
    quantize_model(model, uniform_plan(model, 4))
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hidden, _ = model(words(0))
        hidden.square().sum().backward()
        results.append((hidden.detach(), model[1].weight_hh_l0.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    grad, coarse = results[0][1], results[1][1]
    assert not torch.equal(grad, coarse) and (grad - coarse).norm() < 0.02 * grad.norm()


@pytest.mark.parametrize("quantized", ["lstm.weight_ih_l0", "lstm.weight_hh_l0"])
def test_float_weights_in_a_quantized_lstm_under_autocast(tiny_lm: TinyLm, quantized: str) -> None:
    exact = tiny_lm.lstm(torch.ones(2, 5, 16))[0]
    quantize_model(tiny_lm, BitPlan({**dict.fromkeys(quantizable(tiny_lm), 32), quantized: 8}))
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = tiny_lm.lstm(torch.ones(2, 5, 16, dtype=torch.bfloat16))
    assert hidden.dtype == torch.float32
    torch.testing.assert_close(hidden, exact, rtol=0, atol=0.02)
    hidden.sum().backward()
    assert all(parameter.grad is not None for parameter in tiny_lm.lstm.parameters())


def test_float_lstm_weights_inside_a_quantized_lstm(tiny_lm: TinyLm) -> None:
    """All kinds of layer at once: float recurrence, quantized input; equal to nn.LSTM up to the int8 rows."""
    bits = dict.fromkeys(quantizable(tiny_lm), 32)
    bits["lstm.weight_ih_l0"] = 8
    model = quantize_model(copy.deepcopy(tiny_lm), BitPlan(bits))
    assert isinstance(model.lstm, QuantLSTM)
    torch.testing.assert_close(model(words(3)), tiny_lm(words(3)), rtol=0, atol=0.02)
    loss = model(words(3)).square().mean()
    expected = tiny_lm(words(3)).square().mean()
    loss.backward()
    expected.backward()
    for name, parameter in model.named_parameters():
        if name == "lstm.weight_ih_l0_log_scale":
            continue
        grad = tiny_lm.get_parameter(name).grad
        assert (parameter.grad - grad).norm() < 0.05 * grad.norm(), name


class ReferenceLstm(nn.Module):
    """One QuantLSTM layer step by step from `int_linear`, with autograd doing the rest."""

    def forward(self, gates: Tensor, h: Tensor, c: Tensor, latent: Tensor, precision: Precision) -> Tensor:
        quantized = project(latent, precision)
        weight = straight_through(latent, quantized)
        hidden, cells = [], []
        for row in gates:
            i, f, g, o = (row + int_linear(h, quantized, None, weight)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            hidden.append(h)
            cells.append(c)
        return torch.stack(hidden), torch.stack(cells)


@pytest.mark.parametrize("n_bits", [1, 4, 8])
def test_gradients_of_the_recurrence(n_bits: int) -> None:
    torch.manual_seed(5)
    precision = Precision(n_bits)
    tensors = [torch.randn(7, 3, 20), torch.randn(3, 5), torch.randn(3, 5), torch.randn(20, 5) ** 3]
    by_hand = [tensor.clone().requires_grad_() for tensor in tensors]
    by_autograd = [tensor.clone().requires_grad_() for tensor in tensors]
    upstream = torch.randn(7, 3, 5), torch.randn(3, 5), torch.randn(3, 5)

    quantized = project(by_hand[3], precision)
    weight = straight_through(by_hand[3], quantized)
    found = recurrence(*by_hand[:3], quantized, weight)
    expected, cells = ReferenceLstm()(*by_autograd, precision)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[2], cells[-1])
    torch.autograd.backward(found, upstream)
    torch.autograd.backward((expected, expected[-1], cells[-1]), upstream)
    for left, right in zip(by_hand, by_autograd, strict=True):
        assert right.grad is not None and right.grad.abs().max() > 0
        torch.testing.assert_close(left.grad, right.grad)


def test_the_last_state_takes_gradients_of_earlier_chunks(tiny_lm: TinyLm) -> None:
    """Backpropagation through a carried state: two chunks give the gradient of the whole."""
    quantize_model(tiny_lm, uniform_plan(tiny_lm, 4))
    lstm, x = tiny_lm.lstm, torch.randn(2, 8, 16)
    whole, _ = lstm(x)
    whole.square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in lstm.named_parameters()}
    lstm.zero_grad()
    first, state = lstm(x[:, :3])
    second, _ = lstm(x[:, 3:], state)
    (first.square().sum() + second.square().sum()).backward()
    for name, parameter in lstm.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


def test_embedding_gradients_reach_only_the_rows_used() -> None:
    model = nn.Sequential(nn.Embedding(6, 4, padding_idx=5))
    quantize_model(model, uniform_plan(model, 8))
    model(torch.tensor([[1, 1, 5]])).sum().backward()
    grad = model[0].weight.grad
    assert grad[1].tolist() == [2, 2, 2, 2]
    assert not grad[[0, 2, 3, 4, 5]].any()


def test_dropout_between_lstm_layers_only_in_training() -> None:
    model = nn.Sequential(nn.LSTM(8, 8, 2, batch_first=True, dropout=0.5))
    quantize_model(model, uniform_plan(model, 8))
    x = torch.randn(2, 4, 8)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"proj_size": 4}, {"batch_first": False}])
def test_other_lstms_are_refused(options: dict[str, object]) -> None:
    model = nn.Sequential(nn.LSTM(8, 8, **{"batch_first": True, **options}))
    with pytest.raises(ValueError, match="batch_first=True"):
        quantize_model(model, uniform_plan(model, 8))


def test_frozen_in_inference_mode_then_trained(tiny_lm: TinyLm) -> None:
    """Projections cached while scoring can be used by the next training step."""
    quantize_model(tiny_lm, uniform_plan(tiny_lm, 4))
    with torch.inference_mode():
        tiny_lm(words(0))
    train_a_little(tiny_lm)


def test_freeze_takes_given_codes(tiny_lm: TinyLm) -> None:
    """ADMM deploys its own G, not the rounding of its latent weights."""
    quantize_model(tiny_lm, uniform_plan(tiny_lm, 2))
    given = {n: q._replace(codes=-q.codes) for n, q in quantized_weights(tiny_lm).items()}
    freeze(tiny_lm, given, packed=True)
    for name, quantized in quantized_weights(tiny_lm).items():
        assert torch.equal(quantized.codes, given[name].codes)


def test_int8_rows_of_codes_are_those_of_the_layer() -> None:
    """Unpacked serving holds one byte a weight, packed serving the file's bytes."""
    model = nn.Sequential(nn.Linear(40, 8, bias=False))
    quantize_model(model, uniform_plan(model, 2))
    packed = freeze(copy.deepcopy(model), packed=True)
    freeze(model)
    assert model[0].weight_codes.nbytes == 320 and packed[0].weight_codes.nbytes == 64
    assert int8_rows(torch.ones(1, 40))[0].dtype == model[0].weight_codes.dtype


def test_a_weight_without_numbers_is_not_computed_with() -> None:
    """Doing so on the meta device imports torch's compiler: 120 MB and a second for every model that is loaded."""
    seen: set[str] = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(function.name())
            return function(*args, **(kwargs or {}))

    with Recorder():
        projector = Projector(Precision(2, "asym"), torch.empty(4, 8, device="meta"))
    assert projector.log_scale.is_meta and projector.shift is not None and projector.shift.is_meta
    assert seen <= {"aten::empty.memory_format", "aten::select.int"}
