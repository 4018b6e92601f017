"""What is wrong with an audio file, for each way in which one can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mpq.data.audio import inspect_audio, raise_problems, write_flac
from mpq.io import BadInput

SAMPLES = (np.sin(np.arange(8000) / 9) * 9000).astype(np.int16)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_counts_samples(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, SAMPLES, 16000, subtype="PCM_16")
    assert inspect_audio(path, 16000) == 8000


@pytest.mark.parametrize("keep", [0, 10, 43, 44 + 7000, 0.5, 0.97])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    soundfile.write(path, (rng.standard_normal(9000) * 8000).astype(np.int16), 16000, subtype="PCM_16")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(BadInput, match=r"truncated|not readable|holds no samples"):
        inspect_audio(path, 16000)


def test_wav_written_by_a_stream_is_accepted(tmp_path: Path) -> None:
    """A program that cannot seek leaves 0xFFFFFFFF as the length."""
    path = tmp_path / "a.wav"
    soundfile.write(path, SAMPLES, 16000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert inspect_audio(path, 16000) == 8000


def test_wrong_rate_channels_empty_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with pytest.raises(BadInput, match="no such file"):
        inspect_audio(path, 16000)
    soundfile.write(path, SAMPLES, 8000)
    with pytest.raises(BadInput, match="sampled at 8000 Hz, expected 16000"):
        inspect_audio(path, 16000)
    soundfile.write(path, np.stack([SAMPLES, SAMPLES], 1), 16000)
    with pytest.raises(BadInput, match="2 channels, expected 1"):
        inspect_audio(path, 16000)
    soundfile.write(path, SAMPLES[:0], 16000)
    with pytest.raises(BadInput, match="holds no samples"):
        inspect_audio(path, 16000)
    path.write_text("not audio at all")
    with pytest.raises(BadInput, match="not readable as audio"):
        inspect_audio(path, 16000)


def test_flac_is_exact_and_reproducible(tmp_path: Path) -> None:
    write_flac(tmp_path / "a.flac", SAMPLES, 16000, "a comment")
    write_flac(tmp_path / "b.flac", SAMPLES, 16000, "a comment")
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()
    samples, rate = soundfile.read(tmp_path / "a.flac", dtype="int16")
    assert rate == 16000
    np.testing.assert_array_equal(samples, SAMPLES)
    with soundfile.SoundFile(tmp_path / "a.flac") as file:
        assert file.comment == "a comment"


def test_problems_are_told_together() -> None:
    raise_problems([], "x", "y")
    with pytest.raises(BadInput, match=r"^corpus: 1 problem: a; mend it$"):
        raise_problems(["a"], "corpus", "mend it")
    with pytest.raises(BadInput, match=r"^corpus: 7 problems: 0; 1; 2; 3; 4; and 2 more; mend it$"):
        raise_problems([str(number) for number in range(7)], "corpus", "mend it")
