"""Finds and runs a subcommand of `mpq`; turns errors of the user into one line and exit status 2."""

from __future__ import annotations

import ast
import errno
import importlib
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import mpq

if TYPE_CHECKING:
    from mpq.cli._parser import Parser

FOLDER = Path(__file__).parent
PR_SET_PDEATHSIG = 1  # of prctl
ADVICE = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.ENOENT: "check the path",
    errno.EACCES: "check who may read and write there",
    errno.EROFS: "write to another place",
}


def subcommands() -> dict[str, Path]:
    """Names of the subcommands and their files; imports nothing."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]))
    return {
        name.replace("_", "-"): FOLDER / f"{name}.py" for name in names if not name.startswith("_") and name != "main"
    }


def summary(file: Path) -> str:
    """First line of a module's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def print_help() -> None:
    """Lists the subcommands."""
    print("usage: mpq COMMAND [options]\n\nSpeech recognition with low-bit language models.\n\ncommands:")
    for name, file in subcommands().items():
        print(f"  {name:<12} {summary(file)}")
    print(
        "\nmpq COMMAND --help says what a command reads and writes, with an example."
        "\nmpq --version; mpq --debug COMMAND ... shows where an error comes from."
    )


def load(name: str) -> tuple[ModuleType, Parser]:
    """Imports the module of one subcommand and makes its parser."""
    from mpq.cli._parser import Parser

    module = importlib.import_module(f"mpq.cli.{name.replace('-', '_')}")
    parser = Parser(prog=f"mpq {name}", description=module.__doc__)
    module.add_arguments(parser)
    if "--config" not in parser._option_string_actions:
        parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.use_dashes()
    parser.shorten_help()
    return module, parser


def run_subcommand(name: str, words: Sequence[str]) -> None:
    """Parses the words of a subcommand and runs it."""
    from mpq.cli._parser import BadOption
    from mpq.io.errors import BadInput

    module, parser = load(name)
    try:
        module.run(parser.parse(words))
    except BadOption as problem:
        raise BadInput(f"{parser.place(problem.key)}{problem.text}") from None
    sys.stdout.flush()


def os_error_line(error: OSError) -> str:
    """``FILE: what is wrong; what to do`` on one line."""
    text = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
    return f"{where}{text}{advice}"


def memory_line(error: Exception) -> str | None:
    """What to say where an error means that the memory is full; None where it does not."""
    full = ("can't allocate memory", "out of memory")  # as torch says it of processors and of GPUs
    if isinstance(error, RuntimeError) and not any(words in str(error) for words in full):
        return None
    amount = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    wanted = f" for another {amount[1]}" if amount else ""
    return f"not enough memory{wanted}; make the model or its batches smaller, or end other programs"


def stop(_signum: int, _frame: object) -> NoReturn:
    """Ends by an exception, so that files under temporary names are removed."""
    raise SystemExit(128 + signal.SIGTERM)


def silence_stdout() -> None:
    """Nobody reads standard output: what is still in its buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_with_torchrun() -> None:
    """Has the kernel end this process when the torchrun that started it is gone, be it killed.

    Torchrun gives each process a session of its own, so that what kills torchrun and its group leaves them; a second
    run would train beside them.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def guarded(name: str, words: Sequence[str]) -> int:
    """Runs a subcommand; the exit status."""
    try:
        run_subcommand(name, words)
    except BrokenPipeError:
        silence_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:
        message = os_error_line(error)
    except (MemoryError, RuntimeError) as error:
        line = memory_line(error)
        if line is None:
            raise
        message = line
    except KeyboardInterrupt:
        print(f"mpq {name}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except ValueError as error:
        from mpq.io.errors import BadInput

        if not isinstance(error, BadInput):
            raise
        message = str(error)
    else:
        return 0
    print(f"mpq {name}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def main(words: Sequence[str] | None = None) -> int:
    """The command `mpq`.

    Args:
        words: the words after `mpq`; those of this process by default.

    Returns:
        Exit status: 0 done, 2 wrong usage or bad input, 130 interrupted.
    """
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print_help()
        return 0 if words else 2
    if words[0] == "--version":
        print(f"mpq {mpq.__version__}")
        return 0
    name, *rest = words
    known = subcommands()
    if name not in known:
        from mpq.cli._parser import did_you_mean

        kind = "option" if name.startswith("-") else "command"
        hint = did_you_mean(name, list(known))
        print(f"mpq: error: no {kind} '{name}'{hint}; mpq --help lists them", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, stop)
    end_with_torchrun()
    if os.environ.get("RANK", "0") != "0":  # of several processes under torchrun, the first one speaks
        silence_stdout()
    if debug:
        run_subcommand(name, rest)
        return 0
    return guarded(name, rest)
