"""Sigmoid and GELU: the same number wherever it stands in a tensor, close to torch's, with the right gradient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from mpq.quant.activation import gelu, sigmoid_


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_places_do_not_matter(threads: int) -> None:
    x = torch.randn(5 * 40_003, generator=torch.Generator().manual_seed(threads)) * 4
    whole, active = sigmoid_(x.clone()), gelu(x)
    torch.testing.assert_close(whole, torch.sigmoid(x), rtol=1e-6, atol=0)
    for first, n in [(0, 1), (1, 31), (7, 64), (100, 1000), (3, 33_000), (17, 65_537), (1, 131_071), (0, 200_014)]:
        part = x[first : first + n].clone()
        assert torch.equal(gelu(part), active[first : first + n])
        assert torch.equal(sigmoid_(part), whole[first : first + n])
    assert sigmoid_(torch.empty(0, 3)).shape == (0, 3)


def test_gelu_is_torchs() -> None:
    x = torch.linspace(-8, 8, 4001)
    torch.testing.assert_close(gelu(x), F.gelu(x, approximate="tanh"), rtol=0, atol=2e-6)


def test_gradient_of_gelu() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(3, 50, generator=generator, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    upstream = torch.randn(3, 50, generator=generator)
    found = gelu(ours)
    assert torch.equal(found, gelu(ours.detach()))
    found.backward(upstream)
    F.gelu(theirs, approximate="tanh").backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5)
