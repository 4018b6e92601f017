"""Progress passes its items on and tells how far it is."""

from __future__ import annotations

import sys

import pytest

from mpq.io import progress

CLOCK = sys.modules["mpq.io.progress"].time  # the package's name for it is the function


def test_items_pass_through_and_a_short_step_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), 3, "spelling")) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_plain_lines_tell_the_time_left(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(CLOCK, "monotonic", lambda: float(next(now)))
    assert list(progress(range(6), what="counting")) == list(range(6))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "counting: 2/6 (33 %), 0:00:12 so far, 0:00:24 left",
        "counting: 4/6 (67 %), 0:00:24 so far, 0:00:12 left",
        "counting: 6 done in 0:00:42",
    ]


def test_without_a_total_there_is_a_count(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(CLOCK, "monotonic", lambda: float(next(now)))
    assert list(progress(iter("ab"), what="reading")) == ["a", "b"]
    assert capfd.readouterr().err.splitlines()[0] == "reading: 1, 0:00:20 so far"


def test_a_bar_on_a_terminal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress([1, 2, 3], what="drawing")) == [1, 2, 3]
    out, err = capfd.readouterr()
    assert out == ""
    assert "drawing" in err
    assert "3/3" in err
