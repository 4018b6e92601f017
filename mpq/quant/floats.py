"""Float layers at the speed of the processor, where no gradient is asked for.

torch takes MKL for float32 products, which on AMD processors with AVX512 does half of what oneDNN does there; on
others the two are alike. The sums are the same up to the order of their terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 32  # fewer are not worth bringing the weight into oneDNN's order


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., K) @ weight (N, K).T + bias (N,), to (..., N)."""
    if _suits_onednn(x, weight):
        return F.linear(x.to_mkldnn(), weight, bias).to_dense()
    return F.linear(x, weight, bias)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch._C._has_mkldnn
        and x.numel() >= _ROWS * x.shape[-1]
    )


class FloatLinear(nn.Linear):
    """nn.Linear by `float_linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return float_linear(input, self.weight, self.bias)


def takes_onednn() -> bool:
    """Whether `onednn_products` makes torch take oneDNN on this processor."""
    return torch._C._has_mkldnn and not torch.cpu._is_amx_tile_supported()


@contextmanager
def onednn_products() -> Iterator[None]:
    """Within it torch takes oneDNN for batches of float32 products on a CPU.

    It does where bfloat16 is allowed, of which oneDNN makes use on processors with AMX only; they are left as they are.
    """
    mkldnn: Any = torch.backends.mkldnn  # mypy does not see what is in it
    matmul = mkldnn.matmul
    before = matmul.fp32_precision
    if takes_onednn():
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
