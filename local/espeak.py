"""espeak-ng as a bit-exact speech source: a small server process that forks one child per utterance.

espeak keeps hidden state from one utterance to the next (Terminate + Initialize does not clear it) and seeds
its breath and flutter noise from the clock. Fixing the seed and synthesizing every utterance in a fresh copy
of one never-used process makes the samples depend on the request alone. The server imports nothing but the
standard library: a fork copies page tables, so a parent holding arrays would be several times slower.

Run as a program, this file reads one JSON request a line on stdin (``{"voice", "rate", "pitch", "text"}``)
and answers each on stdout with a signed 32-bit little-endian byte count followed by that many bytes: int16
mono samples, or, where the count is negative, the text of an error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
from array import array
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

SAMPLE_RATE = 22050
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: no player thread, so forking is safe
_UTF8 = 1  # espeakCHARS_UTF8
_RATE, _PITCH = 1, 3  # espeakRATE (words a minute), espeakPITCH (0-99)
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class EspeakError(RuntimeError):
    """espeak refused a voice, a setting or a text."""


def load_library() -> Any:
    """Loads the espeak-ng library of the ``espeakng-loader`` wheel, with a fixed random seed."""
    import espeakng_loader

    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate != SAMPLE_RATE:
        raise EspeakError(f"espeak_Initialize returned {rate}, expected the sampling rate {SAMPLE_RATE}")
    lib.espeak_ng_SetRandSeed(ctypes.c_long(0))
    return lib


def synthesize(lib: Any, voice: str, rate: int, pitch: int, text: str) -> bytes:
    """Speaks `text` in this process; only the first call after `load_library` is reproducible.

    Args:
        lib: the initialized library.
        voice: espeak voice, e.g. ``en-us+f2``.
        rate: words a minute, 80 to 450.
        pitch: 0 to 99, 50 is the voice's own.
        text: what to say.

    Returns:
        int16 mono samples at 22,050 Hz.

    Raises:
        EspeakError: a call did not return EE_OK. A refused voice must not pass: espeak would keep the
            previous one.
    """
    samples = array("h")

    def collect(wave: Any, count: int, _events: Any) -> int:
        if wave and count > 0:
            samples.frombytes(ctypes.string_at(wave, 2 * count))
        return 0

    callback = _CALLBACK(collect)
    lib.espeak_SetSynthCallback(callback)
    data = text.encode()
    if lib.espeak_SetVoiceByName(voice.encode()) != 0:
        raise EspeakError(f"espeak has no voice {voice!r}")
    if lib.espeak_SetParameter(_RATE, rate, 0) != 0 or lib.espeak_SetParameter(_PITCH, pitch, 0) != 0:
        raise EspeakError(f"espeak refused rate {rate} or pitch {pitch}")
    if lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None) != 0:
        raise EspeakError(f"espeak could not speak {text!r}")
    if not (sound := samples.tobytes()).strip(b"\0"):
        raise EspeakError(f"espeak made no sound for {text!r}")
    return sound


def _answer(lib: Any, line: bytes) -> None:
    """Handles one request in a forked child and ends the child."""
    try:
        request = json.loads(line)
        data = synthesize(lib, request["voice"], request["rate"], request["pitch"], request["text"])
        count = len(data)
    except Exception as error:  # every failure travels to the client, which raises it there
        data = str(error).encode()
        count = -len(data)
    with os.fdopen(1, "wb", closefd=False) as out:
        out.write(struct.pack("<i", count) + data)
    os._exit(0)


def serve() -> None:
    """Answers requests from stdin until it is closed, each in a child forked from this unused process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the client; the server ends with its input
    try:
        lib = load_library()
    except (ImportError, OSError, EspeakError) as error:
        sys.exit(f"espeak: {error}; install espeakng-loader")
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            _answer(lib, line)
        _, status = os.waitpid(child, 0)
        if status != 0:
            message = f"espeak crashed with wait status {status}".encode()
            os.write(1, struct.pack("<i", -len(message)) + message)


def _read_exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EspeakError("the espeak server ended early")
    return data


class EspeakClient:
    """Starts an espeak server and asks it for utterances; a context manager."""

    def __enter__(self) -> EspeakClient:
        command = [sys.executable, os.path.abspath(__file__)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.kill()  # it holds nothing; closing its input would wait for a pipe that may be broken
        self._server.communicate()

    def speak(self, request: Mapping[str, Any]) -> bytes:
        """Returns the samples of one request (`synthesize`), always the same for the same request."""
        stdin, stdout = self._server.stdin, self._server.stdout
        if stdin is None or stdout is None:
            raise EspeakError("the espeak server has no pipes")
        try:
            stdin.write(json.dumps(dict(request)).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise EspeakError("the espeak server ended early") from None
        (count,) = struct.unpack("<i", _read_exactly(stdout, 4))
        data = _read_exactly(stdout, abs(count))
        if count < 0:
            raise EspeakError(data.decode())
        return data


if __name__ == "__main__":
    serve()
