"""path.sh: makes .venv once, whatever kills it, whoever else makes it; says clearly why it cannot.

The lock file of these tests names nothing, so nothing is downloaded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_project import Project

SHOW = 'set -euo pipefail; source "$1/path.sh"; command -v python; command -v mpq; echo "$LC_ALL"'


@pytest.fixture
def bare(project: Project) -> Project:
    """A project with an empty lock file that is to make its own .venv."""
    del project.env["MPQ_VENV"]
    for name in ("PYTHON", "VIRTUAL_ENV", "PYTHONPATH"):
        project.env.pop(name, None)
    project.env["MPQ_VENV_GB"] = "0"
    (project.root / "requirements.lock").write_text("# nothing\n")
    package = project.root / "mpq" / "cli"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text("import sys\n\ndef main():\n    print('mpq', sys.argv[1:])\n    return 3\n")
    return project


def source(project: Project, script: str = SHOW, **env: str) -> subprocess.CompletedProcess[str]:
    """Sources path.sh in a new shell, from another folder."""
    return subprocess.run(
        ["bash", "-c", script, "_", str(project.root)],
        env={**project.env, **env},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )


def ready(project: Project, **env: str) -> bool:
    """Would path.sh use the .venv that is there?"""
    return source(project, 'source "$1/utils/venv.sh"; venv_ready "$1"', **env).returncode == 0


def interpreter() -> str:
    """The interpreter that the running one's environment was made from."""
    return str(getattr(sys, "_base_executable", sys.executable))


@pytest.mark.slow
def test_first_use_makes_it_and_second_finds_it(bare: Project) -> None:
    first = source(bare)
    venv = bare.root / ".venv"
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{venv}/bin/python\n{venv}/bin/mpq\nC\n"
    assert first.stderr.startswith(f"path.sh: first use: making {venv} with Python 3.")
    assert len(first.stderr.splitlines()) <= 6
    made = venv.stat().st_ctime_ns
    second = source(bare)
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert venv.stat().st_ctime_ns == made

    # the command works, in a path with a space, and passes its status on
    used = source(bare, 'source "$1/path.sh"; mpq a "b c"')
    assert (used.returncode, used.stdout) == (3, "mpq ['a', 'b c']\n")

    # what it was made from decides whether it is made anew
    assert ready(bare)
    assert not ready(bare, PYTHON="/no/such/python")
    lock = bare.root / "requirements.lock"
    lock.write_text("# nothing else\n")
    assert not ready(bare)
    lock.write_text("# nothing\n")
    bare.root = bare.root.rename(bare.root.with_name("moved away"))
    assert not ready(bare), "programs in .venv still hold the old path"


@pytest.mark.slow
def test_two_shells_at_once_make_one(bare: Project) -> None:
    shells = [
        subprocess.Popen(
            ["bash", "-c", SHOW, "_", str(bare.root)],
            env=bare.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [shell.communicate(timeout=120) for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    errors = [error for _, error in outputs]
    assert sum("first use: making" in error for error in errors) == 1
    assert sum("another shell is making" in error for error in errors) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "seconds"), [(signal.SIGKILL, 1.5), (signal.SIGINT, 0.5)])
def test_killed_midway_it_is_made_anew(bare: Project, signum: signal.Signals, seconds: float) -> None:
    shell = subprocess.Popen(
        ["bash", "-c", SHOW, "_", str(bare.root)],
        env=bare.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(seconds)
    os.killpg(shell.pid, signum)
    shell.wait(timeout=20)
    again = source(bare)
    assert again.returncode == 0, again.stderr
    assert source(bare, 'source "$1/path.sh"; mpq').stdout == "mpq []\n"


def test_too_old_a_python_is_refused(bare: Project, tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\necho 3.8.1 /usr/bin/python3.8\nexit 1\n")
    old.chmod(0o755)
    failed = source(bare, PYTHON=str(old))
    assert failed.returncode == 1
    assert failed.stderr == (
        f"path.sh: PYTHON={old} is Python 3.8.1, not a working Python 3.10-3.13; set PYTHON to one that is\n"
    )
    assert not (bare.root / ".venv").exists()


def test_no_python_at_all(bare: Project, tmp_path: Path) -> None:
    tools = ("bash", "dirname", "sha256sum", "cut", "head", "flock")
    for tool in tools:
        (tmp_path / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
    failed = source(bare, PATH=str(tmp_path))
    assert failed.returncode == 1
    assert "path.sh: no Python 3.10-3.13 on PATH" in failed.stderr


def test_foreign_venv_is_left_alone(bare: Project) -> None:
    (bare.root / ".venv").mkdir()
    (bare.root / ".venv" / "mine").touch()
    failed = source(bare)
    assert failed.returncode == 1
    assert "path.sh did not make it; move it away" in failed.stderr
    assert (bare.root / ".venv" / "mine").exists()


def test_too_little_disk_is_told_before_anything_is_made(bare: Project) -> None:
    failed = source(bare, MPQ_VENV_GB="99999999")
    assert failed.returncode == 1
    assert "GB free, the environment needs 99999999" in failed.stderr
    assert not (bare.root / ".venv").exists()


@pytest.mark.slow
def test_failed_installation_shows_its_last_words(bare: Project) -> None:
    (bare.root / "requirements.lock").write_text("./no-such-folder-to-install\n")
    failed = source(bare, PYTHON=interpreter())
    assert failed.returncode == 1
    assert "path.sh: installing failed (status 1)" in failed.stderr
    assert "no-such-folder-to-install" in failed.stderr
    assert not ready(bare), "a failed installation counts as done"


def test_mpq_venv_is_used_as_it_is(bare: Project) -> None:
    used = source(bare, 'source "$1/path.sh"; command -v python', MPQ_VENV=sys.prefix)
    assert used.stdout.startswith(f"{sys.prefix}/bin/python\n"), used.stderr
    failed = source(bare, MPQ_VENV="/no/such")
    assert (failed.returncode, failed.stderr) == (1, "path.sh: MPQ_VENV=/no/such holds no bin/python\n")
