"""Quantized convolutions: golden values against float64, gradients, and the same numbers in training and serving."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.quant import QuantConv1d, QuantConv2d, freeze, int8_rows, quantizable, quantize_model, uniform_plan
from mpq.quant.conv import int8_patches, patches
from mpq.quant.layers import QuantModule

KINDS: dict[str, tuple[type[nn.Conv1d | nn.Conv2d], tuple[int, ...], dict[str, Any]]] = {
    "pointwise": (nn.Conv1d, (12, 10, 1), {}),
    "dilated": (nn.Conv1d, (12, 10, 3), {"dilation": 3, "padding": 3, "bias": False}),
    "same": (nn.Conv1d, (12, 10, 3), {"padding": "same"}),
    "grouped": (nn.Conv1d, (12, 8, 4), {"groups": 4, "padding": 2, "stride": 2}),
    "depthwise": (nn.Conv1d, (12, 12, 5), {"groups": 12, "padding": 2}),
    "depthwise-strided": (nn.Conv1d, (12, 12, 6), {"groups": 12, "stride": 2, "bias": False}),
    "multiplied": (nn.Conv1d, (6, 12, 3), {"groups": 6}),
    "front": (nn.Conv2d, (1, 6, 3), {"stride": 2, "padding": 1}),
    "second": (nn.Conv2d, (4, 6, (3, 2)), {"stride": (3, 2), "padding": (1, 0)}),
    "wide": (nn.Conv2d, (8, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    "depthwise-2d": (nn.Conv2d, (4, 4, 3), {"groups": 4, "padding": 1, "dilation": (1, 2)}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(
    kind: str, n_bits: int = 4, a_bits: int = 8, scale: str | int = "row", table: str = "uniform"
) -> tuple[nn.Sequential, Tensor]:
    """A convolution, quantized, and something for it to read."""
    torch.manual_seed(len(kind))
    layer, sizes, options = KINDS[kind]
    model = nn.Sequential(layer(*sizes, **options))
    x = torch.randn(3, sizes[0], 17, *([9] if layer is nn.Conv2d else [])) ** 3
    return quantize_model(model, uniform_plan(model, n_bits, a_bits=a_bits, scale=scale, table=table)), x


def rounded_conv(layer: QuantModule, x: Tensor, a_bits: int) -> Tensor:
    """The convolution in float64 of dequantized weights with dequantized patches, or channels, one at a time."""
    conv: Any = layer
    padded = F.pad(x, conv.pads)
    weight = layer.quantized("weight").dequantize().double()
    bias = torch.zeros(conv.out_channels).double() if conv.bias is None else conv.bias.double()
    groups, size = conv.groups, conv.out_channels // conv.groups
    if groups == conv.in_channels == conv.out_channels:
        codes, scale = int8_rows(padded.flatten(2), a_bits)
        seen = (codes.double() * scale.double()).view(padded.shape)
        conv_of = F.conv1d if padded.dim() == 3 else F.conv2d
        shaped = weight.view(-1, 1, *conv.kernel_size)
        return conv_of(seen, shaped, bias, conv.stride, 0, conv.dilation, groups)
    rows = patches(padded.movedim(1, -1), (conv.kernel_size, conv.stride, conv.dilation), groups, False)
    out = torch.zeros(*rows.shape[:-2], conv.out_channels).double()
    for channel in range(conv.out_channels):
        codes, scale = int8_rows(rows[..., channel // size, :], a_bits)
        out[..., channel] = (codes.double() * scale.double()) @ weight[channel] + bias[channel]
    return out.movedim(-1, 1)


@every_kind
@pytest.mark.parametrize(
    "settings",
    [(8, 8, "row"), (4, 4, "row"), (2, 8, "matrix"), (1, 8, 64), (2, 8, "row", "asym"), (8, 4, 1, "asym")],
    ids=str,
)
def test_golden_values(kind: str, settings: tuple[Any, ...]) -> None:
    model, x = make(kind, *settings)
    expected = rounded_conv(model[0], x, settings[1])
    found = model(x).double()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@every_kind
def test_patches_are_those_of_torchs_convolution(kind: str) -> None:
    layer, sizes, options = KINDS[kind]
    _, x = make(kind)
    conv: Any = layer(*sizes, **options)
    padded = F.pad(x, conv._reversed_padding_repeated_twice).movedim(1, -1)
    rows = patches(padded, (conv.kernel_size, conv.stride, conv.dilation), conv.groups, False)
    turned = patches(padded, (conv.kernel_size, conv.stride, conv.dilation), conv.groups, True)
    taps = math.prod(conv.kernel_size)
    assert torch.equal(turned.unflatten(-1, (taps, -1)).transpose(-1, -2).flatten(-2), rows)
    size = conv.out_channels // conv.groups
    weight = conv.weight.flatten(1).unflatten(0, (conv.groups, size))
    out = torch.einsum("...gk,gok->...go", rows, weight).flatten(-2).movedim(-1, 1)
    if conv.bias is not None:
        out = out + conv.bias.view(-1, *[1] * (x.dim() - 2))
    torch.testing.assert_close(out, conv(x), rtol=1e-4, atol=1e-4)


@every_kind
def test_patches_are_rounded_as_rows(kind: str) -> None:
    layer, sizes, options = KINDS[kind]
    _, x = make(kind)
    x[0] = 0
    conv: Any = layer(*sizes, **options)
    geometry, frames = (conv.kernel_size, conv.stride, conv.dilation), x.movedim(1, -1)
    for channels_last in (False, True):
        rows, scale = int8_rows(patches(frames, geometry, 1, channels_last).squeeze(-2))
        found_rows, found_scale = int8_patches(frames, geometry, channels_last, 8)
        assert torch.equal(found_rows.reshape(rows.shape), rows) and torch.equal(found_scale, scale.squeeze(-1))


@every_kind
def test_parts_of_a_batch_give_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(kind)
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setattr("mpq.quant.conv._PATCHES", 1)
        assert torch.equal(model(x), expected)


@every_kind
@pytest.mark.parametrize(("n_bits", "a_bits"), [(w, a) for w in (8, 4, 2, 1) for a in (8, 4)])
def test_training_and_serving_agree_bit_for_bit(kind: str, n_bits: int, a_bits: int) -> None:
    model, x = make(kind, n_bits, a_bits)
    trained = model(x)
    assert trained.requires_grad
    for packed in (False, True):
        served = freeze(copy.deepcopy(model), packed=packed).eval()
        with torch.inference_mode():
            together = served(x)
            assert torch.equal(together, trained)
            assert torch.equal(served(x[1:2]), together[1:2]), "depends on the batch"
            zeros = F.pad(x[1:2], [0, 0, 0, 6] if x.dim() == 4 else [0, 6])
            n_frames = together.shape[2] - 3 * ("depthwise" not in kind)  # the last ones see what is padded
            assert torch.equal(served(zeros)[:, :, :n_frames], together[1:2, :, :n_frames]), "depends on the padding"


@every_kind
def test_gradients_are_those_of_the_float_convolution(kind: str) -> None:
    """Of the dequantized weight, at the dequantized input: at 8 bits close to those of the float layer."""
    layer, sizes, options = KINDS[kind]
    model, x = make(kind, 8)
    conv: Any = layer(*sizes, **options)
    conv.load_state_dict({n: p.detach() for n, p in model[0].named_parameters() if not n.endswith("_log_scale")})
    grads = []
    for module in (conv, model):
        seen = x.clone().requires_grad_()
        out = module(seen)
        generator = torch.Generator().manual_seed(0)
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
        grads.append(seen.grad)
    pairs = [(conv.weight.grad, model[0].weight.grad), (grads[0], grads[1])]
    if conv.bias is not None:
        pairs.append((conv.bias.grad, model[0].bias.grad))
    for expected, found in pairs:
        assert (found - expected).norm() < 0.02 * expected.norm()
    assert model[0].weight_log_scale.grad.abs().sum() > 0


def test_shapes_are_matrices() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, (3, 2)), nn.Conv1d(8, 8, 5, groups=8), nn.Conv1d(8, 4, 1))
    assert quantizable(model) == {"0.weight": (6, 24), "1.weight": (8, 5), "2.weight": (4, 8)}
    quantize_model(model, uniform_plan(model, 2, scale=8))
    assert [type(layer) for layer in model] == [QuantConv2d, QuantConv1d, QuantConv1d]
    shapes = [layer.quantized("weight").scale.shape for layer in model]
    assert shapes == [(6, 3), (8, 1), (4, 1)], "a row of fewer columns than a group is a group of its own"


def test_a_float_plan_gives_the_float_convolution_back() -> None:
    model, x = make("second")
    exact = F.conv2d(x, model[0].weight, model[0].bias, (3, 2), (1, 0))
    assert not torch.equal(model(x), exact)
    torch.testing.assert_close(quantize_model(model, uniform_plan(model, 32))(x), exact)


def test_weight_only_is_the_float_convolution_of_the_rounded_weight() -> None:
    model, x = make("second", 2, a_bits=32)
    shaped = model[0].quantized("weight").dequantize().view(6, 4, 3, 2)
    expected = F.conv2d(x, shaped, model[0].bias, (3, 2), (1, 0))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(freeze(model)(x), expected)


def test_long_kernels_stay_exact() -> None:
    """Beyond 1024 taps a float32 sum could lose digits."""
    model = nn.Sequential(nn.Conv1d(2, 2, 1500, groups=2, bias=False))
    nn.init.ones_(model[0].weight)
    quantize_model(model, uniform_plan(model, 8))
    x = torch.ones(1, 2, 1500)
    x[0, 1, ::2] = 126 / 127
    scale = model[0].quantized("weight").scale[1, 0].double()
    expected = (1500 * 127 - 750) * 127 * scale.item() / 127
    assert math.isclose(model(x)[0, 1, 0].item(), expected, rel_tol=1e-6)


def test_large_inputs_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make("second")
    freeze(model)
    with torch.inference_mode():
        whole = model(x)
        monkeypatch.setattr("mpq.quant.conv._PATCHES", 100)
        assert torch.equal(model(x), whole)


def test_autocast_leaves_the_sums_exact() -> None:
    for kind in ("depthwise", "dilated"):
        model, x = make(kind)
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(x), exact)


def test_other_padding_is_refused() -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ValueError, match="padding_mode"):
        quantize_model(model, uniform_plan(model, 4))


def test_parametrized_weights_are_not_listed() -> None:
    """What weight normalization makes from two others is no weight of its own."""
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3))
    assert quantizable(nn.Sequential(layer)) == {}
