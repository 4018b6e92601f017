"""The recipe ami on small synthetic meetings, and what it says of annotations that break off."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpq.am import load_am
from tests.corpora.ami import zip_annotations
from tests.recipes.recipe_runs import Recipe, check_table, refuses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_smoke_run(ami: Recipe) -> None:
    check_table(ami, ("dev", "eval"), ["first-pass", "oracle", "lstm", "lstm-2bit"])
    model = load_am(ami.exp / "am")
    assert (model.ivector_dim, model.n_outputs) == (8, 39 * 40 + 1), "i-vectors, and left biphones"
    assert (ami.exp / "decode" / "eval" / "lhuc.safetensors").exists(), "a second pass"
    scores = [line.split()[:3] for line in (ami.exp / "nist.txt").read_text().splitlines()]
    systems = [("first-pass", "%WER"), ("lstm", "%WER"), ("lstm-2bit", "%WER"), ("lstm-2bit", "MAPSSWE")]
    assert scores == [[part, *system] for part in ("dev", "eval") for system in systems]
    assert " MAPSSWE against lstm: " in (ami.exp / "rescore" / "lstm-2bit" / "nist-p.txt").read_text()


def test_xml_that_breaks_off_is_refused_before_anything_is_computed(ami_dir: Path, tmp_path: Path) -> None:
    root = tmp_path / "ami"
    shutil.copytree(ami_dir, root)
    manual = root / "ami_public_manual_1.6.2"
    words = manual / "words" / "ES2011a.B.words.xml"
    words.write_text("".join(words.read_text().splitlines(True)[:9]))
    archive = zip_annotations(manual)
    recipe = Recipe("ami", tmp_path / "exp", "--corpus-dir", str(root))
    refuses(recipe, f"{archive}/words/ES2011a.B.words.xml:10: not well-formed XML (no element found)")


def test_what_stages_ask_for(tmp_path: Path) -> None:
    """Hums are in no other dictionary; Fisher's trigrams take more memory."""
    recipe = Recipe("ami", tmp_path / "exp", "--corpus-dir", str(tmp_path), "--dry-run")
    recipe.command.remove("--smoke")
    printed = recipe.finish()
    assert " --dictionary conf/dict.txt cmudict " in printed and " --memory-gb 8\n" in printed
    transcript = tmp_path / "fisher" / "data" / "trans" / "000" / "fe_03_00001.txt"
    transcript.parent.mkdir(parents=True)
    transcript.touch()
    assert " --memory-gb 12\n" in recipe.finish()
    assert " --memory-gb 4\n" in recipe.finish("--smoke")


def test_several_gpus_train_one_acoustic_model(tmp_path: Path) -> None:
    """With the batch of one GPU, unless the user says otherwise; without --smoke that of conf/."""
    stage = ("--stage", "4", "--stop-stage", "4", "--dry-run")

    def printed(name: str, *words: str, smoke: bool = True) -> str:
        recipe = Recipe(name, tmp_path / "exp", *words, *stage)
        if not smoke:
            recipe.command.remove("--smoke")
        return recipe.finish()

    corpus = ("--corpus-dir", str(tmp_path))
    four = printed("ami", *corpus, "--gpus", "4")
    assert "torchrun --standalone --nproc-per-node 4 -m mpq train-am --config conf/am.yaml " in four
    assert four.endswith(" --max_frames 1000\n"), "the last of two holds; a quarter of --smoke's 4000"
    assert printed("ami", *corpus, "--gpus", "3", smoke=False).endswith(" --max_frames 13333\n")
    own = ("--max-frames", "20000")
    for gpus in ("1", "3"):
        assert printed("ami", *corpus, *own, "--gpus", gpus, smoke=False).endswith(" --max_frames 20000\n")
    one = printed("ami", *corpus, "--gpus", "1", smoke=False)
    assert "\nmpq train-am --config" in one and "max_frames" not in one
    ssl = printed("mini", "--table", "ssl", "--gpus", "4")
    assert "torchrun --standalone --nproc-per-node 4 -m mpq train-am --config conf/am_ssl.yaml " in ssl
    assert "/table-ssl/am/ssl " in ssl


def test_batches_of_rows_are_the_users(tmp_path: Path) -> None:
    """All rows of a table of acoustic models train on a smaller GPU; without the option their commands have none."""
    words = ("--corpus-dir", str(tmp_path), "--table", "conformer", "--rows", "conformer-w*", "--dry-run")
    recipe = Recipe("librispeech", tmp_path / "exp", *words, "--stage", "8", "--stop-stage", "8")
    recipe.command.remove("--smoke")
    assert " --max_frames " not in recipe.finish()
    rows = [line for line in recipe.finish("--max-frames", "20000").splitlines() if line.startswith("timed ")]
    assert len(rows) > 5 and all(" --max_frames 20000  #" in row for row in rows)
