"""mpq rescore with lattices, merging, carried state and memory limits, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mpq.cli.main import main
from mpq.data.lmtext import Tokenizer
from mpq.io import LatticeBuilder, read_lattices, read_nbest, write_lattices, write_symbols_hash
from mpq.lm import LmConfig, build_lm, save_lm

from .conftest import Mpq

WORDS = ["the", "king", "went", "up"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A model, its words, a lattice of four paths, and the same as lists of two utterances."""
    (tmp_path / "words.txt").write_text("".join(f"{word} {i}\n" for i, word in enumerate(["<eps>", *WORDS])))
    units = Tokenizer(tmp_path / "words.txt")
    torch.manual_seed(3)
    model = build_lm(LmConfig("lstm", dim=16), len(units))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save_lm(tmp_path / "lm/model.mpq", model, units)
    builder = LatticeBuilder("u1")
    for src, word, graph, acoustic in [(0, 1, 0.5, 2.0), (0, 2, 0.25, 3.0), (1, 3, 1.0, 4.0), (1, 4, 1.5, 3.0)]:
        builder.add_arc(src, src + 1, word, (graph, acoustic, (1, 2)))
    builder.set_final(2, (0.125, 0.0, ()))
    write_lattices(tmp_path / "lat.gz", [builder.build()])
    hyps = [
        {"text": f"{first} {last}", "am": -(am1 + am2), "lm": -(lm1 + lm2 + 0.125)}
        for first, lm1, am1 in [("the", 0.5, 2.0), ("king", 0.25, 3.0)]
        for last, lm2, am2 in [("went", 1.0, 4.0), ("up", 1.5, 3.0)]
    ]
    with (tmp_path / "nbest.jsonl").open("w") as file:
        file.writelines(json.dumps({"utt": utt, "hyps": hyps}) + "\n" for utt in ("u1", "u2"))
    (tmp_path / "utt2rec").write_text("u1 r\nu2 r\n")
    return tmp_path


def test_lattice_and_list_agree(files: Path, mpq: Mpq) -> None:
    weights = "--lm lm --ngram-weight 0.5 --lm-weight 0.75 --word-bonus 0.25"
    out = mpq.succeed(f"rescore --lattice lat.gz --words words.txt {weights} --out new.gz --hyp-out lat.txt")
    assert "rescore: 1 lattices, 6 arcs" in out
    mpq.succeed(f"rescore --nbest nbest.jsonl {weights} --out out.jsonl --hyp-out list.txt")
    assert (files / "lat.txt").read_text() == (files / "list.txt").read_text().splitlines(keepends=True)[0]
    best = next(read_nbest(files / "out.jsonl")).hyps[0]
    (lattice,) = read_lattices(files / "new.gz")
    total = lattice.graph + lattice.acoustic
    ends = {int(s): float(g) for s, g in zip(lattice.final_states, lattice.final_graph, strict=True)}
    costs = [
        total[a] + total[b] + ends[int(lattice.dst[b])]
        for a in range(6)
        for b in range(6)
        if lattice.src[a] == 0 and lattice.src[b] == lattice.dst[a]
    ]
    assert len(costs) == 4 and min(costs) == pytest.approx(-(best.score or 0.0), abs=1e-5)


def test_ways_to_score(files: Path, mpq: Mpq) -> None:
    scores = {}
    for name, options in {
        "exact": "",
        "packed": "--packed",
        "small": "--batch-mb 0.2",
        "merged": "--merge-order 5",
        "unigram": "--merge-order 1",
        "carried": "--carry-over utt2rec",
    }.items():
        mpq.succeed(f"rescore --nbest nbest.jsonl --lm lm --lm-weight 1 {options} --out {name}.jsonl")
        lists = read_nbest(files / f"{name}.jsonl")
        scores[name] = [{hyp.text: round(hyp.nnlm or 0.0, 4) for hyp in nbest.hyps} for nbest in lists]
    assert scores["exact"] == scores["packed"] == scores["small"] == scores["merged"] != scores["unigram"]
    assert scores["carried"][0] == scores["exact"][0] and scores["carried"][1] != scores["exact"][1]
    (files / "ref").write_text("u1 king up\nu2 king up\n")
    out = mpq.succeed("rescore --nbest nbest.jsonl --lm lm --tune ref --carry-over utt2rec --out tuned.jsonl")
    assert "2 utterances, 8 hypotheses" in out and "(oracle 0.00)" in out


def test_bad_input_is_one_line(files: Path, mpq: Mpq) -> None:
    (files / "short").write_text("u1 r\n")
    (files / "other.txt").write_text("<eps> 0\nthe 1\n")
    builder = LatticeBuilder("u1")
    builder.add_arc(0, 1, 1, (0.0, 0.0, ()))
    write_lattices(files / "endless.gz", [builder.build()])
    write_lattices(files / "sub/lat.gz", [builder.build()])
    write_symbols_hash(files / "sub", files / "other.txt")
    nbest, lattice = "rescore --nbest nbest.jsonl --lm lm", "rescore --lm lm --lm-weight 1 --lattice"
    for command, message in [
        ("rescore --lm lm", "give --nbest or --lattice"),
        (f"{lattice} lat.gz --nbest nbest.jsonl", "give --nbest or --lattice"),
        (f"{lattice} lat.gz", "--words"),
        (f"{lattice} lat.gz --words words.txt --depth 3", "--depth: not for --lattice; it goes with --nbest"),
        ("rescore --lm lm --lattice lat.gz --words words.txt --tune utt2rec", "--tune: not for --lattice"),
        (f"{lattice} lat.gz --words words.txt --merge-order 0", "--merge-order: 0"),
        (f"{lattice} lat.gz --words words.txt --beam -1", "--beam: -1"),
        (f"{lattice} lat.gz --words other.txt", "is not a word number"),
        (f"{lattice} sub/lat.gz --words words.txt", "words.txt: not the words that sub/lat.gz was made with"),
        (f"{lattice} endless.gz --words words.txt", "utterance 'u1': its lattice has no final state"),
        (f"{lattice} words.txt --words words.txt", "words.txt"),
        (f"{nbest} --beam 3", "--beam: not for --nbest"),
        (f"{nbest} --batch-mb 0.001", "--batch-mb 0.001: too little"),
        (f"{nbest} --batch-mb 0", "--batch-mb: 0.0 must be"),
        (f"{nbest} --merge-order 0", "--merge-order: 0"),
        (f"{nbest} --carry-over short", "utterance 'u2': not in the map"),
        (f"{nbest} --carry-over none", "none"),
        ("rescore --nbest nbest.jsonl --carry-over utt2rec", "give the language model"),
    ]:
        assert message in mpq.fail(f"{command} --out o.jsonl"), command
        assert not (files / "o.jsonl").exists(), command


def test_a_model_whose_scores_have_no_weight(files: Path, mpq: Mpq) -> None:
    """Ranks, texts and lattices without them would look as if rescored; lists have the scores at least."""
    told = "--lm: its scores have weight 0, nothing would come of them; give --lm-weight"
    lists, lattice = "rescore --lm lm --nbest nbest.jsonl", "rescore --lm lm --lattice lat.gz --words words.txt"
    for command in (
        f"{lists} --hyp-out out",
        f"{lists} --hyp-out out --out o.jsonl --ngram-weight 0.5",
        f"{lists} --out out/",
        f"{lattice} --out out",
        f"{lattice} --hyp-out out --word-bonus 1",
    ):
        assert told in mpq.fail(command), command
        assert not (files / "out").exists() and not (files / "o.jsonl").exists(), command
    mpq.succeed(f"{lists} --out o.jsonl")
    assert all(hyp.nnlm is not None for nbest in read_nbest(files / "o.jsonl") for hyp in nbest.hyps)
    mpq.succeed(f"{lists} --hyp-out out --lm-weight 0")  # who says so means it
    mpq.succeed(f"{lattice} --hyp-out out --lm-weight 0")


def test_options_of_a_model_that_is_not_given(files: Path, mpq: Mpq) -> None:
    rows = "".join(f"-1 {word}\n" for word in ["<s>", "</s>", *WORDS])
    (files / "1-gram.arpa").write_text(f"\\data\\\nngram 1={2 + len(WORDS)}\n\n\\1-grams:\n{rows}\n\\end\\\n")
    for option in (
        "--merge-order 0",
        "--packed",
        "--tokenizer nosuch",
        "--device cuda",
        "--batch-mb 0",
        "--carry-over utt2rec",
    ):
        name = option.split()[0]
        told = f"{name}: has no effect without --lm; give the language model, or leave {name} out"
        assert told in mpq.fail(f"rescore --nbest nbest.jsonl {option} --out out")
        assert told in mpq.fail(f"rescore --lattice lat.gz --words words.txt --arpa 1-gram.arpa {option} --out out")
    told = "--beam: has no effect without --lm"
    assert told in mpq.fail("rescore --lattice lat.gz --words words.txt --arpa 1-gram.arpa --beam 1 --out out")
    assert not (files / "out").exists()
    mpq.succeed("rescore --lattice lat.gz --words words.txt --arpa 1-gram.arpa --out out --device cpu")


def test_negative_weights_in_every_form(files: Path, mpq: Mpq) -> None:
    for number in ("-5e-1", "-.5", "-0.5", "-5E-1", "-0.05e1", "-5.e-1"):
        out = mpq.succeed(f"rescore --nbest nbest.jsonl --lm lm --lm-weight {number} --out out.jsonl")
        assert "lm_weight -0.5," in out
    for number, told in (("-.inf", "-inf is not a finite number"), ("-inf", "Expected a float, got '-inf'")):
        assert told in mpq.fail(f"rescore --nbest nbest.jsonl --lm lm --lm-weight {number} --out out.jsonl")
    assert "no option '-5x'" in mpq.fail("rescore --nbest nbest.jsonl --out out.jsonl -5x")


def test_lists_in_another_writing_are_told(files: Path, mpq: Mpq) -> None:
    (files / "ref").write_text("u1 the went\nu2 king up\n")
    rows = [
        {"utt": u, "hyps": [{"text": text, "am": -1, "lm": -1}]} for u, text in (("u1", "The went"), ("u2", "King up"))
    ]
    (files / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for options, n_lines in (("--tune ref", 2), ("--lm-weight 1", 1), ("--lm-weight 1 --carry-over utt2rec", 1)):
        assert main(f"rescore --nbest capitals.jsonl --lm lm {options} --out out.jsonl".split()) == 0
        warned = mpq.capsys.readouterr().err.splitlines()
        assert len(warned) == n_lines and all(line.startswith("warning: ") for line in warned)
        assert "n-best lists: 50 % of the words hold what" in warned[-1] and "('The': 'the') 0 %" in warned[-1]
    assert main(["rescore", "--nbest", "nbest.jsonl", "--lm", "lm", "--tune", "ref", "--out", "out.jsonl"]) == 0
    assert mpq.capsys.readouterr().err == ""
