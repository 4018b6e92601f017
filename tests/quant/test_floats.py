"""Float layers by oneDNN: the numbers of torch's own product, and only where no gradient is asked for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mpq.quant import FloatLinear, float_linear


@pytest.mark.parametrize("shape", [(300, 40), (7, 50, 40), (1, 40), (0, 40), (3, 0, 40)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_plain_product(shape: tuple[int, ...], with_bias: bool) -> None:
    torch.manual_seed(1)
    x, weight, bias = torch.randn(shape), torch.randn(30, 40), torch.randn(30) if with_bias else None
    with torch.no_grad():
        found = float_linear(x, weight, bias)
    assert found.shape == (*shape[:-1], 30) and found.is_contiguous()
    torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    columns = torch.randn(40, 300).t()
    with torch.no_grad():
        torch.testing.assert_close(float_linear(columns, weight), columns @ weight.t(), rtol=1e-5, atol=1e-5)


def test_gradients_and_other_formats() -> None:
    layer, x = FloatLinear(40, 30), torch.randn(300, 40)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(30, 40), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert layer.double()(x.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(x).dtype == torch.bfloat16
