"""utils/k2_env.sh: makes .venv-k2 once and anew when its lock file changes; says why it cannot.

The interpreter of these tests is a script that claims to be CPython 3.9, so nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PYTHON = """#!/bin/sh
case "$*" in
*version_info*) echo 3 9 ;;
*"-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*"-m pip"*) echo "$*" >> "$LOG"; test ! -e "$LOG.fail" || { echo "no network"; exit 1; } ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with that script, its environment's lock file and nothing else."""
    root = tmp_path / "a project"
    (root / "utils").mkdir(parents=True)
    for name in ("k2_env.sh", "k2_env.lock", "venv.sh"):
        shutil.copy(ROOT / "utils" / name, root / "utils")
    python = root / "python3.9"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return root


def make(root: Path, *options: str, python: str = "python3.9") -> subprocess.CompletedProcess[str]:
    """Runs the script; `$LOG` gathers the installations."""
    env = {**os.environ, "PYTHON39": str(root / python), "PYENV_ROOT": str(root), "LOG": str(root / "log")}
    env["MPQ_VENV_GB"] = "0"
    command = ["bash", root / "utils" / "k2_env.sh", *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def installations(root: Path) -> int:
    return len((root / "log").read_text().splitlines()) if (root / "log").exists() else 0


def test_made_once_and_anew_for_another_lock_file(project: Path) -> None:
    done = make(project)
    assert done.returncode == 0 and "ready after" in done.stderr
    assert "--require-hashes" in (project / "log").read_text() and installations(project) == 1
    again = make(project)
    assert (again.returncode, again.stderr, installations(project)) == (0, "", 1)
    with open(project / "utils" / "k2_env.lock", "a") as lock:
        lock.write("# another\n")
    assert make(project).returncode == 0 and installations(project) == 2


def test_a_failed_installation_is_told_and_not_taken_for_done(project: Path) -> None:
    (project / "log.fail").touch()
    failed = make(project)
    assert failed.returncode == 1 and "no network" in failed.stderr
    (project / "log.fail").unlink()
    assert make(project).returncode == 0 and installations(project) == 2


def test_no_python39_is_one_line_and_status_3(project: Path) -> None:
    done = make(project, python="none")
    assert done.returncode == 3 and done.stderr.count("\n") == 1 and "no CPython 3.9" in done.stderr
    assert not (project / ".venv-k2").exists()


def test_foreign_folders_and_options_are_refused(project: Path) -> None:
    assert make(project, "--frobnicate").returncode == 2
    assert "utils/k2_env.sh" in make(project, "--help").stdout
    (project / ".venv-k2").mkdir()
    done = make(project)
    assert done.returncode == 1 and "did not make it" in done.stderr and installations(project) == 0


def test_the_lock_file_allows_one_wheel_of_k2() -> None:
    lines = (ROOT / "utils" / "k2_env.lock").read_text().split("k2==1.23.4")[1].splitlines()
    hashes = [
        line for line in lines[: next(i for i, line in enumerate(lines[1:], 1) if "==" in line)] if "sha256" in line
    ]
    assert len(hashes) == 1  # that for CPython 3.9: all of them are tagged for any Python
