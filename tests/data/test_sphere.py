"""SPHERE files of every coding against the samples that went in, and what is wrong with broken ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mpq.data.sphere import inspect_sphere, read_sphere, read_sphere_channels
from mpq.io import BadInput
from tests.corpora.sphere import sphere

SAMPLES = (np.sin(np.arange(8000) / 9) * 9000).astype(np.int16)
TWO = np.stack([SAMPLES[:3000], SAMPLES[5000:] // 7], axis=1)
SHORTEN = "ulaw,embedded-shorten-v2.00"


@pytest.mark.parametrize("order", [">", "<"])
def test_both_byte_orders(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.sph"
    path.write_bytes(sphere(SAMPLES, 16000, "pcm", order))
    samples, rate = read_sphere(path)
    assert rate == 16000
    np.testing.assert_array_equal(samples, SAMPLES)


@pytest.mark.parametrize("coding", ["pcm", "ulaw", SHORTEN])
def test_two_channels_keep_their_places(tmp_path: Path, coding: str) -> None:
    path = tmp_path / "a.sph"
    path.write_bytes(sphere(TWO, 8000, coding))
    assert inspect_sphere(path, 8000, 2) == 3000
    samples, rate = read_sphere_channels(path)
    assert rate == 8000 and samples.shape == (3000, 2)
    np.testing.assert_allclose(samples, TWO, atol=0 if coding == "pcm" else 300)  # mu-law has 8 bits
    with pytest.raises(BadInput, match="has 2 channels, expected 1"):
        read_sphere(path)


def test_shorten_is_lossless_and_sph2pipe_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, plain = tmp_path / "packed.sph", tmp_path / "plain.sph"
    packed.write_bytes(sphere(TWO, 8000, SHORTEN))
    plain.write_bytes(sphere(TWO, 8000, "ulaw"))
    assert packed.stat().st_size < plain.stat().st_size
    np.testing.assert_array_equal(read_sphere_channels(packed)[0], read_sphere_channels(plain)[0])

    program = tmp_path / "bin" / "sph2pipe"
    program.parent.mkdir()
    code = "import desphere, sys; sys.stdout.buffer.write(desphere.transcode_bytes(open(sys.argv[-1], 'rb').read()))"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\nexec {sys.executable} -c "{code}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    np.testing.assert_array_equal(read_sphere_channels(packed)[0], read_sphere_channels(plain)[0])
    assert (tmp_path / "called").read_text() == f"-f wav -p {packed}\n"
    program.write_text("#!/bin/sh\necho cannot open it >&2\nexit 1\n")
    with pytest.raises(BadInput, match="sph2pipe cannot read it: cannot open it"):
        read_sphere_channels(packed)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda good: b"", "not readable as NIST SPHERE"),
        (lambda good: good[:500], "not readable as NIST SPHERE"),
        (lambda good: b"RIFF" + good[4:], "not readable as NIST SPHERE"),
        (lambda good: good[:-100], "truncated: its header promises 17024 bytes, there are 16924"),
        (lambda good: sphere(SAMPLES, 16000, "pcm,mystery"), "not readable as NIST SPHERE"),
        (lambda good: sphere(SAMPLES[:0], 16000), "holds no samples"),
        (lambda good: sphere(SAMPLES, 16000, SHORTEN)[:3000], "not readable as NIST SPHERE"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a.sph"
    path.write_bytes(damage(sphere(SAMPLES, 16000)))
    with pytest.raises(BadInput, match=message):
        read_sphere(path)


def test_another_kind_of_recording_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.sph"
    with pytest.raises(BadInput, match="no such file"):
        inspect_sphere(path, 8000, 2)
    path.write_bytes(sphere(SAMPLES, 16000))
    with pytest.raises(BadInput, match="sampled at 16000 Hz, expected 8000"):
        inspect_sphere(path, 8000, 1)
    with pytest.raises(BadInput, match="has 1 channels, expected 2"):
        inspect_sphere(path, 16000, 2)
