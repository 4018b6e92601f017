"""The recipe librispeech on a small synthetic corpus, and what it says of one that is not whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpq.am import ConformerModel, load_am
from mpq.io import read_jsonl, read_nbest, read_text
from mpq.lang.arpa import read_arpa
from tests.recipes.recipe_runs import Recipe, check_table, refuses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_smoke_run(librispeech: Recipe) -> None:
    exp = librispeech.exp
    check_table(librispeech, ("dev-clean", "test-clean"), ["first-pass", "4-gram", "oracle", "lstm", "lstm-2bit"])
    assert len(read_text(exp / "data" / "test-clean" / "text")) == 8
    assert isinstance(load_am(exp / "am"), ConformerModel) and "\u2581the " in (exp / "lang" / "units.txt").read_text()
    lm = read_arpa(exp / "data" / "lm" / "4-gram.arpa.gz")
    for nbest in read_nbest(exp / "rescore" / "lstm" / "test-clean.jsonl.gz"):
        for hyp in nbest.hyps:
            assert hyp.lm == pytest.approx(lm.score(hyp.text.split()))


def test_smoke_run_of_the_table_of_conformers(librispeech: Recipe, tmp_path: Path) -> None:
    exp = shutil.copytree(librispeech.exp, tmp_path / "exp", symlinks=True)
    rows = ["conformer", "conformer-rule-w5a8"]
    table = Recipe("librispeech", exp, *librispeech.command[7:])
    table.finish("--table", "conformer", "--rows", ",".join(rows), "--stage", "7")
    lines = [row for _, row in read_jsonl(exp / "table-conformer" / "results.jsonl")]
    results = [row for row in lines if row["set"] == "test-clean"]
    assert [row["system"] for row in results] == rows
    assert results[0]["bits"] == 32 and 4 < results[1]["bits"] <= 5 and "p_float32" in results[1]


def test_half_a_corpus_is_refused_before_anything_is_computed(librispeech_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(librispeech_dir.parent, tmp_path / "corpus", symlinks=True)
    root = tmp_path / "corpus" / librispeech_dir.name
    shutil.rmtree(root / "test-other")
    gone = sorted((root / "dev-clean").rglob("*.flac"))[0]
    gone.unlink()
    recipe = Recipe("librispeech", tmp_path / "exp", "--corpus-dir", str(root))
    refuses(recipe, "1 parts missing: test-other", f"1 of 8 files of dev-clean missing: {gone.relative_to(root)}")


def test_foundation_models_begin_with_a_checkpoint(tmp_path: Path) -> None:
    recipe = Recipe("librispeech", tmp_path / "exp", "--corpus-dir", str(tmp_path))
    for words, says in (
        (["--am", "ssl"], "--am ssl needs --checkpoint"),
        (["--checkpoint", "X"], "only --am ssl begins"),
    ):
        refused = recipe.run(*words)
        assert refused.returncode == 2 and says in refused.stderr
    printed = recipe.finish("--am", "ssl", "--checkpoint", "HUBERT_LARGE", "--dry-run", "--stop-stage", "4")
    assert "--type waveform" in printed and "--acoustic-units phones" in printed
    assert "--config conf/am_ssl.yaml" in printed and "--checkpoint HUBERT_LARGE" in printed
