"""A language of five words for exhaustive tests: homophones, variants, one word that begins another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpq.fst.decoder import Decoder, DecoderConfig
from mpq.fst.graph import build_graph
from mpq.io import read_symbols
from mpq.lang.arpa import NgramLm, read_arpa
from mpq.lang.lexicon import Lexicon

PRONUNCIATIONS = {"a": ["x", "y x"], "b": ["y"], "bee": ["y"], "c": ["x y", "z"], "d": ["x x"]}
ARPA = """\\data\\
ngram 1=7
ngram 2=6
ngram 3=2

\\1-grams:
-99 <s> -0.3
-0.9 </s>
-0.7 a -0.2
-0.8 b -0.4
-1.1 bee
-0.9 c -0.1
-1.3 d

\\2-grams:
-0.3 <s> a -0.1
-1.9 a b
-0.4 a </s>
-0.5 b c -0.6
-0.2 c </s>
-0.8 c a

\\3-grams:
-0.1 <s> a b
-0.3 b c a

\\end\\
"""


def write_language(folder: Path) -> tuple[Lexicon, NgramLm]:
    """Make the lexicon, the n-gram model and the graph in a folder."""
    lexicon = Lexicon({word: [v.split() for v in variants] for word, variants in PRONUNCIATIONS.items()})
    lexicon.write(folder)
    (folder / "lm.arpa").write_text(ARPA)
    build_graph(lexicon, folder, folder / "lm.arpa")
    return lexicon, read_arpa(folder / "lm.arpa")


def make_decoder(folder: Path, lm: NgramLm, **options: float) -> Decoder:
    """A decoder of that language whose beams lose nothing unless told otherwise."""
    from mpq.fst.graph import load_graph

    config = DecoderConfig(**{"beam": 1e3, "lattice_beam": 1e3, "n_best": 5000, **options})  # type: ignore[arg-type]
    return Decoder(load_graph(folder), lm, read_symbols(folder / "words.txt"), config)


def best_alignment(log_probs: npt.NDArray[np.float64], phones: list[int]) -> float:
    """Score of the best CTC path of a phone sequence (Viterbi), -inf if it does not fit."""
    labels = [0, *(label for phone in phones for label in (phone, 0))]
    score = np.full(len(labels), -np.inf)
    score[0] = log_probs[0, 0]
    if phones:
        score[1] = log_probs[0, labels[1]]
    for frame in log_probs[1:]:
        previous = score.copy()
        for s, label in enumerate(labels):
            options = [previous[s], previous[s - 1] if s > 0 else -np.inf]
            if s > 1 and label not in (0, labels[s - 2]):
                options.append(previous[s - 2])
            score[s] = max(options) + frame[label]
    return float(max(score[-2:]))


def all_hypotheses(lexicon: Lexicon, lm: NgramLm, log_probs: npt.NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    """Acoustic and language model score of every word sequence that fits into the frames, by enumeration."""
    found: dict[str, tuple[float, float]] = {}
    for n_words in range(len(log_probs) + 1):
        for words in itertools.product(lexicon.words, repeat=n_words):
            am = max(best_alignment(log_probs, phones) for phones in _phone_sequences(lexicon, words))
            if am > -np.inf:
                found[" ".join(words)] = (am, lm.score(words))
    return found


def _phone_sequences(lexicon: Lexicon, words: tuple[str, ...]) -> Iterator[list[int]]:
    for choice in itertools.product(*(lexicon.pronunciations(word) for word in words)):
        yield [phone for variant in choice for phone in variant]
