"""Interpolated n-gram models: weights against a search over all weights, probabilities against the sum itself."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest

from mpq.fst.graph import build_graph
from mpq.io import BadInput
from mpq.lang.arpa import NgramLm, measure_perplexity, read_arpa
from mpq.lang.lexicon import Lexicon
from mpq.lang.mix import em_weights, interpolate, mix_arpa, read_trie, write_arpa
from mpq.lang.ngram import prune_arpa, train_ngram

Text = list[list[str]]


def babble(words: str, n: int, seed: int) -> Text:
    """Sentences in which each word prefers some that follow it."""
    rng = random.Random(seed)
    names = words.split()
    return [[names[int(rng.random() ** 2 * len(names))] for _ in range(rng.randint(1, 7))] for _ in range(n)]


@pytest.fixture
def parts(tmp_path: Path) -> tuple[list[Path], Text]:
    """Three models of different orders and vocabularies, one of them pruned, and a held-out text."""
    names = [f"w{number}" for number in range(40)]
    texts = [babble(" ".join(names[a:b]), n, a) for a, b, n in ((0, 30, 60), (10, 40, 80), (20, 35, 40))]
    paths = [tmp_path / f"{number}.arpa" for number in range(3)]
    for path, text, order in zip(paths, texts, (3, 4, 2), strict=True):
        train_ngram(text, path, order)
    prune_arpa(paths[1], paths[1], 1e-4)
    return paths, babble(" ".join(names[:20]), 30, 5) + babble(" ".join(names[15:]), 20, 6)


def mixed_score(models: list[NgramLm], weights: list[float], words: tuple[str, ...]) -> float:
    """The interpolated probability of the last of ``words`` after the others, from the definition."""
    total = 0.0
    for model, weight in zip(models, weights, strict=True):
        if words[-1] in model.words or words[-1] == "</s>":
            history = words[:-1][max(0, len(words) - model.order) :]
            total += weight * math.exp(model.step(history, words[-1])[0])
    return total


def test_listed_ngrams_have_the_interpolated_probability(parts: tuple[list[Path], Text], tmp_path: Path) -> None:
    paths, held_out = parts
    weights = mix_arpa(paths, held_out, tmp_path / "mix.arpa")
    models, mix = [read_arpa(path) for path in paths], read_arpa(tmp_path / "mix.arpa")
    assert set(mix.log_prob) == set().union(*(model.log_prob for model in models)) and mix.order == 4
    for words, value in mix.log_prob.items():
        if words != ("<s>",):
            assert math.exp(value) == pytest.approx(mixed_score(models, weights, words), rel=1e-5), words


def test_probabilities_of_every_history_sum_to_one(parts: tuple[list[Path], Text], tmp_path: Path) -> None:
    paths, held_out = parts
    mix_arpa(paths, held_out, tmp_path / "mix.arpa")
    mix = read_arpa(tmp_path / "mix.arpa")
    histories = {words[:-1] for words in mix.log_prob} | {("<s>", "w3", "zebra"), ("w4", "w39")}
    assert len(histories) > 200
    for history in histories:
        total = sum(math.exp(mix.step(history, word)[0]) for word in (*mix.words, "</s>"))
        assert total == pytest.approx(1, abs=2e-6), history


def test_em_finds_what_a_search_over_all_weights_finds(parts: tuple[list[Path], Text], tmp_path: Path) -> None:
    paths, held_out = parts
    models = [read_arpa(path) for path in paths]
    vocabulary = {"<s>": 0, "</s>": 1}
    tries = [read_trie(path, vocabulary) for path in paths]
    rows = [
        (*words[max(0, end - 3) : end], words[end])
        for s in held_out
        for words in [("<s>", *s, "</s>")]
        for end in range(1, len(words))
    ]
    probs = np.array([[mixed_score([model], [1.0], row) for model in models] for row in rows])
    numbers = [np.array([[vocabulary[word] for word in row]]) for row in rows]
    steps = np.arange(0, 1.0001, 0.01)
    grid = [(a, b, 1 - a - b) for a, b in itertools.product(steps, steps) if a + b <= 1 + 1e-9]
    with np.errstate(divide="ignore"):  # a word that a model does not have
        log_probs = np.log(probs)
        likelihoods = [np.log(probs @ weights).sum() for weights in grid]
    assert log_probs == pytest.approx(np.array([[trie.score(row)[0] for trie in tries] for row in numbers]), abs=1e-9)
    found = em_weights(log_probs)
    assert found == pytest.approx(grid[int(np.argmax(likelihoods))], abs=0.011) and found.sum() == pytest.approx(1)
    assert np.log(probs @ found).sum() >= max(likelihoods)
    assert mix_arpa(paths, held_out, tmp_path / "mix.arpa") == pytest.approx(found, abs=1e-6)


def test_the_mix_is_better_than_each_part_and_a_model_mixed_with_itself_is_itself(tmp_path: Path) -> None:
    first, second = babble("a b c d", 80, 1), babble("d c b a", 80, 2)
    for path, text in ((tmp_path / "1", first), (tmp_path / "2", second)):
        train_ngram(text, path, 3)
    held_out = babble("a b c d", 25, 3) + babble("d c b a", 25, 4)
    mix_arpa([tmp_path / "1", tmp_path / "2"], held_out, tmp_path / "mix")
    ppl = {name: measure_perplexity(read_arpa(tmp_path / name), held_out).ppl for name in ("1", "2", "mix")}
    assert ppl["mix"] < min(ppl["1"], ppl["2"])
    mix_arpa([tmp_path / "1", tmp_path / "1"], held_out, tmp_path / "same.gz")
    one, same = read_arpa(tmp_path / "1"), read_arpa(tmp_path / "same.gz")
    assert same.log_prob == pytest.approx(one.log_prob, abs=1e-6)
    sentences = [model.score(words) for model in (one, same) for words in held_out]
    assert sentences[: len(held_out)] == pytest.approx(sentences[len(held_out) :], abs=1e-4)


def test_a_graph_can_be_made_of_it_and_weight_zero_leaves_no_trace(
    parts: tuple[list[Path], Text], tmp_path: Path
) -> None:
    paths, held_out = parts
    mix_arpa(paths, held_out, tmp_path / "mix.arpa")
    words = read_arpa(tmp_path / "mix.arpa").words
    lexicon = Lexicon({word: [("P", word.upper())] for word in words})
    lexicon.write(tmp_path)
    assert build_graph(lexicon, tmp_path, tmp_path / "mix.arpa").num_states > 10
    vocabulary = {"<s>": 0, "</s>": 1}
    tries = [read_trie(path, vocabulary) for path in paths[:2]]
    write_arpa(tmp_path / "first.arpa", interpolate(tries, [1.0, 0.0], 0), list(vocabulary))
    one, only = read_arpa(paths[0]), read_arpa(tmp_path / "first.arpa")
    assert all(only.log_prob[words] == pytest.approx(value, abs=1e-6) for words, value in one.log_prob.items())
    assert only.score(["w1", "w2"]) == pytest.approx(one.score(["w1", "w2"]), abs=1e-5)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            "ngram 1=2\nngram 2=1\n\n\\1-grams:\n-1 </s>\n-1 a\n\n\\2-grams:\n-1 b a\n",
            "2-gram 'b a' is listed and its first 1",
        ),
        (
            "ngram 1=2\nngram 2=2\n\n\\1-grams:\n-1 </s>\n-1 a\n\n\\2-grams:\n-1 a a\n-1 a a\n",
            "a 2-gram is listed twice",
        ),
        ("ngram 1=2\nngram 3=1\n\n\\1-grams:\n-1 </s>\n-1 a\n\n\\3-grams:\n-1 a a a\n", "3-grams without 2-grams"),
    ],
)
def test_damaged_models(tmp_path: Path, entries: str, message: str) -> None:
    (tmp_path / "lm").write_text(f"\\data\\\n{entries}\n\\end\\\n")
    with pytest.raises(BadInput, match=message):
        read_trie(tmp_path / "lm", {})


def test_held_out_text_of_another_language(parts: tuple[list[Path], Text], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no word of the held-out text is in any of the models"):
        em_weights(np.full((3, 2), -np.inf))
    weights = mix_arpa(parts[0], [["x", "y"]], tmp_path / "mix.arpa")  # only the ends of sentences are known
    assert sum(weights) == pytest.approx(1)
