"""`mpq check`: what a run needs, and what makes integers slower."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpq.cli.main import main


@pytest.mark.parametrize(
    ("compiler", "flags", "says"),
    [
        ("true", "flags : fpu avx512_vnni", "all packages are there\n"),
        (
            "no-such-program",
            "flags : fpu avx512_vnni",
            "there; there is no C compiler (no-such-program), so integers are slower\n",
        ),
        (
            "no-such-program",
            "flags : avx2",
            "no C compiler (no-such-program) and the processor cannot multiply integers (avx512_vnni), so",
        ),
    ],
)
def test_what_makes_integers_slower(
    compiler: str,
    flags: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr("mpq.io.cpu_line", lambda _field: flags)
    assert main(["check", "--exp-dir", str(tmp_path)]) == 0
    assert says in capsys.readouterr().out


def test_too_little_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--exp-dir", str(tmp_path), "--disk-gb", "1e9"]) == 2
    assert "GB free, 1e+09 GB are needed: free some or use --exp-dir" in capsys.readouterr().err
