"""The recipe swbd from SPHERE files to NIST's scores on a small corpus, and what it says of a broken one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mpq.am import load_am
from mpq.io import read_jsonl, read_nbest, read_text
from tests.recipes.recipe_runs import Recipe, check_table, refuses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def corpus_words(folders: list[Path]) -> list[str]:
    return [word for folder in folders for word in ("--corpus-dir", str(folder))]


def test_smoke_run_ends_in_the_scores_of_the_evaluations(swbd: Recipe) -> None:
    recipe, printed = swbd, (swbd.exp.parent / "printed").read_text()
    check_table(recipe, ("dev", "eval2000", "rt03"), ["first-pass", "oracle", "lstm", "lstm-2bit"])
    scores = (recipe.exp / "hub5.txt").read_text().splitlines()
    subsets = {"eval2000": ("en", "sw", "%WER"), "rt03": ("fsh", "sw", "%WER")}
    assert [line.split()[:3] for line in scores] == [[n, "first-pass", part] for n in subsets for part in subsets[n]]
    assert scores[0] in printed
    for name in subsets:
        lists = list(read_nbest(recipe.exp / "decode" / name / "nbest.jsonl.gz"))
        assert {nbest.utt for nbest in lists} == set(read_text(recipe.exp / "data" / name / "text"))
    model = load_am(recipe.exp / "am")
    assert model.ivector_dim == 8
    for name in ("dev", *subsets):
        lhuc = load_file(recipe.exp / "decode" / name / "lhuc.safetensors")
        assert lhuc and all(logits.shape == model.lhuc_shape for logits in lhuc.values()), "a second pass"
    mixed = (recipe.exp / "ngram" / "mixed.arpa").read_text()
    assert (recipe.exp / "lang" / "lm.arpa").read_text() == mixed and "ngram 4=" in mixed


def test_smoke_run_of_the_table_of_language_models(swbd: Recipe, tmp_path: Path) -> None:
    exp = shutil.copytree(swbd.exp, tmp_path / "exp", symlinks=True)
    table = Recipe("swbd", exp, *swbd.command[7:])
    rows = ["lstm", "lstm-kl-admm-2"]  # bits searched, then trained by ADMM
    printed = table.finish("--table", "lm", "--rows", ",".join(rows), "--stage", "6")
    assert printed.count("-- lstm: already done") == 2 and "-- hub5-first-pass: already done" in printed
    results = {(row["system"], row["set"]): row for _, row in read_jsonl(exp / "table-lm" / "results.jsonl")}
    sets = ("dev", "eval2000", "rt03")
    assert sorted(results) == sorted((row, part) for row in ("first-pass", "oracle", *rows) for part in sets)
    usual = {(row["system"], row["set"]): row for row in swbd.rows()}
    assert results["lstm", "rt03"]["errors"] == usual["lstm", "rt03"]["errors"], "the usual float model"
    mixed = results["lstm-kl-admm-2", "rt03"]
    assert mixed["bits"] <= 2 and mixed["line"] == "KL, ADMM" and 0 <= mixed["p_float32"] <= 1
    assert mixed["extra"]["Search min"] > 0 and mixed["extra"]["Train min"] > 0
    lines = (exp / "table-lm" / "hub5.txt").read_text().splitlines()
    scored = ["first-pass"] * 3 + [rows[0]] * 3 + [rows[1]] * 4  # two parts, all, and against the float model
    assert [line.split()[:2] for line in lines] == [[part, row] for part in sets[1:] for row in scored]
    for line in (lines[9], lines[19]):
        said = re.search(r"MAPSSWE against lstm: \d+ segments, Z (\S+), p (\S+): ", line)
        assert said and 0 <= float(said[2]) <= 1, line


def test_a_broken_corpus_is_refused_before_anything_is_computed(swbd_dirs: list[Path], tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in swbd_dirs]
    truncated = next(folders[0].rglob("sw02001.sph"))
    truncated.write_bytes(truncated.read_bytes()[:5000])
    stm = next(folders[4].rglob("fsh_60262.stm"))
    stm.write_text("fsh_60262 1 speaker 5.0 x HELLO\n")
    recipe = Recipe("swbd", tmp_path / "exp", *corpus_words(folders))
    refuses(recipe, f"{truncated}: truncated: its header promises", f"{stm}:1: ")


def test_it_must_be_said_where_the_corpus_is(tmp_path: Path) -> None:
    recipe = Recipe("swbd", tmp_path / "exp")
    recipe.env["MPQ_VENV"] = "/no/such/venv"  # told before the environment is made
    failed = recipe.run()
    assert failed.returncode == 2 and "--corpus-dir is needed: a folder that holds LDC97S62" in failed.stderr
    assert not recipe.exp.exists()
