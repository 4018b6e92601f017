"""Transcripts of Fisher English (LDC2004T19 and LDC2005T19) as text for language models; their audio is not needed.

Layout: ``data/trans/NNN/fe_03_NNNNN.txt`` with lines ``start end A: words`` and ``doc/*_calldata.tbl``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from local.check import Checks
from local.swbd_text import fisher_words
from mpq.io import open_bytes, progress, read_lines

CONVERSATIONS = 11699  # 5,850 and 5,849
_NAME = re.compile(r"^fe_03_(\d{5})\.txt$")
_LINE = re.compile(r"^\d+\.?\d* \d+\.?\d* [AB]: ?(?P<text>[^\0]*)$")


def find_fisher(folders: Sequence[Path]) -> list[Path]:
    """All transcripts below `folders`, by conversation; one that lies in two places is taken once."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in folder.rglob("fe_03_*.txt"):
            if is_transcript(path):
                found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def is_transcript(path: Path) -> bool:
    """Whether a file is named as the transcript of one of Fisher's conversations."""
    return _NAME.match(path.name) is not None


def check_fisher(paths: Sequence[Path], checks: Checks) -> None:
    """Compares the number of transcripts, and those that the call tables list, with what is there."""
    checks.count("Fisher: transcripts", len(paths), CONVERSATIONS)
    roots = {parent for path in paths for parent in path.parents[1:4]}  # NNN, trans, data, LDC2004T19
    tables = sorted({table for root in roots for table in root.glob("doc/*_calldata.tbl")})
    if paths and not tables:
        checks.lacking("Fisher: no doc/*_calldata.tbl beside the transcripts")
    there = {path.name for path in paths}
    for table in tables:
        calls = [line.partition(",")[0] for _, line in read_lines(table) if line[:5].isdigit()]
        missing = [name for name in (f"fe_03_{call}.txt" for call in calls) if name not in there]
        checks.missing(f"transcripts that {table.name} lists", missing, len(calls))


def read_fisher(paths: Sequence[Path], words_of: Callable[[str], list[str]] = fisher_words) -> Iterator[list[str]]:
    """Yields the words of each line of the transcripts; lines without words, and odd ones, are left out.

    Args:
        paths: the transcripts.
        words_of: makes the words of a line; by default in Switchboard's spelling.
    """
    for path in paths:
        for line, _ in _read_transcript(path):
            match = _LINE.match(line)
            if match and (words := words_of(match["text"])):
                yield words


def check_lines(paths: Sequence[Path], checks: Checks) -> None:
    """Tells of lines that are neither ``start end A: words``, nor a comment, nor blank, and of those not in UTF-8."""
    wrong: list[str] = []
    foreign: list[str] = []
    total = 0
    for path in progress(paths, what="transcripts of Fisher"):
        for number, (text, is_utf8) in enumerate(_read_transcript(path), start=1):
            total += bool(text)
            if not is_utf8:
                foreign.append(f"{path}:{number}: {text[:40]!r}")
            if text and not text.startswith("#") and not _LINE.match(text):
                wrong.append(f"{path}:{number}: expected 'start end A: words', found {text[:40]!r}")
    checks.odd("lines of Fisher without times and speaker", wrong, total, "left out")
    checks.odd("lines of Fisher that are not UTF-8", foreign, total, "read as Latin-1")


def _read_transcript(path: Path) -> Iterator[tuple[str, bool]]:
    """Lines without the blanks around them, and whether they are UTF-8; others are read as Latin-1."""
    with open_bytes(path) as file:
        for line in file:
            try:
                yield line.decode().strip(), True
            except UnicodeDecodeError:
                yield line.decode("latin-1").strip(), False
