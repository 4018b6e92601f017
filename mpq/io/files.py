"""Whole files: atomic writing, reading with exact error places, hashes, YAML and JSON lines.

Every output of the project goes through :func:`atomic_write` or :func:`atomic_path`, so that a file either
has its old content or its complete new content, whenever a stage is killed or the disk fills up.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import sys
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import yaml

from mpq.io.errors import BadInput

PathLike = str | os.PathLike[str]


def check_writable(path: PathLike, inputs: Iterable[PathLike | None] = ()) -> None:
    """Refuse a name that no file can be written to, or that of an input; call it before long work.

    Raises:
        BadInput: ``path`` is a folder, a part of it is a file, or it is one of ``inputs`` (None is skipped).
    """
    if os.path.isdir(path):
        raise BadInput(f"{path}: is a folder; give the name of a file to write")
    parent = next(folder for folder in Path(path).absolute().parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise BadInput(f"{path}: cannot be written, {parent} is not a folder; write to another place")
    for given in inputs:
        if given is not None and os.path.isfile(given) and os.path.isfile(path) and os.path.samefile(given, path):
            raise BadInput(f"{path}: is also an input, which would be overwritten; give another name to write to")


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary name in the folder of ``path``; it is moved to ``path`` if the block ends well.

    For writers that want a file name of their own (sentencepiece, soundfile, safetensors).  The temporary
    name ends as ``path`` does, so that a format chosen by suffix stays the same.  Missing folders are made,
    symbolic links are written through, and a device or pipe (``/dev/stdout``) is yielded as it is.

    Raises:
        BadInput: ``path`` is a folder, or a part of it is a file.
        OSError: writing failed; its ``filename`` is ``path``, which is left as it was.
    """
    check_writable(path)
    if os.path.exists(path) and not os.path.isfile(path):
        yield Path(path)
        return
    target = Path(path).resolve()
    temporary = target.with_name(f".tmp-{secrets.token_hex(4)}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):  # the reason why writing failed says more
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def atomic_write(path: PathLike, mode: str = "w") -> Iterator[IO[Any]]:
    """Open ``path`` for writing; it changes only if the block ends well, and then all at once.

    Args:
        path: file to write; a name that ends in ``.gz`` is compressed, with no time stamp, so that the same
            content gives the same bytes.
        mode: ``"w"`` for UTF-8 text, ``"wb"`` for bytes.

    Example:
        >>> with atomic_write("exp/hyp.txt") as file:
        ...     file.write("utt-1 hello\\n")
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', not {mode!r}")
    with atomic_path(path) as temporary, ExitStack() as stack:
        stream: IO[Any] = stack.enter_context(open(temporary, "wb"))
        if str(path).endswith(".gz"):
            packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0)
            stream = cast(IO[bytes], stack.enter_context(packed))
        if mode == "w":
            stream = stack.enter_context(io.TextIOWrapper(stream, encoding="utf-8", newline="\n"))
        yield stream


@contextmanager
def atomic_folder(path: PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; if the block ends well, its files are moved to the folder ``path``.

    A folder that is there keeps its other files; its files of the same names are replaced once all are written.

    Raises:
        BadInput: ``path`` or a part of it is a file.
        OSError: writing failed; its ``filename`` is in ``path``, which is left as it was.
    """
    check_writable(Path(path) / "file")
    target = Path(path).resolve()
    temporary = target.with_name(f".tmp-{secrets.token_hex(4)}-{target.name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        target.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            os.replace(file, target / file.name)
    except OSError as error:
        if error.filename is not None:
            error.filename = str(error.filename).replace(str(temporary), str(path))
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def os_errors() -> Iterator[None]:
    """Raise the ``OSError`` of a full disk as it is, where a library (``torch.save``) hides it behind its own error."""
    try:
        yield
    except RuntimeError as error:
        cause = error.__context__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise cause from None


def open_bytes(path: PathLike) -> IO[bytes]:
    """Open ``path`` for reading bytes: gzip by suffix, ``-`` is standard input; no such file is BadInput."""
    if str(path) == "-":
        return sys.stdin.buffer
    if os.path.isdir(path):
        raise BadInput(f"{path}: is a folder; expected a file")
    try:
        return cast(IO[bytes], gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; check the path, or run the stage that writes it") from None


def open_text(path: PathLike) -> IO[str]:
    """Like :func:`open_bytes`, for UTF-8 text."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig")


def read_lines(path: PathLike) -> Iterator[tuple[int, str]]:
    """Yield ``(line number from 1, line without its end)``; a broken file is BadInput that names the line."""
    number = 0
    with open_text(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise BadInput(f"{path}:{number}: holds a NUL byte; expected a text file")
                yield number, line.rstrip("\n")
        except UnicodeDecodeError:
            raise BadInput(_not_utf8(path)) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(f"{path}: after line {number}: broken gzip data ({error}); write it again") from None


def _not_utf8(path: PathLike) -> str:
    """What to say of a file that is not UTF-8: the line and byte, or what kind of file it is."""
    if str(path) == "-":
        return "standard input is not UTF-8 text; convert it"
    with open_bytes(path) as file:
        start = file.read(4)
        if start[:2] == b"\x1f\x8b":
            return f"{path}: is gzip data; give it a name that ends in .gz"
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return f"{path}: is UTF-16, expected UTF-8; convert it, such as by iconv -f UTF-16 -t UTF-8"
        file.seek(0)
        number = 1
        try:
            while line := file.readline():
                line.decode("utf-8")
                number += 1
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            return f"{path}:{number}: byte 0x{byte:02x} is not UTF-8; convert the file, such as by iconv"
        except (EOFError, zlib.error):  # a broken archive of something that is no text
            pass
    return f"{path}: is not UTF-8; convert it, such as by iconv"


def sha256_file(path: PathLike) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal."""
    if not os.path.isfile(path):
        raise BadInput(f"{path}: no such file; check the path, or run the stage that writes it")
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def hash_config(obj: object) -> str:
    """SHA-256 of the canonical JSON of ``obj`` (sorted keys, no spaces); dataclasses and paths too."""
    canonical = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(obj: object) -> object:
    """What JSON writes for an object it does not know."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return dataclasses.asdict(obj)
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    raise TypeError(f"{type(obj).__name__} cannot be part of a hashed configuration")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not the last one silently taken."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"key {key!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: PathLike) -> dict[str, Any]:
    """Read a YAML mapping; an empty file is an empty mapping."""
    with open_text(path) as file:
        try:
            content = yaml.load(file, Loader=_StrictLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else "?"
            raise BadInput(f"{path}:{line}: not valid YAML: {error.problem}") from None
        except UnicodeDecodeError:
            raise BadInput(_not_utf8(path)) from None
        except yaml.YAMLError as error:
            raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadInput(f"{path}: expected 'key: value' lines at the top level, found a {type(content).__name__}")
    return content


def write_yaml(path: PathLike, obj: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, keys in their order."""
    with atomic_write(path) as file:
        yaml.safe_dump(dict(obj), file, sort_keys=False, allow_unicode=True, width=110)


def read_jsonl(path: PathLike, expected: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number from 1, object)`` for each line of a JSON lines file.

    Args:
        path: the file.
        expected: what it should be, to be said where it is something else.
    """
    wanted = f"; expected {expected}" if expected else ""
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problem = (
                f"not JSON ({error.msg} at column {error.colno}): {line[:40]!r}"
                if line.strip()
                else "an empty line; remove it"
            )
            raise BadInput(f"{path}:{number}: {problem}{wanted}") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
            raise BadInput(f"{path}:{number}: not JSON that can be read ({error}): {line[:40]!r}") from None
        if not isinstance(row, dict):
            raise BadInput(f"{path}:{number}: expected a JSON object {{...}}, found {type(row).__name__}")
        yield number, row


def finite(value: object) -> float | None:
    """A number of a JSON or YAML file as float; None where it is no number, NaN, infinite or too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def write_jsonl(path: PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line; NaN and infinities, which JSON has not, are BadInput."""
    with atomic_write(path) as file:
        for number, row in enumerate(rows, start=1):
            try:
                text = json.dumps(row, ensure_ascii=False, allow_nan=False)
            except ValueError:
                raise BadInput(f"{path}: row {number} holds NaN or an infinity: {row!r:.200}") from None
            file.write(text + "\n")
