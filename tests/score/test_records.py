"""Result records: round trip, updates in place and at the same time, wrong lines."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mpq.io import BadInput
from mpq.score import Report, ResultRecord, read_results, update_results

RECORD = ResultRecord(system="a", set="dev", words=10, errors=1, wer=10.0)


def test_round_trip_in_order(tmp_path: Path, report: Report) -> None:
    path = tmp_path / "exp" / "results.jsonl"
    for record in report.records:
        update_results(path, record)
    assert read_results(path) == list(report.records)


def test_the_same_system_and_set_is_replaced_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for record in (RECORD, dataclasses.replace(RECORD, set="test"), dataclasses.replace(RECORD, wer=9.0, errors=9)):
        update_results(path, record)
    assert [(record.set, record.wer) for record in read_results(path)] == [("dev", 9.0), ("test", 10.0)]
    assert json.loads(path.read_text().splitlines()[1]) == {
        "system": "a", "set": "test", "words": 10, "errors": 1, "wer": 10.0, "role": "rescored",
    }  # fmt: skip


def test_jobs_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    records = [dataclasses.replace(RECORD, system=f"s{i}") for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda record: update_results(path, record), records))
    assert sorted(record.system for record in read_results(path)) == sorted(record.system for record in records)


GOOD = {"system": "a", "set": "dev", "words": 10, "errors": 1, "wer": 10.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wre": 1}, "r:2: unknown field 'wre'; more columns belong under 'extra'"),
        ({"wer": None}, "r:2: no 'wer'; every record needs system, set, words, errors, wer"),
        ({"wer": float("nan")}, "'wer' is nan, which is not a finite number"),
        ({"words": 1.5}, "'words' is 1.5, which is not a whole number"),
        ({"seed": True}, "'seed' is True, which is not a whole number"),
        ({"system": 1}, "'system' is 1, which is not a string"),
        ({"interval": [1]}, r"'interval' is \[1\], which is not a list of two numbers"),
        ({"role": "best"}, "'role' is 'best', which is not one of first-pass, oracle, rescored"),
        ({"extra": {"a": []}}, "'extra' is .* which is not an object of numbers and strings"),
        ({"set": "dev"}, "r:2: 'a' on 'dev' is given twice"),
    ],
)
def test_wrong_record(tmp_path: Path, change: dict[str, object], message: str) -> None:
    rows = [GOOD, {**GOOD, "set": "test", **change}]
    (tmp_path / "r").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match=message):
        read_results(tmp_path / "r")
