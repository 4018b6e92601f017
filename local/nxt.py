"""AMI's annotations in the NITE XML Toolkit's format: who speaks, what words, in which segments.

Read from a folder or straight from its zip file. A segment points at its words by their ids, so that every word
belongs to the segment it was transcribed in; going by times instead, as lhotse's recipe does, loses the words that
cross the edge of a segment. A word that was broken off (``trunc``) is kept as the piece that was said; laughter and
other sounds (``vocalsound``), gaps and marks of disfluency are no words.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpq.io import BadInput

_ID = "{http://nite.sourceforge.net/}id"
_CHILD = "{http://nite.sourceforge.net/}child"
_HREF = re.compile(r"id\(([^()]+)\)")
MEETINGS_FILE = "corpusResources/meetings.xml"


@dataclass(frozen=True, slots=True)
class Token:
    """One element of a words file.

    Attributes:
        text: what is written; empty for what is no word.
        is_punctuation: a full stop, comma and so on.
        start: seconds, None where the annotation has no time.
        end: seconds, or None.
    """

    text: str
    is_punctuation: bool
    start: float | None
    end: float | None


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who wears which headset in a meeting: the name is the same in all meetings of a person."""

    name: str
    channel: int


class Annotations:
    """The files of ``ami_public_manual_1.6.2``, a folder or a zip file.

    Attributes:
        path: which.
        dangling: how many segments that were read point at words that are not there.

    Args:
        path: the folder, or the zip file.

    Raises:
        BadInput: it holds no meetings.xml, or the zip file is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dangling = 0
        self._zip: zipfile.ZipFile | None = None
        if path.is_dir():
            names = [str(file.relative_to(path)) for file in path.rglob("*.xml")]
        else:
            try:
                self._zip = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise BadInput(f"{path}: not a zip file that can be read ({error}); fetch it again") from None
            names = [name for name in self._zip.namelist() if name.endswith(".xml")]
        heads = [name for name in names if name.endswith(MEETINGS_FILE)]
        if not heads:
            raise BadInput(f"{path}: has no {MEETINGS_FILE}; give the folder of ami_public_manual_1.6.2, or its zip")
        self._prefix = min(heads, key=len).removesuffix(MEETINGS_FILE)
        self._names = set(names)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._names

    def parse(self, name: str) -> ET.Element:
        """The root element of a file; BadInput names file and line where its XML breaks off."""
        full = self._prefix + name
        try:
            if self._zip is None:
                return ET.fromstring((self.path / full).read_bytes())
            return ET.fromstring(self._zip.read(full))
        except ET.ParseError as error:
            what = str(error).partition(":")[0]
            raise BadInput(f"{self.path}/{full}:{error.position[0]}: not well-formed XML ({what})") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise BadInput(f"{self.path}/{full}: cannot be read ({error})") from None

    def speakers(self) -> dict[str, dict[str, Speaker]]:
        """Speakers of each meeting by agent (``A`` to ``E``)."""
        meetings: dict[str, dict[str, Speaker]] = {}
        for meeting in self.parse(MEETINGS_FILE):
            agents = meetings.setdefault(meeting.get("observation", ""), {})
            for speaker in meeting:
                name, agent, channel = (speaker.get(key, "") for key in ("global_name", "nxt_agent", "channel"))
                if not name or not agent or not channel.isdecimal():
                    raise BadInput(
                        f"{self.path}/{self._prefix}{MEETINGS_FILE}: meeting {meeting.get('observation')}: speaker "
                        f"{agent or '?'} lacks global_name or a channel number; fetch the annotations again"
                    )
                agents[agent] = Speaker(name, int(channel))
        return meetings

    def segments(self, meeting: str, agent: str) -> Iterator[list[Token]]:
        """The tokens of each segment of a speaker.

        Where a segment points at words that are not there, it gets those in its time; `dangling` counts them.

        Raises:
            BadInput: broken XML, or a time that is no number.
        """
        words_file, segments_file = f"words/{meeting}.{agent}.words.xml", f"segments/{meeting}.{agent}.segments.xml"
        elements = list(self.parse(words_file))
        tokens = [_token(element, f"{self.path}/{self._prefix}{words_file}") for element in elements]
        places = {element.get(_ID): index for index, element in enumerate(elements)}
        for segment in self.parse(segments_file):
            for child in segment.findall(_CHILD):
                ids = _HREF.findall(child.get("href", ""))
                if ids and ids[0] in places and ids[-1] in places:
                    yield tokens[places[ids[0]] : places[ids[-1]] + 1]
                else:
                    self.dangling += 1
                    where = f"{self.path}/{self._prefix}{segments_file}"
                    start, end = (_seconds(segment, f"transcriber_{key}", where) for key in ("start", "end"))
                    yield [token for token in tokens if _lies_in(token, start, end)]


def _seconds(element: ET.Element, key: str, where: str) -> float | None:
    """A time of an element, None where it has none."""
    value = element.get(key)
    try:
        return None if value is None else float(value)
    except ValueError:
        raise BadInput(f"{where}: {element.get(_ID)}: {key} {value!r} is no number of seconds") from None


def _lies_in(token: Token, start: float | None, end: float | None) -> bool:
    """Whether the middle of a token lies between two times."""
    if None in (token.start, token.end, start, end):
        return False
    middle = ((token.start or 0.0) + (token.end or 0.0)) / 2
    return (start or 0.0) <= middle <= (end or 0.0)


def _token(element: ET.Element, where: str) -> Token:
    """A token of a words file; what is no ``<w>`` has no text."""
    start, end = (_seconds(element, key, where) for key in ("starttime", "endtime"))
    text = (element.text or "").strip() if element.tag == "w" else ""
    return Token(text, element.get("punc") == "true", start, end)


def split_sentences(tokens: Sequence[Token], longest: int = 30) -> Iterator[list[Token]]:
    """Words of a segment by sentences, as in Kaldi's recipe; those of more than `longest` words are cut at commas.

    Args:
        tokens: of one segment.
        longest: most words; where there is no comma the sentence stays whole.
    """
    sentence: list[Token] = []
    for token in tokens:
        if token.is_punctuation and token.text in (".", "?"):
            yield from _cut_at_commas(sentence, longest)
            sentence = []
        else:
            sentence.append(token)
    yield from _cut_at_commas(sentence, longest)


def _cut_at_commas(sentence: list[Token], longest: int) -> Iterator[list[Token]]:
    """Cuts in two at the mark nearest to the middle until the parts are short enough; yields words only."""
    words = [token for token in sentence if token.text and not token.is_punctuation]
    marks = [index for index, token in enumerate(sentence) if token.is_punctuation and 0 < index < len(sentence) - 1]
    if len(words) <= longest or not marks:
        if words:
            yield words
        return
    middle = min(marks, key=lambda index: abs(index - len(sentence) / 2))
    yield from _cut_at_commas(sentence[:middle], longest)
    yield from _cut_at_commas(sentence[middle + 1 :], longest)
