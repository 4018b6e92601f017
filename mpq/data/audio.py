"""Checks of recorded audio: is the file there, whole, and what the recipe expects?"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from mpq.io import BadInput, atomic_write

_SHOWN = 5


def inspect_audio(path: Path, rate: int, channels: int = 1) -> int:
    """Reads the header of a file and tries its last sample.

    Args:
        path: WAV, FLAC or another format of libsndfile.
        rate: expected sampling rate in Hz.
        channels: expected number of channels.

    Returns:
        Number of samples of each channel.

    Raises:
        BadInput: missing, unreadable, without samples, truncated, at another rate, or with another number
            of channels; the message has no file name, the caller adds it together with the utterance.
    """
    if not path.is_file():
        raise BadInput("no such file")
    try:
        with soundfile.SoundFile(path) as file:
            frames, found, found_channels = int(file.frames), file.samplerate, file.channels
            if frames > 0:
                file.seek(frames - 1)
                if len(file.read(1)) != 1:
                    raise BadInput(f"truncated: its header promises {frames} samples")
    except (OSError, RuntimeError) as error:
        raise BadInput(f"not readable as audio ({str(error).rpartition(': ')[2].strip()})") from None
    if frames == 0:
        raise BadInput("holds no samples")
    if found != rate:
        raise BadInput(f"sampled at {found} Hz, expected {rate}")
    if found_channels != channels:
        raise BadInput(f"has {found_channels} channels, expected {channels}")
    missing = _missing_wav_bytes(path)
    if missing > 0:
        raise BadInput(f"truncated: its header promises {missing} more bytes")
    return frames


def _missing_wav_bytes(path: Path) -> int:
    """How many bytes of a RIFF data chunk are not there; libsndfile reads such a file as a shorter one."""
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                # 0xFFFFFFFF and 0 are what a program writes that streams and does not know the length
                return 0 if size in (0, 0xFFFFFFFF) else size - (path.stat().st_size - file.tell())
            file.seek(size + size % 2, 1)
    return 0


def write_flac(path: Path, samples: NDArray[np.int16], rate: int, comment: str = "") -> None:
    """Writes samples (T,) or (T, C) as 16-bit FLAC, atomically; the same samples and comment give the same bytes."""
    encoded = io.BytesIO()  # libsndfile would not say that a disk is full
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(encoded, "w", rate, channels, "PCM_16", format="FLAC") as file:
        if comment:
            file.comment = comment
        file.write(samples)
    with atomic_write(path, "wb") as target:
        target.write(encoded.getvalue())


def raise_problems(problems: Sequence[str], what: str, advice: str) -> None:
    """Raises one `BadInput` for all `problems` of `what`, showing the first few; nothing if it is empty."""
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise BadInput(f"{what}: {count}: {shown}{more}; {advice}")
