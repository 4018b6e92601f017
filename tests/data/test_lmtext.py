"""Units of sentences on disk come back complete, shuffled by seed and epoch, in batches of bounded size."""

from __future__ import annotations

import errno
import fcntl
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from mpq.data import lmtext
from mpq.data.lmtext import LmBatch, LmText, Tokenizer, cut_by_tokens, load_tokenizer, open_lm_text, pad_sentences
from mpq.io import BadInput
from mpq.lang.tokenizer import train_tokenizer


@pytest.fixture
def units(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "words.txt"
    path.write_text("<eps> 0\n" + "".join(f"w{i} {i + 1}\n" for i in range(50)) + "#0 51\n")
    return Tokenizer(path)


@pytest.fixture
def text(units: Tokenizer, tmp_path: Path) -> tuple[LmText, list[str]]:
    rng = np.random.default_rng(0)
    lines = [" ".join(f"w{w}" for w in rng.integers(0, 52, rng.integers(1, 20))) for _ in range(300)]
    (tmp_path / "text").write_text("\n".join(lines) + "\n\n")
    return open_lm_text(tmp_path / "text", units, tmp_path / "cache"), lines


def sentences(batch: LmBatch) -> list[tuple[int, ...]]:
    return [tuple(row[keep].tolist()) for row, keep in zip(batch.targets, batch.mask, strict=True)]


@pytest.mark.parametrize("window", [64, 1 << 17])
def test_every_sentence_once_an_epoch(
    text: tuple[LmText, list[str]], units: Tokenizer, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(lmtext, "WINDOW", window)
    corpus, lines = text
    expected = Counter((*units.encode(line), units.eos) for line in lines)
    orders = []
    for epoch in range(2):
        batches = list(corpus.batches(64, seed=1, epoch=epoch))
        assert len(batches) == corpus.n_batches(64)
        assert all(batch.inputs.numel() <= 64 for batch in batches)
        orders.append([s for batch in batches for s in sentences(batch)])
        assert Counter(orders[-1]) == expected
        again = [s for batch in corpus.batches(64, seed=1, epoch=epoch) for s in sentences(batch)]
        assert again == orders[-1]
    assert orders[0] != orders[1]


def test_counts(text: tuple[LmText, list[str]]) -> None:
    corpus, lines = text
    tokens = " ".join(lines).split()
    assert (corpus.n_sentences, corpus.n_words, corpus.n_units) == (300, len(tokens), len(tokens))
    assert corpus.n_oov == sum(token in ("w50", "w51") for token in tokens) > 0


def test_padding() -> None:
    batch = pad_sentences([[5, 6], []], bos=1, eos=2)
    assert batch.inputs.tolist() == [[1, 5, 6], [1, 2, 2]]
    assert batch.targets.tolist() == [[5, 6, 2], [2, 2, 2]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.inputs.dtype == torch.int64


@pytest.mark.parametrize("n_tokens", [1, 64, 1000])
def test_batches_are_padded_sentences(text: tuple[LmText, list[str]], units: Tokenizer, n_tokens: int) -> None:
    for batch in text[0].batches(n_tokens, seed=1, epoch=0):
        expected = pad_sentences([list(ids[:-1]) for ids in sentences(batch)], units.bos, units.eos)
        for name in ("inputs", "targets", "mask"):
            assert torch.equal(getattr(batch, name), getattr(expected, name))


def test_cuts_are_complete_and_bounded() -> None:
    lengths = np.array([30, 9, 9, 4, 4, 4, 1])
    cuts = cut_by_tokens(lengths, 18)
    assert cuts == [(0, 1), (1, 3), (3, 7)]


def test_text_is_tokenized_once(units: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("w1 w2\n")
    open_lm_text(tmp_path / "text", units, tmp_path / "cache")
    monkeypatch.setattr(lmtext, "_tokenize", None)
    assert open_lm_text(tmp_path / "text", units, tmp_path / "cache").n_units == 2


def test_a_process_waits_for_another_that_tokenizes_the_same(
    units: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("w1 w2\n")
    open_lm_text(tmp_path / "text", units, tmp_path / "cache")
    (meta,) = (tmp_path / "cache").glob("*/meta.json")
    known = meta.read_text()
    meta.unlink()
    monkeypatch.setattr(lmtext, "_tokenize", None)
    with ThreadPoolExecutor(1) as thread:
        with (meta.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = thread.submit(open_lm_text, tmp_path / "text", units, tmp_path / "cache")
            with pytest.raises(TimeoutError):
                found.result(timeout=0.5)
            meta.write_text(known)
        assert found.result(timeout=30).n_units == 2


def test_changed_text_is_noticed(units: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("w1 w2\n")
    open_lm_text(tmp_path / "text", units, tmp_path / "cache")
    (tmp_path / "text").write_text("w1 w2 w3\n")
    assert open_lm_text(tmp_path / "text", units, tmp_path / "cache").n_units == 3


def test_sentencepiece(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("the king went up\nthe people went down\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=18, minloglevel=2
    )
    units = load_tokenizer(tmp_path)
    ids = units.encode("the king went down")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert (units.kind, len(units), ids) == ("sentencepiece", 18, pieces.encode("the king went down"))
    assert (units.bos, units.eos, units.unk) == (1, 2, 0)
    assert units.count_oov("the king") == 0
    assert units.count_oov("the KING zzz people") == 2


def test_oov_is_unk(units: Tokenizer) -> None:
    assert units.encode("w0 nothing w49") == [3, units.unk, 52]
    assert len(units) == 53


@pytest.mark.parametrize(
    ("content", "message"),
    [("a 1\nb 2\na 3\n", "words.txt:3: 'a' is there twice"), ("<eps> 0\n", "holds no word")],
)
def test_bad_word_list(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "words.txt").write_text(content)
    with pytest.raises(BadInput, match=message):
        load_tokenizer(tmp_path / "words.txt")


def test_bad_files(units: Tokenizer, tmp_path: Path) -> None:
    empty = tmp_path / "folder"
    empty.mkdir()
    with pytest.raises(BadInput, match="no such file"):
        open_lm_text(tmp_path / "nothing", units, tmp_path)
    with pytest.raises(BadInput, match="no such file"):
        load_tokenizer(tmp_path / "nothing.model")
    with pytest.raises(BadInput, match="neither"):
        load_tokenizer(empty)
    (tmp_path / "bad.model").write_text("no model")
    with pytest.raises(BadInput, match="not a sentencepiece model"):
        load_tokenizer(tmp_path / "bad.model")
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(BadInput, match="holds no sentence"):
        open_lm_text(tmp_path / "empty", units, tmp_path / "cache")
    (tmp_path / "cuts").write_text('{"id": "u1", "start": 0.0}\n')
    with pytest.raises(BadInput, match="cuts: holds JSON; expected text"):
        open_lm_text(tmp_path / "cuts", units, tmp_path / "cache")
    assert {path.name for path in (tmp_path / "cache").glob("*/*")} == {"lock"}
    (tmp_path / "book").write_text("w1\n" + "w1 " * 5000 + "\n")
    with pytest.raises(BadInput, match="book:2: 5000 units"):
        open_lm_text(tmp_path / "book", units, tmp_path / "cache")


def test_a_text_that_does_not_fit_the_units_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    king = "the king of judah went up to the house of the lord"
    capitals = [[letter] for letter in king.upper().replace(" ", "")]  # letters that the units know, but no words
    sentences = [np.random.default_rng(i).permutation(king.split()).tolist() for i in range(300)]
    train_tokenizer([*sentences, *capitals], tmp_path / "mixed.model", 80)
    (tmp_path / "words.txt").write_text("the\nking\nof\nwent\nup\nto\nhouse\nlord\n")
    for tokenizer, unknown in ((Tokenizer(tmp_path / "mixed.model"), 0), (Tokenizer(tmp_path / "words.txt"), 8)):
        for text, told in (
            (king, None),
            (king.upper(), f"in lower case ('THE': 'the') {unknown} % and 1."),
            (f"{king} xyz", None),
            (f"{king}, {king}.", f"without punctuation ('lord,': 'lord') {unknown} %"),
        ):
            (tmp_path / "text").write_text(f"\n{text}\n")
            open_lm_text(tmp_path / "text", tokenizer, tmp_path / "cache")
            warned = capsys.readouterr().err
            if told is None:
                assert warned == ""
            else:
                assert warned.startswith("warning: ") and told in warned and warned.count("\n") == 1
    (tmp_path / "text").write_text("le roi est mort the king\n")
    open_lm_text(tmp_path / "text", tokenizer, tmp_path / "cache")
    assert "67 % of the words hold what" in capsys.readouterr().err


def test_a_text_in_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a shared corpus; whoever runs the tests may write everywhere, so the system's answer is made up."""
    (tmp_path / "words.txt").write_text("the\nking\n")
    (tmp_path / "text").write_text("the king\n")

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BadInput, match=r"^.*/units: Read-only file system; .* give a folder to write to by --cache"):
        open_lm_text(tmp_path / "text", Tokenizer(tmp_path / "words.txt"), tmp_path / "units")
