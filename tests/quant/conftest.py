"""Fixtures for the tests of quantization."""

from __future__ import annotations

import pytest
import torch

from tests.quant.quant_models import TinyLm


@pytest.fixture
def tiny_lm() -> TinyLm:
    torch.manual_seed(3)
    return TinyLm()
