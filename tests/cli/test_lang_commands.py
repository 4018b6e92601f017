"""`mpq lang`, `mpq ngram` and `mpq decode` from the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from mpq.cli.main import main

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def mpq_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process, which has imported what takes seconds in each of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> CompletedProcess[str]:
        capfd.readouterr()
        status = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return CompletedProcess(words, status, out, err)

    return run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("in the beginning\nnebuchadnezzar the king\nthe king and the beginning\n" * 4)
    return path


def failed(done: CompletedProcess[str]) -> str:
    """The one line of a command that ended because of its input."""
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_lang_makes_a_folder_and_twice_the_same(mpq_cli: Cli, text: Path, tmp_path: Path) -> None:
    (tmp_path / "train").write_text("utt-1 the king melchizedek\n")
    for out in ("a", "b"):
        done = mpq_cli("lang", "--text", text, "--transcripts", "train", "--out", out, "--order", 2, "--units", 40)
        assert done.returncode == 0, done.stderr
    assert "lang: 7 words (" in done.stdout.splitlines()[-1]
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    names = {"HLG.fst", "lexicon.txt", "lm.arpa", "phones.txt", "tokenizer.model", "units.txt", "words.txt"}
    assert set(files) == names and files["units.txt"] == files["phones.txt"]
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert b"melchizedek" in files["lexicon.txt"] and b"melchizedek" not in files["lm.arpa"]


def test_lang_of_other_acoustic_units(mpq_cli: Cli, text: Path, tmp_path: Path) -> None:
    done = mpq_cli("lang", "--text", text, "--out", "b", "--order", 2, "--units", 0, "--acoustic-units", "biphones")
    assert done.returncode == 0 and f"{40 * 39} biphones" in done.stdout, done.stderr
    assert "<s>_AA 1\n" in (tmp_path / "b" / "units.txt").read_text()
    pieces = ("--acoustic-units", "pieces")
    done = mpq_cli("lang", "--text", text, "--out", "p", "--order", 2, "--units", 0, "--pieces", 40, *pieces)
    assert done.returncode == 0 and "pieces, graph of" in done.stdout, done.stderr
    assert {path.name for path in (tmp_path / "p").glob("*.model")} == {"pieces.model"}
    assert (tmp_path / "p" / "units.txt").read_bytes() == (tmp_path / "p" / "phones.txt").read_bytes()
    lexicon = dict(line.split(maxsplit=1) for line in (tmp_path / "p" / "lexicon.txt").read_text().splitlines())
    assert all("".join(pieces.split()) == "\u2581" + word for word, pieces in lexicon.items()) and len(lexicon) == 6
    done = mpq_cli("lang", "--text", text, "--out", "q", "--pieces", 0, *pieces)
    assert "--pieces 0: expected the number" in failed(done)


def test_lang_of_units_only(mpq_cli: Cli, text: Path, tmp_path: Path) -> None:
    done = mpq_cli("lang", "--text", text, "--out", "u", "--units", 40, "--only-units")
    assert done.returncode == 0 and re.fullmatch(
        r"warning: --units 40: the text is too small for more than \d+\n", done.stderr
    ), done.stderr
    assert re.fullmatch(r"lang: \d+ sentencepiece units: u/tokenizer.model\n", done.stdout)
    assert [path.name for path in (tmp_path / "u").iterdir()] == ["tokenizer.model"]
    for options in (("--units", 0), ("--transcripts", text)):
        assert "--only-units" in failed(mpq_cli("lang", "--text", text, "--out", "u", "--only-units", *options))


def test_ngram_estimates_and_measures(mpq_cli: Cli, text: Path) -> None:
    done = mpq_cli("ngram", "--text", text, "--lm", "lm.arpa", "--ppl", text)
    assert done.returncode == 0 and "perplexity" in done.stdout, done.stderr
    again = mpq_cli("ngram", "--lm", "lm.arpa", "--ppl", text)
    assert again.stdout == done.stdout


def test_upper_case_is_pronounced_like_lower_case(mpq_cli: Cli, text: Path, tmp_path: Path) -> None:
    text.write_text("IN THE BEGINNING\nin the beginning\n")
    done = mpq_cli("lang", "--text", text, "--out", "o", "--order", 2, "--units", 0)
    assert done.returncode == 0 and "lang: 6 words (0 pronounced by espeak)" in done.stdout, done.stderr
    assert "warning: 3 of 6 words differ from another one in case only" in done.stderr
    lexicon = (tmp_path / "o" / "lexicon.txt").read_text()
    assert "BEGINNING B IH G IH N IH NG\n" in lexicon and "beginning B IH G IH N IH NG\n" in lexicon


def test_bad_input_is_one_line(mpq_cli: Cli, text: Path, tmp_path: Path) -> None:
    (tmp_path / "d.dic").write_text("the DH AH\nking K IH NG\n")
    message = failed(mpq_cli("lang", "--text", text, "--out", "o", "--dictionary", "d.dic", "--g2p", "none"))
    assert "4 words have no pronunciation: and, beginning, in, nebuchadnezzar" in message
    assert "nowhere.txt: no such file" in failed(mpq_cli("lang", "--text", "nowhere.txt", "--out", "o"))
    assert "expected espeak or none" in failed(mpq_cli("lang", "--text", text, "--out", "o", "--g2p", "x"))
    assert "nothing to do" in failed(mpq_cli("ngram", "--lm", "lm.arpa"))
    (tmp_path / "broken.arpa").write_text("\\data\\\nngram 1=2\n\n\\1-grams:\n-1 a\n")
    assert "broken.arpa:5: expected" in failed(mpq_cli("ngram", "--lm", "broken.arpa", "--ppl", text))
    done = mpq_cli("decode", "--am", "m.mpq", "--features", "f", "--lang", "nowhere", "--out", "o")
    assert "phones.txt: no such file" in failed(done)
    done = mpq_cli("decode", "--am", "m.mpq", "--features", "f", "--lang", "nowhere", "--out", "o", "--beam", "0")
    assert "beam: 0.0 must be above 0" in failed(done)
