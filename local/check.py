"""Everything that is wrong with a corpus on disk, gathered and told in one message before hours are spent."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mpq.io import BadInput

_SHOWN = 4
FEW = 0.005  # part of the lines (or files) that may be odd: some are in every release of a corpus


class Checks:
    """Gathers problems; a part of the corpus is enough where `partial` is true.

    Attributes:
        problems: what must be mended, one clause each.
        warnings: what a partial corpus is allowed.
        lacks: whether anything was found that only the whole corpus must have.
    """

    def __init__(self, partial: bool = False) -> None:
        self.partial = partial
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.lacks = False

    def problem(self, text: str) -> None:
        """Something that makes the corpus useless as it is, partial or not."""
        self.problems.append(text)

    def lacking(self, text: str) -> None:
        """Something that only the whole corpus must have."""
        self.lacks = True
        (self.warnings if self.partial else self.problems).append(text)

    def warn(self, text: str) -> None:
        """Something to know that stops nothing."""
        self.warnings.append(text)

    def missing(self, what: str, paths: Sequence[object], total: int | None = None, needed: bool = False) -> None:
        """Files that are not there, in one clause that names the first few.

        Args:
            what: what they are, such as "headset files".
            paths: their names; nothing happens where there is none.
            total: how many there should be in all.
            needed: a partial corpus must have them too.
        """
        if paths:
            of = f" of {total}" if total else ""
            text = f"{len(paths)}{of} {what} missing: {shorten(paths)}"
            (self.problem if needed else self.lacking)(text)

    def count(self, what: str, found: int, expected: int | Sequence[int], tolerance: float = 0.0) -> None:
        """Compares a count with that of the whole corpus (or with any of several versions of it).

        Args:
            what: what is counted, such as "test-clean: words".
            found: how many there are.
            expected: how many there should be.
            tolerance: relative difference that is let pass.
        """
        wanted = [expected] if isinstance(expected, int) else list(expected)
        if not any(abs(found - number) <= tolerance * number for number in wanted):
            self.lacking(f"{what}: {found}, expected {' or '.join(map(str, wanted))}")

    def odd(self, what: str, places: Sequence[str], total: int, done: str) -> None:
        """Odd lines: one, or `FEW` of all, are told with what was done about them; more are a problem, partial or not.

        Args:
            what: what they are, such as "lines of Fisher without times".
            places: file and line of each, and what was found; nothing happens where there is none.
            total: of how many lines.
            done: what was done, such as "left out".
        """
        text = f"{len(places)} of {total} {what}"
        if len(places) > max(1, FEW * total):
            self.problem(f"{text}, of which {100 * FEW:g} % are let pass: {shorten(places)}")
        elif places:
            self.warn(f"{text}, {done}: {'' if len(places) == 1 else 'first '}{places[0]}")

    def extend(self, problems: Sequence[str]) -> None:
        """Adds what is wrong with single files or lines: the first few, and how many there are."""
        self.problems += problems[:_SHOWN]
        if len(problems) > _SHOWN:
            self.problems.append(f"{len(problems) - _SHOWN} more of this kind")

    def finish(self, what: str, advice: str) -> None:
        """Prints the warnings in one line on stderr; raises one `BadInput` of all problems, if there are any.

        Args:
            what: the corpus, such as its folder.
            advice: what to do.
        """
        if self.problems:
            count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
            hint = " (--partial: take what is there)" if self.lacks and not self.partial else ""
            raise BadInput(f"{what}: {count}: {'; '.join(self.problems)}; {advice}{hint}")
        if self.warnings:
            print(f"warning: {what}: {'; '.join(self.warnings)}", file=sys.stderr, flush=True)


def shorten(names: Sequence[object]) -> str:
    """The first few names and how many follow."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(str(name) for name in names[:_SHOWN]) + more


def need_folders(corpus: str, folders: Sequence[Path], what: str) -> None:
    """Refuses no --corpus-dir, and any that is not a folder.

    Args:
        corpus: name of the corpus.
        folders: values of --corpus-dir.
        what: what the folder is, such as "the folder that holds train-clean-100".
    """
    if not folders:
        raise BadInput(f"{corpus}: no --corpus-dir; give {what}")
    for folder in folders:
        if not folder.is_dir():
            kind = "is a file; unpack it and give the folder" if folder.is_file() else "no such folder"
            raise BadInput(f"--corpus-dir {folder}: {kind}; expected {what}")
