"""Scoring by time: recognized words (CTM) go to reference segments (STM), both are normalized (GLM) and aligned.

The result is that of ``hubscr.pl -l english -h hub5`` of NIST's sctk 2.4 (csrfilt.sh, then sclite ``-F -D``): a word
goes to the first segment of its channel that ends after the word's middle, the last segment of a channel gets the
rest, and words in segments that are taken out of the score are taken out with them.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from mpq.io import BadInput, PathLike
from mpq.score.align import Pair
from mpq.score.ctm import TimedWord, read_ctm
from mpq.score.glm import Glm, read_glm
from mpq.score.network import Text, align_texts, parse_text
from mpq.score.stm import StmSegment, channels, check_overlaps, check_segments, check_speakers, read_stm


@dataclass(frozen=True, slots=True)
class ScoredSegment:
    """A reference segment and its alignment.

    Attributes:
        utt: ``SPEAKER-NNN``, the name that sclite gives it.
        segment: the reference.
        pairs: the steps of the alignment.
    """

    utt: str
    segment: StmSegment
    pairs: list[Pair]


@dataclass(frozen=True, slots=True)
class _Recognized:
    """One word or alternation of words, and the time that decides to which segment it goes."""

    middle: float
    item: str | list[Text]


@dataclass(frozen=True, slots=True)
class TimedSet:
    """What is scored by time.

    Attributes:
        segments: the reference.
        words: what was recognized.
        glm: file of mapping rules for both; None for none.
    """

    segments: list[StmSegment]
    words: list[TimedWord]
    glm: PathLike | None = None

    def by_recording(self) -> dict[str, TimedSet]:
        """Each recording by itself, by name in lower case."""
        segments: defaultdict[str, list[StmSegment]] = defaultdict(list)
        words: defaultdict[str, list[TimedWord]] = defaultdict(list)
        for segment in self.segments:
            segments[segment.recording.lower()].append(segment)
        for word in self.words:
            words[word.recording.lower()].append(word)
        return {name: TimedSet(segments[name], words[name], self.glm) for name in segments}

    def subset(self, prefix: str) -> TimedSet:
        """Only the recordings whose names begin with ``prefix``; BadInput if there are none."""
        segments = [segment for segment in self.segments if segment.recording.startswith(prefix)]
        if not segments:
            names = sorted({segment.recording for segment in self.segments})
            raise BadInput(f"no recording of the reference begins with {prefix!r}; the first one is {names[0]!r}")
        return TimedSet(segments, [word for word in self.words if word.recording.startswith(prefix)], self.glm)


def read_timed(stm: PathLike, ctm: PathLike, glm: PathLike | None = None, overlapping: bool = False) -> TimedSet:
    """Read a reference (STM) and recognized words (CTM), and check that they belong together; warn of a few overlaps.

    Args:
        stm: the reference.
        ctm: what was recognized.
        glm: mapping rules; None for none.
        overlapping: whether segments of one channel may overlap.

    Raises:
        BadInput: what the readers refuse, recordings or channels of one file that the other has not, segments of one
            channel that overlap for more than a little of the time (of one speaker at all, if overlapping).
    """
    timed = TimedSet(read_stm(stm), read_ctm(ctm), glm)
    check_segments(stm, timed.segments, timed.words, ctm)
    if overlapping:
        check_speakers(stm, timed.segments)
    elif warning := check_overlaps(stm, timed.segments):
        print(f"warning: {warning}", file=sys.stderr)
    return timed


def align_segments(timed: TimedSet) -> list[ScoredSegment]:
    """Align every scored segment with the words recognized in its time.

    Returns:
        The segments by recording, channel and start.

    Raises:
        BadInput: a broken file of rules; parentheses or braces in a text that do not come in pairs.
    """
    ref_glm, hyp_glm = (Glm() if timed.glm is None else read_glm(timed.glm, kind) for kind in ("stm", "ctm"))
    recognized = channels(timed.words)
    normalize = cache(hyp_glm.apply)
    numbers: Counter[str] = Counter()
    scored = []
    for channel, segments in channels(timed.segments).items():
        hyps = [item for word in recognized.get(channel, ()) for item in _recognize(word, normalize)]
        for segment, hyp in zip(segments, _by_segment(segments, hyps), strict=True):
            if not segment.is_scored:
                continue
            try:
                ref = parse_text(ref_glm.apply(segment.text))
            except BadInput as error:
                where = f"line {segment.line} of the reference" if segment.line else f"segment at {segment.start:g} s"
                raise BadInput(f"{where}: {error}") from None
            speaker = segment.speaker.lower()
            scored.append(ScoredSegment(f"{speaker}-{numbers[speaker]:03d}", segment, align_texts(ref, hyp)))
            numbers[speaker] += 1
    return scored


def _recognize(word: TimedWord, normalize: Callable[[str], str]) -> Iterator[_Recognized]:
    """What sclite gets for one recognized word: no word, one, several that share its time, or alternatives."""
    try:
        text = normalize(word.word).replace("{", " ").replace("}", " ")
    except BadInput as error:
        where = f"recording {word.recording!r}, channel {word.channel!r}, {word.start:g} s"
        raise BadInput(f"recognized words, {where}: {error}") from None
    options = [option.split() for option in text.split("/")]
    timed = [list(_share(word, option)) for option in options if option]
    if len(timed) == 1:
        yield from (_Recognized(middle, parse_text(said)[0]) for middle, said in timed[0])
    elif timed:
        latest = max(middle for option in timed for middle, _ in option)
        yield _Recognized(latest, [parse_text(" ".join(said for _, said in option)) for option in timed])


def _share(word: TimedWord, texts: Sequence[str]) -> Iterator[tuple[float, str]]:
    """The middle of each of several words that share the time of one, to the millisecond as csrfilt writes it."""
    duration = word.duration / len(texts)
    for number, text in enumerate(texts):
        start = word.start + duration * number
        yield (start + duration / 2 if len(texts) == 1 else round(start, 3) + round(duration, 3) / 2), text


def _by_segment(segments: Sequence[StmSegment], words: Sequence[_Recognized]) -> Iterator[Text]:
    """The words of each segment of one channel."""
    at = 0
    for number, segment in enumerate(segments, start=1):
        begin = at
        end = _single(segment.end)
        while at < len(words) and (number == len(segments) or words[at].middle < end):
            at += 1
        yield [word.item for word in words[begin:at]]


def _single(number: float) -> float:
    """Rounded to float32, in which sclite keeps the times of segments."""
    rounded: float = struct.unpack("f", struct.pack("f", number))[0]
    return rounded
