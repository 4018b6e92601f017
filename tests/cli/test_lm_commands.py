"""train-lm, ppl, quantize and rescore as a user runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mpq.cli.main import main
from mpq.io import Hyp, NBest, read_kaldi_nbest, read_nbest, read_yaml, write_nbest

from .conftest import Mpq

TRAIN = ["the king went up", "the people went down", "the king said", "people said the king went down"] * 25
DEV = ["the people said", "the king went down"]
CONFIG = """
model: {arch: lstm, dim: 16, dropout: 0.0}
fit: {epochs: 4, lr: 0.03}
batch_tokens: 64
"""


@pytest.fixture
def lm(tmp_path: Path, mpq: Mpq) -> Path:
    """A small trained word model."""
    (tmp_path / "train.txt").write_text("\n".join(TRAIN) + "\n")
    (tmp_path / "dev.txt").write_text("\n".join(DEV) + "\n")
    (tmp_path / "words.txt").write_text("<eps>\nthe\nking\npeople\nwent\nup\ndown\nsaid\n")
    (tmp_path / "lm.yaml").write_text(CONFIG)
    out = mpq.succeed("train-lm --config lm.yaml --train train.txt --dev dev.txt --tokenizer words.txt --out lm")
    assert re.search(r"train-lm: lstm, 0.00 M parameters, epoch \d of 4, perplexity \d", out)
    return tmp_path / "lm"


def test_from_training_to_rescoring(lm: Path, tmp_path: Path, mpq: Mpq) -> None:
    out = mpq.succeed("quantize --model lm --bits 4 --train none --dev dev.txt --out q/model.mpq")
    before, after = map(float, re.search(r"perplexity ([\d.]+) -> ([\d.]+)", out).groups())  # type: ignore[union-attr]
    assert f"perplexity {after:.2f}" in mpq.succeed("ppl --lm q --text dev.txt")
    assert f"perplexity {before:.2f}" in mpq.succeed("ppl --lm lm --text dev.txt")
    (tmp_path / "q.yaml").write_text("fit: {epochs: 2, lr: 0.01}\nbatch_tokens: 64\ndistill: 0.5\n")
    ste = "quantize --model lm --bits 1 --train ste --config q.yaml --text train.txt --dev dev.txt --out s/model.mpq"
    mpq.succeed(ste)
    assert (tmp_path / "s/words.txt").read_text() == (tmp_path / "words.txt").read_text()

    hyps = [Hyp("the king up went", -10.0, -1.0), Hyp("the king went up", -10.5, -1.0), Hyp("", -30.0, 0.0)]
    write_nbest(tmp_path / "nbest.jsonl.gz", [NBest("u1", hyps)])
    (tmp_path / "ref").write_text("u1 the king went up\n")
    out = mpq.succeed("rescore --nbest nbest.jsonl.gz --lm q --tune ref --weights-out w.yaml --out out.jsonl")
    assert "1 utterances, 3 hypotheses" in out and "WER 0.00 (oracle 0.00)" in out
    out = mpq.succeed("rescore --nbest out.jsonl --weights w.yaml --hyp-out hyp.txt --out kaldi/")
    assert (tmp_path / "hyp.txt").read_text() == "u1 the king went up\n"
    assert next(read_kaldi_nbest(tmp_path / "kaldi")).hyps[0].text == "the king went up"
    both = "rescore --nbest nbest.jsonl.gz out.jsonl --lm q --tune ref --weights-out w2.yaml --out a.jsonl b.jsonl"
    assert mpq.succeed(both).count("1 utterances, 3 hypotheses") == 2
    assert (tmp_path / "w2.yaml").read_bytes() == (tmp_path / "w.yaml").read_bytes()
    for name in "ab":
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    assert "--hyp-out: 1 given; expected 2, one for each" in mpq.fail(f"{both} --hyp-out h")

    weights = read_yaml(tmp_path / "w.yaml")
    (nbest,) = read_nbest(tmp_path / "out.jsonl")
    for hyp in nbest.hyps:
        assert hyp.nnlm is not None and hyp.score is not None
        lm_score = weights["ngram_weight"] * hyp.lm + weights["lm_weight"] * hyp.nnlm
        assert hyp.score == pytest.approx(hyp.am + lm_score + weights["word_bonus"] * len(hyp.text.split()))


def test_a_plan_is_not_overruled(lm: Path, tmp_path: Path, mpq: Mpq) -> None:
    """What --bits has by default is contradicted as well where it is given."""
    weights = ("embedding.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "output.weight")
    bits = "".join(f"  {name}: 4\n" for name in weights)
    (tmp_path / "plan.yaml").write_text(f"table: pow2\nscale: 8\na_bits: 32\nclipping: none\nbits:\n{bits}")
    quantize = "quantize --model lm --plan plan.yaml --out q.mpq"
    for option, value, said in [
        ("--table", "uniform", "pow2"),
        ("--scale", "row", "8"),
        ("--a-bits", "8", "32"),
        ("--clipping", "squares", "none"),
    ]:
        told = f"{option}: {value}: goes with --bits; plan.yaml says {said}, change it there"
        assert told in mpq.fail(f"{quantize} {option} {value}")
        assert not (tmp_path / "q.mpq").exists()
    mpq.succeed(f"{quantize} --table pow2 --scale 8 --a-bits 32 --clipping none")
    mpq.succeed("quantize --model lm --bits 4 --out a.mpq")
    mpq.succeed("quantize --model lm --bits 4 --table uniform --scale row --a-bits 8 --clipping squares --out b.mpq")
    assert (tmp_path / "a.mpq").read_bytes() == (tmp_path / "b.mpq").read_bytes()


def test_training_options_without_training_are_told(lm: Path, tmp_path: Path, mpq: Mpq) -> None:
    (tmp_path / "q.yaml").write_text("fit: {epochs: 2, lr: 0.01}\n")
    told = "quantize: nothing is trained: --train none; "
    for options, line in [
        ("", ""),
        ("--dev dev.txt", ""),
        ("--dev dev.txt --text train.txt", f"{told}--text and training options have no effect, give --train ste or"),
        ("--config q.yaml", f"{told}training options have no effect"),
        ("--batch-tokens 64", f"{told}training options have no effect"),
    ]:
        assert main(f"quantize --model lm --bits 2 --out q.mpq {options}".split()) == 0
        err = mpq.capsys.readouterr().err
        assert err.startswith(line) and err.count("\n") == bool(line), options


def test_folders_and_names_of_options(lm: Path, tmp_path: Path, mpq: Mpq) -> None:
    (tmp_path / "upper.txt").write_text("THE KING WENT UP\n")
    assert mpq.succeed("ppl --model lm --text dev.txt") == mpq.succeed("ppl --lm lm --text dev.txt")
    assert mpq.succeed("inspect lm").splitlines()[1:] == mpq.succeed("inspect lm/model.mpq").splitlines()[1:]
    assert main(["ppl", "--lm", "lm", "--text", "upper.txt"]) == 0
    out, err = mpq.capsys.readouterr()
    assert "1 sentences, 4 words, 4 OOV" in out
    assert err.startswith("warning: upper.txt: 100 % of the words hold what lm/words.txt does not know")
    assert "in lower case ('THE': 'the') 0 %" in err and err.count("\n") == 1
    train = "train-lm --text train.txt --dev dev.txt --tokenizer words.txt --out x"
    assert "error: --batch-tokens: 0 must be at least 1" in mpq.fail(f"{train} --batch-tokens 0")
    assert "--batch-tokens: -1 must be at least 1" in mpq.fail(f"{train} --batch_tokens -1")
    assert "--fit.weight-decay: nan must be at least 0" in mpq.fail(f"{train} --fit.weight-decay .nan")
    assert "--model.layers: 1000000 must be" in mpq.fail(f"{train} --model.layers 1000000")
    assert "not enough memory for another" in mpq.fail(f"{train} --model.dim 1000000")
    assert not (tmp_path / "x").exists()


def test_other_units_in_the_output_folder_are_kept(lm: Path, tmp_path: Path, mpq: Mpq) -> None:
    """Told before any training: the training text is looked at after that."""
    (tmp_path / "lang").mkdir()
    for name in ("words.txt", "phones.txt"):
        (tmp_path / "lang" / name).write_text("other\nwords\n")
    for command in (
        "train-lm --train none.txt --dev none.txt --tokenizer words.txt --out lang",
        "quantize --model lm --bits 2 --train ste --text none.txt --dev none.txt --out lang/q.mpq",
        "quantize --model lm --bits 2 --out lang/q.mpq",
        "export --model lm --out lang/q.onnx",
    ):
        assert "lang/words.txt: holds other units than" in mpq.fail(command), command
    assert sorted(path.name for path in (tmp_path / "lang").iterdir()) == ["phones.txt", "words.txt"]
    assert (tmp_path / "lang/words.txt").read_text() == "other\nwords\n"


def test_bad_input_is_one_line(lm: Path, tmp_path: Path, mpq: Mpq) -> None:
    good = {"utt": "u1", "hyps": [{"text": "the king", "am": -1.0, "lm": -1.0}]}
    (tmp_path / "good.jsonl").write_text(json.dumps(good) + "\n")
    (tmp_path / "empty.jsonl").write_text('{"utt": "u1", "hyps": []}\n')
    (tmp_path / "nan.jsonl").write_text('{"utt": "u1", "hyps": [{"text": "a", "am": NaN, "lm": 0}]}\n')
    (tmp_path / "upper.jsonl").write_text(json.dumps(good).replace("the king", "THE KING") + "\n")
    (tmp_path / "other.txt").write_text("other\nwords\n")
    (tmp_path / "bad.yaml").write_text("fit: {epoch: 2}\n")
    (tmp_path / "plan.yaml").write_text("bits: {embedding.weight: 2}\n")
    train = "train-lm --train train.txt --dev dev.txt --out x"
    for command, message in [
        ("rescore --nbest empty.jsonl --out o.jsonl", "empty.jsonl:1: utterance 'u1'"),
        ("rescore --nbest nan.jsonl --out o.jsonl", "nan.jsonl:1"),
        ("rescore --nbest upper.jsonl --lm lm --out o.jsonl", "2 of the n-best lists' 2 words are unknown"),
        ("rescore --nbest good.jsonl --lm lm --tokenizer other.txt --out o.jsonl", "not the units that"),
        ("rescore --nbest good.jsonl --lm-weight 0.5 --out o.jsonl", "give --lm"),
        ("rescore --nbest good.jsonl --weights w.yaml --lm-weight 1 --out o.jsonl", "in one way only"),
        ("rescore --nbest good.jsonl", "nothing to write"),
        ("rescore --nbest good.jsonl --depth 0 --out o.jsonl", "--depth: 0"),
        ("quantize --model lm --bits 12 --out q.mpq", "--bits: 12: expected 1 to 8"),
        ("quantize --model lm --plan plan.yaml --a-bits 4 --out q.mpq", "--a-bits: 4: goes with --bits"),
        ("quantize --model lm --out q.mpq", "--bits or by --plan"),
        ("quantize --model lm --bits 2 --train ste --out q.mpq", "needs the training text"),
        ("quantize --model train.txt --bits 2 --out q.mpq", "not an mpq model file"),
        ("ppl --lm lm --text none.txt", "none.txt: no such file"),
        (f"{train} --tokenizer words.txt --config bad.yaml", "epoch"),
        (f"{train} --tokenizer words.txt --model.arch gru", "'gru'"),
        (f"{train} --tokenizer none.txt", "none.txt: no such file"),
    ]:
        assert message in mpq.fail(command), command
        assert not (tmp_path / "o.jsonl").exists() and not (tmp_path / "q.mpq").exists(), command
