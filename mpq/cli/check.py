"""Check that a recipe can run here: disk, memory and the packages it needs.

Reads   nothing but the state of this machine.
Writes  nothing; everything that is missing is told at once.

Example:
  mpq check --exp-dir exp --disk-gb 3 --memory-gb 4
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

GB = 1e9
PACKAGES = ("torch", "lhotse", "kaldifst", "kaldi_decoder", "kaldilm", "kaldi_native_fbank", "sentencepiece")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq check``."""
    parser.add_argument("--exp-dir", type=str, required=True, metavar="DIR", help="where the recipe will write")
    parser.add_argument("--disk-gb", type=float, default=1.0, help="free disk that the recipe needs, 10^9 bytes")
    parser.add_argument("--memory-gb", type=float, default=2.0, help="free memory that the recipe needs, 10^9 bytes")


def run(args: Namespace) -> None:
    """Runs ``mpq check``."""
    import os
    import shutil
    from importlib.util import find_spec

    from mpq.io import BadInput, c_compiler, check_range, check_writable, cpu_line

    for option in ("disk_gb", "memory_gb"):
        check_range(f"--{option.replace('_', '-')}", args[option], "[0, inf)")
    check_writable(Path(args.exp_dir, "file"))
    folder = Path(args.exp_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    disk, memory = shutil.disk_usage(folder).free / GB, _free_memory() / GB
    problems = []
    if disk < args.disk_gb:
        problems.append(f"{folder} has {disk:.1f} GB free, {args.disk_gb:g} GB are needed: free some or use --exp-dir")
    if memory < args.memory_gb:
        problems.append(f"{memory:.1f} GB of memory are free, {args.memory_gb:g} GB are needed: end other programs")
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        problems.append(f"no package {', '.join(missing)}: remove .venv and run again, it is made anew")
    if problems:
        raise BadInput("; ".join(problems))
    lacks = [] if c_compiler() else [f"there is no C compiler ({os.environ.get('CC') or 'cc'})"]
    if "avx512_vnni" not in cpu_line("flags").split():
        lacks.append("the processor cannot multiply integers (avx512_vnni)")
    slower = f"; {' and '.join(lacks)}, so integers are slower" if lacks else ""
    print(f"check: {disk:.0f} GB of disk and {memory:.1f} GB of memory are free; all packages are there{slower}")


def _free_memory() -> float:
    """Memory that can be had without swapping, in bytes (Linux; unlimited where the kernel does not tell)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), float("inf"))
