"""Transcripts of Fisher English (LDC2004T19 and LDC2005T19) as text for language models; their audio is not needed.

Layout: ``data/trans/NNN/fe_03_NNNNN.txt`` with lines ``start end A: words`` and ``doc/*_calldata.tbl``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from local.check import Checks
from local.swbd_text import fisher_words
from mpq.io import read_lines

CONVERSATIONS = 11699  # 5,850 and 5,849
_NAME = re.compile(r"^fe_03_(\d{5})\.txt$")
_LINE = re.compile(r"^\d+\.?\d* \d+\.?\d* [AB]: ?(?P<text>.*)$")


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
    """Yields the words of each line of the transcripts; lines without words are left out.

    Args:
        paths: the transcripts.
        words_of: makes the words of a line; by default in Switchboard's spelling.

    Raises:
        BadInput: a file that is not UTF-8.
    """
    for path in paths:
        for _, line in read_lines(path):
            match = _LINE.match(line.strip())
            if match and (words := words_of(match["text"])):
                yield words


def find_wrong_lines(paths: Sequence[Path]) -> list[str]:
    """One clause for each file with a line that is neither ``start end A: words``, nor a comment, nor blank."""
    problems = []
    for path in paths:
        for number, line in read_lines(path):
            text = line.strip()
            if text and not text.startswith("#") and not _LINE.match(text):
                problems.append(f"{path}:{number}: expected 'start end A: words', found {text[:40]!r}")
                break
    return problems
