"""Two trainings in one folder at once: the second one is refused while the first one lives."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpq.io import BadInput, only_one
from mpq.train.loop import FitConfig, fit
from tests.train.test_loop import Regression

ROOT = Path(__file__).resolve().parents[2]
CONFIG = FitConfig(epochs=3, lr=0.02)


class Slow(Regression):
    """Its second epoch does not end."""

    def batches(self, epoch: int) -> Iterator[Any]:
        if epoch:
            time.sleep(300)
        yield from super().batches(epoch)


def begin(folder: Path) -> subprocess.Popen[bytes]:
    """Another process, in its second epoch."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    process = subprocess.Popen([sys.executable, __file__, str(folder)], env=env)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return process


def test_the_second_names_the_first_and_goes_on_once_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fit(Regression(), CONFIG, tmp_path / "other").history
    first = begin(tmp_path / "exp")
    try:
        monkeypatch.setattr("mpq.io.lock._PATIENCE", 1)
        with pytest.raises(BadInput, match=f"exp: process {first.pid} on {socket.gethostname()} trains here; wait"):
            fit(Regression(), CONFIG, tmp_path / "exp")
        assert first.poll() is None and len((tmp_path / "exp" / "metrics.jsonl").read_text().splitlines()) == 1
    finally:
        first.kill()
    monkeypatch.setattr("mpq.io.lock._PATIENCE", 60)  # not waited for: it may take a moment to end
    begun: list[int] = []

    class Watched(Regression):
        def batches(self, epoch: int) -> Iterator[Any]:
            begun.append(epoch)
            return super().batches(epoch)

    assert fit(Watched(), CONFIG, tmp_path / "exp").history == expected
    assert begun == [1, 2] and first.wait() != 0


def test_who_is_not_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other processes of the training that holds the lock, and anyone where the file system has none."""
    monkeypatch.setattr("mpq.io.lock._PATIENCE", 0)
    with only_one(tmp_path, "trains"):
        with pytest.raises(BadInput, match=f"process {os.getpid()} on .* trains here"):
            fit(Regression(), CONFIG, tmp_path)
        for name in ("LOCAL_RANK", "RANK"):
            with monkeypatch.context() as other:
                other.setenv(name, "1")
                assert len(fit(Regression(), CONFIG, tmp_path).history) == 3

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", refuse)
        assert len(fit(Regression(), CONFIG, tmp_path).history) == 3
    fit(Regression(), CONFIG, tmp_path)


if __name__ == "__main__":
    fit(Slow(), CONFIG, Path(sys.argv[1]))
