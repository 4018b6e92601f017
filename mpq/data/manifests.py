"""lhotse manifests of one part of a corpus (train, dev or test), made and read with every check at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from mpq.data.audio import inspect_audio, raise_problems
from mpq.io import BadInput, PathLike, atomic_write, read_jsonl, split_words, write_jsonl, write_text

_ADVICE = "mend or remove the files named and run again"


@dataclass(frozen=True, slots=True)
class Spoken:
    """One utterance of a corpus: a whole file, or a segment of one channel of a longer file.

    Attributes:
        utt: utterance id.
        speaker: speaker id; empty where nobody knows.
        audio: the file.
        text: normalized words.
        recording: id of the file's recording; empty where the file is this utterance and has its id.
        start: where the utterance begins, in seconds.
        end: where it ends; None for the end of the file.
        channel: its channel in the file, from 0.
        channels: how many channels the file has.
        transcribed: whether the words are known; if not, the utterance can only be decoded.
    """

    utt: str
    speaker: str
    audio: Path
    text: str
    recording: str = ""
    start: float = 0.0
    end: float | None = None
    channel: int = 0
    channels: int = 1
    transcribed: bool = True


def write_manifests(
    directory: Path, utterances: Sequence[Spoken], rate: int, frames: Mapping[Path, int] | None = None
) -> CutSet:
    """Writes ``recordings``, ``supervisions``, ``cuts`` (.jsonl.gz) and, if known, Kaldi ``text``, sorted by utterance.

    Args:
        directory: folder of one part of the corpus.
        utterances: what it holds.
        rate: sampling rate in Hz that every file must have.
        frames: samples of each file as `measure_audio` gave them; None has them measured here.

    Returns:
        The cuts that were written.

    Raises:
        BadInput: all that is wrong with ids, transcripts and audio files, in one message.
    """
    problems: list[str] = []
    if frames is None:
        frames, problems = measure_audio(utterances, rate)
    problems += _find_text_problems(utterances) + _find_time_problems(utterances, frames, rate)
    raise_problems(problems, str(directory), _ADVICE)
    if not utterances:
        raise BadInput(f"{directory}: no utterances; check the folder of the corpus")
    ordered = sorted(utterances, key=lambda item: item.utt)
    recordings: dict[str, Recording] = {}
    for item in ordered:
        name = item.recording or item.utt
        if name not in recordings:
            recordings[name] = _recording(name, item, frames[item.audio], rate)
    cuts = [_cut(item, recordings[item.recording or item.utt]) for item in ordered]
    save_manifest(directory / "recordings.jsonl.gz", (recordings[name] for name in sorted(recordings)))
    save_manifest(directory / "supervisions.jsonl.gz", map(_supervision, cuts))
    if texts := {item.utt: split_words(item.text) for item in ordered if item.transcribed}:
        write_text(directory / "text", texts)
    save_manifest(directory / "cuts.jsonl.gz", cuts)
    return CutSet.from_cuts(cuts)


def describe_part(name: str, utterances: Sequence[Spoken], seconds: float) -> str:
    """Size of a part of a corpus, for a summary line."""
    texts, speakers = [item.text for item in utterances if item.transcribed], {item.speaker for item in utterances}
    words = f"{sum(len(split_words(text)) for text in texts)} words" if texts else "no transcripts"
    return f"{name} {len(utterances)} utterances, {seconds / 3600:.2f} h, {words}, {len(speakers - {''})} speakers"


def measure_audio(utterances: Iterable[Spoken], rate: int, nj: int = 1) -> tuple[dict[Path, int], list[str]]:
    """Opens every file once, `nj` at a time.

    Returns:
        The number of samples of each good file, and one clause for each other.
    """
    firsts: dict[Path, Spoken] = {}
    for item in utterances:
        firsts.setdefault(item.audio, item)

    def inspect(item: Spoken) -> int | str:
        try:
            return inspect_audio(item.audio, rate, item.channels)
        except BadInput as problem:
            what = f"recording {item.recording}" if item.recording else f"utterance {item.utt}"
            return f"{what}: {item.audio}: {problem}"

    with ThreadPoolExecutor(nj) as pool:  # libsndfile works outside Python's lock
        found = dict(zip(firsts, pool.map(inspect, firsts.values()), strict=True))
    frames = {path: result for path, result in found.items() if isinstance(result, int)}
    return frames, [result for result in found.values() if isinstance(result, str)]


def find_problems(utterances: Sequence[Spoken], rate: int) -> list[str]:
    """All that is wrong with ids, transcripts and audio files, one clause each."""
    return _find_text_problems(utterances) + measure_audio(utterances, rate)[1]


def _find_text_problems(utterances: Iterable[Spoken]) -> list[str]:
    problems = []
    seen: set[str] = set()
    for item in utterances:
        if item.utt in seen:
            problems.append(f"utterance {item.utt}: the id is given twice")
        seen.add(item.utt)
        if item.transcribed and not item.text.split():
            problems.append(f"utterance {item.utt}: empty transcript")
    return problems


def _find_time_problems(utterances: Iterable[Spoken], frames: Mapping[Path, int], rate: int) -> list[str]:
    problems = []
    for item in utterances:
        length = frames.get(item.audio, 0) / rate
        end = length if item.end is None else item.end
        if length and not 0 <= item.start < end <= length:
            problems.append(
                f"utterance {item.utt}: from {item.start:g} to {end:g} s, but {item.audio} lasts {length:.3f} s"
            )
    return problems


def _recording(name: str, item: Spoken, frames: int, rate: int) -> Recording:
    source = AudioSource(type="file", channels=list(range(item.channels)), source=str(item.audio.resolve()))
    return Recording(id=name, sources=[source], sampling_rate=rate, num_samples=frames, duration=frames / rate)


def _cut(item: Spoken, recording: Recording) -> MonoCut:
    """A cut that spans the utterance, which is the whole file or a segment of it."""
    end = recording.duration if item.end is None else item.end
    duration = end - item.start if item.start == 0 else round(end - item.start, ndigits=8)
    segment = SupervisionSegment(
        id=item.utt,
        recording_id=recording.id,
        start=0.0,
        duration=duration,
        channel=item.channel,
        text=" ".join(split_words(item.text)) if item.transcribed else None,
        speaker=item.speaker or None,
    )
    return MonoCut(item.utt, item.start, duration, item.channel, supervisions=[segment], recording=recording)


def _supervision(cut: MonoCut) -> SupervisionSegment:
    """The supervision in the time of its recording (in a cut, time begins with the cut)."""
    return fastcopy(cut.supervisions[0], start=cut.start)


def save_manifest(path: Path, items: Iterable[Any]) -> None:
    """Writes lhotse items one a line, atomically; lhotse itself would leave a time stamp in the gzip file."""
    write_jsonl(path, (item.to_dict() for item in items))


def write_lines(path: Path, sentences: Iterable[Sequence[str]]) -> None:
    """Writes one sentence (words) a line."""
    with atomic_write(path) as file:
        for words in sentences:
            file.write(" ".join(words) + "\n")


def find_parts(folder: Path) -> list[Path]:
    """Manifests of the parts of a corpus, train first where there is one.

    Raises:
        BadInput: there is none.
    """
    paths = sorted(folder.glob("*/cuts.jsonl.gz"), key=lambda path: (path.parent.name != "train", path))
    if not paths:
        raise BadInput(
            f"{folder}: holds no PART/cuts.jsonl.gz; give the folder that `mpq prepare` or `mpq features` wrote"
        )
    return paths


def read_cuts(path: PathLike) -> CutSet:
    """Reads a manifest of cuts, each with one supervision; its text is None where nobody transcribed it.

    Raises:
        BadInput: a broken file or line, cuts without a single supervision, empty transcripts, an id given
            twice.
    """
    problems = []
    cuts = []
    seen = set()
    for number, row in read_jsonl(path, "a manifest of cuts, as mpq prepare and mpq features write them"):
        try:
            cut = deserialize_item(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{path}:{number}: not a lhotse cut ({type(error).__name__}: {error})") from None
        if not isinstance(cut, MonoCut):
            raise BadInput(f"{path}:{number}: a {type(cut).__name__}; expected a lhotse MonoCut")
        if len(cut.supervisions) != 1:
            problems.append(f"utterance {cut.id}: has {len(cut.supervisions)} supervisions, expected 1")
        elif cut.supervisions[0].text is not None and not cut.supervisions[0].text.split():
            problems.append(f"utterance {cut.id}: empty transcript")
        if cut.id in seen:
            problems.append(f"utterance {cut.id}: the id is given twice")
        seen.add(cut.id)
        cuts.append(cut)
    raise_problems(problems, str(path), "mend the manifest and run again")
    if not cuts:
        raise BadInput(f"{path}: holds no cuts")
    return CutSet.from_cuts(cuts)
