"""espeak answers the same request with the same samples, whatever was asked before."""

from __future__ import annotations

import numpy as np
import pytest

from local.espeak import EspeakClient, EspeakError

# variants that breathe or flutter at random, so that they show a seed or a state that is not fixed
REQUESTS = [
    {"voice": voice, "rate": rate, "pitch": pitch, "text": text}
    for voice, rate, pitch, text in (
        ("en-us+f2", 160, 50, "there is no peace, says my god, to the wicked."),
        ("en-gb-x-rp+f4", 190, 40, "butter and honey shall he eat."),
        ("en-us+victor", 150, 60, "let there be light."),
    )
]


def test_samples_depend_on_the_request_alone() -> None:
    with EspeakClient() as client:
        first = [client.speak(request) for request in REQUESTS]
        again = [client.speak(request) for request in reversed(REQUESTS)]
    with EspeakClient() as client:
        alone = client.speak(REQUESTS[2])
    assert first == again[::-1]
    assert alone == first[2]
    assert len(set(first)) == 3


def test_rate_and_pitch_are_heeded() -> None:
    request = {"voice": "en-us+m1", "text": "the beginning of wisdom.", "rate": 150, "pitch": 50}
    with EspeakClient() as client:
        base, fast, high = (client.speak({**request, **change}) for change in ({}, {"rate": 200}, {"pitch": 90}))
    assert len(fast) < 0.9 * len(base)
    assert base != high
    samples = np.frombuffer(base, dtype="<i2")
    assert 0.5 < len(samples) / 22050 < 4 and 3000 < np.abs(samples.astype(int)).max() < 32768


def test_dead_server_is_an_error() -> None:
    with EspeakClient() as client:
        client.speak(REQUESTS[0])
        client._server.kill()
        client._server.wait()
        with pytest.raises(EspeakError, match="ended early"):
            client.speak(REQUESTS[0])


def test_refusals_are_errors_and_the_server_lives_on() -> None:
    with EspeakClient() as client:
        # "en-gb" is a voice that espeak lists and refuses, and would keep the voice before
        for voice in ("en-gb", "xx-nobody"):
            with pytest.raises(EspeakError, match=f"espeak has no voice '{voice}'"):
                client.speak({**REQUESTS[0], "voice": voice})
        with pytest.raises(EspeakError, match="no sound"):
            client.speak({**REQUESTS[0], "text": ""})
        with pytest.raises(EspeakError, match="rate"):
            client.speak({"voice": "en-us", "text": "hello"})
        assert len(client.speak(REQUESTS[0])) > 40_000
