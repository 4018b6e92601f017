"""Where to compute: the option --device."""

from __future__ import annotations

import torch

from mpq.io import BadInput


def find_device(name: str) -> torch.device:
    """The device of an option ``--device``.

    Raises:
        BadInput: no device of that name, or this machine has none.
    """
    expected = "expected cpu, or cuda where there is a GPU (cuda:1 for the second)"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # torch knows many devices that a machine has not
    except (RuntimeError, AssertionError, NotImplementedError):
        raise BadInput(f"--device {name}: this machine has no such device; {expected}") from None
    return device
