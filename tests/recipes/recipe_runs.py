"""Recipes run as a user runs them, each in an experiment folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mpq.io import read_jsonl, read_text

ROOT = Path(__file__).resolve().parents[2]
RUN_SECONDS = 1500  # longest that one run may take on a busy machine
END_SECONDS = 60  # longest that processes may outlive a killed runner
PLAIN = ("git", "seconds")  # what two equal runs differ in
SYSTEMS = ["lstm-4bit", "lstm-1bit", "transformer-2bit", "lstm-2bit-rounded"]

# of these files two equal runs have the same bytes
SAME_BYTES = ("lang/HLG.fst", "am/model.mpq", "lm/*/model.mpq", "quant/*/model.mpq", "decode/*/nbest.jsonl.gz")

Row = dict[str, Any]


class Recipe:
    """``./run.sh NAME --smoke --exp-dir EXP --nj 2`` of a checkout, with the environment of the tests."""

    def __init__(self, name: str, exp: Path, *words: str, root: Path = ROOT) -> None:
        self.exp = exp
        self.command = ["bash", str(root / "run.sh"), name, "--smoke", f"--exp-dir={exp}", "--nj", "2", *words]
        self.env = dict(os.environ, MPQ_VENV=sys.prefix)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        command = [*self.command, *words]
        return subprocess.run(command, env=self.env, cwd="/", capture_output=True, text=True, timeout=RUN_SECONDS)

    def finish(self, *words: str) -> str:
        """Runs it to its end, which must be a good one, and returns what it printed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr}"
        return done.stdout

    def kill_during(self, stage: int, seconds: float, how: str) -> bool:
        """Starts it, kills it some time after a stage began and waits until nothing of it is left.

        Args:
            stage: its number.
            seconds: between the beginning of the stage and the kill.
            how: "group": the runner's process group, as `kill -9 -PGID`; "runner": only ``run.sh``;
                "command": only the commands that it runs, as when the memory is full.

        Returns:
            Whether it still ran.
        """
        process = subprocess.Popen(
            self.command,
            env=self.env,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        while (line := process.stdout.readline()) and f", stage {stage}:".encode() not in line:
            pass
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        victims = [process.pid]
        while how == "command" and process.poll() is None and not (victims := self.processes()):
            time.sleep(0.05)  # between two steps
        running = process.poll() is None
        for pid in victims if running else ():
            with suppress(ProcessLookupError):
                (os.killpg if how == "group" else os.kill)(pid, signal.SIGKILL)
        process.communicate(timeout=END_SECONDS)
        deadline = time.monotonic() + END_SECONDS
        while left := self.processes():
            assert time.monotonic() < deadline, f"processes {left} outlive the runner"
            time.sleep(0.1)
        return running

    def processes(self) -> list[int]:
        """The processes of the package's commands that work in this experiment folder."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError):
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    if any(word.endswith(b"/mpq") for word in words[:2]) and str(self.exp).encode() in b" ".join(words):
                        found.append(int(folder.name))
        return found

    def rows(self) -> list[Row]:
        """The results without what differs between equal runs."""
        rows = [row for _, row in read_jsonl(self.exp / "results.jsonl")]
        return [{key: value for key, value in row.items() if key not in PLAIN} for row in rows]

    def state(self) -> dict[str, int]:
        """Every file with the time of its last change; the lock is touched by every run."""
        files = (path for path in self.exp.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(self.exp)): path.stat().st_mtime_ns for path in files}


def check_same(recipe: Recipe, undisturbed: Recipe) -> None:
    """The results, the report and what they were made from are those of another run."""
    assert recipe.rows() == undisturbed.rows()
    assert (recipe.exp / "RESULTS.md").read_text() == (undisturbed.exp / "RESULTS.md").read_text()
    for pattern in SAME_BYTES:
        files = sorted(undisturbed.exp.glob(pattern))
        assert files
        for path in files:
            name = path.relative_to(undisturbed.exp)
            assert (recipe.exp / name).read_bytes() == path.read_bytes(), name


def longest_step(undisturbed: Recipe, stage: int) -> float:
    """Seconds of the longest step of a stage."""
    marks = (undisturbed.exp / ".done").glob(f"{stage}.*")
    return max(float(json.loads(mark.read_text())["seconds"]) for mark in marks)


def nominal_bits(system: str) -> int:
    """2 of "lstm-2bit-rounded"."""
    return int(system.split("-")[1].removesuffix("bit"))


def check_results(recipe: Recipe, quantized: Sequence[str], words: int) -> None:
    """Report files, and in the results every system on both sets with plausible figures.

    Args:
        recipe: one that has run.
        quantized: names of the quantized systems.
        words: of the test set's references.
    """
    for name in ("RESULTS.md", "report.html", "size_wer.png", "results.jsonl"):
        assert (recipe.exp / name).stat().st_size > 500, name
    page = (recipe.exp / "report.html").read_text()
    systems = ["first-pass", "oracle", "lstm", "transformer", *quantized]
    rows = {(row["system"], row["set"]): row for row in recipe.rows()}
    assert sorted(rows) == sorted((system, name) for system in systems for name in ("dev", "test"))
    table = (recipe.exp / "RESULTS.md").read_text()
    for system in systems:
        row = rows[system, "test"]
        assert row["words"] == words
        assert row["wer"] == pytest.approx(100 * row["errors"] / words, abs=1e-3)
        assert row["wer"] >= rows["oracle", "test"]["wer"]
        assert f"| {system} |" in table and system in page
    for system in quantized:
        row, parent = rows[system, "test"], rows[system.split("-")[0], "test"]
        assert parent["bits"] == 32 and row["bits"] == pytest.approx(nominal_bits(system), abs=0.5)
        assert row["ratio"] == pytest.approx(parent["bytes"] / row["bytes"], abs=1e-3)
        assert row["perplexity"] > 1 and 0 <= row["p_float32"] <= 1
        assert row["bytes"] == (recipe.exp / "quant" / system / "model.mpq").stat().st_size


def check_table(recipe: Recipe, sets: Sequence[str], systems: Sequence[str]) -> None:
    """Report files, and in the results every system on every set, no better than the oracle, with what it must have.

    Args:
        recipe: one that has run.
        sets: their names.
        systems: theirs, "oracle" among them; those of fewer bits are named as "lstm-2bit".
    """
    for name in ("RESULTS.md", "report.html", "results.jsonl"):
        assert (recipe.exp / name).stat().st_size > 500, name
    rows = {(row["system"], row["set"]): row for row in recipe.rows()}
    assert sorted(rows) == sorted((system, name) for system in systems for name in sets)
    table = (recipe.exp / "RESULTS.md").read_text()
    for (system, name), row in rows.items():
        refs = read_text(recipe.exp / "data" / name / "text")
        assert row["words"] == sum(map(len, refs.values())) and row["wer"] >= rows["oracle", name]["wer"]
        assert f"| {system} |" in table
        if "bit" in system:
            assert 0 <= row["p_float32"] <= 1 and row["perplexity"] > 1
            assert row["bits"] == pytest.approx(nominal_bits(system), abs=0.5)


def refuses(recipe: Recipe, *said: str) -> None:
    """The recipe ends in stage 0 with status 2 and one line on stderr that says all this; nothing is prepared."""
    failed = recipe.run("--stop-stage", "1")
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert failed.stderr.count("\n") == 1 and "stage 0: corpus failed with status 2" in failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr
    for words in said:
        assert words in failed.stderr
    assert not (recipe.exp / "data").exists()
