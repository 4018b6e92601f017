"""Files: atomic writes, hashes, YAML, JSON lines, Kaldi text, n-best lists, lattices, and progress."""

from __future__ import annotations

from mpq.io.errors import BadInput
from mpq.io.files import (
    PathLike,
    atomic_path,
    atomic_write,
    check_writable,
    finite,
    hash_config,
    open_bytes,
    open_text,
    os_errors,
    read_jsonl,
    read_lines,
    read_yaml,
    sha256_file,
    write_jsonl,
    write_yaml,
)
from mpq.io.kaldi_nbest import read_kaldi_nbest, write_kaldi_nbest
from mpq.io.lattice import Lattice, LatticeBuilder
from mpq.io.lattice_files import read_lattices, write_lattices
from mpq.io.lock import only_one
from mpq.io.machine import c_compiler, cpu_line
from mpq.io.nbest import Hyp, NBest, read_nbest, write_nbest
from mpq.io.progress import progress
from mpq.io.ranges import SEEDS, check_range, check_ranges
from mpq.io.symbols import SymbolTable, check_symbols_hash, read_symbols, write_symbols, write_symbols_hash
from mpq.io.text import WRITINGS, is_json, read_text, split_words, write_text

__all__ = [
    "SEEDS",
    "WRITINGS",
    "BadInput",
    "Hyp",
    "Lattice",
    "LatticeBuilder",
    "NBest",
    "PathLike",
    "SymbolTable",
    "atomic_path",
    "atomic_write",
    "c_compiler",
    "check_range",
    "check_ranges",
    "check_symbols_hash",
    "check_writable",
    "cpu_line",
    "finite",
    "hash_config",
    "is_json",
    "only_one",
    "open_bytes",
    "open_text",
    "os_errors",
    "progress",
    "read_jsonl",
    "read_kaldi_nbest",
    "read_lattices",
    "read_lines",
    "read_nbest",
    "read_symbols",
    "read_text",
    "read_yaml",
    "sha256_file",
    "split_words",
    "write_jsonl",
    "write_kaldi_nbest",
    "write_lattices",
    "write_nbest",
    "write_symbols",
    "write_symbols_hash",
    "write_text",
    "write_yaml",
]
