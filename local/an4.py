"""an4: CMU's AN4 (census) corpus, read from --corpus-dir as FLAC, WAV, NIST SPHERE or raw files.

All distributions share one layout: ``etc/an4_{train,test}.{fileids,transcription}`` and the audio in
``wav/<fileid>.<suffix>``: FLAC and WAV files are used where they lie, SPHERE (``an4_sphere``) and headerless
files (``an4_raw``, of either byte order) are written as FLAC to ``OUT/audio``. CMU gives training and test
only; dev is eight whole training speakers, so that nothing is ever tuned on test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from mpq.data.audio import raise_problems, write_flac
from mpq.data.manifests import Spoken, find_problems, write_lines, write_manifests
from mpq.data.sphere import read_sphere
from mpq.io import BadInput, progress, read_lines

RATE = 16000
SIZES = {"train": 948, "test": 130}  # utterances of CMU's lists
TEST_WORDS = 773
DEV_SPEAKERS = frozenset({"fjam", "fplp", "mblw", "mcsc", "mewl", "mjhp", "mmsh", "mtos"})
_SUFFIXES = ("flac", "wav", "sph", "raw")
_SMOKE_STEP = 6
_TRANSCRIPT = re.compile(r"^(?:<s>)?(?P<words>.*?)(?:</s>)?\s*\((?P<utt>[^()\s]+)\)$")


@dataclass(frozen=True, slots=True)
class Recording:
    """One line of a list: the corpus' own id, the speaker, the file as found (or None) and the words."""

    name: str
    speaker: str
    file: Path | None
    words: str

    @property
    def utt(self) -> str:
        """Utterance id with the speaker first, so that sorting by utterance sorts by speaker (Kaldi's rule)."""
        return f"{self.speaker}-{self.name}"


def find_root(corpus_dir: Path | None) -> Path:
    """The folder that holds ``etc`` and ``wav``: `corpus_dir` or ``corpus_dir/an4``."""
    if corpus_dir is None:
        raise BadInput("an4: no --corpus-dir; give the folder of AN4 (it holds etc and wav)")
    if corpus_dir.is_file():
        raise BadInput(f"--corpus-dir {corpus_dir}: is a file; unpack it (tar -xf) and give the folder an4")
    for root in (corpus_dir, corpus_dir / "an4"):
        if (root / "etc" / "an4_train.fileids").is_file():
            return root
    what = "has no etc/an4_train.fileids" if corpus_dir.is_dir() else "no such folder"
    raise BadInput(f"--corpus-dir {corpus_dir}: {what}; give the folder of AN4 (it holds etc and wav)")


def read_transcripts(path: Path, problems: list[str]) -> dict[str, str]:
    """Reads ``<s> WORDS </s> (utterance)`` lines, lower-cased; what is wrong is added to `problems`."""
    transcripts: dict[str, str] = {}
    for number, line in read_lines(path):
        match = _TRANSCRIPT.match(line.strip())
        if match is None:
            problems.append(f"{path}:{number}: expected 'WORDS (utterance)', found {line[:40]!r}")
        elif match["utt"] in transcripts:
            problems.append(f"{path}:{number}: utterance {match['utt']} is given twice")
        else:
            transcripts[match["utt"]] = " ".join(match["words"].lower().split())
    return transcripts


def read_list(root: Path, part: str, problems: list[str]) -> list[Recording]:
    """Joins the file list and the transcripts of CMU's `part` ("train" or "test")."""
    fileids = root / "etc" / f"an4_{part}.fileids"
    transcription = root / "etc" / f"an4_{part}.transcription"
    transcripts = read_transcripts(transcription, problems)
    recordings = []
    for number, line in read_lines(fileids):
        path = Path(line.strip())
        if len(path.parts) < 2:
            problems.append(f"{fileids}:{number}: expected 'folder/speaker/utterance', found {line[:40]!r}")
            continue
        words = transcripts.pop(path.name, None)
        if words is None:
            problems.append(f"{fileids}:{number}: utterance {path.name} has no line in {transcription.name}")
        elif not words:
            problems.append(f"{transcription}: utterance {path.name}: empty transcript")
        file = _find_audio(root / "wav" / path)
        if file is None:
            wanted = root / "wav" / f"{path}.{{{','.join(_SUFFIXES)}}}"
            problems.append(f"utterance {path.name}: {wanted}: no such file")
        recordings.append(Recording(path.name, path.parent.name, file, words or ""))
    problems += [f"{transcription}: utterance {utt} is not in {fileids.name}" for utt in transcripts]
    return recordings


def _find_audio(stem: Path) -> Path | None:
    """The audio file of a file id, whatever its suffix."""
    names = (stem.with_name(f"{stem.name}.{suffix}") for suffix in _SUFFIXES)
    return next((name for name in names if name.is_file()), None)


def read_raw(path: Path) -> NDArray[np.int16]:
    """Headerless 16-bit samples in the byte order that makes the smoother signal (CMU ships both).

    Raises:
        BadInput: an odd number of bytes, or none.
    """
    data = path.read_bytes()
    if not data:
        raise BadInput("holds no samples")
    if len(data) % 2:
        raise BadInput(f"truncated: {len(data)} bytes, expected 2 for each sample")
    orders = [np.frombuffer(data, dtype=code).astype(np.int16) for code in ("<i2", ">i2")]
    return min(orders, key=lambda samples: float(np.abs(np.diff(samples.astype(np.int32))).sum()))


def _usable_file(recording: Recording, out: Path, problems: list[str]) -> Path | None:
    """The file of a recording as lhotse reads it, written as FLAC where it needs to be."""
    file = recording.file
    if file is None or file.suffix in (".flac", ".wav"):
        return file
    target = out / "audio" / f"{recording.utt}.flac"
    try:
        samples, rate = (read_raw(file), RATE) if file.suffix == ".raw" else read_sphere(file)
    except BadInput as problem:
        problems.append(f"utterance {recording.name}: {file}: {problem}")
        return None
    write_flac(target, samples, rate)
    return target


def _check_sizes(parts: dict[str, list[Recording]], root: Path, problems: list[str]) -> None:
    """Adds a problem for each list that is not of the size that CMU distributes."""
    for part, expected in SIZES.items():
        if len(parts[part]) != expected:
            found = len(parts[part])
            problems.append(f"{root}/etc/an4_{part}.fileids: {found} utterances, expected {expected}")
    words = sum(len(recording.words.split()) for recording in parts["test"])
    if words != TEST_WORDS:
        problems.append(f"{root}/etc/an4_test.transcription: {words} words, expected {TEST_WORDS}")


def check(*, corpus_dir: Path | None = None, smoke: bool = False) -> str:
    """Checks the corpus by doing all that `prepare` does in a folder that is removed again; returns its summary.

    Raises:
        BadInput: all that is missing, broken, empty or unmatched, in one message.
    """
    with TemporaryDirectory() as scratch:
        return prepare(Path(scratch), corpus_dir=corpus_dir, smoke=smoke)


def prepare(out: Path, *, corpus_dir: Path | None = None, smoke: bool = False, nj: int = 1, seed: int = 0) -> str:
    """Writes manifests and text of AN4 to `out`.

    Args:
        out: folder of the data.
        corpus_dir: folder of AN4.
        smoke: every sixth utterance only, and no check of the counts.
        nj: not needed, reading takes seconds; every corpus takes the same options.
        seed: not needed, nothing is drawn at random.

    Returns:
        A one-line summary.

    Raises:
        BadInput: all that is missing, broken, empty or unmatched, in one message.
    """
    root = find_root(corpus_dir)
    problems: list[str] = []
    parts = {part: read_list(root, part, problems) for part in SIZES}
    if smoke:
        parts = {part: recordings[::_SMOKE_STEP] for part, recordings in parts.items()}
    else:
        _check_sizes(parts, root, problems)
    spoken: dict[str, list[Spoken]] = {"train": [], "dev": [], "test": []}
    everything = [(part, recording) for part, recordings in parts.items() for recording in recordings]
    for part, recording in progress(everything, what="audio files"):
        file = _usable_file(recording, out, problems)
        if file is not None and recording.words:
            held_out = part == "train" and recording.speaker in DEV_SPEAKERS
            item = Spoken(recording.utt, recording.speaker, file, recording.words)
            spoken["dev" if held_out else part].append(item)
    problems += find_problems([item for items in spoken.values() for item in items], RATE)
    raise_problems(problems, str(root), "fetch AN4 again or mend the files named, then run this again")
    return _write(out, spoken)


def _write(out: Path, spoken: dict[str, list[Spoken]]) -> str:
    """Writes manifests and LM text of all parts and returns the summary."""
    said = []
    for part, items in spoken.items():
        cuts = write_manifests(out / part, items, RATE)
        texts = sorted((item.utt, item.text.split()) for item in items)
        write_lines(out / "lm" / f"{part}.txt", [words for _, words in texts])
        minutes = sum(cut.duration for cut in cuts) / 60
        words = sum(len(words) for _, words in texts)
        speakers = len({item.speaker for item in items})
        said.append(f"{part} {len(items)} utterances, {minutes:.1f} min, {words} words, {speakers} speakers")
    return "; ".join(said)
