"""A corpus of a few noises with made-up transcripts, as files and as manifests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mpq.data.audio import write_flac
from mpq.data.manifests import Spoken, write_manifests

RATE = 16000
SECONDS = (0.7, 1.9, 1.2, 0.31, 2.4, 0.95, 1.5, 1.1, 0.5, 2.0, 1.31, 0.8)


def make_spoken(folder: Path, seconds: Sequence[float] = SECONDS) -> list[Spoken]:
    """Writes one file of shaped noise for each length; speakers take turns."""
    spoken = []
    for number, length in enumerate(seconds):
        rng = np.random.default_rng(number)
        samples = rng.standard_normal(round(length * RATE)) * 2000 * (1 + number % 3)
        samples = np.convolve(samples, np.ones(1 + number % 4), "same").astype(np.int16)
        path = folder / f"u{number:02d}.flac"
        write_flac(path, samples, RATE)
        spoken.append(Spoken(f"u{number:02d}", f"s{number % 3}", path, f"word{number} and more"))
    return spoken


@pytest.fixture
def spoken(tmp_path: Path) -> list[Spoken]:
    """Twelve utterances of three speakers in ``tmp_path/audio``."""
    return make_spoken(tmp_path / "audio")


@pytest.fixture
def cuts_path(tmp_path: Path, spoken: list[Spoken]) -> Path:
    """Their manifest of cuts."""
    write_manifests(tmp_path / "data", spoken, RATE)
    return tmp_path / "data" / "cuts.jsonl.gz"
