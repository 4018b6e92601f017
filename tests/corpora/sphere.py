"""NIST SPHERE files as CMU and LDC wrote them: PCM, mu-law, and mu-law coded by shorten."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from numpy.typing import NDArray

_BLOCK = 256  # samples of one channel that shorten codes together


def sphere(samples: NDArray[np.int16], rate: int, coding: str = "pcm", order: str = ">") -> bytes:
    """A SPHERE file of samples (T,) or (T, C).

    Args:
        samples: what it holds.
        rate: sampling rate in Hz.
        coding: ``pcm``, ``ulaw``, ``ulaw,embedded-shorten-v2.00``, or any other name (for PCM that says so).
        order: byte order of PCM, ``>`` or ``<``.
    """
    channels = samples if samples.ndim == 2 else samples[:, None]
    is_ulaw = coding.startswith("ulaw")
    data = to_ulaw(channels) if is_ulaw else channels.astype(f"{order}i2").tobytes()
    if "shorten" in coding:
        data = shorten(np.frombuffer(data, np.uint8).reshape(channels.shape))
    byte_format = "-s1 1" if is_ulaw else f"-s2 {'10' if order == '>' else '01'}"
    fields = [
        "NIST_1A\n   1024",
        f"channel_count -i {channels.shape[1]}",
        f"sample_count -i {len(channels)}",
        f"sample_rate -i {rate}",
        f"sample_n_bytes -i {1 if is_ulaw else 2}",
        f"sample_byte_format {byte_format}",
        f"sample_sig_bits -i {8 if is_ulaw else 16}",
        f"sample_coding -s{len(coding)} {coding}",
        "end_head\n",
    ]
    return "\n".join(fields).encode().ljust(1024) + data


def to_ulaw(samples: NDArray[np.int16]) -> bytes:
    """Mu-law bytes of samples (T, C), channels in turn."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8000, samples.shape[1], "ULAW", format="RAW") as file:
        file.write(samples)
    return buffer.getvalue()


def shorten(codes: NDArray[np.uint8]) -> bytes:
    """Mu-law bytes (T, C) coded by shorten 2 (Robinson 1994, CUED/F-INFENG/TR.156) with first differences only."""
    ranks = np.where(codes >= 128, 255 - codes.astype(int), codes.astype(int) - 128)  # loudness, in order
    ranks = np.pad(ranks, ((0, -len(ranks) % _BLOCK), (0, 0)))
    # mu-law without loss, channels, samples a block, then no long predictor, no means, nothing skipped
    bits = [_ulong(number) for number in (8, codes.shape[1], _BLOCK, 0, 0, 0)]
    last = np.zeros(codes.shape[1], int)
    for start in range(0, len(ranks), _BLOCK):
        for channel in range(codes.shape[1]):
            block = ranks[start : start + _BLOCK, channel]
            residuals = np.diff(block, prepend=last[channel])
            last[channel] = block[-1]
            energy = int(np.abs(residuals).mean()).bit_length()
            folded = np.where(residuals >= 0, 2 * residuals, -2 * residuals - 1)
            bits += [_uvar(1, 2), _uvar(energy, 3), *(_uvar(int(value), energy + 1) for value in folded)]
    bits.append(_uvar(4, 2))  # the end
    text = "".join(bits)
    text += "0" * (-len(text) % 32)
    return b"ajkg\x02" + int(text, 2).to_bytes(len(text) // 8, "big")


def _uvar(value: int, width: int) -> str:
    """The Rice code of a number: its high part in ones and zeros, then `width` low bits."""
    low = f"{value & ((1 << width) - 1):0{width}b}" if width else ""
    return "0" * (value >> width) + "1" + low


def _ulong(value: int) -> str:
    """The code of a number that says its own width."""
    width = value.bit_length()
    return _uvar(width, 2) + _uvar(value, width)
