"""mpq search --lossless: the smallest model that holds, what is written, and going on after a kill."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mpq.cli.main import main
from mpq.data.lmtext import Tokenizer
from mpq.io import Hyp, NBest, read_jsonl, read_yaml, write_nbest, write_text
from mpq.lm import load_lm
from mpq.quant import read_plan
from mpq.rescore import Weights
from mpq.rescore.lossless import Lists, Rescored, compare
from mpq.score import mapsswe

WORDS = ("the king went up", "the people went down", "the king said", "people said the king went down")
QUANTIZE = "--quantize.fit.epochs 1 --quantize.fit.lr 1e-9 --quantize.batch_tokens 64"  # rounded, in effect


def make_lists(path: Path, seed: int) -> None:
    """Lists whose first pass prefers a sentence in disorder; with their reference."""
    rng = random.Random(seed)
    refs, lists = {}, []
    for number in range(40):
        words = rng.choice(WORDS).split()
        mixed = rng.sample(words, len(words))
        refs[f"u{number:02}"] = words
        texts = dict.fromkeys([" ".join(mixed), " ".join(words)])
        lists.append(NBest(f"u{number:02}", [Hyp(text, -0.5 * i, -1.0) for i, text in enumerate(texts)]))
    write_nbest(path / "nbest.jsonl", lists)
    write_text(path / "text", refs)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained float model, texts, and the lists of two sets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("\n".join(WORDS * 25) + "\n")
    (tmp_path / "dev.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "words.txt").write_text("the\nking\npeople\nwent\nup\ndown\nsaid\n")
    for seed, name in enumerate(("dev", "test")):
        (tmp_path / name).mkdir()
        make_lists(tmp_path / name, seed)
    options = "--model.arch lstm --model.dim 32 --model.dropout 0 --fit.epochs 3 --fit.lr 0.02 --batch_tokens 64"
    command = f"train-lm {options} --train train.txt --dev dev.txt --tokenizer words.txt --out lm"
    assert main(command.split()) == 0
    return tmp_path


def search(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    """Status, lines of output and errors of a search."""
    given = (
        "search --lossless --model lm --text train.txt --dev dev.txt --nbest dev/nbest.jsonl --ref dev/text --out ll"
    )
    status = main([*given.split(), *QUANTIZE.split(), *words])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def test_the_smallest_that_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = ["--ratios", "2.5,100,7", "--max-perplexity-increase", "5", "--test-nbest", "test/nbest.jsonl"]
    status, lines, err = search(capsys, *words, "--test-ref", "test/text")
    assert status == 0, err
    assert re.match(r"dev set: \d+ words; the float model against the first pass: WER 0\.00 against \d", lines[0])
    trials = [row for _, row in read_jsonl(folder / "ll/tried/tried.jsonl")]
    assert [row["asked"] for row in trials] == [7, 2.5] and trials[0]["bytes"] < trials[1]["bytes"]
    assert lines[1].startswith("--ratio: 100 cannot be met: the fewest of --candidates everywhere make the file ")
    assert lines[2].endswith((": significantly worse", "perplexity more than 5 % above float"))
    assert lines[3].endswith(": holds") and trials[1]["perplexity_increase"] <= 5 < trials[0]["perplexity_increase"]
    model, plan = load_lm(folder / "ll"), read_plan(folder / "ll/plan.yaml")
    assert model.plan == plan and plan.method == "kl" and model.ratio >= trials[-1]["asked"]
    assert model.n_bytes == trials[-1]["bytes"] and model.extra["perplexity"] == pytest.approx(
        trials[-1]["perplexity"], abs=0.01
    )
    figures = read_yaml(folder / "ll/lossless.yaml")
    assert figures["chosen"] == trials[-1] and figures["test"]["words"] > 100
    assert re.match(
        rf"search: lossless: {trials[-1]['ratio']:.2f} times smaller .*; test WER .*: ll/model.mpq", lines[-1]
    )

    before = {path: path.stat().st_mtime_ns for path in (folder / "ll/tried").rglob("*") if path.is_file()}
    assert search(capsys, *words, "--test-ref", "test/text")[1] == lines, "nothing is tried twice"
    assert {path: path.stat().st_mtime_ns for path in (folder / "ll/tried").rglob("*") if path.is_file()} == before


def test_none_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    status, lines, err = search(capsys, "--ratios", "7,7.0", "--method", "rule", "--max-perplexity-increase", "0")
    assert status == 2 and len(lines) == 2 and lines[1].endswith(("above float", "significantly worse"))
    assert "error: --ratios 7,7.0: none holds; the last: " in err.splitlines()[-1]
    assert not (folder / "ll/model.mpq").exists() and (folder / "ll/tried/7/model.mpq").exists()


def test_comparison_is_the_matched_pairs_test_with_an_interval() -> None:
    refs = {f"u{i:03}": ["a", "b", "c", "d"] for i in range(300)}
    good = Rescored(Weights(), {u: ["a", "x", "c", "d"] if i % 10 == 0 else w for i, (u, w) in enumerate(refs.items())})
    bad = Rescored(Weights(), {u: ["a", "x", "c", "d"] if i % 4 == 0 else w for i, (u, w) in enumerate(refs.items())})
    found = compare(Lists([], refs, ""), bad, good)
    assert (found.words, found.wer, found.other_wer) == (1200, 6.25, 2.5)
    assert found.p == mapsswe(refs, bad.hyps, good.hyps).p < 0.05 and found.worse(0.05)
    assert found.difference == 3.75 and 0 < found.low < 3.75 < found.high
    assert found.high - 3.75 == pytest.approx(3.75 - found.low, abs=1e-3)
    assert not compare(Lists([], refs, ""), good, bad).worse(0.05), "better is not worse"
    same = compare(Lists([], refs, ""), good, good)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1) and not same.worse(0.05)
    assert not replace(found, p=0.05).worse(0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--bits 2", "--bits: --lossless looks for the size itself"),
        ("--ratio 2", "--ratio: --lossless looks for the size itself"),
        ("--ratios 1,x", "--ratios: '1,x': expected numbers"),
        ("--ratios 0.5,2", "--ratios: 0.5 must be at least 1"),
        ("--alpha 1", "--alpha: 1.0 must be above 0 and below 1"),
        ("--max-perplexity-increase -1", "--max-perplexity-increase: -1.0 must be at least 0"),
        ("--test-nbest dev/nbest.jsonl", "--test-nbest and --test-ref: give both or neither"),
    ],
)
def test_wrong_options(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = "--model lm --text train.txt --dev dev.txt --nbest dev/nbest.jsonl --ref dev/text"
    assert main(["search", "--lossless", *files.split(), "--out", str(tmp_path / "ll"), *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mpq search: error: {message}")
    assert not (tmp_path / "ll").exists()


def test_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["search", "--lossless", "--model", "lm", "--text", "a", "--dev", "b", "--nbest", "c", "--out", "d"]) == 2
    )
    assert "--ref must be given with --lossless" in capsys.readouterr().err
    assert main(["search", "--model", "lm", "--bits", "2", "--out", "d"]) == 2
    assert "--method must be given" in capsys.readouterr().err


def test_units_are_copied(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = search(capsys, "--ratios", "3", "--method", "uniform")
    assert status == 0, err
    assert Tokenizer(folder / "ll/words.txt").hash == Tokenizer(folder / "words.txt").hash
