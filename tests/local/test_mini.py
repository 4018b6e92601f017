"""The mini corpus: what is planned, and that it comes out the same however it is made."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import load_manifest

from local import mini
from local.synth import NOISES
from local.verses import Split, read_verses, split_verses
from mpq.cli.main import main
from mpq.cli.prepare import _find_corpora
from mpq.io import BadInput, read_text

ROOT = Path(__file__).resolve().parents[2]
HOURS = 0.012


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return split_verses(read_verses(), mini.SHORTEST, mini.LONGEST)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, splits: dict[str, Split]) -> None:
    """A corpus of about 20 utterances, in chunks of 3, its text read once for all tests."""
    monkeypatch.setattr(mini, "read_verses", list)
    monkeypatch.setattr(mini, "split_verses", lambda *_: splits)
    monkeypatch.setattr(mini, "_SMOKE_SIZES", {"dev": 4, "test": 5})
    monkeypatch.setattr(mini, "_BABBLE_WORDS", 8)
    monkeypatch.setattr(mini, "_CHUNK", 3)


def sounds(folder: Path) -> dict[str, bytes]:
    """All audio files below a folder by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.flac"))}


def test_dev_and_test_voices_are_unseen() -> None:
    names = {part: speakers.split() for part, speakers in mini.VOICES.items()}
    variants = {part: {name.partition("-")[2] for name in speakers} for part, speakers in names.items()}
    assert len(names["train"]) == len(set(names["train"])) >= 24
    assert not variants["train"] & (variants["dev"] | variants["test"]) and not variants["dev"] & variants["test"]
    assert len({name[:2] for name in names["train"]}) == 5 and {name[:2] for name in names["test"]} == {"us", "rp"}
    assert mini.espeak_voice("rp-f4") == "en-gb-x-rp+f4"


def test_plan_of_training(splits: dict[str, Split]) -> None:
    verses = splits["train"].spoken
    plan = mini.plan_train(verses, 2.5, 0)
    rows = [row for _, row in plan]
    assert len({row.utt for row in rows}) == len(rows)
    counts = np.unique([row.voices[0] for row in rows], return_counts=True)[1]
    assert len(counts) >= 24 and counts.max() - counts.min() <= 1
    assert {row.noise for row in rows} == set(NOISES)
    assert all(10 <= row.snr <= 20 and -32 <= row.level <= -20 and 145 <= row.rate <= 200 for row in rows)
    assert mini.plan_train(verses, 1.0, 0) == plan[: len(mini.plan_train(verses, 1.0, 0))]  # more hours append
    assert mini.plan_train(verses, 2.5, 1) != plan
    with pytest.raises(BadInput, match=r"--hours 100: the training books give 1\d\.\d; ask for fewer"):
        mini.plan_train(verses, 100, 0)


def test_plan_of_held_out_parts(splits: dict[str, Split]) -> None:
    plan = mini.plan_held_out(splits["test"], "test", None, 0)
    assert [verse for verse, _ in plan] == splits["test"].spoken
    assert {row.voices[0] for _, row in plan} == {mini.espeak_voice(v) for v in mini.VOICES["test"].split()}
    few = mini.plan_held_out(splits["test"], "test", 60, 0)
    assert len({verse for verse, _ in few}) == 60 and len({verse.book for verse, _ in few}) > 6


def test_estimated_duration_is_right(splits: dict[str, Split], tmp_path: Path) -> None:
    from local.synth import Chunk, synthesize_chunk

    plan = mini.plan_train(splits["train"].spoken, 0.05, 3)
    synthesize_chunk(Chunk(tmp_path, tuple(row for _, row in plan if row.noise != "babble")))
    files = [(verse, row) for verse, row in plan if row.noise != "babble"]
    made = sum(soundfile.info(tmp_path / f"{row.utt}.flac").duration for _, row in files)
    estimated = sum(mini._seconds(verse, row.rate) for verse, row in files)
    assert made == pytest.approx(estimated, rel=0.06)


@pytest.mark.usefixtures("tiny")
def test_corpus_is_whole_and_does_not_depend_on_nj(tmp_path: Path) -> None:
    summary = mini.prepare(tmp_path / "a", smoke=True, nj=1, seed=2, hours=HOURS)
    assert summary.startswith("synthetic speech: train ") and "test 5 utterances" in summary
    for part, size in (("dev", 4), ("test", 5)):
        cuts = load_manifest(tmp_path / "a" / part / "cuts.jsonl.gz")
        texts = read_text(tmp_path / "a" / part / "text")
        assert len(cuts) == len(texts) == size
        lines = (tmp_path / "a" / "lm" / f"{part}.txt").read_text().splitlines()
        assert len(lines) > 40
        for cut in cuts:
            assert cut.sampling_rate == 16000 and 1 < cut.duration < 15
            assert cut.supervisions[0].speaker in mini.VOICES[part].split()
            assert cut.load_audio().shape[1] == cut.num_samples
    mini.prepare(tmp_path / "b", smoke=True, nj=3, seed=2, hours=HOURS)
    assert sounds(tmp_path / "a" / "audio") == sounds(tmp_path / "b" / "audio")
    assert len(sounds(tmp_path / "a" / "audio")) > 25
    for name in ("train/text", "test/text", "lm/train.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.usefixtures("tiny")
def test_second_run_keeps_what_is_right_and_mends_the_rest(tmp_path: Path) -> None:
    mini.prepare(tmp_path, smoke=True, nj=2, hours=HOURS)
    first = sounds(tmp_path / "audio")
    paths = sorted((tmp_path / "audio" / "train").iterdir())
    paths[0].write_bytes(paths[0].read_bytes()[:-2000])
    paths[1].unlink()
    (tmp_path / "audio" / "train" / "us-m1-99999999.flac").write_bytes(b"of other options")
    kept = {path: path.stat().st_mtime_ns for path in paths[2:]}
    mini.prepare(tmp_path, smoke=True, nj=2, hours=HOURS)
    assert sounds(tmp_path / "audio") == first
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    mini.prepare(tmp_path, smoke=True, nj=2, hours=HOURS, seed=1)
    assert not set(sounds(tmp_path / "audio").values()) & set(first.values())


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_killed_runs_end_in_the_same_corpus(tmp_path: Path) -> None:
    mini.prepare(tmp_path / "a", smoke=True, nj=1, hours=HOURS)
    expected = sounds(tmp_path / "a" / "audio")
    start = functools.partial(  # forked: what is imported and read already need not be so again
        multiprocessing.get_context("fork").Process,
        target=mini.prepare,
        args=(tmp_path / "b",),
        kwargs={"smoke": True, "nj": 2, "hours": HOURS},
    )
    for files in (3, 18):
        run = start()
        run.start()
        while run.is_alive() and len(list((tmp_path / "b").rglob("*.flac"))) < files:
            time.sleep(0.002)
        run.kill()
        run.join()
        assert not (tmp_path / "b" / "test" / "cuts.jsonl.gz").exists(), "killed too late to test anything"
    run = start()
    run.start()
    run.join()
    assert run.exitcode == 0
    assert sounds(tmp_path / "b" / "audio") == expected
    assert read_text(tmp_path / "b" / "train" / "text") == read_text(tmp_path / "a" / "train" / "text")
    assert not list((tmp_path / "b").rglob(".tmp-*"))


def test_options_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="mini makes its own corpus"):
        mini.prepare(tmp_path, corpus_dir=tmp_path)
    with pytest.raises(BadInput, match=r"--hours 0: expected a number above 0"):
        mini.prepare(tmp_path, hours=0.0)
    for words, expected in (
        (("minni",), "no corpus 'minni'; did you mean mini?"),
        (("mini", "--nj", "0"), "--nj 0: expected a number above 0"),
        (("an4", "--hours", "3"), "--hours 3: an4 is recorded speech; leave the option out"),
    ):
        assert main(["prepare", *words, "--out", str(tmp_path / "out")]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["prepare", "mini", "--check-only", "--smoke"]) == 0
    checked = capsys.readouterr().out
    assert checked.startswith("mini: synthetic speech, to be made: train ") and "test 40 utterances" in checked
    assert all(hasattr(importlib.import_module(f"local.{name}"), "check") for name in _find_corpora())
