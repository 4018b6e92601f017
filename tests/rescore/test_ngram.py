"""Lists with the scores of another n-gram model: those that the ARPA file itself gives each hypothesis."""

from __future__ import annotations

import gzip
import itertools
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mpq.cli.main import main
from mpq.io import (
    BadInput,
    Hyp,
    Lattice,
    LatticeBuilder,
    NBest,
    SymbolTable,
    read_lattices,
    read_nbest,
    write_lattices,
    write_nbest,
)
from mpq.lang.arpa import read_arpa
from mpq.lang.ngram import read_sentences, train_ngram
from mpq.rescore import read_lattices_arpa, read_needed_arpa, replace_lattice_scores, replace_ngram_scores

TEXT = ["the king went up", "the king went down to the sea", "a king of the sea went up", "up to the king"] * 2
HYPS = ["the king went up", "the sea went up to a king", "up up up", "", "king of the king of the king of the sea"]


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-gram model with n-grams and back-off weights of all orders, packed."""
    tmp_path = tmp_path_factory.mktemp("arpa")
    (tmp_path / "text").write_text("\n".join(TEXT) + "\n")
    plain, packed = tmp_path / "4.arpa", tmp_path / "4.arpa.gz"
    train_ngram(read_sentences([tmp_path / "text"]), plain, 4, 0.0)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    return packed


@cache
def read_entries(arpa: Path) -> dict[tuple[str, ...], tuple[float, float]]:
    """Numbers of each n-gram, from the lines of the file."""
    entries: dict[tuple[str, ...], tuple[float, float]] = {}
    order = 0
    for line in gzip.decompress(arpa.read_bytes()).decode().splitlines():
        fields = line.split()
        if line.startswith("\\"):
            order = int(line[1]) if line[1].isdigit() else 0
        elif order and fields:
            weight = float(fields[order + 1]) if len(fields) > order + 1 else 0.0
            entries[tuple(fields[1 : order + 1])] = float(fields[0]), weight
    return entries


def brute_force(arpa: Path, text: str) -> float:
    """Score of a sentence by the definition of back-off, recursively."""
    entries = read_entries(arpa)

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


def made_up_lattice(words: SymbolTable, seed: int, noun: str = "sea") -> Lattice:
    """Random arcs between 9 states, some without a word, all of which lead to an end."""
    rng = np.random.default_rng(seed)
    builder, known = LatticeBuilder("u"), ["the", "king", "went", "up", "of", noun, "a", "to"]
    for src in range(8):
        for dst in {src + 1, int(rng.integers(src + 1, 9))}:
            for word in {"", *rng.choice(known, 2).tolist()}:
                builder.add_arc(src, dst, words.ids.get(word, 0), (float(rng.random()), float(rng.random()), (src,)))
    builder.set_final(5, (0.5, 0.25, ()))
    builder.set_final(8, (0.5, 0.75, ()))
    return builder.build()


def paths(lattice: Lattice, words: SymbolTable) -> dict[tuple[str, float], float]:
    """Graph cost of every path by its words and acoustic cost."""
    found: dict[tuple[str, float], float] = {}
    ends = {s: i for i, s in enumerate(lattice.final_states.tolist())}
    open_paths: list[tuple[int, list[str], float, float]] = [(lattice.start, [], 0.0, 0.0)]
    while open_paths:
        state, said, graph, acoustic = open_paths.pop()
        if state in ends:
            cost = graph + float(lattice.final_graph[ends[state]])
            found[" ".join(said), round(acoustic + float(lattice.final_acoustic[ends[state]]), 9)] = cost
        for arc in (lattice.src == state).nonzero()[0].tolist():
            word = [words.words[int(lattice.labels[arc])]] if lattice.labels[arc] else []
            costs = graph + float(lattice.graph[arc]), acoustic + float(lattice.acoustic[arc])
            open_paths.append((int(lattice.dst[arc]), said + word, *costs))
    return found


def test_every_path_of_a_lattice(arpa: Path) -> None:
    names = ["<eps>", "the", "king", "went", "up", "of", "sea", "a", "to"]
    words = SymbolTable((name, number) for number, name in enumerate(names))
    lattice = made_up_lattice(words, 4)
    lm = read_lattices_arpa(arpa, [lattice], words)
    assert len(lm.log_prob) < len(read_arpa(arpa).log_prob)
    before, after = paths(lattice, words), paths(replace_lattice_scores(lattice, lm, words), words)
    assert before.keys() == after.keys() and len(after) > 1000
    whole = read_arpa(arpa)
    for number, ((text, _), cost) in enumerate(after.items()):
        assert cost == pytest.approx(-whole.score(text.split()), abs=1e-9)
        if number % 200 == 0:
            assert cost == pytest.approx(-brute_force(arpa, text), abs=1e-6)


def test_lattice_command(arpa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text("<eps> 0\nthe 1\nking 2\nup 3\n")
    builder = LatticeBuilder("u1")
    for dst, word, acoustic in ((1, 1, 5.0), (1, 3, 4.5)):
        builder.add_arc(0, dst, word, (1.0, acoustic, ()))
    builder.add_arc(1, 2, 2, (1.0, 1.0, ()))
    builder.set_final(2, (0.0, 0.0, ()))
    write_lattices(tmp_path / "lat.gz", [builder.build()])
    command = ["rescore", "--lattice", str(tmp_path / "lat.gz"), "--words", str(tmp_path / "words.txt")]
    out = ["--arpa", str(arpa), "--out", str(tmp_path / "new.gz"), "--hyp-out", str(tmp_path / "hyp.txt")]
    assert main([*command, *out]) == 0
    (lattice,) = read_lattices(tmp_path / "new.gz")
    text = (tmp_path / "hyp.txt").read_text().split()[1:]
    costs = {hyp: -brute_force(arpa, f"{hyp} king") + am for hyp, am in (("the", 5.0), ("up", 4.5))}
    assert text == [min(costs, key=costs.__getitem__), "king"] and lattice.n_states >= 4
    assert main([*command, *out, "--lm-weight", "0.5"]) == 2
    assert "weights are of --lm" in capsys.readouterr().err


def with_unknown(arpa: Path, name: str) -> Path:
    """The model with `sea` under the name of unknown words, so that sentences of it are known with other words too."""
    path = arpa.with_name("unknown.arpa.gz")
    path.write_bytes(gzip.compress(gzip.decompress(arpa.read_bytes()).replace(b"sea", name.encode())))
    return path


@pytest.mark.parametrize("name", ["<unk>", "<UNK>"])
def test_words_that_the_model_lacks_are_its_unknown_word(
    arpa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = with_unknown(arpa, name)
    texts = ["king of the zebra went up", "the gnu", "up to the king"]
    write_nbest(tmp_path / "a.jsonl", [NBest("u1", [Hyp(text, -1.0, -1.0) for text in texts])])
    command = ["rescore", "--nbest", str(tmp_path / "a.jsonl"), "--arpa", str(path), "--out", str(tmp_path / "b.jsonl")]
    assert main(command) == 0
    assert f", 2 words that --arpa lacks scored as {name}: " in capsys.readouterr().out
    (nbest,) = read_nbest(tmp_path / "b.jsonl")
    scores = {hyp.text: hyp.lm for hyp in nbest.hyps}
    for text in texts:
        known = text.replace("zebra", "sea").replace("gnu", "sea")
        assert scores[text] == pytest.approx(brute_force(arpa, known), abs=1e-6)

    words = SymbolTable(
        (word, i) for i, word in enumerate(["<eps>", "the", "king", "went", "up", "of", "zebra", "a", "to"])
    )
    lattice = made_up_lattice(words, 5, "zebra")
    lm = read_lattices_arpa(path, [lattice], words)
    for number, ((text, _), cost) in enumerate(paths(replace_lattice_scores(lattice, lm, words), words).items()):
        if number % 200 == 0:
            assert cost == pytest.approx(-brute_force(arpa, text.replace("zebra", "sea")), abs=1e-6)


def test_bad_input(arpa: Path, tmp_path: Path) -> None:
    lists = [NBest("u", [Hyp("the zebra", 0.0, 0.0)])]
    with pytest.raises(
        BadInput, match="utterance 'u': word 'zebra' is not in the n-gram model of 9 words, nor is <unk>"
    ):
        read_needed_arpa(arpa, lists)
    lists = [NBest("u", [Hyp("THE ZEBRA king", 0.0, 0.0)])]
    with pytest.raises(BadInput, match=r"2 of 3 words are not in the n-gram model, e.g. 'THE'.*case"):
        read_needed_arpa(with_unknown(arpa, "<unk>"), lists)
    (tmp_path / "words").write_text("the king\n")
    with pytest.raises(BadInput, match=r"words: no .data. with the numbers of n-grams"):
        read_needed_arpa(tmp_path / "words", lists)
