"""Every test here runs on a GPU, and where there is none on the CPU, so that the tests themselves are tested."""

from __future__ import annotations

import pytest
import torch

from mpq.cli._device import find_device


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the test computes; training goes to a GPU by itself."""
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, on which the same test runs")
    return find_device(request.param)
