"""mpq search --lossless of an acoustic model: decoded, not rescored; going on after a kill; one line for bad input."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from mpq.am import TdnnConfig, load_am, make_am, save_am
from mpq.cli.main import main
from mpq.data.features import FeatureConfig, extract
from mpq.data.manifests import Spoken, write_manifests
from mpq.fst.graph import build_graph
from mpq.io import BadInput, read_jsonl, read_text, read_yaml
from mpq.lang.lexicon import Lexicon
from mpq.lang.ngram import train_ngram
from mpq.quant import read_plan
from mpq.rescore.lossless_am import reference
from mpq.search import AmSearchData

RATE = 16000
TONES = {"A": 400.0, "B": 1100.0, "C": 2900.0}  # Hz: what each phone sounds like
LEXICON = Lexicon({"ab": [["A", "B"]], "ca": [["C", "A"]], "cb": [["C", "B"]]})
SEARCH = (
    "search --lossless --model am --features train/features/cuts.jsonl.gz --lang lang --nj 1 --method rule --out ll"
)


def make_set(folder: Path, n_utts: int, seed: int) -> None:
    """Features of utterances of two words in tones."""
    rng, spoken = np.random.default_rng(seed), []
    folder.mkdir()
    for i in range(n_utts):
        words = [str(word) for word in rng.choice(LEXICON.words, 2)]
        tones = [TONES[LEXICON.phones[p - 1]] for word in words for p in LEXICON.pronunciations(word)[0]]
        time = np.arange(int(0.15 * RATE)) / RATE
        audio = np.concatenate([np.sin(2 * np.pi * tone * time) for tone in tones])
        soundfile.write(folder / f"u{i}.flac", 0.3 * audio + 0.01 * rng.standard_normal(len(audio)), RATE)
        spoken.append(Spoken(f"u{i}", "s", folder / f"u{i}.flac", " ".join(words)))
    write_manifests(folder / "data", spoken, RATE)
    extract(folder / "data" / "cuts.jsonl.gz", folder / "features", FeatureConfig(n_mels=8), 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, three sets, and the folder of mpq lang."""
    tmp_path = tmp_path_factory.mktemp("tones")
    for seed, name in enumerate(("train", "dev", "test")):
        make_set(tmp_path / name, 12, seed)
    LEXICON.write(tmp_path / "lang")
    train_ngram([["ab", "ca"], ["cb", "ab"], ["ca", "cb"]], tmp_path / "lang/lm.arpa", 2)
    build_graph(LEXICON, tmp_path / "lang", tmp_path / "lang/lm.arpa")
    config = "--model.feature_dim 8 --model.hidden 64 --model.dilations [1] --model.channels [4,4] --model.dropout 0"
    train = "--train train/features/cuts.jsonl.gz --dev train/features/cuts.jsonl.gz --lang lang --out am"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        command = f"train-am {config} {train} --max-frames 300 --fit.epochs 10 --fit.lr 0.01 --augment false"
        assert main(command.split()) == 0
    return tmp_path


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, to work in."""
    monkeypatch.chdir(trained)
    return trained


def test_the_smallest_that_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    more = "--dev dev/features/cuts.jsonl.gz --test-features test/features/cuts.jsonl.gz --ratios 100,5,2"
    command = f"{SEARCH} {more} --quantize-am.fit.epochs 1 --quantize-am.fit.lr 1e-9 --quantize-am.max-frames 300"
    assert main(command.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("--ratio: 100 cannot be met")
    assert re.match(r"[\d.]+ bits, \d+ bytes, [\d.]+ times smaller than float32, dev WER .*: holds", lines[1])
    assert re.match(r"search: lossless: [\d.]+ times smaller .*; test WER .*: ll/model.mpq", lines[-1])
    (trial,) = (row for _, row in read_jsonl(folder / "ll/tried/tried.jsonl"))
    assert trial["asked"] == 5 and trial["ratio"] >= 5 and trial["dev"]["words"] == 24 and trial["weights"] is None
    figures = read_yaml(folder / "ll/lossless.yaml")
    assert figures["chosen"] == trial and figures["test"]["words"] == 24 and "float_against_first_pass" not in figures
    hyps = read_text(folder / "ll/tried/5/decode/hyp.txt")
    assert len(hyps) == 12 and trial["dev"]["wer"] < 60, "the model was trained, and its packed file decodes"
    assert read_plan(folder / "ll/plan.yaml").method == "rule"
    with torch.no_grad():
        assert load_am(folder / "ll").n_outputs == 4
    before = (folder / "ll/tried/5/model.mpq").stat().st_mtime_ns
    assert main(command.split()) == 0
    assert capsys.readouterr().out.splitlines() == lines, "nothing is tried twice"
    assert (folder / "ll/tried/5/model.mpq").stat().st_mtime_ns == before


def test_wrong_inputs_are_told_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*_: object) -> None:
        raise AssertionError("hours of measuring")

    monkeypatch.setattr("mpq.search.kl_costs", measure)
    features = "--features train/features/cuts.jsonl.gz --dev dev/features/cuts.jsonl.gz"
    search = f"search --lossless --method kl --model am --out ll {features}"
    capsys.readouterr()
    for more, message in [
        ("--lang nothing", "nothing"),
        ("--lang lang --test-features nothing.jsonl.gz", "nothing.jsonl.gz"),
        ("--lang lang --test-features dev/features/cuts.jsonl.gz --decode.beam 0", "beam"),
    ]:
        assert main(f"{search} {more}".split()) == 2, more
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line, more


def test_the_loss_that_is_looked_at_is_that_of_the_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(data: AmSearchData, *_: object) -> None:
        config = data._task.config
        raise BadInput(f"order {config.phone_order}, smooth {config.phone_smooth}")

    monkeypatch.setattr("mpq.search.hessian_costs", measure)
    features = "--features train/features/cuts.jsonl.gz --dev dev/features/cuts.jsonl.gz --lang lang"
    phones = "--quantize-am.phone-order 4 --quantize-am.phone-smooth false"
    assert main(f"search --lossless --method hessian --model am --out other {features} {phones}".split()) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("order 4, smooth False")


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_am(tmp_path / "am.mpq", make_am(TdnnConfig(8, (2, 2), 4, [1]), 4), LEXICON.phones)
    search = f"search --lossless --model {tmp_path / 'am.mpq'} --out ll"
    for command, message in [
        (f"{search} --features f --dev d", "--lang must be given with --lossless: training features"),
        (f"{search} --features f --lang l", "--dev must be given with --lossless: training features"),
        (search, "--text, --dev, --nbest, --ref (training text, held-out text, dev lists, reference), or --features"),
        (f"{search} --features f --dev d --lang l --nj 0", "--nj: 0"),
        (
            f"{search} --features f --dev d --lang l --phone-order 4",
            "--phone-order: --lossless trains by the loss",
        ),
        (f"{search} --features f --dev d --lang l --ref r", "am.mpq holds a tdnn acoustic model"),
        (f"{search} --text t --dev d --nbest n --ref r", "am.mpq holds a tdnn acoustic model"),
    ]:
        assert main(command.split()) == 2, command
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line, command


def test_a_space_that_is_part_of_a_word(tmp_path: Path) -> None:
    (tmp_path / "cuts").write_text("")
    features = SimpleNamespace(utts=["u1"], texts=["go\u3000on  no"], path=tmp_path / "cuts")
    assert reference(features).refs == {"u1": ["go\u3000on", "no"]}  # type: ignore[arg-type]
