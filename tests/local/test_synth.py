"""What a plan row becomes: levels, noise, and which finished files are kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local.espeak import EspeakClient
from local.synth import Chunk, Utterance, babble, is_done, pink, record, row_hash, synthesize_chunk, white
from mpq.io import BadInput

ROW = Utterance(
    utt="us-m1-01001001",
    texts=("in the beginning god created the heavens and the earth.",),
    voices=("en-us+m1",),
    rate=170,
    pitch=50,
    level=-26.0,
    noise="white",
    snr=15.0,
    lead=0.1,
    tail=0.2,
    seed=(1, 2, 3),
)


def rms_db(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(samples / 32768.0))))


@pytest.fixture(scope="module")
def client():  # type: ignore[no-untyped-def]
    with EspeakClient() as client:
        yield client


@pytest.mark.parametrize("noise", ["white", "pink", "babble"])
def test_level_and_signal_to_noise_ratio(client: EspeakClient, tmp_path: Path, noise: str) -> None:
    track = tmp_path / "babble-0.flac"
    soundfile.write(track, np.random.default_rng(0).standard_normal(40_000) * 0.1, 16000)
    clean = record(client, replace(ROW, noise=""), []).astype(float)
    noisy = record(client, replace(ROW, noise=noise), [track]).astype(float)
    assert len(clean) == len(noisy)
    speech = clean[1600:-3200]
    assert not clean[:1600].any() and not clean[-3200:].any() and np.abs(speech[:200]).any()
    assert rms_db(speech) == pytest.approx(-26, abs=0.05)
    assert rms_db(noisy - clean) == pytest.approx(-26 - 15, abs=0.1)


def test_same_row_same_samples_and_other_seed_other_noise(client: EspeakClient) -> None:
    first = record(client, ROW, [])
    np.testing.assert_array_equal(first, record(client, ROW, []))
    other = record(client, replace(ROW, seed=(1, 2, 4)), [])
    assert len(other) == len(first) and not np.array_equal(first, other)


def test_spectra_of_the_noises() -> None:
    def octaves(samples: np.ndarray) -> list[float]:
        power = np.abs(np.fft.rfft(samples)) ** 2
        edges = len(power) // 64 * np.array([1, 2, 4, 8, 16, 32])
        return [10 * np.log10(power[a:b].mean()) for a, b in pairwise(edges)]

    rng = np.random.default_rng(3)
    assert np.diff(octaves(white(100_001, rng))) == pytest.approx(np.zeros(4), abs=0.6)
    assert np.diff(octaves(pink(100_001, rng))) == pytest.approx(np.full(4, -3.0), abs=0.6)


def test_babble_wraps_around(tmp_path: Path) -> None:
    path = tmp_path / "t.flac"
    soundfile.write(path, np.arange(100, dtype=np.int16), 16000)
    stretch = np.round(babble(250, np.random.default_rng(0), [path]) * 32768).astype(int)
    assert set(np.diff(stretch)) == {1, -99}


def test_a_voice_that_espeak_lacks_names_the_utterance(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"utterance us-m1-01001001: espeak has no voice 'xx'"):
        synthesize_chunk(Chunk(tmp_path, (replace(ROW, voices=("xx",)),)))
    assert list(tmp_path.iterdir()) == []


def test_only_complete_files_of_the_same_row_are_kept(tmp_path: Path) -> None:
    other = replace(ROW, utt="us-m1-01001002", texts=("let there be light, and there was light.",))
    chunk = Chunk(tmp_path, (ROW, other))
    assert synthesize_chunk(chunk) == 2
    paths = [tmp_path / f"{row.utt}.flac" for row in chunk.rows]
    first = [path.read_bytes() for path in paths]
    assert synthesize_chunk(chunk) == 0
    paths[0].write_bytes(first[0][:-3000])  # cut short
    assert not is_done(paths[0], ROW)
    paths[1].unlink()
    assert synthesize_chunk(chunk) == 2
    assert [path.read_bytes() for path in paths] == first
    louder = replace(ROW, level=-20.0)
    assert row_hash(louder) != row_hash(ROW) and not is_done(paths[0], louder)
    assert synthesize_chunk(Chunk(tmp_path, (louder, other))) == 1
    paths[0].write_text("not audio")
    assert not is_done(paths[0], ROW)
