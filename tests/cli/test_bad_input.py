"""What people get wrong: every command says it in one line, ends with status 2 and leaves the files as they were."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from mpq.am import TdnnConfig, make_am, save_am
from mpq.cli.main import main
from mpq.io import Hyp, NBest, write_nbest
from mpq.lang.lexicon import Lexicon
from mpq.quant import save_model, uniform_plan

TEXT = "u1 the king went up\nu2 the people went down\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """References, n-best lists and broken files, in the folder that the commands run in."""
    hyps = [Hyp("the king went up", -10.0, -1.0), Hyp("the king up went", -10.5, -1.0)]
    write_nbest(tmp_path / "nbest.jsonl", [NBest("u1", hyps), NBest("u2", hyps)])
    for name, content in {"ref": TEXT, "hyp": TEXT, "empty": "", "list.yaml": "- a\n", "no.yaml": ""}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "latin.yaml").write_bytes("lr: caf\xe9\n".encode("latin-1"))
    (tmp_path / "twice.yaml").write_text("level: 0.05\nlevel: 0.01\n")
    (tmp_path / "group.yaml").write_text("model: [1, 2]\n")
    (tmp_path / "k").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("score --ref empty --hyp empty", "empty and empty hold no utterances"),
        ("score --ref ref --hyp hyp --interval --seed -1", "--seed: -1 must be at least 0"),
        ("score --ref ref --hyp hyp --details ref", "ref: is also an input"),
        ("score --ref ref --hyp hyp --confusions ./hyp", "./hyp: is also an input"),
        ("score --ref ref --hyp hyp --details ref/x", "ref is not a folder; write to another place"),
        ("score --ref ref", "give --ref and --hyp (texts), or --stm and --ctm"),
        ("compare --ref empty --hyp empty --hyp empty", "hold no utterances"),
        ("compare --ref ref --hyp hyp --hyp hyp --config twice.yaml", "twice.yaml:2: not valid YAML: key 'level'"),
        ("check --exp-dir x --config latin.yaml", "latin.yaml:1: byte 0xe9 is not UTF-8"),
        ("check --exp-dir x --config list.yaml", "list.yaml: expected 'key: value' lines"),
        ("check --exp-dir x --config none.yaml", "none.yaml: no such file"),
        ("check --exp-dir x --disk-gb ten --config no.yaml", "--disk-gb: Expected a float, got 'ten'"),
        ("check --exp-dir ref/x --disk-gb 0 --memory-gb 0", "ref is not a folder"),
        ("check --disk-gb 0", "--exp-dir must be given"),
        ("rescore --nbest empty --hyp-out out", "empty: holds no n-best lists"),
        ("rescore --nbest k --hyp-out out", "k: has neither words_text nor words"),
        ("rescore --nbest nbest.jsonl --hyp-out out --out ./out", "expected different files"),
        ("rescore --nbest nbest.jsonl --tune ref --hyp-out ref", "ref: is also an input"),
        ("rescore --nbest nbest.jsonl --hyp-out out --weights no.yaml", "no.yaml: holds no weights"),
        ("rescore --nbest nbest.jsonl --out ref/", "ref is not a folder"),
        ("ngram --text ref --lm ref", "ref: is also an input"),
        ("ngram --text ref --lm out --order 1", "n-gram order 1; expected 2 to 5"),
        ("lang --text ref --out out --order 0", "n-gram order 0"),
        ("lang --text ref --out out --units -1", "--units -1: expected the number of units"),
        ("train-lm --config group.yaml", "group.yaml: model is [1, 2]; expected indented"),
        ("train-lm --train ref --dev ref --tokenizer ref --out ref", "ref is not a folder"),
        ("quantize --model hyp --bits 2 --out hyp", "hyp: is also an input"),
        ("search --model hyp --method kl --bits 2 --dev ref --out ref", "ref: is also an input"),
        ("search --lossless --model hyp --text ref --dev ref --nbest nbest.jsonl --ref ref --out ref", "not a folder"),
        ("features --cuts ref --out ref", "ref is not a folder"),
        ("prepare mini --out ref", "ref is not a folder"),
        ("ppl --lm hyp --text ref --device cuda:77", "--device cuda:77: this machine has no such device"),
        ("ppl --lm hyp --text ref --device toaster", "--device toaster: this machine has no such device"),
        ("ppl --lm hyp --text ref --device meta", "--device meta: this machine has no such device"),
    ],
)
def test_one_line_and_nothing_changed(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    try:
        status = main(shlex.split(command))
    except SystemExit as stop:  # what the parser refuses
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert (status, out) == (2, ""), err
    (line,) = err.splitlines()
    assert message in line
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("search --method kl --bits 2 --model am.mpq --dev ref --out p", "ref:1: not JSON"),
        (
            "search --method kl --bits 2 --model am.mpq --dev ref --out p",
            "; expected a manifest of cuts, as mpq prepare",
        ),
        ("import-am --checkpoint am.mpq --out o", "am.mpq: is an acoustic model of this project already"),
        ("quantize --model lm.mpq --bits 2 --text ref --out o", "--text: --train none reads no training text"),
    ],
)
def test_files_of_the_wrong_kind(folder: Path, capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    model = make_am(TdnnConfig(feature_dim=8, channels=(2, 2), hidden=16, dilations=[1]), 3)
    save_am("am.mpq", model, ["A", "B"])
    save_model("lm.mpq", model, "lstm", {}, uniform_plan(model, 32), "")
    assert main(shlex.split(command)) == 2
    assert message in capsys.readouterr().err and not (folder / "o").exists()


def test_an_empty_configuration_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("--config no.yaml", "--config=no.yaml"):
        assert main(shlex.split(f"score --ref ref --hyp hyp {words}")) == 0
    assert capsys.readouterr().out.count("%WER 0.00") == 2


def test_a_word_list_that_is_not_of_its_lang_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Lexicon({"king": [["K", "IH", "NG"]], "went": [["W", "EH", "N", "T"]]}).write(folder / "lang")
    words = folder / "lang" / "words.txt"
    words.write_text("".join(words.read_text().splitlines(keepends=True)[:2]))
    assert main(shlex.split("decode --am am.mpq --features cuts.jsonl.gz --lang lang --out out")) == 2
    error = capsys.readouterr().err
    assert "lang/words.txt: lacks 1 of the 2 words of lexicon.txt, such as 'went'" in error
    assert not (folder / "out").exists()
