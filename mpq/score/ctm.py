"""CTM files: the words of a recognizer with their times, ``recording channel start duration word [confidence]``.

Times are seconds; ``;;`` begins a comment line.  The format is that of NIST's sctk (``infmts``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mpq.io import BadInput, PathLike, atomic_write, read_lines, split_words

_FIELDS = "recording channel start duration word [confidence]"


@dataclass(frozen=True, slots=True)
class TimedWord:
    """One recognized word.

    Attributes:
        recording: its recording, without suffix.
        channel: its channel, such as ``A`` or ``1``.
        start: where it begins, in seconds.
        duration: how long it is, in seconds.
        word: what was said.
        confidence: between 0 and 1 where the recognizer gives it; it does not change the word error rate.
    """

    recording: str
    channel: str
    start: float
    duration: float
    word: str
    confidence: float | None = None


def read_ctm(path: PathLike) -> list[TimedWord]:
    """Read a CTM file, gzip by suffix, in the file's order; times are kept to the millisecond.

    Raises:
        BadInput: a line with too few or too many fields, or a time that is not a number of at least 0.
    """
    words = []
    for number, line in read_lines(path):
        fields = split_words(line)
        if not fields or line.lstrip().startswith(";;"):
            continue
        where = f"{path}:{number}"
        if len(fields) not in (5, 6):
            raise BadInput(f"{where}: {len(fields)} fields; expected '{_FIELDS}'")
        start, duration = (read_seconds(text, where) for text in fields[2:4])
        # sclite takes NA for a word without a confidence
        known = len(fields) == 6 and fields[5].upper() != "NA"
        confidence = read_seconds(fields[5], where, "confidence, a number") if known else None
        words.append(TimedWord(fields[0], fields[1], round(start, 3), round(duration, 3), fields[4], confidence))
    return words


def read_seconds(text: str, where: str, what: str = "seconds, a number") -> float:
    """A finite number of at least 0; ``where`` and ``what`` tell the place and the meaning of another one."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise BadInput(f"{where}: found {text!r}; expected {what} of at least 0")
    return value


def write_ctm(path: PathLike, words: Iterable[TimedWord]) -> None:
    """Write words as a CTM file, sorted by recording, channel and start as sctk wants them; milliseconds are kept.

    Raises:
        BadInput: a name or word that is empty or holds a blank.
    """
    with atomic_write(path) as file:
        for item in sorted(words, key=lambda item: (item.recording, item.channel, item.start)):
            fields = [item.recording, item.channel, f"{item.start:.3f}", f"{item.duration:.3f}", item.word]
            if item.confidence is not None:
                fields.append(f"{item.confidence:.4f}")
            line = " ".join(fields)
            if split_words(line) != fields:
                raise BadInput(f"{path}: an empty name or word, or one with a blank: {line[:80]!r}")
            file.write(line + "\n")
