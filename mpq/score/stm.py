"""STM files: reference segments, ``recording channel speaker start end [<labels>] words ...``.

Times are seconds; ``;;`` begins a comment line, where NIST's files explain their labels.  Words may be alternatives
``{ A / B C / @ }`` (``@`` is nothing), optionally deletable ``(%HESITATION)``, or fragments ``BEGINN-``;
``IGNORE_TIME_SEGMENT_IN_SCORING`` as the text takes the segment out of the score (``infmts`` of NIST's sctk).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mpq.io import BadInput, PathLike, atomic_write, read_lines, split_words
from mpq.score.ctm import TimedWord, read_seconds

IGNORED = "IGNORE_TIME_SEGMENT_IN_SCORING"
_FIELDS = "recording channel speaker start end [<labels>] words ..."
_OVERLAP = 0.05  # seconds that segments of one channel may share: times are rounded
_SHARED = 0.005  # part of all their time that they may share

Channel = tuple[str, str]
"""Recording and channel."""


@dataclass(frozen=True, slots=True)
class StmSegment:
    """One reference segment.

    Attributes:
        recording: its recording, without suffix.
        channel: its channel, such as ``A`` or ``1``.
        speaker: who speaks.
        start: where it begins, in seconds.
        end: where it ends, in seconds.
        text: the words, with alternatives and so on.
        labels: such as ``<o,f0,male>``, or nothing.
        line: its line in the file, 0 if it came from elsewhere.
    """

    recording: str
    channel: str
    speaker: str
    start: float
    end: float
    text: str
    labels: str = ""
    line: int = 0

    @property
    def is_scored(self) -> bool:
        """False for stretches that the reference takes out of the score."""
        return IGNORED not in self.text.upper()


Item = TypeVar("Item", StmSegment, TimedWord)


def read_stm(path: PathLike) -> list[StmSegment]:
    """Read an STM file, gzip by suffix, in the file's order.

    Raises:
        BadInput: no segments, a line with too few fields, a time that is not a number of at least 0, or an end
            before the start.
    """
    segments = []
    for number, line in read_lines(path):
        fields = split_words(line)
        if not fields or line.lstrip().startswith(";;"):
            continue
        where = f"{path}:{number}"
        if len(fields) < 5:
            raise BadInput(f"{where}: {len(fields)} fields; expected '{_FIELDS}'")
        start, end = (read_seconds(text, where) for text in fields[3:5])
        if end < start:
            raise BadInput(f"{where}: ends at {end:g}, before its start at {start:g}; correct the times")
        labels = fields[5] if len(fields) > 5 and fields[5].startswith("<") and fields[5].endswith(">") else ""
        text = " ".join(fields[6:] if labels else fields[5:])
        recording, channel, speaker = fields[:3]
        segments.append(StmSegment(recording, channel, speaker, start, end, text, labels, number))
    if not segments:
        raise BadInput(f"{path}: no segments; expected lines '{_FIELDS}'")
    return segments


def write_stm(path: PathLike, segments: Iterable[StmSegment], comments: Sequence[str] = ()) -> None:
    """Write segments as an STM file, sorted by recording, channel and start; milliseconds are kept.

    Args:
        path: file to write.
        segments: what to write.
        comments: lines to write first, after ``;;``.

    Raises:
        BadInput: an empty name, one with a blank, or labels that are not ``<...>``.
    """
    with atomic_write(path) as file:
        file.writelines(f";; {comment}\n" for comment in comments)
        for item in sorted(segments, key=lambda item: (item.recording, item.channel, item.start)):
            names = [item.recording, item.channel, item.speaker]
            if split_words(" ".join(names)) != names or bool(item.labels) != (item.labels[:1] == "<"):
                raise BadInput(f"{path}: an empty name, one with a blank, or wrong labels: {item!r:.120}")
            fields = [*names, f"{item.start:.3f}", f"{item.end:.3f}", *([item.labels] if item.labels else [])]
            file.write(" ".join([*fields, *split_words(item.text)]) + "\n")


def check_segments(path: PathLike, segments: Sequence[StmSegment], words: Iterable[TimedWord], ctm: PathLike) -> None:
    """Raise BadInput unless words and segments are of the same recordings and channels.

    A channel without any word is taken for a channel in which nothing was recognized, but only if the recording's
    other channel has words: a recording without a word is one that was never recognized.
    """
    by_channel = channels(segments)
    recognized = {channel_of(word) for word in words}
    recordings = {recording for recording, _ in recognized}
    for (recording, _), (first, *_) in by_channel.items():
        if recording not in recordings:
            raise BadInput(
                f"{path}:{first.line}: recording {first.recording!r} has no words in {ctm}; "
                "recognize it, or remove it from the reference"
            )
    for recording, channel in sorted(recognized):
        if (recording, channel) not in by_channel:
            raise BadInput(
                f"{ctm}: recording {recording!r}, channel {channel!r} has no segment in {path}; "
                "recordings and channels of both must be the same"
            )


def check_overlaps(path: PathLike, segments: Sequence[StmSegment]) -> str:
    """What to warn of where a few segments of one channel overlap; nothing where none do.

    Words in time that two segments share go to the first of them, as in sclite.

    Raises:
        BadInput: the time that segments share is more than `_SHARED` of all: there several people speak at once.
    """
    found = []
    shared = 0.0
    for of_channel in channels(segments).values():
        latest = of_channel[0]
        for segment in of_channel[1:]:
            if segment.start < latest.end - _OVERLAP:
                found.append((segment.line, segment.start, latest.line, latest.end))
                shared += min(segment.end, latest.end) - segment.start
            latest = max(latest, segment, key=lambda item: item.end)
    if not found:
        return ""
    line, start, before, end = min(found)
    where = f"{path}:{line}: begins at {start:g}, before line {before} of the same channel ends at {end:g}"
    if shared > _SHARED * sum(segment.end - segment.start for segment in segments):
        raise BadInput(f"{where}; correct the times, or score overlapping speech by --overlap")
    return f"{where}; {len(found)} of {len(segments)} segments overlap, words in both are scored in the first"


def check_speakers(path: PathLike, segments: Iterable[StmSegment]) -> None:
    """Raise BadInput where segments of one speaker overlap, which asclite refuses, be it by a millisecond."""
    latest: dict[tuple[Channel, str], StmSegment] = {}
    for segment in sorted(segments, key=lambda item: item.start):
        before = latest.setdefault((channel_of(segment), segment.speaker.lower()), segment)
        if before is not segment and segment.start < before.end:
            raise BadInput(
                f"{path}:{segment.line}: begins at {segment.start:g}, before line {before.line} of the same speaker "
                f"ends at {before.end:g}, which asclite refuses; correct the times"
            )
        latest[channel_of(segment), segment.speaker.lower()] = segment


def channels(items: Iterable[Item]) -> dict[Channel, list[Item]]:
    """Segments or words by recording and channel, each sorted by start, as hubscr.pl sorts them."""
    found: defaultdict[Channel, list[Item]] = defaultdict(list)
    for item in items:
        found[channel_of(item)].append(item)
    return {channel: sorted(found[channel], key=lambda item: item.start) for channel in sorted(found)}


def channel_of(item: StmSegment | TimedWord) -> Channel:
    """Recording and channel, in lower case: sclite takes upper and lower case for the same."""
    return item.recording.lower(), item.channel.lower()
