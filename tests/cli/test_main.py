"""The command `mpq`: finding subcommands, help, and errors of the user as one line with status 2."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpq.cli.main import load, main, subcommands, summary

ROOT = Path(__file__).resolve().parents[2]

TOY = '''"""Try the command line.

Reads   nothing.
Example:
  mpq toy-tool --lr 0.1
"""
import errno
import time
from typing import Literal, Optional

from mpq.io import BadInput


def add_arguments(parser):
    parser.add_argument("--lr", type=float, default=0.5, help="learning rate")
    parser.add_argument("--kind", type=Literal["a", "b"], default="a", help="which")
    parser.add_argument("--model.layers", type=int, default=2, help="number of layers")
    parser.add_argument("--model.weight_decay", type=float, default=0.5, help="of the optimizer")
    parser.add_argument("--fail", type=Optional[str], default=None, help="how to fail")


def run(args):
    if args.fail == "bad":
        raise BadInput("a.txt:3: 'x': expected a number;\\n see --help")
    if args.fail == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "out.txt")
    if args.fail == "missing":
        open("/no/such/file")
    if args.fail == "memory":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Error code 12")
    if args.fail == "bug":
        raise ValueError("a bug")
    if args.fail == "interrupt":
        raise KeyboardInterrupt
    if args.fail == "wait":
        try:
            print("up", flush=True)
            time.sleep(60)
        finally:
            print("cleaned", flush=True)
    if args.fail == "lines":
        for i in range(200_000):
            print(i)
    if args.model.weight_decay != 0.5:
        print(f"decay {args.model.weight_decay}", end=" ")
    print(f"lr {args.lr} kind {args.kind} layers {args.model.layers}")
'''


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A copy of the command with the subcommand `toy-tool`, and one that must not be imported."""
    (tmp_path / "mpq" / "cli").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py", "cli/__init__.py", "cli/main.py", "cli/_parser.py"):
        (tmp_path / "mpq" / name).write_text((ROOT / "mpq" / name).read_text())
    (tmp_path / "mpq" / "io").symlink_to(ROOT / "mpq" / "io")
    (tmp_path / "mpq" / "cli" / "toy_tool.py").write_text(TOY)
    (tmp_path / "mpq" / "cli" / "broken.py").write_text('"""Break when imported."""\nraise SystemExit("imported")\n')
    return tmp_path


def run_toy(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mpq", *words],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=str(folder)),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_lists_subcommands_without_importing_them(toy: Path) -> None:
    shown = run_toy(toy, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "  toy-tool     Try the command line.\n" in shown.stdout
    assert "  broken       Break when imported.\n" in shown.stdout
    assert "main" not in shown.stdout.split() and "_parser" not in shown.stdout


def test_no_words_show_help_and_fail(toy: Path) -> None:
    shown = run_toy(toy)
    assert shown.returncode == 2
    assert shown.stdout == run_toy(toy, "--help").stdout


def test_version(toy: Path) -> None:
    assert run_toy(toy, "--version").stdout == "mpq 0.1.0\n"


def test_help_of_a_subcommand(toy: Path) -> None:
    shown = run_toy(toy, "toy-tool", "--help").stdout
    assert "\nReads   nothing.\nExample:\n  mpq toy-tool --lr 0.1\n" in shown
    assert "usage: mpq toy-tool [options]\n" in shown and re.search(
        r"  --lr FLOAT  +learning rate \(default: 0.5\)\n", shown
    )
    assert "--config FILE" in shown


def test_config_and_command_line(toy: Path) -> None:
    (toy / "c.yaml").write_text("lr: 0.25\nmodel:\n  layers: 3\n")
    done = run_toy(toy, "toy-tool", "--config", "c.yaml", "--kind", "b")
    assert done.stdout == "lr 0.25 kind b layers 3\n", done.stderr


@pytest.mark.parametrize("option", ["--model.weight-decay", "--model.weight_decay"])
def test_dashes_and_underscores_are_alike(toy: Path, option: str) -> None:
    for words in ([option, "0.25"], [f"{option}=0.25"]):
        assert run_toy(toy, "toy-tool", *words).stdout == "decay 0.25 lr 0.5 kind a layers 2\n"
    failed = run_toy(toy, "toy-tool", option, "x", "--config", "none.yaml")
    assert "none.yaml: no such file" in failed.stderr
    assert "error: --model.weight-decay: Expected a float, got 'x'" in run_toy(toy, "toy-tool", option, "x").stderr
    shown = run_toy(toy, "toy-tool", "--help").stdout
    assert "--model.weight-decay FLOAT" in shown and "weight_decay" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toy-tol"], "mpq: error: no command 'toy-tol'; did you mean 'toy-tool'?; mpq --help lists them"),
        (["--versoin"], "mpq: error: no option '--versoin'; mpq --help lists them"),
        (["toy-tool", "--lrr", "3"], "mpq toy-tool: error: no option '--lrr'; did you mean '--lr'?; see {}"),
        (["toy-tool", "--kin=a"], "mpq toy-tool: error: no option '--kin'; did you mean '--kind'?; see {}"),
        (["toy-tool", "extra"], "mpq toy-tool: error: no argument 'extra'; see {}"),
        (["toy-tool", "kind", "a"], "mpq toy-tool: error: no argument 'kind'; did you mean '--kind'?; see {}"),
        (["toy-tool", "--lr", "x"], "mpq toy-tool: error: --lr: Expected a float, got 'x'; see {}"),
        (["toy-tool", "--kind", "c"], "mpq toy-tool: error: --kind: Expected one of 'a', 'b', got 'c'; see {}"),
        (["toy-tool", "--lr"], "mpq toy-tool: error: argument --lr: expected one argument; see {}"),
    ],
)
def test_wrong_words(toy: Path, words: list[str], message: str) -> None:
    failed = run_toy(toy, *words)
    assert failed.returncode == 2
    assert failed.stderr == message.format("mpq toy-tool --help") + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr: 3\n", "c.yaml: no key 'lrr'; did you mean 'lr'?"),
        ("model:\n  layer: 3\n", "c.yaml: no key 'model.layer'; did you mean 'model.layers'?"),
        ("lr: fast\n", "c.yaml: lr: Expected a float, got 'fast'"),
        ("model:\n  layers: 2.5\n", "c.yaml: model.layers: Expected an int, got '2.5'"),
        ("lr: [\n", "c.yaml:2: not valid YAML"),
        ("model:\n", "c.yaml: model is None; expected indented"),
        (None, "c.yaml: no such file"),
    ],
)
def test_wrong_config(toy: Path, text: str | None, message: str) -> None:
    if text is not None:
        (toy / "c.yaml").write_text(text)
    failed = run_toy(toy, "toy-tool", "--config", "c.yaml")
    assert failed.returncode == 2
    assert message in failed.stderr
    assert failed.stderr.startswith("mpq toy-tool: error: ") and failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("bad", "mpq toy-tool: error: a.txt:3: 'x': expected a number; see --help"),
        (
            "full",
            "mpq toy-tool: error: out.txt: No space left on device; free some space and run the same command again",
        ),
        (
            "memory",
            "mpq toy-tool: error: not enough memory for another 64 bytes; make the model or its batches smaller, "
            "or end other programs",
        ),
        ("missing", "mpq toy-tool: error: /no/such/file: No such file or directory; check the path"),
    ],
)
def test_errors_of_the_user_are_one_line(toy: Path, how: str, line: str) -> None:
    failed = run_toy(toy, "toy-tool", "--fail", how)
    assert (failed.returncode, failed.stdout, failed.stderr) == (2, "", line + "\n")


def test_debug_shows_where_it_comes_from(toy: Path) -> None:
    for words in (["--debug", "toy-tool"], ["toy-tool", "--debug"]):
        failed = run_toy(toy, *words, "--fail", "bad")
        assert "Traceback" in failed.stderr and "BadInput" in failed.stderr


def test_a_bug_is_not_hidden(toy: Path) -> None:
    failed = run_toy(toy, "toy-tool", "--fail", "bug")
    assert failed.returncode == 1
    assert "Traceback" in failed.stderr


def test_interrupt(toy: Path) -> None:
    failed = run_toy(toy, "toy-tool", "--fail", "interrupt")
    assert (failed.returncode, failed.stderr) == (130, "mpq toy-tool: stopped\n")


def test_terminated_command_cleans_up(toy: Path) -> None:
    command = [sys.executable, "-m", "mpq", "toy-tool", "--fail", "wait"]
    env = dict(os.environ, PYTHONPATH=str(toy))
    with subprocess.Popen(command, cwd=toy, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "cleaned\n"
    assert process.returncode == 143
    assert time.monotonic() - started < 30


def test_closed_pipe_is_silent(toy: Path) -> None:
    command = f"{sys.executable} -m mpq toy-tool --fail lines | head -n 1; echo ${{PIPESTATUS[0]}}"
    env = dict(os.environ, PYTHONPATH=str(toy))
    done = subprocess.run(["bash", "-c", command], cwd=toy, env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n141\n", "")


@pytest.mark.parametrize("name", sorted(subcommands()))
def test_every_subcommand_has_help_with_an_example(name: str) -> None:
    assert len(summary(subcommands()[name]).split()) > 2, f"mpq {name} has no summary"
    _, parser = load(name)
    shown = parser.format_help()
    assert "Reads " in shown, f"mpq {name} --help does not say what it reads"
    assert "Writes " in shown or "Prints " in shown, f"mpq {name} --help does not say what it writes"
    assert f"\n  mpq {name} " in shown, f"mpq {name} --help shows no example"


def test_options_that_repeat_others_are_one_line_of_the_help() -> None:
    _, parser = load("search")
    shown = parser.format_help()
    assert "  --quantize.fit.lr FLOAT " in shown and "--nas.fit.lr" not in shown and "--nas.beta FLOAT" in shown
    assert "\n  --nas.fit.*: as --quantize.fit.*, but by default epochs 1, lr 0.0005\n" in shown
    assert "\n  --quantize-am.admm.*: as --quantize.admm.*\n" in shown
    given = ["--model", "m", "--out", "o", "--nas.fit.lr", "0.25"]
    assert parser.parse(given).nas.fit.lr == 0.25, "it can be given all the same"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train-lm --train x --dev x --tokenizer x --out x --fit.lr -1", "--fit.lr: -1.0 must be above 0"),
        ("train-lm --train x --dev x --tokenizer x --out x --config c.yaml", "c.yaml: fit.lr: -2.0 must be above 0"),
        ("train-lm --train x --dev x --tokenizer x --out x --config c.yaml --fit.lr -1", "--fit.lr: -1.0 must"),
        (
            "train-am --train x --dev x --lang x --out x --model.arch conformer --model.kernel 4",
            "--model.kernel: 4 must",
        ),
        ("train-am --train x --dev x --lang x --out x --config am.yaml", "am.yaml: model.kernel: 4 must be odd"),
        ("decode --am x --features x --lang x --out x --lattice-beam 0", "--lattice-beam: 0.0 must be above 0"),
    ],
)
def test_values_out_of_range_are_told_as_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("fit:\n  lr: -2\n")
    Path("am.yaml").write_text("model: {arch: conformer, kernel: 4}\n")
    assert main(command.split()) == 2
    assert capsys.readouterr().err.startswith(f"mpq {command.split()[0]}: error: {message}")


def test_processes_of_torchrun_end_with_it() -> None:
    """Also when it is killed: they are in sessions of their own."""
    worker = "import time, mpq.cli.main as m; m.end_with_torchrun(); print(1, flush=True); time.sleep(20); print(2)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}], start_new_session=True)"
    env = dict(os.environ, TORCHELASTIC_RUN_ID="none", PYTHONPATH=str(ROOT))
    with subprocess.Popen([sys.executable, "-c", start], env=env, stdout=subprocess.PIPE, text=True) as torchrun:
        assert torchrun.stdout is not None and torchrun.stdout.readline() == "1\n"
        torchrun.kill()
        assert torchrun.stdout.read() == "", "the worker's end of the pipe is closed before it prints again"
