"""Result records: one JSON line for each decoding of a set by a system."""

from __future__ import annotations

import dataclasses
import fcntl
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpq.io import BadInput, PathLike, read_jsonl, write_jsonl

FIRST_PASS, ORACLE, RESCORED = "first-pass", "oracle", "rescored"
_ROLES = (FIRST_PASS, ORACLE, RESCORED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRecord:
    """How one system did on one set, and what it costs.

    Attributes:
        system: name of the system, such as ``"lstm-4bit"``.
        set: what was decoded, such as ``"test"``.
        words: words of the reference.
        errors: word errors.
        wer: word error rate in percent.
        interval: ends of its 95 % interval in percent (:func:`mpq.score.bootstrap_interval`).
        role: ``"first-pass"``, ``"oracle"`` (the best hypotheses of the lists) or ``"rescored"``.
        family: language model that the system is a version of, such as ``"LSTM"``; one panel of the plot.
        line: how it was compressed, such as ``"ADMM"``; one line of the panel.
        bits: mean bits a parameter; 32 is the family's reference.
        bytes: size of the model file.
        ratio: size of the family's float32 file divided by this one's.
        perplexity: per word, of the language model on the development text.
        p_float32: two-sided p of the matched pairs test against the family's float32 system.
        p_first_pass: the same against the first pass.
        seconds: time that the decoding or rescoring took.
        git: commit of the code.
        config_hash: :func:`mpq.io.hash_config` of the configuration.
        seed: seed of training.
        layer_bits: mean bits of each kind of matrix, where they differ, such as ``{"blocks.attention": 2.5}``.
        extra: more columns of the tables, heading to value, such as ``{"search min": 3.1}``.
    """

    system: str
    set: str
    words: int
    errors: int
    wer: float
    interval: tuple[float, float] | None = None
    role: str = RESCORED
    family: str | None = None
    line: str | None = None
    bits: float | None = None
    bytes: int | None = None
    ratio: float | None = None
    perplexity: float | None = None
    p_float32: float | None = None
    p_first_pass: float | None = None
    seconds: float | None = None
    git: str | None = None
    config_hash: str | None = None
    seed: int | None = None
    layer_bits: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, float | str] = field(default_factory=dict)


_FIELDS = {item.name: item for item in dataclasses.fields(ResultRecord)}
_REQUIRED = ("system", "set", "words", "errors", "wer")
_TEXTS = ("system", "set", "role", "family", "line", "git", "config_hash")
_COUNTS = ("words", "errors", "bytes", "seed")


def read_results(path: PathLike) -> list[ResultRecord]:
    """Read the records of a file, in its order.

    Raises:
        BadInput: an unknown or missing field, a value of the wrong kind, or a system and set given twice.
    """
    records: dict[tuple[str, str], ResultRecord] = {}
    for number, row in read_jsonl(path):
        record = _record(row, f"{path}:{number}")
        if (record.system, record.set) in records:
            raise BadInput(f"{path}:{number}: {record.system!r} on {record.set!r} is given twice; remove one line")
        records[record.system, record.set] = record
    return list(records.values())


def write_results(path: PathLike, records: Iterable[ResultRecord]) -> None:
    """Write all records of a file anew."""
    write_jsonl(path, (_row(record) for record in records))


def update_results(path: PathLike, record: ResultRecord) -> None:
    """Add a record to a file, in the place of the one with the same system and set if there is one.

    Jobs may do this at the same time: a lock beside the file lets one at a time do it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records = read_results(path) if target.exists() else []
        merged = {(old.system, old.set): old for old in records}
        merged[record.system, record.set] = record
        write_results(path, merged.values())


def _row(record: ResultRecord) -> dict[str, Any]:
    """The JSON object of a record: fields that hold nothing are left out."""
    row = dataclasses.asdict(record)
    return {key: value for key, value in row.items() if value is not None and value != {}}


def _record(row: dict[str, Any], where: str) -> ResultRecord:
    """Check and convert one JSON object."""
    for key in row:
        if key not in _FIELDS:
            raise BadInput(f"{where}: unknown field {key!r}; more columns belong under 'extra'")
    for key in _REQUIRED:
        if row.get(key) is None:
            raise BadInput(f"{where}: no {key!r}; every record needs {', '.join(_REQUIRED)}")
    for key, value in row.items():
        if value is not None and not _fits(key, value):
            raise BadInput(f"{where}: {key!r} is {value!r:.60}, which is not {_expected(key)}")
    if row.get("interval") is not None:
        row = {**row, "interval": tuple(map(float, row["interval"]))}
    return ResultRecord(**row)


def _fits(key: str, value: Any) -> bool:
    """Whether a value is of the kind that its field holds."""
    if key == "role":
        return value in _ROLES
    if key in _TEXTS:
        return isinstance(value, str)
    if key in _COUNTS:
        return isinstance(value, int) and not isinstance(value, bool)
    if key == "interval":
        return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    if key == "layer_bits":
        return isinstance(value, dict) and all(map(_is_number, value.values()))
    if key == "extra":
        return isinstance(value, dict) and all(isinstance(item, str) or _is_number(item) for item in value.values())
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _expected(key: str) -> str:
    """What a field holds, for a message."""
    if key == "role":
        return f"one of {', '.join(_ROLES)}"
    if key in _TEXTS:
        return "a string"
    if key in _COUNTS:
        return "a whole number"
    return {
        "interval": "a list of two numbers",
        "layer_bits": "an object of numbers",
        "extra": "an object of numbers and strings",
    }.get(key, "a finite number")
