"""kaldi: speech of your own, in Kaldi data folders or folders of WAV or FLAC files (--corpus-dir [PART=]DIR, repeated).

DIR holds wav.scp (files or pipes; their paths as seen from the present folder), and segments, text and utt2spk as Kaldi
has them. Without wav.scp, every WAV or FLAC file in DIR or below is an utterance, whose id is the name without suffix.
Without text, the speech can be decoded, not trained on or scored; without utt2spk, no speaker is known. PART, the name
of the folder written, is else that of DIR. What pipes print is kept in OUT/audio as FLAC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import soundfile

from local.check import Checks, shorten
from mpq.data.audio import inspect_audio, write_flac
from mpq.data.kaldi import DataFolder, Entry, Segment, read_data_folder, run_pipe
from mpq.data.manifests import Spoken, describe_part, write_lines, write_manifests
from mpq.io import BadInput, hash_config, progress

_OVERSHOOT = 0.5  # seconds after the end of the audio that Kaldi's extract-segments cuts off, too
_WHAT = "a Kaldi data folder, or one of WAV or FLAC files and 'text'"


@dataclass(frozen=True, slots=True)
class Audio:
    """A file that was looked at."""

    path: Path
    rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.frames / self.rate


@dataclass
class Corpus:
    """What was found and is right.

    Attributes:
        parts: utterances by part.
        frames: samples of each file.
        rate: sampling rate in Hz.
    """

    parts: dict[str, list[Spoken]]
    frames: dict[Path, int]
    rate: int


def find_parts(folders: Sequence[Path]) -> dict[str, DataFolder]:
    """Data folders by the name of the part that each becomes: ``PART=DIR``, or the folder's own name."""
    if not folders:
        raise BadInput(f"kaldi: no --corpus-dir; give {_WHAT}, or several as PART=DIR")
    parts: dict[str, DataFolder] = {}
    for text in map(str, folders):
        name, equals, path = text.partition("=")
        if not equals or Path(text).is_dir():
            name, path = Path(text).resolve().name, text
        if not name or name in (".", "..", "lm", "audio") or Path(name).name != name:
            raise BadInput(f"--corpus-dir {text}: {name!r} is no name for a part such as train, dev, test")
        if name in parts:
            raise BadInput(f"--corpus-dir {text}: part {name} is given twice; give each a name, as in dev={path}")
        parts[name] = read_data_folder(Path(path))
    return parts


def _look_at(entry: Entry, target: Path) -> Audio | str:
    """The audio of one recording; what a pipe prints is written to `target`. A clause where something is wrong."""
    path, is_pipe = Path(entry.value), entry.value.endswith("|")
    try:
        if is_pipe:
            path = target
            _keep(entry.value[:-1].strip(), target)
        if path.is_dir():
            raise BadInput("a folder, expected a file")
        if not path.is_file():
            raise BadInput("no such file" if path.is_absolute() else f"no such file, seen from {Path.cwd()}")
        try:
            info = soundfile.info(path)
        except soundfile.LibsndfileError as error:
            raise BadInput(f"not readable as audio ({error.error_string.strip()})") from None
        return Audio(path, info.samplerate, info.channels, inspect_audio(path, info.samplerate, info.channels))
    except BadInput as problem:
        what = "" if entry.place == entry.value else f"{entry.value}: "
        return f"{entry.place}: {what}{problem}"


def _keep(command: str, target: Path) -> None:
    """Writes what a pipe prints, unless the file is there of the same command and files."""
    key = hash_config([command, [_stamp(word) for word in command.split() if Path(word).is_file()]])
    if target.is_file():
        with soundfile.SoundFile(target) as file:
            if file.comment == key:
                return
    samples, rate = run_pipe(command)
    write_flac(target, samples, rate, key)


def _stamp(path: str) -> list[int]:
    stat = Path(path).stat()
    return [stat.st_size, stat.st_mtime_ns]


def load(folders: Sequence[Path], out: Path, *, partial: bool, nj: int) -> Corpus:
    """Reads and checks everything, writes what pipes print to `out`; raises one `BadInput` for all that is wrong."""
    checks = Checks(partial)
    parts = find_parts(folders)
    files: dict[str, dict[str, Audio]] = {}
    for part, folder in parts.items():
        checks.extend(folder.problems)
        for what, places in folder.incomplete():
            if places:
                shown = shorten([f"{utt} ({place})" for utt, place in places.items()])
                checks.lacking(f"{what}: {shown}")
        files[part] = _look_at_all(part, folder, out, checks, nj)
    rate = _common_rate(parts, files, checks)
    items = {part: list(_utterances(folder, files[part], checks)) for part, folder in parts.items()}
    for part, folder in parts.items():
        if not items[part] and not checks.problems:
            checks.problem(f"{folder.path}: no utterance is left")
    _warn_of_overlap(items, checks)
    checks.finish(", ".join(str(folder.path) for folder in parts.values()), "mend the lines and files named")
    return Corpus(items, {audio.path: audio.frames for own in files.values() for audio in own.values()}, rate)


def _common_rate(parts: dict[str, DataFolder], files: dict[str, dict[str, Audio]], checks: Checks) -> int:
    """The sampling rate of most recordings; those of another one go to `checks`."""
    rates = Counter(audio.rate for own in files.values() for audio in own.values())
    rate = max(rates, key=lambda rate: rates[rate], default=0)
    checks.extend(
        [
            f"{parts[part].audio[name].place}: {name} is sampled at {audio.rate} Hz, {rates[rate]} others at {rate} Hz"
            for part, own in files.items()
            for name, audio in own.items()
            if audio.rate != rate
        ]
    )
    return rate


def _look_at_all(part: str, folder: DataFolder, out: Path, checks: Checks, nj: int) -> dict[str, Audio]:
    """The audio of all recordings that have utterances and are whole."""
    needed = dict.fromkeys(segment.recording for _, segment in folder.complete())
    entries = [(name, folder.audio[name]) for name in needed if folder.audio[name].value]
    with ThreadPoolExecutor(nj) as pool:  # libsndfile and pipes work outside Python's lock
        looked = pool.map(lambda item: _look_at(item[1], out / part / f"{quote(item[0], safe='')}.flac"), entries)
        results = list(progress(looked, len(entries), f"recordings of {part}"))
    checks.extend([result for result in results if isinstance(result, str)])
    names = [name for name, _ in entries]
    return {name: result for name, result in zip(names, results, strict=True) if isinstance(result, Audio)}


def _utterances(folder: DataFolder, files: dict[str, Audio], checks: Checks) -> Iterator[Spoken]:
    """The utterances of a folder; what does not fit its recording goes to `checks`."""
    problems, late = [], []
    for utt, segment in folder.complete():
        if segment.recording not in files:
            continue
        audio, end = files[segment.recording], segment.end
        if misfit := _misfit(segment, audio):
            problems.append(f"{segment.place}: {utt}: {misfit}")
            continue
        if end is not None and end > audio.seconds:
            late.append(utt)
            end = None
        yield _spoken(utt, segment, end, folder, audio)
    checks.extend(problems)
    if late:
        checks.warn(f"cut at the end of their recording, which they pass by up to {_OVERSHOOT} s: {shorten(late)}")


def _misfit(segment: Segment, audio: Audio) -> str:
    """Why an utterance is no part of its recording; nothing where it is."""
    if segment.start >= audio.seconds or (segment.end or 0.0) > audio.seconds + _OVERSHOOT:
        end = "its end" if segment.end is None else f"{segment.end:g} s"
        return f"from {segment.start:g} s to {end}, but {audio.path} lasts {audio.seconds:.3f} s"
    if segment.channel is None and audio.channels > 1:
        return f"{audio.path} has {audio.channels} channels; a fifth field of segments says which, from 0"
    if (segment.channel or 0) >= audio.channels:
        return f"channel {segment.channel}, but {audio.path} has {audio.channels} (from 0)"
    return ""


def _spoken(utt: str, segment: Segment, end: float | None, folder: DataFolder, audio: Audio) -> Spoken:
    return Spoken(
        utt,
        speaker=folder.speakers[utt].value if folder.speakers else "",
        audio=audio.path,
        text=folder.texts[utt].value if folder.texts else "",
        recording=segment.recording,
        start=segment.start,
        end=end,
        channel=segment.channel or 0,
        channels=audio.channels,
        transcribed=folder.texts is not None,
    )


def _warn_of_overlap(items: dict[str, list[Spoken]], checks: Checks) -> None:
    """Tells of utterances that are trained on and tested."""
    train = {item.utt for item in items.get("train", [])}
    for part, tested in items.items():
        shared = [item.utt for item in tested if item.utt in train]
        if part != "train" and shared:
            checks.warn(f"{len(shared)} utterances of {part} are in train too: {shorten(shared)}")


def check(*, corpus_dirs: Sequence[Path], partial: bool = False, nj: int = 1) -> str:
    """Checks the folders, audio and pipes included, in a folder that is removed again; returns the summary.

    Raises:
        BadInput: all that is wrong, in one message.
    """
    with TemporaryDirectory() as scratch:
        return _summary(load(corpus_dirs, Path(scratch), partial=partial, nj=nj))


def prepare(out: Path, *, corpus_dirs: Sequence[Path], partial: bool = False, nj: int = 1) -> str:
    """Writes manifests and text of data folders to `out`.

    Args:
        out: folder of the data: one folder a part; what pipes print goes to `audio`, transcripts to `lm` as well.
        corpus_dirs: the data folders, as DIR or PART=DIR.
        partial: leave out utterances that lack transcript, speaker or recording instead of refusing them.
        nj: recordings that are looked at at once.

    Returns:
        A one-line summary.

    Raises:
        BadInput: all that is wrong, in one message.
    """
    corpus = load(corpus_dirs, out / "audio", partial=partial, nj=nj)
    for part, items in corpus.parts.items():
        write_manifests(out / part, items, corpus.rate, corpus.frames)
        if texts := [item.text.split() for item in items if item.transcribed]:
            write_lines(out / "lm" / f"{part}.txt", texts)
    return _summary(corpus)


def _summary(corpus: Corpus) -> str:
    said = []
    for part, items in corpus.parts.items():
        ends = [corpus.frames[item.audio] / corpus.rate if item.end is None else item.end for item in items]
        seconds = sum(end - item.start for end, item in zip(ends, items, strict=True))
        said.append(describe_part(part, items, seconds))
    return f"{'; '.join(said)}; {corpus.rate} Hz"
