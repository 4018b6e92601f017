"""AN4: every layout that CMU distributes, and everything that can be wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import load_manifest

from local import an4
from mpq.io import BadInput, read_text

SPEAKERS = {"train": ("fash", "fjam", "mmap"), "test": ("fcaw", "mmxg")}
FOLDERS = {"train": "an4_clstk", "test": "an4test_clstk"}
KINDS = ("flac", "wav", "sph", "raw-little", "raw-big")


def samples_of(name: str) -> np.ndarray:
    """About half a second of a smooth signal of its own for each utterance."""
    rng = np.random.default_rng(list(name.encode()))
    noise = rng.standard_normal(8000 + 160 * (sum(name.encode()) % 9))
    return (np.convolve(noise, np.hanning(20), "same") * 900).astype(np.int16)


def write_audio(stem: Path, samples: np.ndarray, kind: str) -> Path:
    """Writes one file as one of the distributions has it."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_name(f"{stem.name}.{kind.partition('-')[0]}")
    if kind == "sph":
        fields = ("NIST_1A\n   1024", "channel_count -i 1", f"sample_count -i {len(samples)}",
                  "sample_rate -i 16000", "sample_n_bytes -i 2", "sample_byte_format -s2 10",
                  "sample_sig_bits -i 16", "sample_coding -s3 pcm", "end_head\n")  # fmt: skip
        path.write_bytes("\n".join(fields).encode().ljust(1024) + samples.astype(">i2").tobytes())
    elif kind.startswith("raw"):
        path.write_bytes(samples.astype(">i2" if kind == "raw-big" else "<i2").tobytes())
    else:
        soundfile.write(path, samples, 16000, subtype="PCM_16")
    return path


def make_tree(root: Path, kind: str = "wav") -> Path:
    """A small AN4: four utterances of each speaker, in CMU's layout."""
    (root / "etc").mkdir(parents=True)
    for part, speakers in SPEAKERS.items():
        names = [(speaker, f"an{number}-{speaker}-b") for speaker in speakers for number in range(1, 5)]
        for speaker, name in names:
            write_audio(root / "wav" / FOLDERS[part] / speaker / name, samples_of(name), kind)
        ids = [f"{FOLDERS[part]}/{speaker}/{name}\n" for speaker, name in names]
        (root / "etc" / f"an4_{part}.fileids").write_text("".join(ids))
        line = "<s> {} </s> ({})\n" if part == "train" else "{} ({})\n"  # as CMU wrote them
        texts = [line.format(f"ENTER {name[2]} TWO", name).replace(" 3 ", " THREE ") for _, name in names]
        (root / "etc" / f"an4_{part}.transcription").write_text("".join(texts))
    return root


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make_tree` makes."""
    monkeypatch.setattr(an4, "SIZES", {"train": 12, "test": 8})
    monkeypatch.setattr(an4, "TEST_WORDS", 24)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same_samples(tmp_path: Path, kind: str) -> None:
    make_tree(tmp_path / "an4", kind)
    said = an4.prepare(tmp_path / "out", corpus_dir=tmp_path)  # the folder above an4 will do, too
    assert "train 8 utterances" in said and "dev 4 utterances" in said and "test 8 utterances" in said
    ids = {part: sorted(read_text(tmp_path / "out" / part / "text")) for part in ("train", "dev", "test")}
    assert ids["dev"] == [f"fjam-an{number}-fjam-b" for number in range(1, 5)]
    assert "fash-an1-fash-b" in ids["train"] and "mmxg-an4-mmxg-b" in ids["test"]
    assert read_text(tmp_path / "out" / "dev" / "text")["fjam-an3-fjam-b"] == ["enter", "three", "two"]
    for part in ids:
        for cut in load_manifest(tmp_path / "out" / part / "cuts.jsonl.gz"):
            name = cut.id.partition("-")[2]
            np.testing.assert_array_equal(np.round(cut.load_audio()[0] * 32768), samples_of(name))
            assert cut.supervisions[0].speaker == cut.id.partition("-")[0]
    assert an4.check(corpus_dir=tmp_path) == said
    copies = list((tmp_path / "out").rglob("*.flac"))
    assert len(copies) == (0 if kind in ("flac", "wav") else 20)  # readable files stay where they are
    assert (tmp_path / "out" / "lm" / "train.txt").read_text().splitlines()[2] == "enter three two"
    assert len((tmp_path / "out" / "lm" / "train.txt").read_text().splitlines()) == 8


@pytest.mark.usefixtures("sizes")
def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "an4")
    wav = root / "wav" / "an4_clstk"
    (wav / "fash" / "an1-fash-b.wav").unlink()
    data = (wav / "fash" / "an2-fash-b.wav").read_bytes()
    (wav / "fash" / "an2-fash-b.wav").write_bytes(data[:3000])
    transcription = root / "etc" / "an4_train.transcription"
    lines = transcription.read_text().splitlines()
    lines[2] = "<s>  </s> (an3-fash-b)"
    lines[11] = "<s> NO ID </s>"
    transcription.write_text("\n".join([*lines, "<s> GO </s> (an9-mmap-b)"]) + "\n")
    with pytest.raises(BadInput) as error:
        an4.prepare(tmp_path / "out", corpus_dir=root)
    message = str(error.value)
    assert message.startswith(f"{root}: 6 problems: ") and "and 1 more; fetch AN4 again" in message
    for expected in (
        f"{transcription}:12: expected 'WORDS (utterance)', found '<s> NO ID </s>'",
        f"{root}/wav/an4_clstk/fash/an1-fash-b.{{flac,wav,sph,raw}}: no such file",
        f"{transcription}: utterance an3-fash-b: empty transcript",
        "utterance an4-mmap-b has no line in an4_train.transcription",
        f"{transcription}: utterance an9-mmap-b is not in an4_train.fileids",
    ):
        assert expected in message
    with pytest.raises(BadInput, match="6 problems: "):
        an4.check(corpus_dir=root)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize(
    ("kind", "damage", "expected"),
    [
        ("wav", lambda data: data[:3000], "truncated: its header promises"),
        ("flac", lambda data: data[:3000], "not readable as audio|truncated"),
        ("sph", lambda data: data[:3000], "truncated: its header promises"),
        ("raw-big", lambda data: data[:3001], "truncated: 3001 bytes"),
        ("raw-big", lambda data: b"", "holds no samples"),
        ("wav", lambda data: b"", "not readable as audio"),
    ],
)
def test_damaged_file(tmp_path: Path, kind: str, damage, expected: str) -> None:  # type: ignore[no-untyped-def]
    root = make_tree(tmp_path / "an4", kind)
    (path,) = (root / "wav").rglob("an2-mmap-b.*")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=rf"1 problem: utterance (mmap-)?an2-mmap-b: {path}: ({expected})"):
        an4.prepare(tmp_path / "out", corpus_dir=root)


def test_other_counts_are_refused_but_not_by_smoke(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "an4")
    with pytest.raises(BadInput) as error:
        an4.prepare(tmp_path / "out", corpus_dir=root)
    for expected in ("12 utterances, expected 948", "8 utterances, expected 130", "24 words, expected 773"):
        assert expected in str(error.value)
    said = an4.prepare(tmp_path / "out", corpus_dir=root, smoke=True)
    assert "train 1 utterances" in said and "dev 1 utterances" in said and "test 2 utterances" in said


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no --corpus-dir; give the folder of AN4"):
        an4.prepare(tmp_path / "out")
    with pytest.raises(BadInput, match=r"has no etc/an4_train.fileids"):
        an4.prepare(tmp_path / "out", corpus_dir=tmp_path)
    with pytest.raises(BadInput, match="no such folder"):
        an4.prepare(tmp_path / "out", corpus_dir=tmp_path / "nowhere")
    (tmp_path / "an4.tar").write_bytes(b"archive")
    with pytest.raises(BadInput, match="is a file; unpack it"):
        an4.prepare(tmp_path / "out", corpus_dir=tmp_path / "an4.tar")


def test_the_real_corpus(tmp_path: Path, an4_dir: Path) -> None:
    said = an4.prepare(tmp_path, corpus_dir=an4_dir)
    assert said.startswith("train 844 utterances, 37.8 min") and "test 130 utterances, 6.0 min, 773 words" in said
    speakers = {
        part: {cut.supervisions[0].speaker for cut in load_manifest(tmp_path / part / "cuts.jsonl.gz")}
        for part in ("train", "dev", "test")
    }
    assert speakers["dev"] == an4.DEV_SPEAKERS and len(speakers["train"]) == 66 and len(speakers["test"]) == 10
    assert not speakers["train"] & speakers["dev"] and not speakers["test"] & (speakers["train"] | speakers["dev"])
    text = read_text(tmp_path / "test" / "text")
    assert text["fcaw-an406-fcaw-b"] == ["rubout", "g", "m", "e", "f", "three", "nine"]
