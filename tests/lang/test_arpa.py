"""ARPA models: scores against kaldingram and hand-made sums, and broken files."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from mpq.io import BadInput
from mpq.lang.arpa import NgramLm, measure_perplexity, read_arpa
from mpq.lang.ngram import read_sentences, train_ngram

ARPA = """\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-99 <s> -0.5
-1 </s>
-0.5 a -0.25
-0.75 b

\\2-grams:
-0.125 <s> a
-0.375 a b

\\end\\
"""
TEXT = ["the cat sat", "the dog sat on the mat", "a cat on a mat", "dog and cat", "the mat", "on and on and on"] * 3


@pytest.fixture
def model(tmp_path: Path) -> NgramLm:
    (tmp_path / "lm.arpa").write_text(ARPA)
    return read_arpa(tmp_path / "lm.arpa")


def test_backoff_scores_are_the_sums_of_the_file(model: NgramLm) -> None:
    in_log10 = [(["a", "b"], -0.125 - 0.375 - 1.0), (["b", "a"], -0.5 - 0.75 - 0.5 - 0.25 - 1.0), ([], -0.5 - 1.0)]
    for words, expected in in_log10:
        assert model.score(words) == pytest.approx(expected * math.log(10))


def test_equal_histories_mean_equal_futures(model: NgramLm) -> None:
    assert model.order == 2 and model.words == {"a", "b"}
    assert model.step(("a",), "b")[1] == ()  # b has no back-off weight: nothing depends on it
    assert model.step((), "a")[1] == ("a",)


def test_word_outside_the_model(model: NgramLm) -> None:
    with pytest.raises(BadInput, match="word 'zebra' is not in the n-gram model of 2 words"):
        model.score(["a", "zebra"])
    result = measure_perplexity(model, [["a", "zebra", "b"]])
    assert (result.oov, result.words, result.sentences) == (1, 3, 1)
    assert result.log_prob == pytest.approx((-0.125 - 0.75 - 1.0) * math.log(10))
    assert result.ppl == pytest.approx(10 ** (1.875 / 3))


@pytest.mark.parametrize("prune", [0.0, 0.01])
def test_perplexity_equals_kaldingram(tmp_path: Path, prune: float) -> None:
    path, text = tmp_path / "lm.arpa", tmp_path / "text"
    text.write_text("\n".join(["the cat sat on a mat", "a dog", "the dog and the cat"]) + "\n")
    train_ngram([line.split() for line in TEXT], path, 3, prune)
    done = subprocess.run(
        [sys.executable, "-m", "kaldingram.cli", "ppl", "--lm", str(path), "--text", str(text)],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = float(done.stdout.split("ppl= ")[1].split()[0])
    assert measure_perplexity(read_arpa(path), read_sentences([text])).ppl == pytest.approx(expected, abs=1e-3)


def test_probabilities_of_each_history_sum_to_one(tmp_path: Path) -> None:
    train_ngram([line.split() for line in TEXT], tmp_path / "lm.arpa", 3)
    model = read_arpa(tmp_path / "lm.arpa")
    for history in [(), model.start, ("the",), ("the", "cat"), ("on", "and")]:
        total = sum(math.exp(model.step(history, word)[0]) for word in [*model.words, "</s>"])
        assert total == pytest.approx(1.0, abs=1e-4)


def test_pruning_makes_the_model_smaller_and_training_is_deterministic(tmp_path: Path) -> None:
    sentences = [line.split() for line in TEXT]
    for name, prune in (("a", 0.0), ("b", 0.0), ("small", 0.02)):
        train_ngram(sentences, tmp_path / name, 3, prune)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(read_arpa(tmp_path / "small").log_prob) < len(read_arpa(tmp_path / "a").log_prob)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\end\\", "", r"lm.arpa:\d+: expected .*cut off"),
        ("ngram 2=2", "ngram 2=3", r"2 2-grams, the header says 3"),
        ("ngram 2=2", "ngram two", r"lm.arpa:3: found 'ngram two'; expected 'ngram N=COUNT'"),
        ("-0.75 b", "-0.75", r"lm.arpa:9: found '-0.75'; expected a log10 probability, 1 words"),
        ("-0.75 b", "x b", r"lm.arpa:9: found 'x b'"),
        ("-0.375 a b", "-0.375 a b -1 c", r"lm.arpa:13: found"),
        ("-1 </s>", "-1 c", r"no </s> among the 1-grams"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA.replace(old, new))
    with pytest.raises(BadInput, match=message):
        read_arpa(path)


def test_bad_text_and_options(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("a b\n\nc <s> d\n")
    with pytest.raises(BadInput, match=r"text:3: the text holds '<s>'"):
        read_sentences([text])
    text.write_text("\n \n")
    with pytest.raises(BadInput, match="no sentences"):
        read_sentences([text])
    with pytest.raises(BadInput, match="order 6; expected 2 to 5"):
        train_ngram([["a"]], tmp_path / "lm", 6)
    with pytest.raises(BadInput, match="order 1; expected 2 to 5"):
        train_ngram([["a"]], tmp_path / "lm", 1)
    with pytest.raises(BadInput, match="pruning threshold -1"):
        train_ngram([["a"]], tmp_path / "lm", 2, -1)
    assert not (tmp_path / "lm").exists()
