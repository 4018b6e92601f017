"""Kaldi text, n-best lists and Kaldi n-best folders: round trips, and every kind of wrong line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.io import (
    BadInput,
    Hyp,
    NBest,
    SymbolTable,
    check_symbols_hash,
    read_kaldi_nbest,
    read_nbest,
    read_symbols,
    read_text,
    write_kaldi_nbest,
    write_nbest,
    write_symbols,
    write_symbols_hash,
    write_text,
)

WORD = st.text(st.characters(codec="utf-8", exclude_characters="\0 \t\n\r\f\v\ufeff"), min_size=1, max_size=8)
SCORE = st.floats(allow_nan=False, allow_infinity=False)
HYP = st.builds(
    Hyp,
    text=st.lists(WORD, max_size=5).map(" ".join),
    am=SCORE,
    lm=SCORE,
    nnlm=st.none() | SCORE,
    score=st.none() | SCORE,
)
NBESTS = st.lists(
    st.builds(NBest, utt=WORD, hyps=st.lists(HYP, min_size=1, max_size=4)), max_size=4, unique_by=lambda n: n.utt
)


@given(texts=st.dictionaries(WORD, st.lists(WORD, max_size=5), max_size=5), suffix=st.sampled_from(["", ".gz"]))
def test_text_round_trip(texts: dict[str, list[str]], suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("text") / f"text{suffix}"
    write_text(path, texts)
    assert read_text(path) == texts
    assert list(read_text(path)) == list(texts)


def test_an_id_may_begin_as_json_does(tmp_path: Path) -> None:
    write_text(tmp_path / "text", {'{"u1': ["a"], '{"u2"}': []})
    assert read_text(tmp_path / "text") == {'{"u1': ["a"], '{"u2"}': []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u1 a\nu2 b\nu1 c\n", r"text:3: utterance 'u1' is given twice"),
        ("u1 a\n\nu2 b\n", r"text:2: no utterance id before ''"),
        ('{"utt": "u1"}\n', r"text:1: '\{\"utt\": \"u1\"\}' looks like JSON; expected Kaldi text"),
        (" u1 a\n", r"text:1: no utterance id before ' u1 a'"),
        ("u1 a\nu2 b\0\n", r"text:2: holds a NUL byte; expected a text file"),
    ],
)
def test_wrong_text(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "text").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_text(tmp_path / "text")


def test_text_with_blanks_in_a_word_is_not_written(tmp_path: Path) -> None:
    for texts in ({"u1": ["a b"]}, {"u 1": ["a"]}, {"u1": [""]}, {"": ["a"]}, {"u1": ["a\0"]}):
        with pytest.raises(BadInput, match="empty id or word, or a blank or NUL in one"):
            write_text(tmp_path / "text", texts)
    assert not (tmp_path / "text").exists()


@given(nbests=NBESTS, suffix=st.sampled_from(["", ".gz"]))
def test_nbest_round_trip(nbests: list[NBest], suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("nbest") / f"nbest.jsonl{suffix}"
    write_nbest(path, nbests)
    assert list(read_nbest(path)) == nbests


GOOD = '{"utt": "u1", "hyps": [{"text": "a", "am": -1, "lm": -2.5}]}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"n:2: not JSON"),
        ("[]", r"n:2: expected a JSON object"),
        ('{"hyps": []}', r'n:2: "utt" is None; expected an utterance id'),
        ('{"utt": "u 2", "hyps": []}', r'n:2: "utt" is \'u 2\''),
        ('{"utt": "u2"}', r"""n:2: utterance 'u2': "hyps" is None; expected a list"""),
        ('{"utt": "u2", "hyps": []}', r"""utterance 'u2': "hyps" is \[\]; expected a list of at least one"""),
        ('{"utt": "u2", "hyps": ["a"]}', r"utterance 'u2', hypothesis 1: found 'a'; expected an object"),
        ('{"utt": "u2", "hyps": [{"text": 1, "am": 0, "lm": 0}]}', r'hypothesis 1: "text" is 1; expected a string'),
        ('{"utt": "u2", "hyps": [{"text": "a", "am": 0}]}', r'hypothesis 1: no "lm"; expected a natural-log score'),
        ('{"utt": "u2", "hyps": [{"text": "a", "am": NaN, "lm": 0}]}', r'"am" is nan; expected a finite'),
        ('{"utt": "u2", "hyps": [{"text": "a", "am": 0, "lm": -Infinity}]}', r'"lm" is -inf; expected a finite'),
        ('{"utt": "u2", "hyps": [{"text": "a", "am": 0, "lm": 1e999}]}', r'"lm" is inf; expected a finite'),
        ('{"utt": "u2", "hyps": [{"text": "a", "am": "-1", "lm": 0}]}', r""""am" is '-1'; expected a finite"""),
        ('{"utt": "u2", "hyps": [{"text": "a", "am": true, "lm": 0}]}', r'"am" is True; expected a finite'),
        ('{"utt": "u2", "hyps": [{"text": "a", "am": 0, "lm": 0, "nnlm": "x"}]}', r""""nnlm" is 'x'"""),
        ('{"utt": "u2", "hyps": [{"text": "a", "am": ' + "9" * 400 + ', "lm": 0}]}', r'"am" is 9+; expected a finite'),
        ('{"utt": "u2", "hyps": [{"text": "a", "am": ' + "9" * 5000 + ', "lm": 0}]}', "n:2: not JSON that can be"),
        ('{"utt": "u2", "hyps": [{"text": "a \\ud800", "am": 0, "lm": 0}]}', r"holds '\\ud800', which no text"),
        ('{"utt": "u2", "hyps": [{"text": "a \\u0000", "am": 0, "lm": 0}]}', r"holds '\\x00', which no text"),
        ('{"utt": "u2\\u0000", "hyps": [{"text": "a", "am": 0, "lm": 0}]}', "expected an utterance id"),
        ("[" * 100_000, r"n:2: not JSON that can be read \(maximum recursion"),
        (GOOD, r"n:2: utterance 'u1' is given twice"),
    ],
)
def test_wrong_nbest_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "n").write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(BadInput, match=message) as caught:
        list(read_nbest(tmp_path / "n"))
    assert "\n" not in str(caught.value)


def test_nbest_with_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="NaN"):
        write_nbest(tmp_path / "n", [NBest("u1", [Hyp("a", float("nan"), 0.0)])])
    assert not (tmp_path / "n").exists()


@given(nbests=NBESTS)
def test_kaldi_folder_round_trip(nbests: list[NBest], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("kaldi")
    write_kaldi_nbest(folder, nbests)
    expected = [NBest(n.utt, [Hyp(h.text, h.am, h.lm) for h in n.hyps]) for n in nbests]
    assert list(read_kaldi_nbest(folder)) == expected


def test_kaldi_folder_with_word_numbers(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("u-1-1 7 8\nu-1-2 8\nu-1-10 \n")
    (tmp_path / "ac_cost").write_text("u-1-1 10.5\nu-1-10 12\nu-1-2 11\n")
    (tmp_path / "lm_cost").write_text("u-1-1 3\nu-1-2 -2\nu-1-10 0\n")
    symbols = SymbolTable([("<eps>", 0), ("hello", 7), ("world", 8)])
    (nbest,) = read_kaldi_nbest(tmp_path, symbols)
    assert nbest.utt == "u-1"
    assert nbest.hyps == [Hyp("hello world", -10.5, -3.0), Hyp("world", -11.0, 2.0), Hyp("", -12.0, 0.0)]
    with pytest.raises(BadInput, match=r"words: holds numbers for words; give the words.txt"):
        list(read_kaldi_nbest(tmp_path))
    with pytest.raises(BadInput, match=r"hypothesis 'u-1-1': '8' is not a word number"):
        list(read_kaldi_nbest(tmp_path, SymbolTable([("hello", 7)])))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("ac_cost", "u-1 1\n", r"ac_cost: hypothesis 'u-2' has no cost \(1 such\)"),
        ("ac_cost", "u-1 1\nu-2 2\nu-3 3\n", r"ac_cost: hypothesis 'u-3' has a cost but no words"),
        ("lm_cost", "u-1 1\nu-2 x\n", r"lm_cost: hypothesis 'u-2': 'x'; expected one cost"),
        ("lm_cost", "u-1 1\nu-2\n", r"lm_cost: hypothesis 'u-2': ''; expected one cost"),
        ("lm_cost", "u-1 nan\nu-2 1\n", r"lm_cost: hypothesis 'u-1': the cost is nan"),
        ("words_text", "u-1 a\nu b\n", r"ac_cost: hypothesis .u.* has no cost|id 'u' of a hypothesis"),
    ],
)
def test_wrong_kaldi_folder(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / "words_text").write_text("u-1 a\nu-2 b\n")
    for name in ("ac_cost", "lm_cost"):
        (tmp_path / name).write_text("u-1 1\nu-2 2\n")
    (tmp_path / file).write_text(content)
    with pytest.raises(BadInput, match=message):
        list(read_kaldi_nbest(tmp_path))


def test_an_id_without_rank(tmp_path: Path) -> None:
    for name, value in (("words_text", "word"), ("ac_cost", "1"), ("lm_cost", "2")):
        (tmp_path / name).write_text(f"utterance {value}\n")
    with pytest.raises(BadInput, match="id 'utterance' of a hypothesis; expected 'utterance-rank'"):
        list(read_kaldi_nbest(tmp_path))


def test_symbols(tmp_path: Path) -> None:
    symbols = SymbolTable([("<eps>", 0), ("a", 1), ("b", 2)])
    write_symbols(tmp_path / "words.txt", symbols)
    again = read_symbols(tmp_path / "words.txt")
    assert (again.ids, again.words, len(again)) == (symbols.ids, {0: "<eps>", 1: "a", 2: "b"}, 3)
    for line, message in (("c", "expected 'word number'"), ("c x", "expected 'word number'"), ("c 2", "given before")):
        (tmp_path / "words.txt").write_text(f"a 1\nb 2\n{line}\n")
        with pytest.raises(BadInput, match=rf"words.txt:3: .*{message}"):
            read_symbols(tmp_path / "words.txt")


def test_the_table_of_an_archive_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a 1\n")
    (tmp_path / "other.txt").write_text("b 1\n")
    check_symbols_hash(tmp_path / "lat.gz", tmp_path / "other.txt")
    write_symbols_hash(tmp_path, tmp_path / "words.txt")
    check_symbols_hash(tmp_path / "lat.gz", tmp_path / "words.txt")
    with pytest.raises(BadInput, match=r"other\.txt: not the words that .*lat\.gz was made with"):
        check_symbols_hash(tmp_path / "lat.gz", tmp_path / "other.txt")


def test_scores_are_json_numbers(tmp_path: Path) -> None:
    write_nbest(tmp_path / "n", [NBest("u1", [Hyp("a b", -1.5, -2.0, nnlm=-3.25)])])
    row = json.loads((tmp_path / "n").read_text())
    assert row == {"utt": "u1", "hyps": [{"text": "a b", "am": -1.5, "lm": -2.0, "nnlm": -3.25}]}
