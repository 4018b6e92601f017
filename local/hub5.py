"""NIST's tests of telephone speech: Hub5'00 (LDC2002S09 with LDC2002T43) and RT03 (LDC2007S10).

Segments are those of the STM file, since those are scored, and a little more on both sides is decoded; lhotse's recipe
for Hub5'00 reads other transcripts with other segments. The STM file is copied, mended as NIST's scorer needs it, and
channels are A and B in both sets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from local.check import Checks, shorten
from local.swbd_text import reference_words
from mpq.data.manifests import Spoken
from mpq.io import BadInput, atomic_write, read_lines
from mpq.score.glm import read_glm
from mpq.score.stm import StmSegment, channels, check_overlaps, read_stm
from mpq.score.timed import TimedSet, align_segments

SLACK = 0.5  # seconds that a transcript may go on after its audio has ended
SHORTEST = 0.05  # seconds of an utterance
_MORE = 0.1  # seconds that are decoded before and after a segment
_MENDED = re.compile(r"<[BE]_ASIDE>")
_CHANNELS = {"1": "A", "2": "B", "A": "A", "B": "B"}
_GAP = "inter_segment_gap"  # RT03's name of a speaker who is nobody


@dataclass(frozen=True, slots=True)
class EvalSet:
    """One test set as it was found.

    Attributes:
        name: ``eval2000`` or ``rt03``.
        audio: two-channel files by recording.
        stms: reference files.
        glm: mapping rules for scoring.
        pem: the partition of Hub5'00, None in RT03.
        channels: how many channels with segments the whole set has, None where that is not known for certain.
        segments: how many scored segments the whole set has.
        words: how many words they have.
    """

    name: str
    audio: Mapping[str, Path]
    stms: Sequence[Path]
    glm: Path
    pem: Path | None
    channels: int | None
    segments: int
    words: int


def read_segments(found: EvalSet, checks: Checks) -> list[StmSegment]:
    """The segments that are scored, channels A and B; everything about them is checked."""
    segments: list[StmSegment] = []
    glm = found.glm if _check_glm(found.glm, checks) else None
    for path in found.stms:
        try:
            read = [item for item in read_stm(path) if _GAP not in item.speaker]
        except BadInput as problem:
            checks.problem(str(problem))
            continue
        _check_scoring(path, read, glm, checks)
        wrong = sorted({item.channel for item in read} - set(_CHANNELS))
        if wrong:
            checks.problem(f"{path}: channel {wrong[0]!r}; expected A, B, 1 or 2")
        segments += [item for item in read if item.is_scored and item.channel in _CHANNELS]
    recordings = sorted({item.recording for item in segments})
    lacking = [name for name in recordings if name not in found.audio]
    if 0 < len(lacking) < len(recordings):
        where = ", ".join(path.name for path in found.stms[:2])
        checks.lacking(f"{found.name}: {len(lacking)} of {len(recordings)} recordings of {where} have no .sph file: "
                       f"{shorten(lacking)}")  # fmt: skip
    elif lacking:
        checks.problem(f"{found.name}: no recording of {found.stms[0]} has a .sph file; is the audio another set's?")
    unused = sorted(set(found.audio) - set(recordings))
    if unused:
        checks.lacking(f"{found.name}: {len(unused)} .sph files have no segment in the STM file: {shorten(unused)}")
    segments = [item for item in segments if item.recording in found.audio]
    _check_counts(found, segments, checks)
    if found.pem is not None:
        _check_pem(found.pem, segments, checks)
    return segments


def _check_counts(found: EvalSet, segments: Sequence[StmSegment], checks: Checks) -> None:
    """Channels and segments exactly; words roughly, since scoring counts them after mapping them."""
    channels = {(item.recording, item.channel) for item in segments}
    if found.channels is not None:
        checks.count(f"{found.name}: channels", len(channels), found.channels)
    checks.count(f"{found.name}: scored segments", len(segments), found.segments, 0.01)
    checks.count(f"{found.name}: words", sum(len(reference_words(item.text)) for item in segments), found.words, 0.05)


def _check_scoring(path: Path, segments: Sequence[StmSegment], glm: Path | None, checks: Checks) -> None:
    """Scores the mended references against nothing: what only scoring reads is told before days of training."""
    try:
        if warning := check_overlaps(path, segments):
            checks.warn(warning)
        align_segments(TimedSet([replace(item, text=_mend(item.text)) for item in segments], [], glm))
    except BadInput as problem:
        checks.problem(str(problem) if str(path) in str(problem) else f"{path}: {problem}")


def _mend(text: str) -> str:
    """Doubled brackets and the marks of asides, which NIST's scorer takes for errors, are mended."""
    return _MENDED.sub("", text.replace("((", "(", 1))


def _check_glm(path: Path, checks: Checks) -> bool:
    """Whether the rules, which nothing reads before the scoring at the very end, can be read."""
    try:
        read_glm(path, "stm")
        read_glm(path, "ctm")
    except BadInput as problem:
        checks.problem(str(problem))
        return False
    last = path.read_bytes().rpartition(b"\n")[2].decode("latin-1")
    if last.count("[") != last.count("]"):
        checks.problem(f"{path}: breaks off in {last[:40]!r}")
    return True


def _check_pem(path: Path, segments: Sequence[StmSegment], checks: Checks) -> None:
    """Every scored segment must be one of the partition, to the hundredth of a second."""
    parts = set()
    for number, line in read_lines(path):
        fields = line.split()
        if not fields or line.startswith(";;"):
            continue
        try:
            parts.add((fields[0], fields[1], round(100 * float(fields[3])), round(100 * float(fields[4]))))
        except (ValueError, IndexError):
            checks.problem(f"{path}:{number}: expected 'recording channel speaker start end', found {line[:40]!r}")
            return
    strange = [
        f"{item.recording} {item.channel} {item.start:g} {item.end:g}"
        for item in segments
        if (item.recording, item.channel, round(100 * item.start), round(100 * item.end)) not in parts
    ]
    if strange:
        checks.lacking(f"{path}: {len(strange)} segments of the STM file are not in it: {shorten(strange)}")


def check_times(
    found: EvalSet, segments: Sequence[StmSegment], lengths: Mapping[str, float], checks: Checks
) -> list[StmSegment]:
    """The segments that begin in their audio; those that end more than `SLACK` after it are told, and many a problem.

    Args:
        found: the set.
        segments: as `read_segments` gave them.
        lengths: seconds of each good file by recording; of the others something else has been said.
        checks: told of what is odd.
    """
    kept, places = [], []
    lines: dict[StmSegment, str] = {}
    for path in found.stms:
        with suppress(BadInput):  # which has been said
            lines |= {item: f"{path}:{item.line}" for item in read_stm(path)}
    for item in segments:
        length = lengths.get(item.recording, math.inf)
        if item.end > length + SLACK or item.start > length - SHORTEST:
            where = f"{item.recording} {item.channel} from {item.start:g} to {item.end:g} s"
            places.append(f"{lines[item]}: {where}, but its audio lasts {length:.2f} s")
        if item.start <= length - SHORTEST:
            kept.append(item)
    what = f"segments of {found.name} that end after their audio"
    checks.odd(what, places, len(segments), "decoded as far as there is audio")
    return kept


def spoken(segments: Iterable[StmSegment], files: Mapping[str, Path], lengths: Mapping[str, float]) -> list[Spoken]:
    """Utterances of scored segments; one without a word in the reference has ``uh``, which scoring does not see.

    They are cut at the end of the audio and go on for up to `_MORE` on both sides, not further than to the middle
    between two segments (Kaldi's `extend_segments.pl 0.1`). Ids keep the times of the STM file.

    Args:
        segments: as `check_times` gave them.
        files: two-channel files by recording.
        lengths: their seconds.
    """
    items = []
    for of_channel in channels(segments).values():
        starts = [item.start for item in of_channel]
        before = -math.inf
        for item, following in zip(of_channel, [*starts[1:], math.inf], strict=True):
            length = lengths[item.recording]
            end = min(item.end, length)
            # segments that overlap, or that follow at once, stay as they are
            first = max(item.start - _MORE, min(item.start, (before + item.start) / 2), 0.0)
            last = min(end + _MORE, max(end, (end + following) / 2), length)
            before = max(before, end)
            items.append(_utterance(item, files[item.recording], first, last))
    return items


def _utterance(item: StmSegment, file: Path, start: float, end: float) -> Spoken:
    channel = _CHANNELS[item.channel]
    side = f"{item.recording}-{channel}"
    utt = f"{side}_{round(100 * item.start):06d}-{round(100 * item.end):06d}"
    text = " ".join(reference_words(item.text)) or "uh"
    return Spoken(utt, side, file, text, item.recording, round(start, 3), round(end, 3), "AB".index(channel), 2)


def write_references(found: EvalSet, recordings: Iterable[str], folder: Path) -> None:
    """Writes ``stm`` and ``glm`` for scoring.

    Texts are mended (`_mend`), channels become A and B, and only the lines of `recordings` are kept.
    """
    kept = set(recordings)
    comments = set()  # the files of RT03 repeat them
    with atomic_write(folder / "stm") as file:
        for path in found.stms:
            for _, line in read_lines(path):
                fields = line.split()
                if line.startswith(";;") and line not in comments:
                    comments.add(line)
                    file.write(line + "\n")
                elif len(fields) > 4 and fields[0] in kept and _GAP not in fields[2]:
                    fields[1] = _CHANNELS.get(fields[1], fields[1])
                    file.write(_mend(" ".join(fields)) + "\n")
    with atomic_write(folder / "glm", "wb") as copy:
        copy.write(found.glm.read_bytes())
