"""The launcher: a command as a job, its output and its exit status; on SLURM where there is one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_project import Project

LAUNCH = Path(__file__).resolve().parents[2] / "utils" / "launch.py"


def words(folder: Path, cluster: str, *command: str) -> list[str]:
    options = ["--log-dir", str(folder / "log"), "--name", "test", "--threads", "1", "--cluster", cluster]
    return [sys.executable, str(LAUNCH), *options, "--", *command]


def launch(folder: Path, cluster: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(folder, cluster, *command), cwd=folder, capture_output=True, text=True, timeout=120)


CLUSTERS = [pytest.param("local"), pytest.param("slurm", marks=pytest.mark.slurm)]


@pytest.mark.slow
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_output_folder_and_status(tmp_path: Path, cluster: str) -> None:
    done = launch(tmp_path, cluster, "sh", "-c", "pwd; echo 'two  words' >&2; echo made > result; exit 3")
    assert done.returncode == 3, done.stderr
    assert f"{tmp_path}\n" in done.stdout
    assert "two  words\n" in done.stdout
    assert (tmp_path / "result").read_text() == "made\n"


@pytest.mark.slow
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_program_that_is_not_there(tmp_path: Path, cluster: str) -> None:
    failed = launch(tmp_path, cluster, "no-such-program")
    assert failed.returncode == 127
    assert "cannot run no-such-program: No such file or directory" in failed.stdout


@pytest.mark.slow
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_job_ends_with_the_launcher(tmp_path: Path, cluster: str) -> None:
    script = "echo up > up; trap 'exit 1' TERM; for i in $(seq 300); do sleep 0.1; date > beat; done"
    job = subprocess.Popen(words(tmp_path, cluster, "sh", "-c", script), cwd=tmp_path, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "beat").exists():
        assert time.monotonic() < deadline, "the job never started"
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        before = (tmp_path / "beat").stat().st_mtime_ns
        time.sleep(1)
        if (tmp_path / "beat").stat().st_mtime_ns == before:
            return
    pytest.fail("the job outlived its launcher")


@pytest.mark.slow
@pytest.mark.slurm
def test_recipe_on_slurm(project: Project) -> None:
    """Two jobs at once, one that fails: the recipe ends with its status and names it."""
    project.recipe("""
if stage 6; then
  job good --out "$exp/good" -- sh -c 'echo "job $SLURM_JOB_ID" | tee "$1"' _ "$exp/good"
  run_jobs
  job bad -- sh -c 'echo the reason >&2; exit 5'
fi
""")
    failed = project.run("--cmd", "slurm")
    assert failed.returncode == 5
    assert "stage 6: bad failed with status 5: the reason" in failed.stderr
    assert (project.exp / "good").read_text().strip() != "job"
