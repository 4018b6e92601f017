"""Speech and sentences for synthetic corpora: espeak's voices, and a small grammar of English."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from local.espeak import SAMPLE_RATE, EspeakClient

RATE = 16000
# (espeak voice, pitch): clearly different speakers
VOICES = [
    (f"{accent}+{variant}", pitch)
    for accent, pitch in (("en-us", 50), ("en-gb-x-rp", 45), ("en", 55))
    for variant in ("m1", "f1", "m3", "f3", "klatt2", "f5", "m7", "Alicia")
]
_WHO = [
    "the old sailor",
    "my young sister",
    "a tired farmer",
    "the little girl",
    "our good captain",
    "his brother",
    "the king",
]
_DID = ["carried", "found", "sold", "followed", "washed", "remembered", "painted", "lost"]
_WHAT = [
    "a red boat",
    "the long letter",
    "seven green bottles",
    "the heavy stone",
    "her silver ring",
    "a loaf of bread",
]
_WHERE = ["near the river", "in the dark house", "behind the church", "on the cold mountain", "by the sea", "at night"]
_THEN = [
    "and nobody spoke",
    "because it was late",
    "but the road was closed",
    "and they went home",
    "while the wind blew",
]


def make_sentences(rng: np.random.Generator, count: int) -> list[str]:
    """`count` distinct lower-case sentences of 5 to 17 words (some 90 words in all)."""
    made: dict[str, None] = {}
    while len(made) < count:
        parts = [_WHO, _DID, _WHAT] + [_WHERE] * int(rng.integers(2)) + [_THEN] * int(rng.integers(2))
        made[" ".join(part[rng.integers(len(part))] for part in parts)] = None
    return list(made)


def speak(client: EspeakClient, text: str, speaker: int, rate: int = RATE) -> NDArray[np.float32]:
    """`text` by the voice of a speaker number, as samples (T,) in -1 .. 1 at `rate` Hz."""
    voice, pitch = VOICES[speaker % len(VOICES)]
    data = client.speak({"voice": voice, "rate": 170 + 7 * (speaker % 5), "pitch": pitch, "text": text})
    samples = np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768
    divisor = int(np.gcd(rate, SAMPLE_RATE))
    return np.asarray(resample_poly(samples, rate // divisor, SAMPLE_RATE // divisor), np.float32)


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples (T,) in -1 .. 1 as 16 bits, clipped."""
    return np.asarray(np.clip(samples, -1, 1) * 32767, np.int16)


def add_noise(samples: NDArray[np.float32], rng: np.random.Generator, level: float = 0.003) -> NDArray[np.float32]:
    """White noise of the given root mean square on top."""
    return samples + level * rng.standard_normal(len(samples), dtype=np.float32)


def words_of(texts: Sequence[str]) -> list[str]:
    """All words, sorted."""
    return sorted({word for text in texts for word in text.split()})
