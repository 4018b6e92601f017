"""Kaldi data folders, and folders of audio files with a Kaldi `text`: read with every check at once.

`wav.scp` names files or pipes (``sph2pipe ... |``); `segments`, `text` and `utt2spk` are Kaldi's. Without `wav.scp`
every audio file in the folder is an utterance that has the file's name. lhotse's `load_kaldi_data_dir` is not used: it
rounds durations to milliseconds, drops recordings that it cannot read, and says neither file nor line of what is wrong.
"""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from mpq.io import BadInput, read_lines, split_words

_AUDIO = (".wav", ".flac")
_SHELL = ("bash", "-o", "pipefail", "-c")


class Entry(NamedTuple):
    """What a line says of an id.

    Attributes:
        place: the line, ``FILE:NUMBER``; the file itself where there is no `wav.scp`.
        value: what follows the id.
    """

    place: str
    value: str


@dataclass(frozen=True, slots=True)
class Segment:
    """One utterance: a stretch of a recording.

    Attributes:
        place: the line that says so, ``FILE:NUMBER``.
        recording: id of the recording.
        start: where it begins, in seconds.
        end: where it ends; None for the end of the recording.
        channel: its channel, from 0; None where the recording must have one only.
    """

    place: str
    recording: str
    start: float = 0.0
    end: float | None = None
    channel: int | None = None


@dataclass
class DataFolder:
    """A data folder as it stands, the files compared with one another but not yet with the audio.

    Attributes:
        path: the folder.
        audio: file, or pipe with its ``|``, of each recording.
        segments: the utterances; those of a folder without `segments` are its recordings.
        texts: transcripts; None where there is no `text`.
        speakers: speakers; None where there is no `utt2spk`.
        problems: what is wrong with single lines, a clause each.
    """

    path: Path
    audio: dict[str, Entry]
    segments: dict[str, Segment]
    texts: dict[str, Entry] | None
    speakers: dict[str, Entry] | None
    problems: list[str] = field(default_factory=list)

    def incomplete(self) -> Iterator[tuple[str, dict[str, str]]]:
        """What is missing: a clause, and ids that it is true of with where they stand."""
        source = "segments" if (self.path / "segments").is_file() else "wav.scp"
        for name, table in (("text", self.texts), ("utt2spk", self.speakers)):
            if table is not None:
                lacking = {utt: segment.place for utt, segment in self.segments.items() if utt not in table}
                yield f"utterances without a line in {self.path / name}", lacking
                empty = {utt: entry.place for utt, entry in table.items() if not entry.value}
                yield f"lines of {self.path / name} that hold an id alone", empty
                unknown = {utt: entry.place for utt, entry in table.items() if utt not in self.segments}
                yield f"utterances of {name} without a line in {self.path / source}", unknown
        yield (
            f"utterances of segments without their recording in {self.path / 'wav.scp'}",
            {utt: f"{s.place}: {s.recording}" for utt, s in self.segments.items() if s.recording not in self.audio},
        )

    def complete(self) -> Iterator[tuple[str, Segment]]:
        """The utterances that have everything, by id."""
        tables = [table for table in (self.texts, self.speakers) if table is not None]
        for utt, segment in self.segments.items():
            if segment.recording in self.audio and all(utt in table and table[utt].value for table in tables):
                yield utt, segment


def read_data_folder(path: Path) -> DataFolder:
    """Reads the files of a data folder.

    Raises:
        BadInput: no folder, or one without audio; a file that is no text.
    """
    if not path.is_dir():
        raise BadInput(f"{path}: no such folder; expected a Kaldi data folder, or one of WAV or FLAC files and 'text'")
    problems: list[str] = []
    audio = _read_table(path / "wav.scp", problems)
    if audio is None:
        audio = _find_files(path, problems)
    elif any(".ark:" in entry.value for entry in audio.values()):
        raise BadInput(f"{path / 'wav.scp'}: names Kaldi archives (.ark); expected audio files or pipes")
    problems += [f"{entry.place}: {name}: no file" for name, entry in audio.items() if not entry.value]
    lines = _read_table(path / "segments", problems)
    if lines is None:
        segments = {name: Segment(entry.place, name) for name, entry in audio.items()}
    else:
        segments = dict(_parse_segments(lines, problems))
    texts, speakers = (_read_table(path / name, problems) for name in ("text", "utt2spk"))
    return DataFolder(path, audio, segments, texts, speakers, problems)


def _read_table(path: Path, problems: list[str]) -> dict[str, Entry] | None:
    """Lines ``id value`` by id; None where there is no such file."""
    if not path.is_file():
        return None
    table: dict[str, Entry] = {}
    for number, line in read_lines(path):
        name, *words = split_words(line) or [""]
        if not name:
            problems.append(f"{path}:{number}: empty line")
        elif name in table:
            problems.append(f"{path}:{number}: {name} is given twice, first at {table[name].place}")
        else:
            table[name] = Entry(f"{path}:{number}", " ".join(words))
    return table


def _find_files(folder: Path, problems: list[str]) -> dict[str, Entry]:
    """The audio files in a folder and below, by name without suffix."""
    found: dict[str, Entry] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _AUDIO):
        if path.stem in found:
            problems.append(f"{path}: has the name of {found[path.stem].place}; names are the ids of utterances")
        else:
            found[path.stem] = Entry(str(path), str(path))
    if not found:
        raise BadInput(f"{folder}: holds neither wav.scp nor any WAV or FLAC file")
    return found


def _parse_segments(lines: dict[str, Entry], problems: list[str]) -> Iterator[tuple[str, Segment]]:
    """Lines ``utterance recording start end [channel]``; the end -1 is that of the recording."""
    for utt, (place, value) in lines.items():
        recording, *numbers = value.split() or [""]
        try:
            start, end, *rest = map(float, numbers)
            (channel,) = map(int, rest) if rest else (None,)
        except (ValueError, OverflowError):
            problems.append(f"{place}: {value!r:.60}; expected 'utterance recording start end [channel]'")
            continue
        if not 0 <= start < float("inf") or not (end == -1 or start < end < float("inf")) or (channel or 0) < 0:
            problems.append(f"{place}: {utt} is from {start:g} to {end:g} s; expected 0 <= start < end, or end -1")
        else:
            yield utt, Segment(place, recording, start, None if end == -1 else end, channel)


def run_pipe(command: str) -> tuple[NDArray[np.int16], int]:
    """Samples (T, C) and sampling rate of the audio that a shell command prints.

    Raises:
        BadInput: the command fails or prints no audio; the message does not name the command.
    """
    done = subprocess.run([*_SHELL, command], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").split("\n")[-2:] or [""])[0].strip()
        raise BadInput(f"exit status {done.returncode} ({last[:120] or 'no message'})")
    try:
        samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        raise BadInput(f"printed {len(done.stdout)} bytes that are no audio; expected WAV or FLAC") from None
    # libsndfile does not scale what was stored as float; 16 bits are exact in float32
    return np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16), int(rate)
