"""N-gram estimation by kaldingram: interpolated Kneser-Ney smoothing and entropy pruning."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mpq.io import BadInput, PathLike, atomic_path, progress, read_lines, split_words

_ORDERS = range(2, 6)  # kaldingram's unigram models lack words


def read_sentences(paths: Iterable[PathLike]) -> list[list[str]]:
    """Sentences of text files, one a line; blank lines are left out.

    Raises:
        BadInput: no sentences, or a word that ARPA files use as a mark.
    """
    paths = list(paths)
    sentences = []
    for path in paths:
        for number, line in progress(read_lines(path), what=f"read {Path(path).name}"):
            words = split_words(line)
            reserved = {"<s>", "</s>", "<eps>", "#0"} & set(words)
            if reserved:
                raise BadInput(
                    f"{path}:{number}: the text holds {min(reserved)!r}, a mark of the n-gram model; remove it"
                )
            if words:
                sentences.append(words)
    if not sentences:
        raise BadInput(f"{', '.join(map(str, paths))}: no sentences; expected one a line")
    return sentences


def check_ngram_options(order: int, prune: float) -> None:
    """Refuses, as BadInput, an order or a pruning threshold that `train_ngram` cannot use."""
    if order not in _ORDERS:
        raise BadInput(f"n-gram order {order}; expected {_ORDERS[0]} to {_ORDERS[-1]}")
    if prune < 0:
        raise BadInput(f"pruning threshold {prune}; expected 0 (keep all n-grams) or a small number such as 1e-6")


def train_ngram(sentences: Iterable[Sequence[str]], path: PathLike, order: int = 3, prune: float = 0.0) -> None:
    """Estimate an n-gram model and write it as an ARPA file.

    Args:
        sentences: training text.
        path: ARPA file to write.
        order: 2 to 5.
        prune: n-grams whose removal raises the perplexity by less than this part are removed (Stolcke 1998,
            "Entropy-based pruning of backoff language models"); 0 keeps all.

    Raises:
        BadInput: an order or threshold out of range, or text that kaldingram cannot handle.
    """
    check_ngram_options(order, prune)
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as target:
        text = Path(folder) / "text"
        text.write_text("".join(" ".join(sentence) + "\n" for sentence in sentences), encoding="utf-8")
        full = Path(folder) / "full.arpa" if prune else target
        _kaldingram("train", "--ngram-order", str(order), "--text", str(text), "--lm", str(full))
        if prune:
            prune_arpa(full, target, prune)


def prune_arpa(path: PathLike, out: PathLike, prune: float) -> None:
    """Write the model ``path`` without the n-grams that `train_ngram` would prune to ``out`` (may be the same)."""
    with atomic_path(out) as target:
        _kaldingram(
            "prune", "--threshold", repr(prune), "--encoding", "utf-8", "--lm", str(path), "--write-lm", str(target)
        )


def _kaldingram(*arguments: str) -> None:
    """Run one of its commands; its progress bars stay off the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "kaldingram.cli", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise BadInput(f"kaldingram {arguments[0]} ended with {last!r}; is the text one sentence a line, in UTF-8?")
