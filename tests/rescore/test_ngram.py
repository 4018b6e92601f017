"""Lists with the scores of another n-gram model: those that the ARPA file itself gives each hypothesis."""

from __future__ import annotations

import gzip
import itertools
import math
from pathlib import Path

import pytest

from mpq.cli.main import main
from mpq.io import BadInput, Hyp, NBest, read_nbest, write_nbest
from mpq.lang.arpa import read_arpa
from mpq.lang.ngram import read_sentences, train_ngram
from mpq.rescore import read_needed_arpa, replace_ngram_scores

TEXT = ["the king went up", "the king went down to the sea", "a king of the sea went up", "up to the king"] * 2
HYPS = ["the king went up", "the sea went up to a king", "up up up", "", "king of the king of the king of the sea"]


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    """A 4-gram model with n-grams and back-off weights of all orders, packed."""
    (tmp_path / "text").write_text("\n".join(TEXT) + "\n")
    plain, packed = tmp_path / "4.arpa", tmp_path / "4.arpa.gz"
    train_ngram(read_sentences([tmp_path / "text"]), plain, 4, 0.0)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    return packed


def brute_force(arpa: Path, text: str) -> float:
    """Score of a sentence by the definition of back-off, recursively, from the lines of the file."""
    entries: dict[tuple[str, ...], tuple[float, float]] = {}
    order = 0
    for line in gzip.decompress(arpa.read_bytes()).decode().splitlines():
        fields = line.split()
        if line.startswith("\\"):
            order = int(line[1]) if line[1].isdigit() else 0
        elif order and fields:
            weight = float(fields[order + 1]) if len(fields) > order + 1 else 0.0
            entries[tuple(fields[1 : order + 1])] = float(fields[0]), weight

    def log10_prob(history: tuple[str, ...], word: str) -> float:
        if (*history, word) in entries:
            return entries[(*history, word)][0]
        return entries.get(history, (0.0, 0.0))[1] + log10_prob(history[1:], word)

    words = ["<s>", *text.split(), "</s>"]
    return math.log(10) * sum(log10_prob(tuple(words[max(0, i - 3) : i]), words[i]) for i in range(1, len(words)))


def test_scores_of_every_hypothesis(arpa: Path) -> None:
    lists = [NBest("u1", [Hyp(text, -5.0, -1.0) for text in HYPS]), NBest("u2", [Hyp("a sea", -2.0, -3.0)])]
    lm, whole = read_needed_arpa(arpa, lists), read_arpa(arpa)
    assert lm.order == whole.order == 4 and len(lm.log_prob) < len(whole.log_prob)
    for nbest, old in zip(replace_ngram_scores(lists, lm), lists, strict=True):
        for hyp, before in zip(nbest.hyps, old.hyps, strict=True):
            assert (hyp.text, hyp.am) == (before.text, before.am)
            assert hyp.lm == pytest.approx(brute_force(arpa, hyp.text), abs=1e-6)
            assert hyp.lm == whole.score(hyp.text.split())


def test_all_short_sentences(arpa: Path) -> None:
    """What is kept is enough whichever n-grams back off: also where no 4-gram of the list is in the model."""
    for words in itertools.product(["the", "king", "sea", "of"], repeat=3):
        text = " ".join(words)
        lm = read_needed_arpa(arpa, [NBest("u", [Hyp(text, 0.0, 0.0)])])
        assert lm.score(words) == pytest.approx(brute_force(arpa, text), abs=1e-6)


def test_command(arpa: Path, tmp_path: Path) -> None:
    for name in ("dev", "test"):
        write_nbest(tmp_path / f"{name}.jsonl", [NBest("u1", [Hyp("up up up", -1.0, -1.0), Hyp(HYPS[0], -1.5, -9.0)])])
    lists, outputs = ([str(tmp_path / f"{kind}{name}.jsonl") for name in ("dev", "test")] for kind in ("", "new-"))
    assert main(["rescore", "--nbest", *lists, "--arpa", str(arpa), "--out", *outputs]) == 0
    (nbest,) = read_nbest(tmp_path / "new-test.jsonl")
    assert [hyp.text for hyp in nbest.hyps] == [HYPS[0], "up up up"]
    assert nbest.hyps[0].lm == pytest.approx(brute_force(arpa, HYPS[0]), abs=1e-6)


def test_bad_input(arpa: Path, tmp_path: Path) -> None:
    lists = [NBest("u", [Hyp("the zebra", 0.0, 0.0)])]
    with pytest.raises(BadInput, match="word 'zebra' is not in the n-gram model"):
        list(replace_ngram_scores(lists, read_needed_arpa(arpa, lists)))
    (tmp_path / "words").write_text("the king\n")
    with pytest.raises(BadInput, match=r"words: no .data. with the numbers of n-grams"):
        read_needed_arpa(tmp_path / "words", lists)
