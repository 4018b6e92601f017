"""Speech of a user's own: Kaldi data folders, folders of audio files, and everything that can be wrong with them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, load_manifest
from numpy.typing import NDArray

from local import kaldi
from mpq.data.batches import FeatureSet
from mpq.data.features import FeatureConfig, extract
from mpq.io import BadInput, read_text

RATE = 8000


def noise(seconds: float, channels: int = 1) -> NDArray[np.int16]:
    rng = np.random.default_rng(round(1000 * seconds))
    return rng.integers(-9000, 9000, (round(seconds * RATE), channels), dtype=np.int16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a file, a pipe, a file of two channels, and five segments; its paths begin at tmp_path."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", noise(3), RATE)
    soundfile.write("b.flac", noise(2), RATE)
    soundfile.write("call.wav", noise(2.5, 2), RATE)
    data = tmp_path / "data" / "test"
    write(data, "wav.scp", "a a.wav", "b cat b.flac |", "call call.wav")
    write(data, "segments", "s1-1 a 0 1.25", "s1-2 a 1.5 3.2", "s2-1 b 0.5 -1", "s3-1 call 0 1 0", "s4-1 call 0 1 1")
    write(data, "text", *(f"{utt} so it is" for utt in ("s1-1", "s1-2", "s2-1", "s3-1", "s4-1")))
    write(data, "utt2spk", *(f"{utt} {utt[:2]}" for utt in ("s1-1", "s1-2", "s2-1", "s3-1", "s4-1")))
    return data


def write(folder: Path, name: str, *lines: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(f"{line}\n" for line in lines))


def cuts_of(part: Path) -> dict[str, MonoCut]:
    return {cut.id: cut for cut in load_manifest(part / "cuts.jsonl.gz")}


def test_segments_of_files_pipes_and_channels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parents[1] / "out"
    said = kaldi.prepare(out, corpus_dirs=[folder], nj=2)
    assert said == "test 5 utterances, 0.00 h, 15 words, 4 speakers; 8000 Hz"
    assert "cut at the end of their recording, which they pass by up to 0.5 s: s1-2" in capsys.readouterr().err
    expected = {
        "s1-1": noise(3)[:10_000, 0],
        "s1-2": noise(3)[12_000:, 0],
        "s2-1": noise(2)[4000:, 0],
        "s3-1": noise(2.5, 2)[:8000, 0],
        "s4-1": noise(2.5, 2)[:8000, 1],
    }
    cuts = cuts_of(out / "test")
    assert cuts.keys() == expected.keys()
    for utt, samples in expected.items():
        np.testing.assert_array_equal(np.round(cuts[utt].load_audio()[0] * 32768), samples)
        assert (cuts[utt].supervisions[0].speaker, cuts[utt].supervisions[0].text) == (utt[:2], "so it is")
    assert read_text(out / "test" / "text")["s2-1"] == ["so", "it", "is"]
    assert (out / "lm" / "test.txt").read_text() == 5 * "so it is\n"
    kept = out / "audio" / "test" / "b.flac"
    before = kept.stat().st_mtime_ns
    assert kaldi.prepare(out, corpus_dirs=[folder]) == said
    assert kept.stat().st_mtime_ns == before  # of the same command and file
    soundfile.write("b.flac", noise(1.75), RATE)
    kaldi.prepare(out, corpus_dirs=[folder])
    np.testing.assert_array_equal(soundfile.read(kept, dtype="int16")[0], noise(1.75)[:, 0])
    assert kaldi.check(corpus_dirs=[folder]) == said


def test_audio_files_without_transcripts_are_decoded_only(tmp_path: Path) -> None:
    for name in ("x.wav", "deep/y.FLAC"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(1), RATE)
    out = tmp_path / "out"
    given = [Path(f"new={tmp_path / 'in'}")]
    assert "new 2 utterances, 0.00 h, no transcripts, 0 speakers" in kaldi.prepare(out, corpus_dirs=given)
    assert not (out / "new" / "text").exists() and not (out / "lm").exists()
    extract(out / "new" / "cuts.jsonl.gz", tmp_path / "features", FeatureConfig(speeds=(0.9, 1.0)))
    features = FeatureSet(tmp_path / "features" / "cuts.jsonl.gz")
    assert features.speakers == features.utts and len(features.batch([0, 2]).texts) == 2
    with pytest.raises(BadInput, match=r"4 of 4 utterances have no transcript, such as x|y.*decoded only"):
        _ = features.texts
    write(tmp_path / "in", "text", "x so it is", "y it is")
    assert "5 words, 0 speakers" in kaldi.prepare(out, corpus_dirs=given)
    soundfile.write(tmp_path / "in" / "y.wav", noise(1), RATE)
    with pytest.raises(BadInput, match=r"in/y.wav: has the name of .*in/deep/y.FLAC; names are the ids"):
        kaldi.prepare(out, corpus_dirs=given)


def test_all_that_is_wrong_is_told_with_its_line(folder: Path) -> None:
    soundfile.write("fast.wav", noise(1), 16000)
    Path("text.wav").write_text("no audio")
    with open(folder / "wav.scp", "a") as file:
        file.write("gone gone.wav\nfast fast.wav\nbad text.wav\nfails cat nowhere.sph |\nmute true |\n")
    rows = (
        *("u1 a 2.9 3.6", "u2 a 3 -1", "u3 nowhere 0 1", "u4 gone 0 1", "u5 fast 0 1", "u6 call 0 1", "u7 call 0 1 2"),
        *("u8 bad 0 1", "u9 fails 0 1", "v1 mute 0 1", "v2 a 2 1", "v3 a 0", "s1-1 a 0 1", "v4 a 0 1", "v5 a 0 1"),
    )
    with open(folder / "segments", "a") as file:
        file.write("".join(f"{row}\n" for row in rows))
    utts = [row.split()[0] for row in rows if row[:2] not in ("s1", "v4", "v2", "v3")]
    for name, more in (("text", ["v4", "w1 so"]), ("utt2spk", ["v4 s"])):
        with open(folder / name, "a") as file:
            file.write("".join(f"{line}\n" for line in [*(f"{utt} s" for utt in utts if utt != "v5"), *more]))
    with pytest.raises(BadInput) as caught:
        kaldi.prepare(folder / "out", corpus_dirs=[folder])
    message = str(caught.value)
    for clause in (
        rf"{folder}/segments:16: v2 is from 2 to 1 s; expected 0 <= start < end",
        rf"{folder}/segments:17: 'a 0'; expected 'utterance recording start end \[channel\]'",
        rf"{folder}/segments:18: s1-1 is given twice, first at {folder}/segments:1",
        rf"lines of {folder}/text that hold an id alone: v4 \({folder}/text:\d+\)",
        rf"utterances without a line in {folder}/text: v5 \({folder}/segments:20\)",
        rf"utterances of text without a line in {folder}/segments: w1 \({folder}/text:\d+\)",
        rf"utterances without a line in {folder}/utt2spk: v5",
        rf"utterances of segments without their recording in {folder}/wav.scp: u3 \({folder}/segments:8: nowhere\)",
        rf"{folder}/wav.scp:4: gone.wav: no such file, seen from ",
        rf"{folder}/wav.scp:6: text.wav: not readable as audio",
        rf"{folder}/wav.scp:7: cat nowhere.sph \|: exit status 1 \(cat: nowhere.sph: No such file or directory\)",
        rf"{folder}/wav.scp:8: true \|: printed 0 bytes that are no audio",
        rf"{folder}/wav.scp:5: fast is sampled at 16000 Hz, 3 others at 8000 Hz",
        rf"{folder}/segments:6: u1: from 2.9 s to 3.6 s, but a.wav lasts 3.000 s",
        rf"{folder}/segments:7: u2: from 3 s to its end, but a.wav lasts 3.000 s",
        rf"{folder}/segments:11: u6: call.wav has 2 channels; a fifth field of segments says which, from 0",
        rf"{folder}/segments:12: u7: channel 2, but call.wav has 2 \(from 0\)",
    ):
        assert re.search(clause, message), f"{clause}\n{message}"
    assert not (folder / "out" / "test").exists()


def test_partial_leaves_out_what_is_incomplete(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "text", "s1-1 so it is", "s2-1", "s4-1 it is", "s9-9 gone")
    out = folder.parents[1] / "out"
    with pytest.raises(BadInput, match=r"utterances without a line in .*/text: s1-2 .*--partial"):
        kaldi.prepare(out, corpus_dirs=[folder])
    kaldi.prepare(out, corpus_dirs=[folder, Path(f"train={folder}")], partial=True)
    assert list(cuts_of(out / "test")) == ["s1-1", "s4-1"]
    assert "2 utterances of test are in train too: s1-1, s4-1" in capsys.readouterr().err
    write(folder, "text", "s9-9 gone")
    with pytest.raises(BadInput, match="no utterance is left"):
        kaldi.prepare(out, corpus_dirs=[folder], partial=True)


def test_partial_is_advised_only_where_it_helps(folder: Path) -> None:
    with open(folder / "wav.scp", "a") as file:
        file.write(f"whole {folder}\n")
    for name, line in (("segments", "w1 whole 0 1"), ("text", "w1 so"), ("utt2spk", "w1 s")):
        with open(folder / name, "a") as file:
            file.write(f"{line}\n")
    with pytest.raises(BadInput, match=rf"{folder}: a folder, expected a file; mend the lines and files named$"):
        kaldi.prepare(folder / "out", corpus_dirs=[folder])


def test_folders_that_cannot_be(folder: Path) -> None:
    out = folder / "out"
    for given, match in (
        ([], "kaldi: no --corpus-dir"),
        ([Path("nowhere")], "nowhere: no such folder; expected a Kaldi data folder"),
        ([Path("x=nowhere")], "nowhere: no such folder"),
        ([folder, folder], "part test is given twice; give each a name, as in dev="),
        ([Path(f"lm={folder}")], "'lm' is no name for a part"),
        ([Path("data")], "data: holds neither wav.scp nor any WAV or FLAC file"),
    ):
        with pytest.raises(BadInput, match=match):
            kaldi.prepare(out, corpus_dirs=given)
    write(folder, "wav.scp", "a raw.ark:1234")
    with pytest.raises(BadInput, match=r"wav.scp: names Kaldi archives"):
        kaldi.prepare(out, corpus_dirs=[folder])
