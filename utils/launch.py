"""Runs one command as a SLURM job and stays until it ended: its output here, its exit status as ours.

Used by the stage runner for ``--cmd slurm``. What the site needs is given by sbatch's own variables, such as
SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, which come before what is asked for here (SBATCH_MEM_PER_NODE). The
folder must be one that all nodes see.

Usage: python utils/launch.py --log-dir exp/log --name mini-lstm --threads 4 --gpus 1 --memory-gb 8 -- COMMAND...
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import submitit
from submitit.core.utils import FailedJobError

POLL_SECONDS = 1.0
# For how long a result may come after its job: a job that completed wrote one, which NFS may show here a minute later
# (acdirmax), and what became of one that SLURM no longer knows is not told.
LATE_SECONDS = 90.0
ENDED_SECONDS = 5.0  # one that SLURM ended otherwise wrote none, or just before
_ENDED = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
_GONE = ("", "COMPLETED")
# why a job waits for ever: no node of the partition has what it asks for
_TOO_MUCH = ("PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints")
ASK_OTHERWISE = "CPUs: --nj; GPUs: --gpus; others: SBATCH_MEM_PER_NODE, SBATCH_TIMELIMIT, SBATCH_PARTITION, ..."
KILL_SECONDS = 90.0  # more than SLURM waits from the first signal to the last (KillWait)
MINUTES = 48 * 60


def run_command(command: list[str], folder: str, output: Path) -> int:
    """Runs on the node, with its output in a file of its own, as submitit writes to the job's; once more, and to the
    same file, where SLURM has put the job back into the queue.

    Where SLURM ends the job (cancelled, out of time, its node is taken away), the command hears of it first. What
    that means is SLURM's to say, which may put the job back into the queue: this process is ended without a result.

    Returns:
        The command's exit status, 128 + N where signal N ended it, 127 where it cannot run.
    """
    with output.open("ab", buffering=0) as file:
        try:
            status = subprocess.call(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        except OSError as error:
            file.write(f"cannot run {command[0]}: {error.strerror}\n".encode())
            return 127
    # a shell whose own command hears of it first tells that by its status
    if status in (-signal.SIGTERM, 128 + signal.SIGTERM) and "SLURM_JOB_ID" in os.environ:
        time.sleep(KILL_SECONDS)
    return status if status >= 0 else 128 - status


class Tail:
    """Passes on what a file gets, from its beginning, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def copy(self) -> None:
        """Writes what is new to standard output."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            block = file.read()
        self.offset += len(block)
        sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()


def queue_state(job_id: str) -> tuple[str, str]:
    """State and reason of a job as SLURM tells them, such as PENDING and Resources; empty if it has no such job."""
    found = subprocess.run(
        ["squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T %r"], capture_output=True, text=True, check=False
    )
    state, _, reason = found.stdout.partition("\n")[0].strip().partition(" ")
    return (state, reason) if found.returncode == 0 else ("", "")


def look_into(folder: Path) -> None:
    """Lists a folder: NFS goes on saying that a file is not there until the folder is opened anew."""
    with suppress(OSError):
        os.listdir(folder)


def wait(job: submitit.Job[int], output: Path, cluster: str) -> int:
    """Shows the output until the job ends, and why it waits while it waits.

    Returns:
        The command's exit status; 1 where the job ended without one (cancelled, out of memory, lost node).
    """
    tail = Tail(output)
    seen = time.monotonic()
    told, state = "", ""
    result = job.paths.result_pickle
    look_into(result.parent)
    # not job.done() on SLURM: it asks sacct, which sites without accounting answer with an error each time
    while not (result.exists() or (cluster == "local" and job.done())):
        tail.copy()
        if cluster == "slurm":
            state, reason = queue_state(job.job_id)
            waits = f"job {job.job_id} waits: {reason}" if state == "PENDING" and reason != "None" else ""
            waits += f", more than any node has ({ASK_OTHERWISE})" if waits and reason in _TOO_MUCH else ""
            if waits and waits != told:
                print(waits, flush=True)
            told = waits
            if state not in (*_ENDED, *_GONE):
                seen = time.monotonic()
            elif time.monotonic() - seen > (LATE_SECONDS if state in _GONE else ENDED_SECONDS):
                break
        time.sleep(POLL_SECONDS)
        look_into(result.parent)
    tail.copy()
    if not result.exists():
        how = f"was ended by SLURM ({state})" if state else "is unknown to SLURM (cancelled? is a node down?)"
        print(f"job {job.job_id} {how} and left no result; see {job.paths.stdout}", flush=True)
        return 1
    status = job.result()
    if status > 128:
        what = f"job {job.job_id}: signal {status - 128} ended its command"
        print(f"{what} (cancelled, out of time or memory?); see {job.paths.stdout}", flush=True)
    return status


def submit(args: argparse.Namespace, folder: Path, output: Path) -> submitit.Job[int]:
    """Hands the command to SLURM.

    Raises:
        FailedJobError: sbatch refuses it, and says why.
    """
    executor = submitit.AutoExecutor(folder=str(folder), cluster=args.cluster)
    settings: dict[str, Any] = {"name": args.name, "timeout_min": MINUTES, "cpus_per_task": args.threads}
    if args.gpus:
        settings["gpus_per_node"] = args.gpus
    if args.memory_gb:
        settings["mem_gb"] = args.memory_gb
    if args.cluster == "slurm":
        settings["slurm_stderr_to_stdout"] = True
        # since SLURM 22.05 srun is not told what its job asked for: it would bind all to one CPU
        settings["slurm_srun_args"] = [f"--cpus-per-task={args.threads}"]
    executor.update_parameters(**settings)
    job: submitit.Job[int] = executor.submit(run_command, args.command, os.getcwd(), output)
    return job


def main() -> int:
    """Submits, waits, cancels when told to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log-dir", required=True, help="folder for the job's script, output and result")
    parser.add_argument("--name", default="mpq")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument(
        "--memory-gb", type=int, default=0, help="0: as much as the site gives to a job that asks for none"
    )
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: no SLURM, for tests")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()

    folder = Path(args.log_dir, "slurm")
    output = folder / f"{args.name}-{time.time_ns()}.out"
    try:
        with redirect_stderr(StringIO()):  # submitit prints what sbatch says, too
            job = submit(args, folder, output)
    except FailedJobError as error:
        said = "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in str(error).splitlines())
        asked = f"{args.threads} CPUs, {args.gpus} GPUs, {args.memory_gb or 'any'} GB"
        print(f"SLURM refuses a job of {asked}: {said} ({ASK_OTHERWISE})", file=sys.stderr)
        return 2

    def end(signum: int, _frame: object) -> NoReturn:
        job.cancel(check=False)
        raise SystemExit(128 + signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, end)
    print(f"submitted as job {job.job_id} ({args.cluster})", flush=True)
    return wait(job, output, args.cluster)


if __name__ == "__main__":
    sys.exit(main())
