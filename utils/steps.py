"""Runs the steps of one stage, several at a time where they are independent; called by utils/stage.sh.

Standard input holds, for each step, the number of its words and the words, each ended by a NUL:
``NAME [--in FILE...] [--out FILE...] [--threads N] [--gpu N] [--memory GB] -- COMMAND...``

A step whose mark still holds is skipped. Each command has its own process group and log; its lines are
shown as they come. When one fails, the others are ended and its status is the status of the whole; nothing
outlives the runner.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

from marks import Mark, fingerprint, key_words, output_fingerprint, what_changed

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
NOT_DONE = "not done yet"
NUMBERS = {"--threads": "threads", "--gpu": "gpus", "--memory": "memory"}  # options of a step, fields of Step
CPUS_PER_GPU = 8  # what SLURM is asked for with a GPU: they read and prepare what it trains on
FUNCTION = ["bash", "-euo", "pipefail", "-c"]  # how stage_resolve has a shell function run
END_SECONDS = 10.0  # between asking a process group to end and killing it


class StepError(Exception):
    """A step cannot run or failed: one line for the user and the exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class Interrupted(Exception):
    """A signal asks the runner to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@dataclass
class Step:
    """One command with the files that it reads and writes."""

    name: str
    command: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    threads: int = 0  # 0: the runner's choice
    gpus: int = 0
    memory: int = 0  # GB; 0: the runner's choice


@dataclass
class Running:
    """A step under way."""

    step: Step
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    inputs: dict[str, Path]
    known: Mark
    gpu_ids: list[str]
    started: float
    rest: bytes = b""
    last_line: str = ""


def parse_specs(data: bytes) -> list[Step]:
    """The steps written by stage.sh on standard input."""
    words = [word.decode() for word in data.split(b"\0")[:-1]]
    steps = []
    while words:
        count = int(words.pop(0))
        steps.append(parse_step(words[:count]))
        del words[:count]
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise StepError(f"two jobs are named '{name}'; give each its own name")
    return steps


def parse_step(words: list[str]) -> Step:
    """One step from its words; see the top of the file."""
    step = Step(words[0] if words else "")
    if not step.name or step.name.startswith("-") or "/" in step.name:
        raise StepError(f"'{step.name}' is no name for a step: step NAME [--in FILE...] [--out FILE...] -- COMMAND...")
    if "--" not in words:
        raise StepError(f"{step.name}: no ' -- COMMAND' (step NAME [--in FILE...] [--out FILE...] -- COMMAND...)")
    end = words.index("--")
    step.command = words[end + 1 :]
    if not step.command:
        raise StepError(f"{step.name}: nothing stands after --")
    option = ""
    for word in words[1:end]:
        if word in ("--in", "--out", *NUMBERS):
            option = word
        elif option in ("--in", "--out"):
            (step.inputs if option == "--in" else step.outputs).append(word)
        elif option and word.isdecimal():
            setattr(step, NUMBERS[option], int(word))
        else:
            known = " ".join(("--in", "--out", *NUMBERS, "--"))
            raise StepError(f"{step.name}: '{word}' is not understood; known are {known}")
    return step


def printed(command: list[str]) -> str:
    """A command as a dry run shows it: of a shell function the name and arguments, not its text."""
    if command[:4] != FUNCTION or len(command) < 6:
        return shlex.join(command)
    return f"{shlex.join(command[5:])}  # {command[5]}: a function of the recipe"


class Runner:
    """Runs steps, at most ``nj`` at a time, and keeps their marks and logs under ``exp_dir``."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.recipe: str = args.recipe
        self.stage: int = args.stage
        self.exp_dir = Path(args.exp_dir)
        self.nj: int = args.nj
        self.slurm: bool = args.cmd == "slurm"
        self.memory: int = args.memory
        self.parallel: bool = args.parallel
        self.dry_run: bool = args.dry_run
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        self.free_gpus = (visible.split(",") if visible else [str(i) for i in range(args.gpus)])[: args.gpus]
        self.n_gpus = len(self.free_gpus)
        self.running: list[Running] = []
        self.selector = selectors.DefaultSelector()

    def say(self, text: str) -> None:
        """Prints a line of the runner's own."""
        print("-- " + text.replace("@exp", os.path.relpath(self.exp_dir)), flush=True)

    def short(self, path: str) -> str:
        """A path as marks and messages name it."""
        return path.replace(str(self.exp_dir), "@exp", 1) if path.startswith(str(self.exp_dir)) else path

    def mark_path(self, step: Step) -> Path:
        return self.exp_dir / ".done" / f"{self.stage}.{step.name}"

    def log_path(self, step: Step) -> Path:
        return self.exp_dir / "log" / f"stage{self.stage}.{step.name}.log"

    def paths(self, names: Iterable[str]) -> dict[str, Path]:
        return {self.short(name): Path(name) for name in names}

    def pending(self, step: Step) -> str | None:
        """Why the step has to run; None where it is done."""
        mark = Mark.read(self.mark_path(step))
        if mark is None:
            return NOT_DONE
        try:
            words = key_words(step.command, str(self.exp_dir))
            return what_changed(mark, words, self.paths(step.inputs), self.paths(step.outputs))
        except OSError as error:
            return f"cannot read {error.filename}"

    def run(self, steps: list[Step]) -> None:
        """Runs all steps that are not done.

        Raises:
            StepError: one failed; the others have been ended.
            Interrupted: a signal came; all have been ended.
        """
        waiting: list[tuple[Step, str]] = []
        for step in steps:
            why = self.pending(step)
            if why is None:
                self.say(f"{step.name}: already done")
            elif self.dry_run:
                self.say(f"{step.name}: would run ({why})\n{printed(step.command)}")
            else:
                waiting.append((step, why))
        threads = self.threads_each(len(steps))
        try:
            while waiting or self.running:
                while waiting and self.may_start(waiting[0][0]):
                    step, why = waiting.pop(0)
                    self.say(f"{step.name}: " + ("starts" if why == NOT_DONE else f"runs again: {why}"))
                    self.start(step, threads)
                self.poll()
        finally:
            self.end_all()

    def threads_each(self, n_steps: int) -> int:
        # by all steps of the stage, done or not: the same numbers after a restart
        return max(1, self.nj // max(1, min(self.nj, n_steps)))

    def may_start(self, step: Step) -> bool:
        if len(self.running) >= (self.nj if self.parallel else 1):
            return False
        return len(self.free_gpus) >= min(step.gpus, self.n_gpus)

    def start(self, step: Step, threads: int) -> None:
        """Starts a step in a process group of its own that ends with this runner."""
        inputs = self.paths(step.inputs)
        known = Mark(key_words(step.command, str(self.exp_dir)))
        for name, path in inputs.items():
            try:
                known.inputs[name] = fingerprint(path)
            except OSError as error:
                raise StepError(f"{step.name}: input {path}: {error.strerror}; run the stage that makes it") from None
        self.mark_path(step).unlink(missing_ok=True)
        taken, self.free_gpus = self.free_gpus[: step.gpus], self.free_gpus[step.gpus :]
        threads = step.threads or threads
        if self.slurm:  # never more than the user says that a node has
            threads = min(max(threads, CPUS_PER_GPU * len(taken)), self.nj)
        each = max(1, threads // max(1, step.gpus))  # a step of several GPUs has a process for each
        env = dict(os.environ, OMP_NUM_THREADS=str(each), PYTHONUNBUFFERED="1")
        command = step.command
        if self.slurm:
            launcher = [sys.executable, str(Path(__file__).with_name("launch.py")), "--name"]
            gpus = str(len(taken))  # no more than the user gives, and none on a cluster without any
            options = [f"{self.recipe}-{step.name}", "--threads", str(threads), "--gpus", gpus]
            options += ["--memory-gb", str(step.memory or self.memory)]
            command = [*launcher, *options, "--log-dir", str(self.exp_dir / "log"), "--", *command]
        else:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        log = self.log_path(step).open("ab", buffering=0)
        head = f"# {time.strftime('%F %T')} {socket.gethostname()}: {shlex.join(step.command)}\n"
        log.write(head.encode())
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
                preexec_fn=functools.partial(end_with_parent, os.getpid()),
            )
        except OSError as error:
            raise StepError(f"{step.name}: cannot run {command[0]}: {error.strerror}", 127) from None
        run = Running(step, process, log, inputs, known, taken, time.monotonic())
        self.running.append(run)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self.selector.register(process.stdout, selectors.EVENT_READ, run)

    def poll(self) -> None:
        """Waits for output; passes it on and notices what has ended."""
        for event, _ in self.selector.select(timeout=0.2 if self.running else 0):
            run: Running = event.data
            stream = run.process.stdout
            assert stream is not None
            block = stream.read(1 << 16)
            if block:
                self.show(run, block)
            elif block == b"":
                self.selector.unregister(stream)
        for run in list(self.running):
            if run.process.poll() is not None:
                self.ended(run)

    def show(self, run: Running, block: bytes) -> None:
        """Logs output and shows its whole lines."""
        run.log.write(block)
        *lines, run.rest = (run.rest + block).replace(b"\r", b"\n").split(b"\n")
        prefix = f"[{run.step.name}] " if self.parallel else ""
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            if text:
                run.last_line = text
                print(prefix + text, flush=True)

    def ended(self, run: Running) -> None:
        """Takes a process that has ended off the list, and writes its mark or fails."""
        stream = run.process.stdout
        assert stream is not None
        # what it still had in the pipe; a grandchild may hold the pipe open, so no wait for its end
        while block := stream.read(1 << 16):
            self.show(run, block)
        if run.rest:
            self.show(run, b"\n")
        with suppress(KeyError):
            self.selector.unregister(stream)
        stream.close()
        self.running.remove(run)
        self.free_gpus += run.gpu_ids
        status, seconds = run.process.returncode, time.monotonic() - run.started
        run.log.write(f"# {time.strftime('%F %T')} ended after {seconds:.1f} s, status {status}\n".encode())
        run.log.close()
        if status != 0:
            self.fail(run, status)
        outputs = run.known.outputs
        for name, path in self.paths(run.step.outputs).items():
            if not path.exists():
                raise StepError(f"stage {self.stage}: {run.step.name} ended well but {path} is not there")
            outputs[name] = output_fingerprint(path)
        Mark(run.known.command, run.known.inputs, outputs, round(seconds, 3)).write(self.mark_path(run.step))
        self.say(f"{run.step.name}: done in {clock(seconds)}")

    def fail(self, run: Running, status: int) -> NoReturn:
        """Raises the one line that says which step failed, how and where to look."""
        how = f"failed with status {status}"
        if status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
            how += " (out of memory?)" if status == -signal.SIGKILL else ""
            status = 128 - status
        where = f"log: {self.log_path(run.step)}"
        raise StepError(f"stage {self.stage}: {run.step.name} {how}: {run.last_line or 'no output'} ({where})", status)

    def end_all(self) -> None:
        """Ends what still runs, first kindly."""
        deadline = time.monotonic() + END_SECONDS
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for run in self.running:
                with suppress(ProcessLookupError):
                    os.killpg(run.process.pid, signum)
            while signum == signal.SIGTERM and time.monotonic() < deadline:
                if all(run.process.poll() is not None for run in self.running):
                    break
                time.sleep(0.02)
        for run in self.running:
            run.process.wait()
            run.log.close()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def end_with_parent(parent: int) -> None:
    """Asks the system to send this process SIGTERM when its parent dies, and ends it if that has happened."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def main() -> int:
    """Runs the steps on standard input; the status of the first that failed, 0 if none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--exp-dir", required=True)
    parser.add_argument("--nj", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--cmd", choices=("run", "slurm"), default="run")
    parser.add_argument("--memory", type=int, default=0, help="GB that a job of SLURM asks for; 0: what the site gives")
    parser.add_argument("--parallel", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()

    def interrupt(signum: int, _frame: object) -> NoReturn:
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)  # once is enough
        raise Interrupted(signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupt)
    end_with_parent(os.getppid())
    try:
        Runner(args).run(parse_specs(sys.stdin.buffer.read()))
    except StepError as error:
        print(f"{args.recipe}: error: {error}", file=sys.stderr)
        return error.status
    except Interrupted as stop:
        print(
            f"{args.recipe}: stage {args.stage} was stopped; the same command goes on from here",
            file=sys.stderr,
        )
        return 128 + stop.signum
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more
        return 141
    except OSError as error:
        # a write has no name: on a full disk it was a log or a mark
        place = error.filename or args.exp_dir
        print(f"{args.recipe}: error: {place}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
