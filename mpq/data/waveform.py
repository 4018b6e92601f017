"""Waveforms in the place of features, for models that read audio: a frame of 10 ms is its 160 samples.

All that takes log-mel features takes these: batches are bounded in frames of 10 ms, lengths are frames, Shar folders
hold them. Nothing is stored but a manifest; samples are read from the audio files when they are needed, and copies at
other speeds are resampled then. An utterance's last frame is rounded: up to 80 zeros are added, or up to 79 samples
lost (5 ms). Registers lhotse's storage type `audio` where this module is imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import Features, MonoCut
from lhotse.augmentation import Speed
from lhotse.features.io import FeaturesReader, register_reader
from lhotse.utils import fastcopy
from numpy.typing import NDArray

from mpq.data.audio import raise_problems
from mpq.data.features import at_speed, audio_problem
from mpq.data.manifests import read_cuts, save_manifest
from mpq.io import PathLike

WAVEFORM = "waveform"  # the type of features in manifests
RATE = 16_000  # Hz; what wav2vec 2.0 and HuBERT were trained on
SAMPLES = 160  # of a frame
_SHIFT = SAMPLES / RATE
_AUDIO = "audio"


@register_reader
class AudioReader(FeaturesReader):  # type: ignore[misc]
    """Reads frames of samples from an audio file; the key is ``CHANNEL,FIRST SAMPLE,SAMPLES,SPEED,FRAMES``."""

    name = _AUDIO

    def __init__(self, storage_path: str, *_args: Any, **_options: Any) -> None:
        super().__init__()
        self._path = storage_path

    def read(
        self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None
    ) -> NDArray[np.float32]:
        """The frames ``(T, SAMPLES)`` from one offset to another, samples between -1 and 1."""
        channel, first, n_samples, speed, n_frames = key.split(",")
        samples, _ = soundfile.read(self._path, int(n_samples), int(first), dtype="float32", always_2d=True)
        if len(samples) != int(n_samples):
            raise ValueError(f"holds {int(first) + len(samples)} samples, expected {int(first) + int(n_samples)}")
        wave = samples[:, int(channel)]
        if float(speed) != 1.0:
            wave = Speed(float(speed))(np.ascontiguousarray(wave)[None], RATE)[0]
        frames = np.zeros((int(n_frames), SAMPLES), dtype=np.float32)
        wave = wave[: frames.size]
        frames.reshape(-1)[: len(wave)] = wave
        return frames[left_offset_frames:right_offset_frames]


def refer_to_audio(cuts_path: PathLike, out: Path, speeds: Iterable[float] = (1.0,), nj: int = 1) -> str:
    """Writes ``out/cuts.jsonl.gz``: the cuts of a manifest, and copies at other speeds, with waveforms as features.

    Args:
        cuts_path: manifest of cuts with one supervision each.
        out: folder of the result.
        speeds: factors of speed perturbation; 1.0 is the recording itself.
        nj: number of files that are checked at a time.

    Returns:
        What was made, for a summary line.

    Raises:
        BadInput: wrong manifest, or all missing and broken audio files of it, and those of another sampling rate, in
            one message.
    """
    cuts = list(read_cuts(cuts_path))
    with ThreadPoolExecutor(nj) as pool:  # libsndfile works outside Python's lock
        problems = [problem for problem in pool.map(partial(audio_problem, rate=RATE), cuts) if problem]
    raise_problems(
        problems, str(cuts_path), f"mend the files named (wav2vec 2.0 and HuBERT read {RATE} Hz: sox IN -r {RATE} OUT)"
    )
    copies = [_copy(cut, speed) for cut in cuts for speed in speeds]
    save_manifest(out / "cuts.jsonl.gz", copies)
    return f"{len(copies)} utterances, {sum(cut.duration for cut in copies) / 3600:.2f} h, waveforms"


def _copy(cut: MonoCut, speed: float) -> MonoCut:
    """One copy of a cut, its features the samples of its audio file."""
    first, n_samples, path = round(cut.start * RATE), cut.num_samples, cut.recording.sources[0].source
    cut = at_speed(cut, speed)
    features = Features(
        type=WAVEFORM, num_frames=0, num_features=SAMPLES, frame_shift=_SHIFT, sampling_rate=RATE,
        start=cut.start, duration=cut.duration, storage_type=_AUDIO, storage_path=path, storage_key="",
        recording_id=cut.recording.id, channels=cut.channel,
    )  # fmt: skip
    cut = fastcopy(cut, features=features)
    features.num_frames = cut.num_frames
    features.storage_key = f"{cut.channel},{first},{n_samples},{speed:g},{cut.num_frames}"
    return cut
