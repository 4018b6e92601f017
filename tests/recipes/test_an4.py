"""The recipe an4 on the real corpus, and what it says of a corpus that is missing, wrong or damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mpq.data.features import load_feature_cuts
from mpq.io import read_text, read_yaml
from tests.recipes.recipe_runs import ROOT, Recipe, check_results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_smoke_run_on_real_speech(an4_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe("an4", tmp_path / "exp", "--corpus-dir", str(an4_dir))
    recipe.finish()
    refs = read_text(recipe.exp / "data" / "test" / "text")
    check_results(recipe, ["lstm-2bit", "transformer-2bit"], words=sum(map(len, refs.values())))
    assert len(refs) == 22

    words = ("--table", "am", "--rows", "full-seed0,no-speed-seed1")
    printed = recipe.finish(*words)
    assert "-- no-speed-seed1: starts" in printed and "-- am: starts" not in printed  # full-seed0 is the recipe's
    table = recipe.exp / "table-am"
    assert sorted(path.parent.name for path in table.glob("am/*/model.mpq")) == ["no-speed-seed1"]
    text = (table / "RESULTS.md").read_text()
    for row in ("full", "no-speed"):
        assert text.count(f"\n| {row} | ") == 1
    assert "| tdnnf |" not in text
    copies = [
        len(list(load_feature_cuts(path / "train" / "cuts.jsonl.gz")))
        for path in (recipe.exp / "ivectors", table / "no-speed/ivectors")
    ]
    assert copies[0] == 3 * copies[1]

    printed = recipe.finish(*words)
    assert "starts" not in printed and "runs again" not in printed


def fails(recipe: Recipe, *said: str) -> None:
    """The recipe ends with status 2 and one line on stderr that says all this; no manifest is written."""
    failed = recipe.run("--stop-stage", "1")
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert failed.stderr.count("\n") == 1 and failed.stderr.startswith("an4: error: ")
    assert "Traceback" not in failed.stdout + failed.stderr
    for words in said:
        assert words in failed.stderr
    assert not [path for path in recipe.exp.rglob("data/*") if path.is_file()]


def test_rows_of_the_table(an4_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe("an4", tmp_path / "exp", "--corpus-dir", str(an4_dir))
    recipe.env["MPQ_VENV"] = "/no/such/venv"  # told before the environment is made
    rows = recipe.finish("--table", "am", "--rows", "list").split()
    names = {row.rpartition("-")[0] for row in rows}
    assert len(rows) == len(set(rows)) == 3 * len(names)
    assert names == set(read_yaml(ROOT / "egs/an4/conf/table_am.yaml")["rows"])
    failed = recipe.run("--table", "am", "--rows", "ful-seed0")
    assert failed.returncode == 2 and "no row fits 'ful-seed0'; did you mean 'full-seed0'?" in failed.stderr


def test_no_corpus_dir(tmp_path: Path) -> None:
    recipe = Recipe("an4", tmp_path / "exp")
    recipe.env["MPQ_VENV"] = "/no/such/venv"  # told before the environment is made
    fails(recipe, "--corpus-dir is needed: the folder of AN4 that holds etc/ and wav/")
    assert not recipe.exp.exists()


def test_wrong_folder(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    recipe = Recipe("an4", tmp_path / "exp", "--corpus-dir", str(tmp_path / "music"))
    fails(recipe, f"{tmp_path}/music", "etc/an4_train.")


@pytest.fixture
def broken_an4(an4_dir: Path, tmp_path: Path) -> Path:
    """AN4 as links, with one truncated file, one file of another kind and one that is gone."""
    corpus = tmp_path / "an4"
    shutil.copytree(an4_dir, corpus, copy_function=os.symlink)
    names = (corpus / "etc" / "an4_train.fileids").read_text().split()
    truncated, other, gone = (corpus / "wav" / f"{names[index]}.flac" for index in (0, 6, 12))
    data = truncated.read_bytes()
    for path in (truncated, other, gone):
        path.unlink()
    truncated.write_bytes(data[: len(data) // 2])
    other.write_bytes(b"ID3" + bytes(2000))
    return corpus


def test_broken_audio(broken_an4: Path, tmp_path: Path) -> None:
    names = (broken_an4 / "etc" / "an4_train.fileids").read_text().split()
    recipe = Recipe("an4", tmp_path / "exp", "--corpus-dir", str(broken_an4))
    fails(recipe, "stage 1: prepare failed with status 2", *(Path(names[index]).name for index in (0, 6, 12)))
