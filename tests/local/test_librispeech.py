"""LibriSpeech: what is made of the corpus, and what is said of one that is not whole."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest
from lhotse import load_manifest, validate

from local import librispeech
from mpq.cli.main import main
from mpq.io import BadInput, read_lines, read_text
from mpq.lang.arpa import read_arpa


@pytest.fixture
def corpus(librispeech_dir: Path, tmp_path: Path) -> Path:
    """A copy to damage: FLAC files are links."""

    def copy(source: str, target: str) -> None:
        (os.symlink if source.endswith(".flac") else shutil.copyfile)(source, target)

    shutil.copytree(librispeech_dir.parent, tmp_path / "corpus", copy_function=copy)
    return tmp_path / "corpus" / librispeech_dir.name


def test_manifests_texts_and_ngram_model(librispeech_dir: Path, tmp_path: Path) -> None:
    said = librispeech.prepare(tmp_path, corpus_dirs=[librispeech_dir], partial=True, nj=2)
    assert said.startswith("train 52 utterances, ") and "test-other 8 utterances" in said
    speakers: dict[str, set[str]] = {}
    for part in ("train", *librispeech.SETS):
        cuts = load_manifest(tmp_path / part / "cuts.jsonl.gz")
        validate(cuts, read_data=part == "dev-clean")
        texts = read_text(tmp_path / part / "text")
        assert [cut.id for cut in cuts] == list(texts)
        for cut in cuts:
            assert cut.supervisions[0].speaker == cut.id.split("-")[0]
            assert " ".join(texts[cut.id]) == cut.supervisions[0].text.lower()
        speakers[part] = {cut.supervisions[0].speaker for cut in cuts}
    assert sum(map(len, speakers.values())) == len(set.union(*speakers.values())) == 15
    for order, name in ((3, "3-gram.arpa"), (4, "4-gram.arpa.gz")):
        model = read_arpa(tmp_path / "lm" / name)
        assert model.order == order and "sailor" in model.words
        assert not {word for word in model.words if word != word.lower()} and "<unk>" not in model.words
    held_out = [text for _, text in read_lines(tmp_path / "lm" / "dev.txt")]
    assert held_out == [
        " ".join(words) for part in librispeech.SETS[:2] for words in read_text(tmp_path / part / "text").values()
    ]


def test_parts_of_the_training_data(librispeech_dir: Path, tmp_path: Path) -> None:
    sizes = []
    for train in ("100", "460"):
        librispeech.prepare(tmp_path / train, corpus_dirs=[librispeech_dir], train=train, partial=True)
        sizes.append(len(read_text(tmp_path / train / "train" / "text")))
    assert sizes == [36, 44]
    with pytest.raises(BadInput, match="--train 200: expected 100, 460, 960"):
        librispeech.check(corpus_dirs=[librispeech_dir], train="200")


def test_the_4_gram_may_be_missing(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus.parent / "lm" / "4-gram.arpa.gz").unlink()
    librispeech.prepare(tmp_path / "out", corpus_dirs=[corpus], train="100", smoke=True)
    assert "no 4-gram.arpa.gz (OpenSLR 11): lists are not rescored with it" in capsys.readouterr().err
    assert not (tmp_path / "out" / "lm" / "4-gram.arpa.gz").exists()


def test_held_out_sentences_leave_the_training_text(corpus: Path, tmp_path: Path) -> None:
    (transcript, *_) = sorted((corpus / "test-clean").rglob("*.trans.txt"))
    sentence = transcript.read_text().splitlines()[0].partition(" ")[2]
    packed = corpus.parent / "lm" / librispeech.LM_TEXT
    text = gzip.decompress(packed.read_bytes()).decode()
    packed.write_bytes(gzip.compress(f"{text}{sentence}\n{sentence} TOO\n{sentence}\n".encode()))
    said = librispeech.prepare(tmp_path / "out", corpus_dirs=[corpus], partial=True)
    lines = [line for _, line in read_lines(tmp_path / "out" / "lm" / "train.txt")]
    assert "2 held-out sentences taken out" in said
    assert sentence.lower() not in lines and f"{sentence.lower()} too" in lines


def test_everything_that_is_wrong_in_one_message(corpus: Path) -> None:
    files = sorted((corpus / "train-clean-100").rglob("*.flac"))
    for path in files[:6]:
        path.unlink()
    broken = files[7]
    data = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(data[:2000])
    shutil.rmtree(corpus / "dev-other")
    shutil.rmtree(min((corpus / "test-clean").iterdir()))
    (transcript, *_) = sorted((corpus / "test-other").rglob("*.trans.txt"))
    transcript.write_text("NO ID HERE\n" + transcript.read_text())
    lexicon = corpus.parent / "lm" / librispeech.LEXICON
    lexicon.write_text("".join(line for line in lexicon.read_text().splitlines(True) if not line.startswith("SAILOR")))
    (corpus.parent / "lm" / "librispeech-lm-norm.txt.gz").unlink()
    with pytest.raises(BadInput) as error:
        librispeech.check(corpus_dirs=[corpus], partial=True)
    message = str(error.value)
    assert "\n" not in message and message.endswith("fetch the archives again that hold what is missing or broken")
    missing = [f"{path.relative_to(corpus)}" for path in files[:4]]
    for expected in (
        "1 parts missing: dev-other",
        "1 language model files (OpenSLR 11) missing: librispeech-lm-norm.txt.gz",
        f"6 of 36 files of train-clean-100 missing: {', '.join(missing)} and 2 more",
        f"utterance {broken.stem}: {broken}: ",
        f"{transcript}:1: expected '{transcript.name.partition('.')[0]}-NNNN WORDS', found 'NO ID HERE'",
    ):
        assert expected in message
    with pytest.raises(BadInput) as error:
        librispeech.check(corpus_dirs=[corpus])
    assert "in librispeech-lexicon.txt missing: SAILOR" in str(error.value)
    assert "1 of 2 speakers of test-clean that SPEAKERS.TXT lists missing: " in str(error.value)
    assert "1 of 2 chapters of test-clean that CHAPTERS.TXT lists missing: " in str(error.value)


def test_counts_of_the_whole_corpus_are_needed_but_not_of_a_part(
    librispeech_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "librispeech", "--corpus-dir", str(librispeech_dir), "--check-only"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "train-clean-100: utterances: 36, expected 28539; " in said and "words: 9" in said
    assert main([*words, "--partial"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("librispeech: train 52 utterances")
    assert err.startswith("warning: ") and err.count("\n") == 1 and "expected 28539" in err


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="librispeech: no --corpus-dir; give the folder that holds train-clean-100"):
        librispeech.check(corpus_dirs=[])
    with pytest.raises(BadInput, match=r"holds none of train-clean-100, .*test-other"):
        librispeech.check(corpus_dirs=[tmp_path])
    (tmp_path / "train-clean-100.tar.gz").write_bytes(b"packed")
    with pytest.raises(BadInput, match="is a file; unpack it"):
        librispeech.check(corpus_dirs=[tmp_path / "train-clean-100.tar.gz"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\\data\\\nngram 1=1\n\n\\1-grams:\n-1.0\tA\n", "breaks off, it has no line"),
        ("THE CAT\n", "holds no n-grams"),
    ],
)
def test_ngram_models_that_are_none(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "lm.arpa").write_text(text)
    with pytest.raises(BadInput, match=problem):
        librispeech.write_arpa(tmp_path / "lm.arpa", tmp_path / "out.arpa")
    assert not (tmp_path / "out.arpa").exists()
