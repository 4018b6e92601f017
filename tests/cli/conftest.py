"""Running `mpq` as a user does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpq.cli.main import main


class Mpq:
    """Runs `mpq` in this process, in the test's folder: importing torch for each command would take longer."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def succeed(self, command: str) -> str:
        """Runs a command that must succeed; what it prints."""
        status = main(command.split())
        out, err = self.capsys.readouterr()
        assert status == 0, err
        return out

    def fail(self, command: str) -> str:
        """Runs a command that must end with status 2; its one line on standard error."""
        try:
            status = main(command.split())
        except SystemExit as stop:  # what the parser refuses
            status = int(stop.code or 0)
        (line,) = self.capsys.readouterr().err.splitlines()
        assert status == 2, command
        return line


@pytest.fixture
def mpq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mpq:
    monkeypatch.chdir(tmp_path)
    return Mpq(capsys)
