"""lhotse manifests of one part of a corpus (train, dev or test), made and read with every check at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.serialization import deserialize_item

from mpq.data.audio import inspect_audio, raise_problems
from mpq.io import BadInput, PathLike, atomic_write, read_jsonl, write_jsonl, write_text

_ADVICE = "mend or remove the files named and run again"


@dataclass(frozen=True, slots=True)
class Spoken:
    """One utterance of a corpus: its id, speaker, audio file (one utterance a file) and normalized text."""

    utt: str
    speaker: str
    audio: Path
    text: str


def write_manifests(directory: Path, utterances: Sequence[Spoken], rate: int) -> CutSet:
    """Writes ``recordings``, ``supervisions``, ``cuts`` (.jsonl.gz) and Kaldi ``text``, sorted by utterance.

    Args:
        directory: folder of one part of the corpus.
        utterances: what it holds.
        rate: sampling rate in Hz that every file must have.

    Returns:
        The cuts that were written.

    Raises:
        BadInput: all that is wrong with ids, transcripts and audio files, in one message.
    """
    raise_problems(find_problems(utterances, rate), str(directory), _ADVICE)
    if not utterances:
        raise BadInput(f"{directory}: no utterances; check the folder of the corpus")
    ordered = sorted(utterances, key=lambda item: item.utt)
    cuts = [_cut(item, inspect_audio(item.audio, rate), rate) for item in ordered]
    save_manifest(directory / "recordings.jsonl.gz", [cut.recording for cut in cuts])
    save_manifest(directory / "supervisions.jsonl.gz", [cut.supervisions[0] for cut in cuts])
    write_text(directory / "text", {cut.id: cut.supervisions[0].text.split() for cut in cuts})
    save_manifest(directory / "cuts.jsonl.gz", cuts)
    return CutSet.from_cuts(cuts)


def find_problems(utterances: Sequence[Spoken], rate: int) -> list[str]:
    """All that is wrong with ids, transcripts and audio files, one clause each."""
    problems = []
    seen: set[str] = set()
    for item in utterances:
        if item.utt in seen:
            problems.append(f"utterance {item.utt}: the id is given twice")
        seen.add(item.utt)
        if not item.text.split():
            problems.append(f"utterance {item.utt}: empty transcript")
        try:
            inspect_audio(item.audio, rate)
        except BadInput as problem:
            problems.append(f"utterance {item.utt}: {item.audio}: {problem}")
    return problems


def _cut(item: Spoken, frames: int, rate: int) -> MonoCut:
    """A cut that spans one whole file."""
    source = AudioSource(type="file", channels=[0], source=str(item.audio.resolve()))
    duration = frames / rate
    recording = Recording(id=item.utt, sources=[source], sampling_rate=rate, num_samples=frames, duration=duration)
    segment = SupervisionSegment(
        id=item.utt,
        recording_id=item.utt,
        start=0.0,
        duration=duration,
        channel=0,
        text=" ".join(item.text.split()),
        speaker=item.speaker,
    )
    return MonoCut(item.utt, 0.0, duration, 0, supervisions=[segment], recording=recording)


def save_manifest(path: Path, items: Iterable[Any]) -> None:
    """Writes lhotse items one a line, atomically; lhotse itself would leave a time stamp in the gzip file."""
    write_jsonl(path, (item.to_dict() for item in items))


def write_lines(path: Path, sentences: Iterable[Sequence[str]]) -> None:
    """Writes one sentence (words) a line."""
    with atomic_write(path) as file:
        for words in sentences:
            file.write(" ".join(words) + "\n")


def read_cuts(path: PathLike) -> CutSet:
    """Reads a manifest of cuts, each with one supervision that has text.

    Raises:
        BadInput: a broken file or line, cuts without a single supervision, empty transcripts, an id given
            twice.
    """
    problems = []
    cuts = []
    seen = set()
    for number, row in read_jsonl(path):
        try:
            cut = deserialize_item(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{path}:{number}: not a lhotse cut ({type(error).__name__}: {error})") from None
        if not isinstance(cut, MonoCut):
            raise BadInput(f"{path}:{number}: a {type(cut).__name__}; expected a lhotse MonoCut")
        if len(cut.supervisions) != 1:
            problems.append(f"utterance {cut.id}: has {len(cut.supervisions)} supervisions, expected 1")
        elif not (cut.supervisions[0].text or "").split():
            problems.append(f"utterance {cut.id}: empty transcript")
        if cut.id in seen:
            problems.append(f"utterance {cut.id}: the id is given twice")
        seen.add(cut.id)
        cuts.append(cut)
    raise_problems(problems, str(path), "mend the manifest and run again")
    if not cuts:
        raise BadInput(f"{path}: holds no cuts")
    return CutSet.from_cuts(cuts)
