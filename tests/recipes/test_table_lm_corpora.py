"""`./run.sh RECIPE --table lm` of the real corpora: its rows, what it runs, and what its configuration files say."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mpq.cli.main import load
from tests.recipes.recipe_runs import ROOT
from tests.recipes.test_table_lm import commands

# recipe: sets, where the lists to rescore lie, the set on which lossless rows are tested, units of the language models,
# GB of disk for ten rows
CORPORA = {
    "swbd": ("dev,eval2000,rt03", "decode", "eval2000", "words.txt", 70),
    "ami": ("dev,eval", "decode", "eval", "tokenizer.model", 22),
    "librispeech": ("dev-clean,dev-other,test-clean,test-other", "decode-4-gram", "test-clean", "tokenizer.model", 111),
}
TRAINED = ["lstm-ste-2", "lstm-admm-2", "lstm-ste-scratch-1", "lstm-admm-scratch-1", "lstm-nas-admm-2",
           "transformer-nas-2", "transformer-kl-node-18x", "transformer-hessian-admm-2", "lstm-rule-3"]  # fmt: skip

DryRun = tuple[str, Path, list[str], dict[str, str]]


def parsed(line: str) -> Any:
    """The options of an `mpq` command as it reads them, configuration files included."""
    words = shlex.split(line.partition("  # ")[0])
    name, *rest = words[words.index("mpq") + 1 :]
    return load(name)[1].parse(rest)


def passes(args: Any) -> float:
    """Over the text, of a training."""
    return float(args.epoch_part * args.fit.epochs)


@pytest.mark.parametrize("recipe", CORPORA)
def test_rows_are_those_of_mini(recipe: str) -> None:
    """And are told without a corpus."""
    listed = []
    for name in (recipe, "mini"):
        command = ["bash", str(ROOT / "run.sh"), name, "--table", "lm", "--rows", "list"]
        listed.append(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    assert listed[0] == listed[1] and len(listed[0].split()) > 70


@pytest.fixture(scope="module", params=CORPORA)
def dry_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    """The recipe, its experiment folder, the lines that it prints, and those that quantize by the row's name."""
    folder = tmp_path_factory.mktemp("dry")
    rows = ",".join(["lstm-lossless", *TRAINED])
    return request.param, folder / "exp", *commands(folder, request.param, "lm", rows, "--corpus-dir", str(folder))


def test_what_is_run(dry_run: DryRun) -> None:
    recipe, exp, lines, quantized = dry_run
    sets, lists, test, units, disk = CORPORA[recipe]
    dev, rows = sets.partition(",")[0], ["lstm-lossless", *TRAINED]
    assert sorted(quantized) == sorted(TRAINED) and all(f" --model {exp}/lm/" in q for q in quantized.values())
    assert any(line.startswith(f"mpq check --exp-dir {exp} --disk-gb {disk} ") for line in lines)
    floats = [line for line in lines if line.startswith("mpq train-lm ")]
    for lm, line in zip(("lstm", "transformer"), floats, strict=True):
        assert f" --config conf/{lm}.yaml " in line and f" --out {exp}/lm/{lm} " in line, "the usual table's"
        assert f" --tokenizer {exp}/lang/{units} " in line
    (lossless,) = (line for line in lines if " --lossless " in line)
    for option, part in (("", dev), ("test-", test)):
        assert f" --{option}nbest {exp}/{lists}/{part}/nbest.jsonl.gz " in lossless
        assert f" --{option}ref {exp}/data/{part}/text " in f"{lossless} "
    rescored = [line for line in lines if f" --lm {exp}/table-lm/quant/" in line]
    assert len(rescored) == len(rows) and all(f" --nbest {exp}/{lists}/{dev}/" in line for line in rescored)
    (results,) = (line for line in lines if line.startswith("mpq results "))
    assert f" --sets {sets} " in results and ("--ngram 4-gram" in results) == (recipe == "librispeech")
    if recipe != "librispeech":
        (scores,) = (line for line in lines if line.startswith("gather_scores "))
        folders = [f"{exp}/rescore/first-pass", *(f"{exp}/table-lm/rescore/{row}" for row in rows)]
        assert all(f"{folder}/" in scores for folder in folders)


def test_no_float_model_is_trained_that_no_row_needs(tmp_path: Path) -> None:
    words = ("--corpus-dir", str(tmp_path), "--stage", "6", "--stop-stage", "6")
    lines, _ = commands(tmp_path, "swbd", "lm", "transformer,transformer-ste-2", *words)
    assert [line.split()[3] for line in lines if "mpq train-lm" in line] == ["conf/transformer.yaml"]


def test_a_smoke_run_has_few_rows(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "run.sh"), "swbd", "--corpus-dir", str(tmp_path), f"--exp-dir={tmp_path / 'exp'}"]
    command += ["--table", "lm", "--smoke", "--dry-run", "--stage", "8", "--stop-stage", "8"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    made = {line.partition("/table-lm/quant/")[2].split("/")[0].split()[0] for line in lines if "/quant/" in line}
    assert made == {"lstm-ste-2", "lstm-hessian-admm-2", "lstm-kl-node-2", "lstm-lossless", "transformer-nas-2"}
    assert all(" --fit.epochs 1" in line for line in lines if "mpq quantize" in line)


def test_how_rows_are_trained_and_searched(dry_run: DryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _, lines, quantized = dry_run
    monkeypatch.chdir(ROOT / "egs" / recipe)
    found = {name: parsed(line) for name, line in quantized.items()}  # a file that is not there is refused
    ste, admm = found["lstm-ste-2"], found["lstm-admm-2"]
    for same, first in ((("transformer-nas-2", "transformer-kl-node-18x", "lstm-rule-3"), ste),
                        (("transformer-hessian-admm-2", "lstm-nas-admm-2"), admm)):  # fmt: skip
        assert all(found[name].train == first.train and found[name].fit == first.fit for name in same)
    assert (ste.train, admm.train) == ("ste", "admm") and ste.distill == admm.distill == 0.5
    assert passes(ste) == pytest.approx(passes(admm)) and ste.batch_tokens == admm.batch_tokens
    scratch = found["lstm-ste-scratch-1"], found["lstm-admm-scratch-1"]
    assert all(args.scratch and not args.distill for args in scratch)
    assert passes(scratch[0]) == pytest.approx(passes(scratch[1]))
    for args in (admm, scratch[1]):
        assert args.admm.every == 0 and 50 < args.admm.growth**args.fit.epochs < 150, "whatever the text's size"
    searches = [parsed(line) for line in lines if "mpq search " in line]
    assert {args.method for args in searches} == {"kl", "hessian", "nas", "rule"}
    (lossless,) = (args for args in searches if args.lossless)
    assert lossless.quantize.fit == ste.fit and lossless.max_perplexity_increase == 5
    assert all(args.candidates == "1,2,3,4,8" for args in searches)
    for args in searches:
        if args.method == "nas":
            assert args.nas.penalty == "budget" and args.nas.fit.epochs > 1 > args.nas.epoch_part, "a kill costs a part"
