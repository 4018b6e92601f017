"""The launcher: a command as a job, its output and its exit status; on SLURM where there is one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launch as launcher
import pytest
from toy_project import Project

LAUNCH = Path(__file__).resolve().parents[2] / "utils" / "launch.py"


def words(folder: Path, cluster: str, *command: str, threads: int = 1, memory_gb: int = 0) -> list[str]:
    options = ["--log-dir", str(folder / "log"), "--name", "test", "--threads", str(threads), "--cluster", cluster]
    options += ["--memory-gb", str(memory_gb)]
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
@pytest.mark.slurm
@pytest.mark.parametrize(("variable", "megabytes"), [(None, "1024"), ("300M", "300")])
def test_memory_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, megabytes: str
) -> None:
    """As the launcher is told, unless sbatch's own variable says otherwise."""
    if variable:
        monkeypatch.setenv("SBATCH_MEM_PER_NODE", variable)
    command = words(tmp_path, "slurm", "sh", "-c", "echo memory $SLURM_MEM_PER_NODE", memory_gb=1)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"memory {megabytes}\n" in done.stdout


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU is all that any job can have here")
def test_a_job_runs_on_all_its_cpus(tmp_path: Path) -> None:
    """Where the cluster binds its processes (utils/slurm_node.sh does), they get as many CPUs as were asked for."""
    command = words(tmp_path, "slurm", "sh", "-c", "unset OMP_NUM_THREADS; echo has $(nproc)", threads=2)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "has 2\n" in done.stdout


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_that_slurm_refuses_is_one_line(tmp_path: Path) -> None:
    command = words(tmp_path, "slurm", "true", memory_gb=100_000)
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert line.startswith(
        "SLURM refuses a job of 1 CPUs, 0 GPUs, 100000 GB: Memory specification can not be satisfied; "
    )
    assert "Requested node configuration is not available" in line
    assert "SBATCH_MEM_PER_NODE" in line


class Nfs:
    """A result as a client of NFS sees it: as it was when its folder was last listed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.parent, self.known = folder / "result", folder, False
        monkeypatch.setattr(os, "listdir", self.look)

    def look(self, folder: Path) -> None:
        assert folder == self.parent
        self.known = self.path.exists()

    def exists(self) -> bool:
        return self.known


@pytest.mark.parametrize(
    ("state", "late", "status", "seconds"),
    [("COMPLETED", 60, 0, 60), ("COMPLETED", 900, 1, 91), ("", 60, 0, 60), ("CANCELLED", 900, 1, 6)],
)
def test_a_result_that_nfs_shows_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, late: int, status: int, seconds: int
) -> None:
    """It is waited for where there may be one, and only there."""
    slept = 0.0

    def sleep(more: float) -> None:
        nonlocal slept
        slept += more
        if slept >= late:
            (tmp_path / "result").touch()

    monkeypatch.setattr(launcher, "time", SimpleNamespace(monotonic=lambda: slept, sleep=sleep))
    monkeypatch.setattr(launcher, "queue_state", lambda _: (state, "None"))
    paths = SimpleNamespace(result_pickle=Nfs(tmp_path, monkeypatch), stdout="out")
    job: Any = SimpleNamespace(paths=paths, job_id="7", result=lambda: 0)
    assert launcher.wait(job, tmp_path / "output", "slurm") == status
    assert slept == pytest.approx(seconds, abs=1)


def test_a_job_that_runs_again_goes_on_with_its_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As SLURM runs one again that it has put back into the queue: what it says then is shown, too."""
    tail = launcher.Tail(tmp_path / "output")
    for line in ("the first run\n", "the second\n"):
        assert launcher.run_command(["printf", line], str(tmp_path), tail.path) == 0
        tail.copy()
        assert capfd.readouterr().out == line


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


class Job:
    """A job on SLURM that runs until it is ended, and what its launcher says."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        if "SLURM_CONF" not in os.environ:
            pytest.skip("faults are tried on a cluster of our own only")
        (folder / "job.sh").write_text("echo started; sleep 60\n")
        command = words(folder, "slurm", "sh", "job.sh", threads=threads)
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.number = self.expect("submitted as job ").split()[3]

    def expect(self, text: str) -> str:
        """Reads up to a line that holds this text."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"no {text!r} in {self.lines}")

    def cancel(self) -> int:
        """Ends the job behind its launcher's back; the launcher's exit status."""
        subprocess.run(["scancel", self.number], check=True)
        self.lines += self.process.communicate(timeout=60)[0].splitlines(keepends=True)
        return self.process.returncode


@pytest.mark.slow
@pytest.mark.slurm
def test_a_waiting_job_says_why_and_a_cancelled_one_that_it_was(tmp_path: Path) -> None:
    job = Job(tmp_path, threads=10_000)
    waits = job.expect("waits")
    assert waits.startswith(f"job {job.number} waits: PartitionConfig, more than any node has (CPUs: --nj; ")
    assert job.cancel() == 1
    assert job.lines[-1].startswith(f"job {job.number} was ended by SLURM (CANCELLED) and left no result; see ")


@pytest.mark.slow
@pytest.mark.slurm
def test_a_running_job_that_is_killed(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.expect("started")
    says = {  # SLURM's signal reaches the command and what runs it; either may be first to end
        1: f"job {job.number} was ended by SLURM (CANCELLED) and left no result",
        143: f"job {job.number}: signal 15 ended its command (cancelled, out of time or memory?)",
    }
    assert says[job.cancel()] in job.lines[-1]


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_waits_while_its_node_is_down(tmp_path: Path) -> None:
    """SLURM puts the job back into the queue, and the launcher stays with it."""
    job = Job(tmp_path)
    job.expect("started")
    node = subprocess.run(["sinfo", "-h", "-o", "%N"], capture_output=True, text=True, check=True).stdout.strip()
    update = ["scontrol", "update", f"nodename={node}"]
    subprocess.run([*update, "state=down", "reason=test"], check=True)
    try:
        job.expect(f"job {job.number} waits: ")
        assert job.cancel() in (1, 143)
    finally:
        subprocess.run([*update, "state=resume"])


@pytest.mark.slow
@pytest.mark.slurm
def test_recipe_on_slurm(project: Project) -> None:
    """Two jobs, one that fails: the recipe ends with its status and names it. Without --gpus no GPU is asked for."""
    project.recipe("""
if stage 6; then
  job good --gpu 1 --out "$exp/good" -- sh -c 'echo "job $SLURM_JOB_ID" | tee "$1"' _ "$exp/good"
  run_jobs
  job bad -- sh -c 'echo the reason >&2; exit 5'
fi
""")
    failed = project.run("--cmd", "slurm")
    assert failed.returncode == 5
    assert "stage 6: bad failed with status 5: the reason" in failed.stderr
    assert (project.exp / "good").read_text().strip() != "job"
