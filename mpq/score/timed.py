"""Scoring by time: recognized words (CTM) go to reference segments (STM), both are normalized (GLM) and aligned.

The result is that of ``hubscr.pl -l english -h hub5`` of NIST's sctk 2.4 (csrfilt.sh, then sclite ``-F -D``): a word
goes to the first segment of its channel that ends after the word's middle, the last segment of a channel gets the
rest, and words in segments that are taken out of the score are taken out with them.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from mpq.io import BadInput
from mpq.score.align import Pair
from mpq.score.ctm import TimedWord
from mpq.score.glm import Glm
from mpq.score.network import Text, align_texts, parse_text
from mpq.score.stm import StmSegment, channels


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


def align_segments(
    segments: Iterable[StmSegment], words: Iterable[TimedWord], ref_glm: Glm | None = None, hyp_glm: Glm | None = None
) -> list[ScoredSegment]:
    """Align every scored segment with the words recognized in its time.

    Args:
        segments: the reference, of any channels; those of one channel must not overlap.
        words: what was recognized in these channels.
        ref_glm: rules for the reference (``stm``); None for none.
        hyp_glm: rules for the recognized words (``ctm``).

    Returns:
        The segments by recording, channel and start.

    Raises:
        BadInput: parentheses or braces in a text that do not come in pairs.
    """
    recognized = channels(words)
    normalize = cache((hyp_glm or Glm()).apply)
    numbers: Counter[str] = Counter()
    scored = []
    for channel, of_channel in channels(segments).items():
        hyps = [item for word in recognized.get(channel, ()) for item in _recognize(word, normalize)]
        for segment, hyp in zip(of_channel, _by_segment(of_channel, hyps), strict=True):
            if not segment.is_scored:
                continue
            try:
                ref = parse_text((ref_glm or Glm()).apply(segment.text))
            except BadInput as error:
                where = f"line {segment.line} of the reference" if segment.line else f"segment at {segment.start:g} s"
                raise BadInput(f"{where}: {error}") from None
            speaker = segment.speaker.lower()
            scored.append(ScoredSegment(f"{speaker}-{numbers[speaker]:03d}", segment, align_texts(ref, hyp)))
            numbers[speaker] += 1
    return scored


def _recognize(word: TimedWord, normalize: Callable[[str], str]) -> Iterator[_Recognized]:
    """What sclite gets for one recognized word: no word, one, several that share its time, or alternatives."""
    options = [option.split() for option in normalize(word.word).replace("{", " ").replace("}", " ").split("/")]
    timed = [[(middle, text) for middle, text in _share(word, option)] for option in options if option]
    if len(timed) == 1:
        for middle, text in timed[0]:
            yield _Recognized(middle, parse_text(text)[0])
    elif timed:
        latest = max(middle for option in timed for middle, _ in option)
        yield _Recognized(latest, [parse_text(" ".join(text for _, text in option)) for option in timed])


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
