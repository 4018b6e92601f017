"""The compiled steps between products: torch's numbers, mostly bit for bit; and what is done without them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpq.quant import (
    QuantAttention,
    QuantLSTM,
    activation,
    attention,
    compiled,
    conv,
    kernels,
    log_sum_exp,
    lstm,
    pack,
    rotate,
)
from mpq.quant.layers import Projector
from mpq.quant.table import Precision

# a C compiler is among the packages of utils/install_apt.sh; the library is refused where torch's addcmul rounds twice
pytestmark = pytest.mark.skipif(
    compiled.library() is None, reason="no C compiler, MPQ_KERNELS=0, or this torch's addcmul rounds twice"
)


def both(step: Callable[..., Any], *args: object) -> tuple[Any, Any]:
    """What a step gives compiled and by torch; arguments that it may write to are copied."""
    found = []
    for library in (compiled.library, lambda: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled, "library", library)
            found.append(step(*(x.clone() if isinstance(x, Tensor) and x.is_contiguous() else x for x in args)))
    return found[0], found[1]


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return all(map(torch.equal, ours, theirs))


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 9), st.integers(1, 200), st.integers(-100, 100), st.sampled_from([2, 4, 8]), st.integers(0, 2**31)
)
def test_rows_are_rounded_as_by_torch(rows: int, columns: int, size: int, n_bits: int, seed: int) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2.0**size
    for some in (x, x.t(), x[:, ::2], x[::2]):
        assert same(*both(kernels.int8_rows, some, n_bits))


def test_every_quotient_is_rounded_as_by_a_division() -> None:
    """Every half of a step between two codes and its neighbours, for scales all over a power of two."""
    halves = torch.arange(-127, 128, 0.5)
    for part in torch.linspace(1, 2, 4001).split(500):
        x = halves * part[:, None]
        near = torch.stack([x.nextafter(torch.tensor(-1e9)), x, x.nextafter(torch.tensor(1e9))])
        near[..., 0] = 127 * part
        assert same(*both(kernels.int8_rows, near))


def test_numbers_that_are_none_have_no_scale() -> None:
    x = torch.ones(3, 70)
    x[0, 3], x[1, 69], x[2] = torch.nan, torch.inf, 0
    scale = kernels.int8_rows(x)[1].flatten()
    assert scale[0].isnan() and scale[1].isinf() and 0 < scale[2] < 1e-30
    assert kernels.int8_rows(torch.empty(0, 5))[0].shape == (0, 5)


@pytest.mark.parametrize("bias", ["none", "row", "rows"])
@pytest.mark.parametrize("one_scale", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_sums_are_scaled_as_by_torch(bias: str, one_scale: bool, apart: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    for rows, columns in [(1, 1), (7, 100), (3, 1000), (40, 33)]:
        total = torch.randint(-(1 << 22), 1 << 22, (rows, columns), dtype=torch.int32, generator=generator)
        scale = torch.rand(1 if one_scale else columns, generator=generator)
        each, added = torch.rand(rows, 1, generator=generator), torch.randn(rows, columns, generator=generator)
        chosen = {"none": None, "row": added[0], "rows": added}[bias]
        outs = [torch.zeros(rows, 2 * columns)[:, :columns] if apart else None for _ in range(2)]

        def step(*args: Any, outs: list[Tensor | None] = outs) -> Tensor:
            return kernels.scale_rows(*args, outs.pop())

        assert torch.equal(*both(step, total, scale, each, chosen))


@pytest.mark.parametrize("channels", [1, 5, 16, 70])
def test_windows_are_rounded_as_by_torch(channels: int) -> None:
    plane, line = torch.randn(2, 13, 9, channels), torch.randn(3, 20, channels)
    assert same(*both(conv.int8_patches, plane, ((3, 2), (2, 1), (1, 3)), True, 8))
    assert same(*both(conv.int8_patches, line, ((4,), (2,), (2,)), True, 8))


def test_exponentials_have_the_digits_of_double() -> None:
    x = torch.cat([torch.linspace(-100, 100, 100_001), torch.tensor([0.0, -0.0, torch.inf, -torch.inf])])
    found = activation.sigmoid_(x.clone()).double()
    assert ((found - x.double().sigmoid()).abs() <= 2e-7 * x.double().sigmoid() + 2e-38).all()
    assert torch.equal(activation.sigmoid_(x[:7].clone()), found[:7].float()), (
        "the place in a tensor makes no difference"
    )
    ours, theirs = both(activation.gelu, x[:-2])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-30)
    assert activation.sigmoid_(torch.tensor([torch.nan])).isnan()


@pytest.mark.parametrize("columns", [1, 63, 64, 1000])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_log_sums_are_those_of_double(columns: int, size: float) -> None:
    x = torch.randn(5, columns) * size
    x[:, -1] = 40 * size
    x[1, 0] = -torch.inf if columns > 1 else 0
    torch.testing.assert_close(log_sum_exp(x), x.double().logsumexp(1).float(), rtol=3e-7, atol=1e-6)
    x[2, columns // 2], x[3], x[4, 0] = torch.nan, -torch.inf, torch.inf
    assert log_sum_exp(x)[2:].tolist()[1:] == [-torch.inf, torch.inf] and log_sum_exp(x)[2].isnan()
    x[3, -1] = torch.nan
    assert log_sum_exp(x)[3].isnan()


def test_log_sums_of_many_are_exact() -> None:
    x = torch.full((1, 300_000), -17.4)
    x[0, 5] = 0
    torch.testing.assert_close(log_sum_exp(x), x.double().logsumexp(1).float(), rtol=0, atol=2e-6)


def test_cells_are_those_by_torch() -> None:
    gates, before = torch.randn(5, 4 * 37) * 3, torch.randn(5, 37)

    def step(gates: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        results = tuple(torch.empty(5, 37) for _ in range(3))
        lstm._cells(gates, before, *results)
        return (gates, *results)

    for ours, theirs in zip(*both(step, gates, before), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "asym"])
@pytest.mark.parametrize("n_bits", [1, 2, 4, 8])
def test_bytes_are_unpacked_as_by_torch(n_bits: int, kind: str) -> None:
    data = torch.arange(256, dtype=torch.uint8).repeat(2)[:509].expand(3, -1)
    radix, digits, _ = pack.layout(n_bits, kind)
    data = data.clamp(max=radix**digits - 1)
    assert torch.equal(*both(pack._unpack_columns, data, n_bits, kind))
    assert torch.equal(*both(pack._unpack_columns, data[:, :7], n_bits, kind))


def test_pairs_are_turned_as_by_torch() -> None:
    x, turns = torch.randn(3, 11, 4, 14), torch.randn(2, 11, 7)
    assert torch.equal(*both(rotate, x, turns))
    assert torch.equal(*both(rotate, x[0], turns))
    assert torch.equal(*both(rotate, x, turns[:, :1])), "one turn for all times"


@pytest.mark.parametrize("columns", [1, 15, 16, 300])
def test_powers_are_those_of_double(columns: int) -> None:
    scores = torch.randn(2, 5, columns) * 20
    scores[0, :, 1:][:, ::3] = -torch.inf
    (weights, total), (expected, expected_total) = both(attention._powers, scores, True)
    torch.testing.assert_close(weights, expected, rtol=3e-7, atol=2e-38)
    torch.testing.assert_close(total, expected_total, rtol=3e-7, atol=0)
    assert torch.equal(weights == 0, expected < 2**-126), "what is left out counts nothing"


def test_powers_have_their_gradients() -> None:
    scores, g = torch.randn(2, 3, 20), torch.randn(2, 3, 20)

    def gradient(scores: Tensor) -> Tensor:
        weights, total = attention._powers(scores.requires_grad_() * 2, exactly=True)
        return torch.autograd.grad((weights / total * g).sum(), scores)[0]

    torch.testing.assert_close(*both(gradient, scores), rtol=1e-4, atol=1e-6)


def test_other_types_and_shapes_are_torchs() -> None:
    """What the compiled steps are not made for, they leave alone."""
    x, total = torch.randn(6, 8), torch.randint(-99, 99, (6, 8), dtype=torch.int32)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(*both(activation.sigmoid_, x.to(dtype)))
        assert torch.equal(*both(lambda some: attention._powers(some, exactly=True)[0], x.to(dtype)))
    assert torch.equal(*both(activation.gelu, x[:4, :4].contiguous()[:, :4]))
    for bias in (x[:1], x[0, :1], x[:, :1]):
        assert torch.equal(*both(kernels.scale_rows, total, x[0], x[:, 1:2].contiguous(), bias.clone()))
    double = x[0].double()
    torch.testing.assert_close(*both(lambda t: kernels.scale_rows(t, double, x[:, :1]).clone(), total))


def test_attention_in_half_precision_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights alone quantized, so that scores under autocast are of 16 bits."""
    monkeypatch.setattr(attention, "_cpu_is_amds", lambda: True)
    model = nn.MultiheadAttention(32, 4, dropout=0.1)
    layer = QuantAttention(model, {"in_proj_weight": Projector(Precision(8), model.in_proj_weight)}, a_bits=32)
    x = torch.randn(50, 4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer.train()(x, x, x)[0]
    out.float().sum().backward()
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_state_of_another_type_is_taken(dtype: torch.dtype) -> None:
    original = nn.LSTM(6, 8, batch_first=True)
    layer = QuantLSTM(original, {"weight_hh_l0": Projector(Precision(8), original.weight_hh_l0)})
    state = torch.randn(1, 5, 8)
    x = torch.randn(5, 3, 6)
    with torch.no_grad():
        expected, found = layer(x, (state, state))[0], layer(x, (state.to(dtype), state.to(dtype)))[0]
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
        with pytest.raises(RuntimeError):
            layer(x, (state, state[:, :, :3]))


def test_threads_share_the_rows() -> None:
    x, before = torch.randn(1001, 256), torch.get_num_threads()
    windows, total = x.view(1, 1001, 256).unfold(1, 3, 1), torch.randint(-999, 999, x.shape, dtype=torch.int32)

    def steps() -> tuple[Tensor, ...]:
        cells = x.clone(), x[:, :64].contiguous(), *(torch.empty(1001, 64) for _ in range(3))
        lstm._cells(*cells)
        rounded = kernels.int8_windows(windows)
        assert rounded is not None
        scaled = kernels.scale_rows(total.clone(), x[0], x[:, :1])
        turned = (
            rotate(x.view(1001, 4, 64), x[None, :, :32].expand(2, -1, -1)),
            *attention._powers(x.clone(), exactly=True),
        )
        return *kernels.int8_rows(x), *rounded, scaled, *cells, activation.gelu(x), log_sum_exp(x), *turned

    expected = steps()
    try:
        torch.set_num_threads(3)
        found = steps()
    finally:
        torch.set_num_threads(before)
    assert same(found, expected)


PROGRAM = """
import torch
from mpq.quant import Quantized, compiled, int_linear
g = torch.Generator().manual_seed(0)
weight = Quantized(torch.randint(-7, 8, (30, 50), dtype=torch.int8, generator=g), torch.rand(30, 1, generator=g), None)
out = int_linear(torch.randn(20, 50, generator=g), weight, torch.randn(30, generator=g))
print(compiled.library() is not None, out.double().sum().item().hex())
"""


def run_program(cache: Path, **changes: str) -> tuple[str, str]:
    """Whether a new process has the library, and a sum of what an integer layer gives there."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), **changes}
    made = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert made.returncode == 0 and not made.stderr, made.stderr
    found, digits = made.stdout.split()
    return found, digits


def test_without_them_the_numbers_are_the_same(tmp_path: Path) -> None:
    found, digits = run_program(tmp_path)
    assert found == "True"
    (library,) = (tmp_path / "mpq").iterdir()
    loose = tmp_path / "loose-cc"
    loose.write_text('#!/bin/sh\nexec cc "$@" -ffast-math\n')
    loose.chmod(0o755)
    for change in ("MPQ_KERNELS=0", "CC=no-such-compiler", "CC=false", f"CC={loose}", "XDG_CACHE_HOME=/dev/null"):
        name, _, value = change.partition("=")
        assert run_program(tmp_path, **{name: value}) == ("False", digits), change
    library.write_bytes(b"")  # as a crash of the machine may leave it
    assert run_program(tmp_path) == ("True", digits)
    assert run_program(tmp_path, CC="cc -O1") == ("True", digits)


def test_layers_do_without_them() -> None:
    tests = [Path(__file__).with_name(f"test_{name}.py") for name in ("integer", "conv", "attention", "activation")]
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, tests)]
    made = subprocess.run(run, env={**os.environ, "MPQ_KERNELS": "0"}, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-2000:]
