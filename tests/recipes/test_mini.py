"""The recipe mini from nothing to its table; then run again and changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mpq.io import read_nbest, read_text
from mpq.quant import read_model_file
from mpq.quant.report import describe
from tests.recipes.recipe_runs import ROOT, SYSTEMS, Recipe, check_results, nominal_bits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_table_of_all_systems(mini: Recipe) -> None:
    refs = read_text(mini.exp / "data" / "test" / "text")
    check_results(mini, SYSTEMS, words=sum(map(len, refs.values())))
    assert "synthetic" in (mini.exp / "RESULTS.md").read_text()


def test_lists_have_separate_scores(mini: Recipe) -> None:
    for name in ("dev", "test"):
        lists = list(read_nbest(mini.exp / "decode" / name / "nbest.jsonl.gz"))
        assert len(lists) == {"dev": 20, "test": 40}[name]
        assert max(len(nbest.hyps) for nbest in lists) >= 50
        for nbest in lists:
            assert len({hyp.text for hyp in nbest.hyps}) == len(nbest.hyps)
            assert all(hyp.am != hyp.lm and hyp.nnlm is None for hyp in nbest.hyps)
    rescored = list(read_nbest(mini.exp / "rescore" / "lstm-4bit" / "test.jsonl.gz"))
    assert all(hyp.nnlm is not None and hyp.nnlm < 0 for nbest in rescored for hyp in nbest.hyps)


@pytest.mark.parametrize("system", SYSTEMS)
def test_packed_files_are_small(mini: Recipe, system: str) -> None:
    path = mini.exp / "quant" / system / "model.mpq"
    report = describe(read_model_file(path))
    nominal = sum(layer["shape"][0] * layer["shape"][1] for layer in report["layers"]) * nominal_bits(system) / 8
    residue = sum(tensor["bytes"] for tensor in report["residue"])
    assert nominal > 0
    assert path.stat().st_size <= 1.02 * nominal + 65536 + residue


def test_second_run_does_nothing(mini: Recipe) -> None:
    before = mini.state()
    printed = mini.finish()
    n_steps = len(list((mini.exp / ".done").iterdir()))
    # the check of the machine has no output that it could be recognized by, and runs in a second
    assert printed.count("already done") == n_steps
    assert "starts" not in printed and "runs again" not in printed
    assert mini.state() == before


def test_what_changed_is_named_and_made_anew(mini: Recipe, mini_copy: Recipe) -> None:
    changed = mini_copy.exp / "rescore" / "lstm" / "hyp-dev.txt"
    changed.write_text(changed.read_text() + "x y\n")
    printed = mini_copy.finish("--stage", "9")
    assert "-- lstm: runs again: output " in printed and "rescore/lstm/hyp-dev.txt was changed\n" in printed
    assert printed.count("runs again") == 1, "the new file is as the old one: the table is done already"
    assert mini_copy.rows() == mini.rows()

    printed = mini_copy.finish("--stage", "10", "--seed", "3")
    assert "-- results: runs again: the command changed: --seed 0 is now 3\n" in printed
    assert "-- report: runs again: input " in printed
    assert {row["seed"] for row in mini_copy.rows()} == {3}


def test_unknown_key_in_a_configuration(mini_copy: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("run.sh", "path.sh", "utils", "mpq", "local"):
        os.symlink(ROOT / name, root / name)
    shutil.copytree(ROOT / "egs", root / "egs", ignore=shutil.ignore_patterns("exp*"))
    conf = root / "egs" / "mini" / "conf" / "lang.yaml"
    conf.write_text(conf.read_text() + "ordr: 4\n")
    before = {path.name: path.read_bytes() for path in (mini_copy.exp / "lang").iterdir()}

    failed = Recipe("mini", mini_copy.exp, root=root).run("--stage", "3", "--stop-stage", "3")
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "-- lang: runs again: input conf/lang.yaml changed\n" in failed.stdout
    assert failed.stderr.startswith("mini: error: stage 3: lang failed with status 2: ") and "ordr" in failed.stderr
    assert failed.stderr.count("\n") == 1 and "Traceback" not in failed.stdout
    assert {path.name: path.read_bytes() for path in (mini_copy.exp / "lang").iterdir()} == before
