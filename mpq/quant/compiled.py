"""The C library of `kernels.c`: what the layers do between products, in one pass over memory each.

Compiled at first use, for the processor at hand, and kept in ``~/.cache/mpq``. Without a C compiler, where a probe
finds other numbers than torch's, with ``MPQ_KERNELS=0`` and on other devices torch does the same steps, in up to five
passes. Rounding and scaling then give the same numbers, bit for bit; exponentials differ in their last digits.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from mpq.quant.cache import SHARE

SOURCE = Path(__file__).with_name("kernels.c")
# no product may be joined with a sum but where the source says so, or the digits would not be torch's
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing")
COUNT = ctypes.c_int64
_POINTER, _FLOAT = ctypes.c_void_p, ctypes.c_float
_ARGUMENTS = {
    "int8_rows": [_POINTER, COUNT, *[_POINTER] * 2, *[COUNT] * 2, *[_FLOAT] * 2],
    "int8_windows": [*[_POINTER] * 5, COUNT, *[_POINTER] * 3, *[COUNT] * 2, *[_FLOAT] * 2],
    "scale_rows": [*[_POINTER] * 4, COUNT, _POINTER, *[COUNT] * 3],
    "sigmoids": [_POINTER, COUNT],
    "gelus": [*[_POINTER] * 3, COUNT],
    "lstm_cells": [*[_POINTER] * 5, *[COUNT] * 2],
    "softmax_rows": [_POINTER, _POINTER, *[COUNT] * 2],
    "turn_pairs": [*[_POINTER] * 3, *[COUNT] * 5],
    "unpack_rows": [_POINTER, _POINTER, *[COUNT] * 7],
    "log_sums": [_POINTER, _POINTER, *[COUNT] * 2],
}


def library_for(x: Tensor) -> ctypes.CDLL | None:
    """The compiled steps, if they can work on such a tensor."""
    return library() if x.device.type == "cpu" else None


def share(work: Callable[[int, int], None], n_rows: int, columns: int) -> None:
    """work(first row, rows) for all rows, by as many threads as torch may use if there is enough to do."""
    n_threads = min(torch.get_num_threads(), n_rows * columns // SHARE)
    if n_threads < 2:
        work(0, n_rows)
        return
    rows = -(-n_rows // n_threads)
    firsts = range(0, n_rows, rows)
    list(_threads(os.getpid(), n_threads).map(lambda first: work(first, min(rows, n_rows - first)), firsts))


@cache
def _threads(pid: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads of a process: one that was forked has none of its parent's."""
    return ThreadPoolExecutor(n_threads)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled steps; none where they cannot be had, or give other numbers than torch."""
    if os.environ.get("MPQ_KERNELS") == "0":
        return None
    try:
        found = ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None
    for name, arguments in _ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    return found if _agrees(found) else None


def _agrees(found: ctypes.CDLL) -> bool:
    """Whether sums are scaled as torch scales them: one rounding for a product and a sum, where `kernels.c` has it."""
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        floats, bias = torch.randn(2, 61, 131, generator=generator)
        scale, each = torch.ones(131), torch.rand(61, 1, generator=generator)
        total, out = (floats * 1e4).to(torch.int32), torch.empty(61, 131)
        pointers = (x.data_ptr() for x in (total, scale, each, bias))
        found.scale_rows(*pointers, 131, out.data_ptr(), 131, 61, 131)
        return torch.equal(out, torch.addcmul(bias, total.float(), each))


def _compiled() -> Path:
    """The shared library for this processor, compiled if it has not been yet.

    Raises:
        OSError, RuntimeError: there is no compiler, or no place to write to.
        subprocess.SubprocessError: it does not compile.
    """
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    made_from = (SOURCE.read_text(), FLAGS, compiler, sorted(torch.cpu.get_capabilities().items()))
    name = f"kernels-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "mpq"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, name)
            command = [compiler, *FLAGS, "-fPIC", "-shared", "-o", str(made), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            made.replace(folder / name)
    return folder / name
