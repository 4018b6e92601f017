"""The C library of `kernels.c`: what the layers do between products, in one pass over memory each.

Compiled at first use, for the processor at hand, and kept in ``~/.cache/mpq``. Without a C compiler, where a probe
finds other numbers than torch's, with ``MPQ_KERNELS=0`` and on other devices torch does the same steps, in up to five
passes. Rounding and scaling then give the same numbers, bit for bit; exponentials differ in their last digits.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from mpq.io import c_compiler, cpu_line
from mpq.quant.cache import SHARE

SOURCE = Path(__file__).with_name("fused.c")  # with product.c, which has kernels.c in it
# no product may be joined with a sum but where the source says so, or the digits would not be torch's
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing")
COUNT = ctypes.c_int64
POINTER, FLOAT = ctypes.c_void_p, ctypes.c_float
_ARGUMENTS = {
    "int8_rows": [POINTER, COUNT, *[POINTER] * 2, *[COUNT] * 2, *[FLOAT] * 2],
    "int8_windows": [*[POINTER] * 5, COUNT, *[POINTER] * 3, *[COUNT] * 2, *[FLOAT] * 2],
    "scale_rows": [*[POINTER] * 4, COUNT, POINTER, *[COUNT] * 3],
    "sigmoids": [POINTER, COUNT],
    "gelus": [*[POINTER] * 3, COUNT],
    "lstm_cells": [*[POINTER] * 5, *[COUNT] * 2],
    "softmax_rows": [POINTER, POINTER, *[COUNT] * 2],
    "turn_pairs": [*[POINTER] * 3, *[COUNT] * 5],
    "unpack_rows": [POINTER, POINTER, *[COUNT] * 7],
    "log_sums": [POINTER, POINTER, *[COUNT] * 2],
}
_FUSED = {  # where the processor has instructions for products of integers; they return whether there was memory enough
    "pack_panels": [POINTER, *[COUNT] * 2, POINTER],
    "multiply": [*[POINTER] * 4, COUNT, POINTER, *[COUNT] * 3],
    "convolve": [*[POINTER] * 3, *[FLOAT] * 3, POINTER, *[COUNT] * 2],
    "silus": [*[POINTER] * 2, COUNT],
    "gate_rows": [*[POINTER] * 2, *[COUNT] * 2],
    "norm_rows": [*[POINTER] * 5, *[COUNT] * 2],
    "feed_forward": [*[POINTER] * 4, *[FLOAT] * 3, POINTER, COUNT],
    "lstm_step": [POINTER, COUNT, *[POINTER] * 3, *[FLOAT] * 2, *[POINTER] * 2, COUNT],
    "attend": [*[POINTER] * 5, *[COUNT] * 3, *[POINTER] * 3, *[COUNT] * 2],
    "attention": [*[POINTER] * 4, COUNT, POINTER, *[FLOAT] * 2, POINTER, *[COUNT] * 2],
    "convolution": [*[POINTER] * 6, *[FLOAT] * 2, POINTER, *[COUNT] * 2],
}


def library_for(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> ctypes.CDLL | None:
    """The compiled steps, if they can work on these tensors: all on a CPU and of that type."""
    for x in tensors:
        if x is not None and (x.device.type != "cpu" or x.dtype != dtype):
            return None
    return library()


def at(x: Tensor | None, row: int) -> int | None:
    """The address of a row of a tensor; none of none."""
    if x is None or not row:  # most often all rows are one thread's: asking for strides takes longer than a small step
        return None if x is None else x.data_ptr()
    return x.data_ptr() + row * x.stride(0) * x.element_size()


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
        found = _load(_compiled())
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError):
        return None
    return found if _agrees(found) else None


def _compiled() -> Path:
    """The shared library for this processor, compiled if it has not been yet.

    Raises:
        OSError, RuntimeError: there is no compiler, or no place to write to that is the user's own.
        subprocess.SubprocessError: it does not compile.
    """
    compiler = c_compiler()
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    machine = platform.libc_ver(), sorted(torch.cpu.get_capabilities().items()), cpu_line("flags")
    sources = [path.read_text() for path in sorted(SOURCE.parent.glob("*.c"))]
    made_from = repr((sources, FLAGS, compiler, machine)).encode()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "mpq"
    path = folder / f"kernels-{hashlib.sha256(made_from).hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, path.name)
            command = [*compiler, *FLAGS, "-fPIC", "-shared", "-o", str(made), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
            with made.open("rb") as file:
                os.fsync(file.fileno())
            made.replace(path)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} is another user's")
    return path


def _load(path: Path) -> ctypes.CDLL:
    try:
        found = ctypes.CDLL(str(path))
    except OSError:  # such as one that was left empty when the machine went down
        path.unlink(missing_ok=True)
        found = ctypes.CDLL(str(_compiled()))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    for name, arguments in _FUSED.items():
        if function := getattr(found, name, None):
            function.argtypes, function.restype = arguments, ctypes.c_int
    return found


def _agrees(found: ctypes.CDLL) -> bool:
    """Whether it gives torch's numbers, and the same wherever they stand: not if compiled to be fast and loose."""
    rows, columns = 61, 131
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        floats, bias = torch.randn(2, rows, columns, generator=generator, dtype=torch.float32)
        scale = torch.rand(columns, generator=generator, dtype=torch.float32)
        total, out = (floats * 1e4).to(torch.int32), torch.empty_like(floats)
        codes, each = torch.empty(floats.shape, dtype=torch.int8), scale.new_empty(rows, 1)
        pointers = (x.data_ptr() for x in (codes, each))
        found.int8_rows(floats.data_ptr(), columns, *pointers, rows, columns, 1e-30, 127.0)
        pointers = (x.data_ptr() for x in (total, scale, each, bias))
        found.scale_rows(*pointers, columns, out.data_ptr(), columns, rows, columns)
        together, alone = floats.clone(), floats.clone()
        found.sigmoids(together.data_ptr(), together.numel())
        for place in range(columns):
            found.sigmoids(alone.data_ptr() + 4 * place, 1)
        if hasattr(found, "multiply") and not _multiplies(found, codes, each):
            return False
        return (
            torch.equal(each, floats.abs().amax(1, keepdim=True) / 127.0)
            and torch.equal(codes, (floats / each).round().to(torch.int8))
            and torch.equal(out, torch.addcmul(bias, total.to(torch.float32) * scale, each))
            and torch.equal(together[0], alone[0])
        )


def _multiplies(found: ctypes.CDLL, codes: Tensor, each: Tensor) -> bool:
    """Whether products of some rows of codes with themselves, of one scale each, are right."""
    rows, columns = codes.shape
    panels = torch.empty(-(-rows // 16) * -(-columns // 4) * 64, dtype=torch.uint8)
    found.pack_panels(codes.data_ptr(), rows, columns, panels.data_ptr())
    ones, out = each.new_ones(rows), each.new_empty(rows, rows)
    matrix = (ctypes.c_int64 * 5)(panels.data_ptr(), ones.data_ptr(), 0, rows, columns)
    found.multiply(codes.data_ptr(), ones.data_ptr(), matrix, None, 0, out.data_ptr(), rows, 0, rows)
    return torch.equal(out, codes.float() @ codes.float().t())
