"""Manifests: what is written, what is refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import load_manifest, validate

from mpq.data.features import FeatureConfig, extract, load_feature_cuts
from mpq.data.manifests import Spoken, describe_part, read_cuts, write_manifests
from mpq.io import BadInput, read_text


def test_lhotse_reads_and_validates_what_is_written(tmp_path: Path, spoken: list[Spoken]) -> None:
    write_manifests(tmp_path / "data", spoken[::-1], 16000)
    for kind in ("recordings", "supervisions", "cuts"):
        manifest = load_manifest(tmp_path / "data" / f"{kind}.jsonl.gz")
        validate(manifest, read_data=True)
        assert [item.id for item in manifest] == [item.utt for item in spoken]  # sorted, not as given
    assert read_text(tmp_path / "data" / "text") == {item.utt: item.text.split() for item in spoken}
    cuts = list(read_cuts(tmp_path / "data" / "cuts.jsonl.gz"))
    assert cuts[4].load_audio().shape == (1, round(2.4 * 16000))
    assert cuts[4].supervisions[0].speaker == "s1"


def test_segments_of_one_channel_of_a_longer_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(-9000, 9000, (3 * 16000, 2), dtype=np.int16)
    audio = tmp_path / "meeting.wav"
    soundfile.write(audio, samples, 16000)
    times = ((0.5, 1.25, 1), (0.75, 1.5625, 0), (2.0, None, 1))
    items = [
        Spoken(f"m-{i}", f"s{channel}", audio, "so it is", "m", start, end, channel, 2)
        for i, (start, end, channel) in enumerate(times)
    ]
    write_manifests(tmp_path / "data", items, 16000)
    recordings, supervisions, cuts = (
        load_manifest(tmp_path / "data" / f"{kind}.jsonl.gz") for kind in ("recordings", "supervisions", "cuts")
    )
    assert [recording.id for recording in recordings] == ["m"] and recordings[0].num_channels == 2
    validate(supervisions)
    for item, cut, segment in zip(items, cuts, supervisions, strict=True):
        end = item.end or 3.0
        assert (segment.start, round(segment.end, 6), segment.channel) == (item.start, end, item.channel)
        expected = samples[round(16000 * item.start) : round(16000 * end), item.channel]
        assert np.array_equal(cut.load_audio()[0] * 32768, expected)
    extract(tmp_path / "data" / "cuts.jsonl.gz", tmp_path / "features", FeatureConfig(speeds=(0.9, 1.0)))
    frames = {cut.id: cut.num_frames for cut in load_feature_cuts(tmp_path / "features" / "cuts.jsonl.gz")}
    assert len(frames) == 6 and frames["m-0"] == 75 and 82 <= frames["m-0_sp0.9"] <= 84
    with pytest.raises(BadInput, match=r"utterance m-1: from 0.75 to 3.5 s, but .*meeting.wav lasts 3.000 s"):
        write_manifests(tmp_path / "late", [replace(items[1], end=3.5)], 16000)


def test_files_are_the_same_each_time(tmp_path: Path, spoken: list[Spoken]) -> None:
    for folder in ("a", "b"):
        write_manifests(tmp_path / folder, spoken, 16000)
    for name in ("recordings.jsonl.gz", "supervisions.jsonl.gz", "cuts.jsonl.gz", "text"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_all_problems_in_one_message_and_nothing_written(tmp_path: Path, spoken: list[Spoken]) -> None:
    spoken[1] = replace(spoken[1], text="  ")
    spoken[2].audio.unlink()
    data = spoken[3].audio.read_bytes()
    spoken[3].audio.write_bytes(data[: len(data) // 2])
    spoken[5] = replace(spoken[5], utt="u04")
    with pytest.raises(BadInput) as error:
        write_manifests(tmp_path / "data", spoken, 16000)
    message = str(error.value)
    assert "4 problems" in message and "\n" not in message
    assert "utterance u01: empty transcript" in message
    assert f"utterance u02: {spoken[2].audio}: no such file" in message
    assert f"utterance u03: {spoken[3].audio}: " in message
    assert "utterance u04: the id is given twice" in message
    assert not (tmp_path / "data").exists()
    with pytest.raises(BadInput, match="no utterances"):
        write_manifests(tmp_path / "data", [], 16000)


def test_reading_refuses_what_is_not_a_manifest_of_utterances(tmp_path: Path, cuts_path: Path) -> None:
    with gzip.open(cuts_path, "rt") as file:
        rows = [json.loads(line) for line in file]

    def refuse(rows: list[dict[str, object]], match: str) -> None:
        path = tmp_path / "bad.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(BadInput, match=match):
            read_cuts(path)

    refuse([], "holds no cuts")
    refuse([{"a": 1}], "bad.jsonl:1: not a lhotse cut")
    refuse([*rows[:2], {**rows[2], "start": None, "recording": 5}], "bad.jsonl:3: not a lhotse cut")
    refuse([rows[0]["recording"]], "bad.jsonl:1: a Recording|bad.jsonl:1: not a lhotse cut")
    refuse([rows[0], rows[0]], "utterance u00: the id is given twice")
    refuse([{**rows[0], "supervisions": []}], "u00: has 0 supervisions, expected 1")
    empty = [{**rows[0]["supervisions"][0], "text": ""}]
    refuse([rows[1], {**rows[0], "supervisions": empty}], "1 problem: utterance u00: empty transcript")


def test_words_are_split_as_kaldi_does(tmp_path: Path, spoken: list[Spoken]) -> None:
    """A no-break or ideographic space is part of a word, wherever it is read again."""
    items = [replace(spoken[0], text=" l'an\u00a0neuf  est\t\u3000l\u00e0 "), *spoken[1:]]
    cuts = write_manifests(tmp_path / "data", items, 16000)
    words = ["l'an\u00a0neuf", "est", "\u3000l\u00e0"]
    assert read_text(tmp_path / "data" / "text")[spoken[0].utt] == words
    assert cuts[spoken[0].utt].supervisions[0].text == " ".join(words)
    assert ", 3 words, " in describe_part("train", items[:1], 1.0)
