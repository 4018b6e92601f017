"""What the machine has: its C compiler, its processor."""

from __future__ import annotations

import os
import shlex
import shutil
from functools import cache
from pathlib import Path


def c_compiler() -> list[str] | None:
    """The command of the C compiler, CC or cc; none where there is none."""
    command = shlex.split(os.environ.get("CC") or "cc")
    program = shutil.which(command[0]) if command else None
    return [program, *command[1:]] if program else None


@cache
def cpu_line(field: str) -> str:
    """What the kernel says of the processor under that name, such as ``flags`` (Linux; nothing where it does not)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(field)), "")
