"""From a line of a plan to a 16 kHz FLAC file: espeak, resampling, level, noise.

Every file depends on its plan row alone, which it carries (hashed) in its FLAC comment: a second run keeps
exactly the files that are complete and would come out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from local.espeak import SAMPLE_RATE, EspeakClient, EspeakError
from mpq.data.audio import write_flac
from mpq.io import BadInput, hash_config

RATE = 16000
NOISES = ("white", "pink", "babble")
_VERSION = 1  # raise it when the same row is to give other samples
_FULL_SCALE = 32768.0


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row of the plan: what is said by which voice, and how it is recorded.

    Attributes:
        utt: utterance id, the name of the file.
        texts: what is spoken, by each of `voices` at once (babble has several, speech has one).
        voices: espeak voices.
        rate: words a minute.
        pitch: espeak's pitch, 50 is the voice's own.
        level: root mean square of the speech in dB below full scale, negative.
        noise: one of `NOISES`, or empty for none.
        snr: speech-to-noise ratio in dB.
        lead: seconds of noise alone before the speech.
        tail: seconds of noise alone after the speech.
        seed: seeds the noise.
    """

    utt: str
    texts: tuple[str, ...]
    voices: tuple[str, ...]
    rate: int
    pitch: int
    level: float
    noise: str = ""
    snr: float = 0.0
    lead: float = 0.0
    tail: float = 0.0
    seed: tuple[int, ...] = ()


def _scale(samples: NDArray[np.float32], level: float) -> NDArray[np.float32]:
    """Scales to a root mean square of `level` dB below full scale."""
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    return np.asarray(samples * (10 ** (level / 20) / max(rms, 1e-9)), np.float32)


def white(length: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Gaussian noise, flat spectrum, `length` samples."""
    return rng.standard_normal(length, dtype=np.float32)


def pink(length: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Gaussian noise whose power falls as 1/f, `length` samples."""
    size = 1 << (length - 1).bit_length()  # a power of two: an FFT of a long prime length is slow
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum, size)[:length].astype(np.float32)


@lru_cache(maxsize=16)
def _babble_track(path: str) -> NDArray[np.float32]:
    return np.asarray(soundfile.read(path, dtype="float32")[0])


def babble(length: int, rng: np.random.Generator, tracks: Sequence[Path]) -> NDArray[np.float32]:
    """A random stretch of a random one of the babble `tracks`, wrapped around at its end."""
    track = _babble_track(str(tracks[int(rng.integers(len(tracks)))]))
    return np.take(track, np.arange(length) + rng.integers(len(track)), mode="wrap")


def _speak(client: EspeakClient, row: Utterance) -> NDArray[np.float32]:
    """Speech of a row at 16 kHz, each voice at unit power; several voices are cut to the shortest."""
    parts = []
    for voice, text in zip(row.voices, row.texts, strict=True):
        data = client.speak({"voice": voice, "rate": row.rate, "pitch": row.pitch, "text": text})
        samples = np.frombuffer(data, dtype="<i2").astype(np.float32)
        parts.append(_scale(resample_poly(samples, RATE // 50, SAMPLE_RATE // 50).astype(np.float32), 0.0))
    shortest = min(map(len, parts))
    return np.asarray(np.sum([part[:shortest] for part in parts], axis=0), dtype=np.float32)


def record(client: EspeakClient, row: Utterance, tracks: Sequence[Path]) -> NDArray[np.int16]:
    """Makes the samples of a row: speech at its level, edges, noise at its signal-to-noise ratio."""
    edges = (round(row.lead * RATE), round(row.tail * RATE))
    samples = np.pad(_scale(_speak(client, row), row.level), edges)
    if row.noise:
        rng = np.random.default_rng(row.seed)
        length = len(samples)
        noise = (
            babble(length, rng, tracks) if row.noise == "babble"
            else pink(length, rng) if row.noise == "pink"
            else white(length, rng)
        )  # fmt: skip
        samples = samples + _scale(noise, row.level - row.snr)
    peak = _FULL_SCALE - 1
    return np.clip(np.round(samples * _FULL_SCALE), -peak, peak).astype(np.int16)


def row_hash(row: Utterance) -> str:
    """What a finished file of this row carries in its comment."""
    return hash_config({"version": _VERSION, "row": asdict(row)})


def is_done(path: Path, row: Utterance) -> bool:
    """Whether `path` is the file of this very row (by its comment) and complete (by its last sample)."""
    try:
        with soundfile.SoundFile(path) as file:
            if file.comment != row_hash(row) or file.frames == 0:
                return False
            file.seek(file.frames - 1)
            return len(file.read(1)) == 1
    except (OSError, RuntimeError):  # no such file, or libsndfile cannot read it
        return False


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows for one worker call: files go to ``directory/<utt>.flac``; `tracks` are the babble files."""

    directory: Path
    rows: tuple[Utterance, ...]
    tracks: tuple[Path, ...] = ()


def synthesize_chunk(chunk: Chunk) -> int:
    """Makes the missing files of a chunk and returns how many were made."""
    todo = [row for row in chunk.rows if not is_done(chunk.directory / f"{row.utt}.flac", row)]
    if todo:
        with EspeakClient() as client:
            for row in todo:
                try:
                    samples = record(client, row, chunk.tracks)
                except EspeakError as error:
                    raise BadInput(f"utterance {row.utt}: {error}; check the espeakng-loader package") from None
                write_flac(chunk.directory / f"{row.utt}.flac", samples, RATE, row_hash(row))
    return len(todo)
