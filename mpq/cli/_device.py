"""Where to compute: the option --device."""

from __future__ import annotations

import torch

from mpq.io import BadInput


def find_device(name: str) -> torch.device:
    """The device of an option ``--device``; ``auto`` is the GPU where one is visible, as it is for training.

    On a GPU float32 is float32 from now on: by default torch rounds what goes into convolutions and LSTMs to 11 bits
    there (TF32), and a model would give other numbers than on a processor.

    Raises:
        BadInput: no device of that name, or this machine has none.
    """
    expected = "expected auto, cpu, or cuda where there is a GPU (cuda:1 for the second)"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # torch knows many devices that a machine has not
    except (RuntimeError, AssertionError):
        raise BadInput(f"--device {name}: this machine has no such device; {expected}") from None
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device
