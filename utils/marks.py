"""Done marks of the stage runner: what a step was made from, and what has changed since.

A mark is a JSON file with the words of the command and the fingerprints of input and output files. It is
removed before a step starts and written after the step ended well, so a step that was killed has none.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Files up to this size are always read; larger ones only when size or modification time differ.
ALWAYS_HASH_BYTES = 64 << 20


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a file (sha256 of its bytes) or of a folder (sha256 of the names and sizes in it)."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Mark:
    """What a finished step was made from. Paths below the experiment folder are written as ``@exp/...``."""

    command: list[str]
    inputs: dict[str, Fingerprint] = field(default_factory=dict)
    outputs: dict[str, Fingerprint] = field(default_factory=dict)
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        """Writes the mark under a temporary name and moves it into place."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        os.replace(temporary, path)

    @staticmethod
    def read(path: Path) -> Mark | None:
        """The mark at ``path``; None where there is none or it is no mark."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            for part in ("inputs", "outputs"):
                data[part] = {name: Fingerprint(**value) for name, value in data[part].items()}
            return Mark(**data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def fingerprint(path: Path, known: Fingerprint | None = None) -> Fingerprint:
    """Fingerprint of a file or folder.

    Args:
        path: what to look at.
        known: an older fingerprint; a large file of the same size and time as then is not read again.

    Raises:
        OSError: there is no such file or it cannot be read.
    """
    stat = path.stat()
    if path.is_dir():
        lines = sorted(f"{file.relative_to(path)}\t{file.stat().st_size}" for file in path.rglob("*") if file.is_file())
        return Fingerprint(len(lines), 0, hashlib.sha256("\n".join(lines).encode()).hexdigest())
    if (
        known is not None
        and stat.st_size > ALWAYS_HASH_BYTES
        and (stat.st_size, stat.st_mtime_ns) == (known.size, known.mtime_ns)
    ):
        return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return Fingerprint(stat.st_size, stat.st_mtime_ns, digest.hexdigest())


def output_fingerprint(path: Path, known: Fingerprint | None = None) -> Fingerprint:
    """As `fingerprint`, but of a folder only that it is there: later steps may add files to it."""
    if path.is_dir():
        return Fingerprint(0, 0, "folder")
    return fingerprint(path, known)


def key_words(command: Sequence[str], exp_dir: str) -> list[str]:
    """Words of a command that decide its result: without ``--nj N``, wherever the experiment folder lies."""
    words: list[str] = []
    skip = False
    for word in command:
        if skip or word.startswith("--nj="):
            skip = False
        elif word == "--nj":
            skip = True
        else:
            words.append(word.replace(exp_dir, "@exp"))
    return words


def command_change(old: Sequence[str], new: Sequence[str]) -> str:
    """Says in words how a command differs from what it was."""
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, start, stop, new_start, new_stop in matcher.get_opcodes():
        if kind != "equal":
            option = f"{new[new_start - 1]} " if new_start and new[new_start - 1].startswith("-") else ""
            was, now = shorten(old[start:stop]), shorten(new[new_start:new_stop])
            return f"the command changed: {option}{was or 'nothing'} is now {now or 'nothing'}"
    return "the command changed"


def shorten(words: Sequence[str], limit: int = 60) -> str:
    """The words on one line of at most ``limit`` characters."""
    text = " ".join(" ".join(words).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def what_changed(mark: Mark, command: list[str], inputs: dict[str, Path], outputs: dict[str, Path]) -> str | None:
    """Names the first thing that differs from what the mark says; None where nothing does.

    Args:
        mark: how the step was made.
        command: the words of the command now, from `key_words`.
        inputs: input files now, by the name that the mark has for them.
        outputs: output files, the same.
    """
    if mark.command != command:
        return command_change(mark.command, command)
    for name, path in inputs.items():
        known = mark.inputs.get(name)
        if known is None:
            return f"input {name} is new"
        if fingerprint(path, known).sha256 != known.sha256:
            return f"input {name} changed"
    for name in mark.inputs:
        if name not in inputs:
            return f"input {name} is no input any more"
    for name, path in outputs.items():
        known = mark.outputs.get(name)
        if not path.exists():
            return f"output {name} is gone"
        if known is None:
            return f"output {name} is new"
        if output_fingerprint(path, known).sha256 != known.sha256:
            return f"output {name} was changed"
    return None
