"""Products and modules in the registers: the numbers of the same steps one after the other, and of torch in double."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpq.am import AcousticModel, ConformerConfig, make_am
from mpq.quant import (
    BitPlan,
    QuantConv1d,
    QuantConv2d,
    Quantized,
    QuantLSTM,
    freeze,
    fused,
    int_linear,
    panels,
    quantizable,
    quantize_model,
    relu_of,
    steps,
    uniform_plan,
)
from mpq.quant.layers import Projector
from mpq.quant.lstm import recurrence
from mpq.quant.table import Precision

pytestmark = pytest.mark.skipif(
    panels.fused_for() is None, reason="a processor without AVX512-VNNI or with AMX, no C compiler, or MPQ_KERNELS=0"
)
SMALL = ConformerConfig(feature_dim=16, dim=20, heads=2, feed_forward=42, layers=2, kernel=5, channels=3, dropout=0.0)


def unfused(step: Callable[..., Any], *args: Any) -> Any:
    """What it gives without `product.c` and `fused.c`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panels, "_suits", lambda: False)
        return step(*args)


def random_weight(outputs: int, inputs: int, top: int = 127) -> Quantized:
    codes = torch.randint(-top, top + 1, (outputs, inputs), dtype=torch.int8)
    return Quantized(codes, torch.rand(outputs, 1) + 0.1)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 130), st.integers(1, 150), st.integers(1, 200), st.integers(0, 3), st.integers(0, 2**31))
def test_products_are_exact(rows: int, outputs: int, inputs: int, bias_kind: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight, codes = random_weight(outputs, inputs), torch.randint(-127, 128, (rows, inputs), dtype=torch.int8)
    each, by = torch.rand(rows, 1), panels.matrix(weight)
    assert by is not None
    bias = [None, torch.randn(outputs), torch.randn(rows, outputs), torch.randn(outputs, rows).t()][bias_kind]
    total = (codes.long() @ weight.codes.long().t()).float() * weight.scale[:, 0]
    expected = torch.addcmul(torch.zeros(1) if bias is None else bias, total, each)
    assert torch.equal(panels.multiply(codes, each, by, bias), expected)
    wide = torch.full((rows, outputs + 5), 7.0)
    panels.multiply(codes, each, by, bias, wide[:, 2:-3])
    assert torch.equal(wide[:, 2:-3], expected) and bool((wide[:, :2] == 7).all() and (wide[:, -3:] == 7).all())


def test_the_largest_sums_do_not_overflow() -> None:
    size = 8192
    codes = torch.full((3, size), 127, dtype=torch.int8)
    codes[1] = -127
    for sign in (1, -1):
        by = panels.matrix(Quantized((sign * codes[:1]).repeat(5, 1), torch.ones(5, 1)))
        assert by is not None
        found = panels.multiply(codes, torch.ones(3, 1), by, None)
        assert torch.equal(found, torch.tensor([[1.0], [-1.0], [1.0]]).expand(3, 5) * sign * float(127**2 * size))


def test_scales_of_parts_and_offsets_are_left_to_others() -> None:
    codes = torch.ones(4, 6, dtype=torch.int8)
    assert panels.matrix(Quantized(codes, torch.ones(4, 2))) is None
    assert panels.matrix(Quantized(codes, torch.ones(4, 1), torch.ones(4, 1))) is None
    assert panels.matrix(Quantized(codes, torch.ones(1, 1))) is not None, "one scale for all"


def test_other_shapes_are_refused() -> None:
    by = panels.matrix(random_weight(5, 8))
    assert by is not None
    codes, each = torch.zeros(3, 8, dtype=torch.int8), torch.ones(3, 1)
    for wrong in (
        (codes[:, :7], each, by, None),
        (codes, each, by, torch.ones(4)),
        (codes, each, by, torch.ones(2, 5)),
    ):
        with pytest.raises(RuntimeError, match="of shape"):
            panels.multiply(*wrong)


@pytest.mark.parametrize("rows", [191, 192, 1000])
def test_linear_layers_of_many_rows(rows: int) -> None:
    weight, x, bias = random_weight(70, 33), torch.randn(rows, 33), torch.randn(70)
    assert torch.equal(int_linear(x, weight, bias), unfused(int_linear, x, weight, bias))
    big = random_weight(2100, 600)  # more than is brought into order at once
    x = torch.randn(rows, 600)
    assert torch.equal(int_linear(x, big), unfused(int_linear, x, big))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    """Against patches that are rounded and multiplied one after the other."""
    n_dims = data.draw(st.integers(1, 2))
    kernel, stride, dilation, padding = (
        tuple(data.draw(st.integers(low, high)) for _ in range(n_dims))
        for low, high in ((1, 4), (1, 3), (1, 2), (0, 3))
    )
    channels, outputs = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 50))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    kind: Any = (nn.Conv1d, nn.Conv2d)[n_dims - 1]
    original = kind(channels, outputs, kernel, stride, padding, dilation, bias=data.draw(st.booleans()))
    form: Any = (QuantConv1d, QuantConv2d)[n_dims - 1]
    projectors = {"weight": Projector(Precision(data.draw(st.sampled_from([1, 4, 8]))), original.weight)}
    conv = form(original, projectors, data.draw(st.sampled_from([4, 8])))
    size = [(k - 1) * d + data.draw(st.integers(1, 12)) for k, d in zip(kernel, dilation, strict=True)]
    x = torch.randn(data.draw(st.integers(1, 3)), channels, *size)
    with torch.no_grad():
        assert torch.equal(conv(x), unfused(conv, x))
        assert torch.equal(relu_of(conv, x), unfused(conv, x).relu())
    assert torch.equal(relu_of(conv, x).detach(), unfused(conv, x).relu().detach()), "with gradients"


@pytest.mark.parametrize("columns", [15, 16, 40, 144])
def test_steps_are_torchs(columns: int) -> None:
    """Values and gradients, against double."""
    norm = nn.LayerNorm(columns)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    exact = nn.LayerNorm(columns).double()
    exact.load_state_dict(norm.state_dict())
    x = torch.randn(3, 7, 2 * columns) * 4
    x[0, 0, 0], x[0, 1, 0] = 100.0, -100.0
    for ours, theirs, size in (
        (lambda t: steps.layer_norm(t, norm), exact, columns),
        (steps.silu, F.silu, columns),
        (steps.glu, F.glu, 2 * columns),
    ):
        a, b = x[..., :size].clone().requires_grad_(), x[..., :size].double().requires_grad_()
        found, expected = ours(a), theirs(b)
        torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=3e-6)
        weights = torch.randn(found.shape)
        by_ours = torch.autograd.grad((found * weights).sum(), [a, *norm.parameters()], allow_unused=True)
        by_theirs = torch.autograd.grad((expected * weights).sum(), [b, *exact.parameters()], allow_unused=True)
        for one, other in zip(by_ours, by_theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


def test_silu_over_its_whole_range() -> None:
    x = torch.cat([torch.linspace(-200, 200, 100_003), torch.tensor([-3e38, 3e38, 0.0, 1e-38])])
    found, expected = steps.silu(x).double(), F.silu(x.double())
    error = (found - expected).abs() / expected.abs().clamp_min(1e-32)
    assert error[x > -80].max() < 2.5e-7 and bool((found[x < -80] == 0).all())
    assert steps.silu(torch.tensor([float("nan")])).isnan()


@pytest.mark.parametrize(("heads", "times", "width"), [(1, 1, 1), (4, 50, 36), (3, 33, 13), (2, 130, 64)])
def test_attention_is_torchs(heads: int, times: int, width: int) -> None:
    inputs = [torch.randn(2, heads, times, width) for _ in range(3)]
    bias = torch.zeros(2, times)
    bias[1, times - times // 3 :] = -torch.inf
    bias[0, : times // 4] = -torch.inf
    ours, theirs = ([x.to(kind, copy=True).requires_grad_() for x in inputs] for kind in (torch.float32, torch.float64))
    found = steps.attend(ours[0], ours[1], ours[2], bias)
    expected = F.scaled_dot_product_attention(theirs[0], theirs[1], theirs[2], bias[:, None, None, :].double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(found.shape)
    by_ours = torch.autograd.grad((found * weights).sum(), ours)
    by_theirs = torch.autograd.grad((expected * weights).sum(), theirs)
    for one, other in zip(by_ours, by_theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    n = times - times // 3
    q, k, v = (x[1:, :, :n].detach() for x in ours)
    assert torch.equal(steps.attend(q, k, v, bias[1:, :n])[0], found[1, :, :n].detach()), "depends on padding"


def make(config: ConformerConfig = SMALL) -> AcousticModel:
    torch.manual_seed(0)
    model = make_am(config, 7).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.bias)
    return model


def mixed_plan(model: AcousticModel, a_bits: int) -> BitPlan:
    names = list(quantizable(model))
    return BitPlan.from_dict({"bits": {n: (1, 2, 4, 8)[i % 4] for i, n in enumerate(names)}, "a_bits": a_bits})


@pytest.mark.parametrize("a_bits", [4, 8])
def test_a_conformer_serves_what_it_trains(a_bits: int) -> None:
    """One call for a module, its steps one by one with gradients, and weights of all kinds: the same bits."""
    model = make()
    quantized = quantize_model(model, mixed_plan(model, a_bits))
    features, lengths = torch.randn(3, 230, 16), torch.tensor([230, 100, 37])
    with torch.no_grad():
        expected, out_lengths = quantized(features, lengths)
        alone = [quantized(features[i : i + 1, :n], lengths[i : i + 1])[0][0] for i, n in enumerate(lengths.tolist())]
    for one, together, n in zip(alone, expected, out_lengths.tolist(), strict=True):
        assert torch.equal(one, together[:n])
    for module in quantized.modules():
        module.training = not isinstance(module, nn.BatchNorm1d)
    trained, _ = quantized(features, lengths)
    assert trained.requires_grad and torch.equal(trained.detach(), expected)
    trained[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in quantized.parameters())
    quantized.eval()
    with torch.no_grad():
        close = unfused(quantized, features, lengths)[0]
        for packed in (False, True):
            assert torch.equal(freeze(quantize_model(make(), mixed_plan(make(), a_bits)), packed=packed).eval()(
                features, lengths)[0], expected)  # fmt: skip
    assert not torch.equal(close, expected)
    assert (close - expected)[0].abs().mean() < 0.1 * expected[0].std(), (
        "other last digits, and what rounding makes of them"
    )


def test_gradients_of_a_conformer_are_those_of_its_steps_by_torch() -> None:
    """But for the codes that other last digits become."""
    model = make()
    quantized = quantize_model(model, uniform_plan(model, 8))
    features, lengths = torch.randn(2, 90, 16), torch.tensor([90, 60])

    def gradients() -> Tensor:
        quantized.zero_grad()
        quantized(features, lengths)[0][0].square().sum().backward()
        return torch.cat([p.grad.flatten() for p in quantized.parameters() if p.grad is not None])

    ours, theirs = gradients(), unfused(gradients)
    assert F.cosine_similarity(ours, theirs, 0) > 0.99


@pytest.mark.parametrize("settings", [{"table": "asym"}, {"scale": 3}])
def test_what_is_not_fused_runs_as_torchaudio_has_it(settings: dict[str, Any]) -> None:
    model = make(replace(SMALL, dim=12, kernel=9))
    quantized = quantize_model(model, uniform_plan(model, 4, **settings))
    assert not fused.can_fuse(torch.zeros(1), quantized.get_submodule("layers.0"))
    with torch.no_grad():
        out, _ = quantized(torch.randn(1, 60, 16), torch.tensor([60]))
    assert out.isfinite().all()


def test_the_input_is_left_alone() -> None:
    model = make()
    quantized = quantize_model(model, uniform_plan(model, 4))
    features, hidden = torch.randn(2, 60, 16), torch.randn(2, 15, 20)
    before, hidden_before = features.clone(), hidden.clone()
    with torch.no_grad():
        quantized(features, torch.tensor([60, 30]))
        quantized.get_submodule("layers.0")(hidden.transpose(0, 1), torch.zeros(2, 15, dtype=torch.bool))
    assert torch.equal(features, before) and torch.equal(hidden, hidden_before)


def test_threads_share_utterances_and_rows() -> None:
    model = make(ConformerConfig(dim=144, heads=4, feed_forward=576, layers=1, kernel=15, channels=16, dropout=0.0))
    quantized = freeze(quantize_model(model, uniform_plan(model, 4))).eval()
    features, lengths, before = torch.randn(5, 400, 80), torch.tensor([400, 300, 200, 100, 50]), torch.get_num_threads()
    with torch.no_grad():
        expected = quantized(features, lengths)[0]
        try:
            torch.set_num_threads(3)
            assert torch.equal(quantized(features, lengths)[0], expected)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "size", "n_steps"), [(1, 5, 30), (50, 20, 4), (100, 33, 3)])
def test_lstm_steps_have_the_bits_of_their_parts(rows: int, size: int, n_steps: int) -> None:
    weight = random_weight(4 * size, size)
    gates, (h, c) = torch.randn(n_steps, rows, 4 * size), torch.randn(2, rows, size)
    found, expected = (f(recurrence, gates, h, c, weight, None) for f in (lambda run, *args: run(*args), unfused))
    assert all(map(torch.equal, found, expected))


def test_an_lstm_refuses_a_state_of_another_size() -> None:
    original = nn.LSTM(6, 8, batch_first=True)
    layer = QuantLSTM(original, {"weight_hh_l0": Projector(Precision(8), original.get_parameter("weight_hh_l0"))})
    with torch.no_grad(), pytest.raises(RuntimeError):
        layer(torch.randn(40, 9, 6), (torch.zeros(1, 40, 8), torch.zeros(1, 40, 7)))


def test_what_is_no_number_stays_none() -> None:
    """In features, rows, weights of attention and gates."""
    model = make()
    quantized = quantize_model(model, uniform_plan(model, 4)).eval()
    features, lengths = torch.randn(2, 60, 16), torch.tensor([60, 60])
    with torch.no_grad():
        clean = quantized(features, lengths)[0]
        for wrong in (float("nan"), float("inf"), -float("inf")):
            broken = features.clone()
            broken[0, 20, 3] = wrong
            found = quantized(broken, lengths)[0]
            assert found[0].isnan().all() and torch.equal(found[1], clean[1]), wrong
    for x in (float("nan"), float("inf")):
        assert not steps.glu(torch.tensor([[1.0, x * 0]])).isfinite().any()
    large = torch.tensor([1e13, 1e20, 3e38])
    assert torch.equal(steps.silu(large), large) and torch.equal(steps.glu(torch.stack([large, large], 1))[:, 0], large)


def test_an_utterance_without_frames_is_harmless() -> None:
    model = make()
    quantized = quantize_model(model, uniform_plan(model, 4)).train()
    out = quantized(torch.randn(2, 60, 16), torch.tensor([60, 0]))[0]
    out[0].square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in quantized.parameters())


def test_statistics_of_a_batch_are_taken_where_they_are_asked_for() -> None:
    model = make()
    quantized = quantize_model(model, uniform_plan(model, 4)).eval()
    for module in quantized.modules():
        module.training = isinstance(module, nn.BatchNorm1d)
    features, lengths = torch.randn(2, 60, 16), torch.tensor([60, 60])
    with torch.no_grad():
        by_batch = quantized(features, lengths)[0]
        assert not torch.equal(by_batch, quantized.eval()(features, lengths)[0])
    counts = [b.num_batches_tracked for b in quantized.modules() if isinstance(b, nn.BatchNorm1d)]
    assert [count.item() for count in counts if count is not None] == [1, 1]


def test_a_bias_of_attention_may_lie_anyhow() -> None:
    q, bias = torch.randn(2, 2, 50, 8), torch.zeros(50, 2)
    bias[40:, 1] = -torch.inf
    assert torch.equal(steps.attend(q, q, q, bias.t()), steps.attend(q, q, q, bias.t().contiguous()))


def test_what_does_not_fit_is_refused_before_it_is_read() -> None:
    model = make()
    layer: Any = quantize_model(model, uniform_plan(model, 4)).get_submodule("layers.0")
    x, first, second = torch.randn(2, 15, 20), layer.ffn1.sequential[1], layer.ffn1.sequential[4]
    norm, mask = layer.final_layer_norm, torch.ones(2, 15)
    conv, refused = layer.conv_module.sequential, (RuntimeError, AssertionError)
    for wrong in (
        lambda: fused.feed_forward(x, norm, first, first, 0.5, torch.empty_like(x)),
        lambda: fused.feed_forward(x, norm, first, second, 0.5, x[:1].clone()),
        lambda: fused.feed_forward(x, norm, first, second, 0.5, x.double()),
        lambda: fused.feed_forward(x, nn.LayerNorm(4), first, second, 0.5, torch.empty_like(x)),
        lambda: fused.attention(x[:1].expand(2, 15, 20), norm, layer.self_attn, mask * 0),
        lambda: fused.attention(x, norm, layer.self_attn, mask.bool()),
        lambda: fused.convolution(x, norm, conv[0], conv[2], nn.BatchNorm1d(2).eval(), conv[5], mask),
        lambda: fused.convolution(x, norm, conv[0], conv[2], conv[3], first, mask),
        lambda: steps.layer_norm(torch.randn(3, 1000), nn.LayerNorm(4)),
        lambda: steps.glu(torch.randn(4, 3)),
        lambda: panels.matrix(random_weight(50, 8), torch.ones(1)),
        lambda: recurrence(torch.randn(30, 9, 5), torch.zeros(9, 8), torch.zeros(9, 8), random_weight(5, 8), None),
    ):
        with pytest.raises(refused):
            wrong()
    layer.conv_module.sequential[3].double()
    assert not fused.can_fuse(x, layer)
