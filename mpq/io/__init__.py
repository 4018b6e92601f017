"""Files: atomic writes, hashes, YAML, JSON lines, Kaldi text, n-best lists, lattices, and progress."""

from __future__ import annotations

from mpq.io.errors import BadInput
from mpq.io.files import (
    PathLike,
    atomic_path,
    atomic_write,
    hash_config,
    open_bytes,
    open_text,
    read_jsonl,
    read_lines,
    read_yaml,
    sha256_file,
    write_jsonl,
    write_yaml,
)
from mpq.io.nbest import Hyp, NBest, read_nbest, write_nbest
from mpq.io.progress import progress
from mpq.io.text import read_text, split_words, write_text

__all__ = [
    "BadInput",
    "Hyp",
    "NBest",
    "PathLike",
    "atomic_path",
    "atomic_write",
    "hash_config",
    "open_bytes",
    "open_text",
    "progress",
    "read_jsonl",
    "read_lines",
    "read_nbest",
    "read_text",
    "read_yaml",
    "sha256_file",
    "split_words",
    "write_jsonl",
    "write_nbest",
    "write_text",
    "write_yaml",
]
