"""NIST SPHERE files: what their header promises, and their samples.

libsndfile reads uncompressed files. Files that are coded by shorten are read by ``sph2pipe`` where it is on the PATH,
else by desphere.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import desphere
import numpy as np
import soundfile
from numpy.typing import NDArray

from mpq.io import BadInput

_HEADER = 1 << 16  # bytes: SPHERE headers are multiples of 1024, in practice 1024


def inspect_sphere(path: Path, rate: int, channels: int) -> int:
    """Reads the header of a file and compares it with what is expected and with the size of the file.

    Args:
        path: the file.
        rate: expected sampling rate in Hz.
        channels: expected number of channels.

    Returns:
        Number of samples of each channel.

    Raises:
        BadInput: missing, no SPHERE file, truncated, empty, or of another rate or number of channels; the message has
            no file name. Whether a shorten-coded file is whole shows only when it is read.
    """
    header, size = _read_header(path)
    if header.sample_rate != rate:
        raise BadInput(f"sampled at {header.sample_rate} Hz, expected {rate}")
    if header.channel_count != channels:
        raise BadInput(f"has {header.channel_count} channels, expected {channels}")
    if header.sample_count == 0:
        raise BadInput("holds no samples")
    if not _is_compressed(header):
        promised = header.header_size + header.expected_data_bytes
        if size < promised:
            raise BadInput(f"truncated: its header promises {promised} bytes, there are {size}")
    return int(header.sample_count)


def read_sphere_channels(path: Path) -> tuple[NDArray[np.int16], int]:
    """Samples (T, C) and sampling rate of a SPHERE file: PCM of either byte order, mu-law, A-law or shorten.

    Raises:
        BadInput: not a SPHERE file, a coding that is not supported, or truncated; the message has no file name.
    """
    header, _ = _read_header(path)
    inspect_sphere(path, header.sample_rate, header.channel_count)
    try:
        samples, rate = _decode(path, header)
    except desphere.DesphereError as error:
        raise BadInput(f"not readable as NIST SPHERE ({error})") from None
    if len(samples) < header.sample_count:
        raise BadInput(f"truncated: its header promises {header.sample_count} samples, {len(samples)} can be read")
    return np.asarray(samples[: header.sample_count], np.int16), int(rate)


def read_sphere(path: Path) -> tuple[NDArray[np.int16], int]:
    """Samples (T,) and sampling rate of a mono SPHERE file.

    Raises:
        BadInput: as `read_sphere_channels`, or another number of channels.
    """
    samples, rate = read_sphere_channels(path)
    if samples.shape[1] != 1:
        raise BadInput(f"has {samples.shape[1]} channels, expected 1")
    return samples[:, 0], rate


def _read_header(path: Path) -> tuple[desphere.SphereHeader, int]:
    """The header, and the size of the file in bytes."""
    try:
        with open(path, "rb") as file:
            return desphere.SphereHeader.parse(file.read(_HEADER)), path.stat().st_size
    except FileNotFoundError:
        raise BadInput("no such file") from None
    except desphere.DesphereError as error:
        raise BadInput(f"not readable as NIST SPHERE ({error})") from None


def _is_compressed(header: desphere.SphereHeader) -> bool:
    return bool(header.sample_coding.partition(",")[2].strip())


def _decode(path: Path, header: desphere.SphereHeader) -> tuple[NDArray[np.int16], int]:
    """Samples (T, C) and rate, by the fastest program that can read the file."""
    program = shutil.which("sph2pipe")
    if not _is_compressed(header):
        with suppress(soundfile.LibsndfileError):  # some old headers lack what libsndfile looks for
            samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
            return samples, rate
    elif program:
        return _run_sph2pipe(program, path)
    wav = io.BytesIO(desphere.transcode_bytes(path.read_bytes()))
    samples, rate = soundfile.read(wav, dtype="int16", always_2d=True)
    return samples, rate


def _run_sph2pipe(program: str, path: Path) -> tuple[NDArray[np.int16], int]:
    done = subprocess.run([program, "-f", "wav", "-p", str(path)], capture_output=True, check=False)
    if done.returncode or not done.stdout:
        last = (done.stderr.decode(errors="replace").strip() or "no message").splitlines()[-1]
        raise BadInput(f"sph2pipe cannot read it: {last}")
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="int16", always_2d=True)
    return samples, rate
