"""Done marks: what they notice, and that large files are not read again."""

from __future__ import annotations

from pathlib import Path

import marks
import pytest


def test_key_is_free_of_nj_and_of_the_experiment_folder() -> None:
    words = ["mpq", "features", "--nj", "4", "--nj=3", "--out", "/x/exp/features", "--seed", "1"]
    assert marks.key_words(words, "/x/exp") == ["mpq", "features", "--out", "@exp/features", "--seed", "1"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("mpq x --seed 1", "mpq x --seed 2", "--seed 1 is now 2"),
        ("mpq x", "mpq x --fast", "nothing is now --fast"),
        ("mpq x --fast", "mpq x", "--fast is now nothing"),
        ("mpq x a", "mpq y a", "x is now y"),
    ],
)
def test_command_change_names_the_word(old: str, new: str, told: str) -> None:
    assert marks.command_change(old.split(), new.split()) == f"the command changed: {told}"


def test_large_file_is_read_again_only_when_its_time_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "ALWAYS_HASH_BYTES", 10)
    file = tmp_path / "big"
    file.write_bytes(b"x" * 11)
    first = marks.fingerprint(file)
    known = marks.Fingerprint(first.size, first.mtime_ns, "not read")
    assert marks.fingerprint(file, known) == known
    file.write_bytes(b"y" * 11)
    assert marks.fingerprint(file, known).sha256 not in ("not read", first.sha256)


def test_folder_is_known_by_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "wav").mkdir()
    (tmp_path / "wav" / "a").write_bytes(b"12")
    first = marks.fingerprint(tmp_path)
    assert marks.fingerprint(tmp_path) == first
    (tmp_path / "wav" / "a").write_bytes(b"123")
    assert marks.fingerprint(tmp_path) != first


def test_inputs_and_outputs_that_come_and_go(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("1")
    new.write_text("2")
    mark = marks.Mark(["c"], {"old": marks.fingerprint(old)}, {"old": marks.fingerprint(old)})
    assert marks.what_changed(mark, ["c"], {"old": old}, {"old": old}) is None
    assert marks.what_changed(mark, ["c"], {"old": old, "new": new}, {}) == "input new is new"
    assert marks.what_changed(mark, ["c"], {}, {}) == "input old is no input any more"
    assert marks.what_changed(mark, ["c"], {"old": old}, {"new": new}) == "output new is new"
    assert marks.what_changed(mark, ["c"], {"old": old}, {"old": tmp_path / "gone"}) == "output old is gone"


def test_mark_is_read_as_written(tmp_path: Path) -> None:
    mark = marks.Mark(["a", "b"], {"in": marks.Fingerprint(1, 2, "x")}, {}, 3.5)
    mark.write(tmp_path / "mark")
    assert marks.Mark.read(tmp_path / "mark") == mark
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"command": 1, "inputs": {"a": 3}, "outputs": {}}'])
def test_what_is_no_mark_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "mark").write_text(text)
    assert marks.Mark.read(tmp_path / "mark") is None
