"""`./run.sh mini --table NAME`: choice of rows, a small table, its resumption, and the time that a row took."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mpq.io import read_jsonl
from mpq.quant import read_plan
from tests.recipes.recipe_runs import ROOT, Recipe

ROWS = "lstm-kl-2,lstm-admm-2*1,lstm-admm-2"
METHODS = {"ste", "admm", "kl", "hessian", "nas", "kl-node", "random", "rule"}


def ask(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Asks for rows; nothing may need the environment or make the experiment folder."""
    command = ["bash", str(ROOT / "run.sh"), "mini", f"--exp-dir={tmp_path / 'exp'}", *words]
    env = dict(os.environ, MPQ_VENV="/no/such/venv")
    asked = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=60)
    assert not (tmp_path / "exp").exists()
    return asked


def test_list_of_rows(tmp_path: Path) -> None:
    listed = ask(tmp_path, "--table", "lm", "--rows", "list")
    assert listed.returncode == 0 and listed.stderr == ""
    rows = listed.stdout.split()
    assert len(set(rows)) == len(rows) and {"lstm", "transformer"} <= set(rows)
    assert {row.removeprefix("lstm-").rpartition("-")[0] for row in rows if row.startswith("lstm-")} >= METHODS
    for name in ("ste-8", "admm-1", "kl-3", "nas-2", "kl-node-2", "lossless", "ste-2-seed1", "admm-2-seed2"):
        assert f"lstm-{name}" in rows and f"transformer-{name}" in rows


def commands(tmp_path: Path, recipe: str, table: str, rows: str, *words: str) -> tuple[list[str], dict[str, str]]:
    """The lines of a dry run, and those that quantize by the row's name."""
    options = ["--table", table, "--rows", rows, "--dry-run", f"--exp-dir={tmp_path / 'exp'}", *words]
    command = ["bash", str(ROOT / "run.sh"), recipe, *options]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    return lines, {line.partition("/quant/")[2].split()[0]: line for line in lines if "mpq quantize" in line}


def test_commands_of_the_conformers_rows(tmp_path: Path) -> None:
    rows = "conformer,conformer-w1a8-cotrain,conformer-w1a8-cotrain-alone,conformer-kl-w5a8,conformer-one-stage-w3a8"
    lines, quantized = commands(tmp_path, "mini", "conformer", rows, "--stage", "4")
    assert len(quantized) == 4
    cotrained, alone = quantized["conformer-w1a8-cotrain"], quantized["conformer-w1a8-cotrain-alone"]
    assert "--bits 1 --a-bits 8 --cotrain_bits 2 " in cotrained and "--distill" not in cotrained
    assert "--bits 1 --a-bits 8 --cotrain_bits 2 --distill 0 " in alone
    assert "plan/conformer-kl-w5a8.yaml" in quantized["conformer-kl-w5a8"]
    one_stage = quantized["conformer-one-stage-w3a8"]
    assert "--init" in one_stage and "conformer-one-stage-w3a8/plan.yaml.search/latent.mpq" in one_stage
    searches = [line for line in lines if "mpq search" in line]
    assert sum("--method kl --candidates 4,8 " in line for line in searches) == 2, "measured, then planned"
    assert sum("--method one-stage --candidates 2,4,8 " in line for line in searches) == 1
    assert sum("mpq decode" in line for line in lines) == 5 * 2


def test_commands_of_the_rows_of_wav2vec(tmp_path: Path) -> None:
    rows = "ssl,ssl-w2a8,ssl-hessian-w3.5a8-seed2,ssl-one-stage-w3.5a8-seed2"
    lines, quantized = commands(tmp_path, "mini", "ssl", rows, "--seed", "3")
    assert [name for name in lines if "--type waveform" in name and f"--out {tmp_path / 'exp'}/waves" in name]
    assert [name for name in lines if "mpq train-am --config conf/am_ssl.yaml --train" in name]
    assert len(quantized) == 3 and all("--features " + str(tmp_path / "exp/waves") in q for q in quantized.values())
    assert all("--fit.seed 5" in quantized[f"ssl-{method}-w3.5a8-seed2"] for method in ("hessian", "one-stage"))
    one_stage = quantized["ssl-one-stage-w3.5a8-seed2"]
    assert "--config conf/table/ssl-ste.yaml" in one_stage and "--config conf/table/ssl-one-stage.yaml" in one_stage
    assert sum("--method one-stage" in line and "--one_stage.fit.seed 7" in line for line in lines) == 1
    assert sum("--method hessian" in line and "--seed 3" in line for line in lines) == 2, "measured, then planned"


def test_commands_of_rows_of_one_pass_and_of_float_activations(tmp_path: Path) -> None:
    passes = "ssl-one-stage-w3.5a8,ssl-one-stage-w3.5a8-pass1,ssl-one-stage-w3.5a32"
    stages = "ssl-kl-w3.5a8,ssl-kl-w3.5a8-rounded,ssl-kl-w3.5a32,ssl-w4a32,ssl-hessian-w3a8,ssl-hessian-plain-w3a8"
    lines, quantized = commands(tmp_path, "mini", "ssl", f"{passes},{stages}", "--stage", "7", "--stop-stage", "8")
    assert len(quantized) == 9
    not_trained = {name for name, line in quantized.items() if "--train none" in line}
    assert not_trained == {"ssl-one-stage-w3.5a8-pass1", "ssl-kl-w3.5a8-rounded"}
    latent = "/search/ssl-one-stage-w3.5a8/plan.yaml.search/latent.mpq "
    assert all(latent in quantized[f"ssl-one-stage-w3.5a8{kind}"] for kind in ("", "-pass1"))
    assert "plan/ssl-kl-w3.5a8-rounded.yaml" in quantized["ssl-kl-w3.5a8-rounded"]
    assert "--bits 4 --a-bits 32 " in quantized["ssl-w4a32"]
    searches = [line for line in lines if "mpq search" in line]
    assert sum("--method one-stage" in line for line in searches) == 2, "the first two rows share theirs"
    assert sum("/search/ssl-kl-2,4,8/costs.json" in line for line in searches) == 1 + 3, "measured once, then planned"
    assert sum("--a-bits 32 --out" in line for line in searches) == 2
    plain = [line for line in searches if "--method hessian --hessian.normalize false " in line]
    assert len(plain) == 2 and all("/search/ssl-hessian-plain-2,4,8/costs.json" in line for line in plain)
    assert sum("/search/ssl-hessian-2,4,8/costs.json" in line for line in searches) == 2


def test_tables_of_librispeech(tmp_path: Path) -> None:
    corpus = ("--corpus-dir", str(tmp_path))
    lines, quantized = commands(tmp_path, "librispeech", "conformer", "conformer,conformer-w4a8", *corpus)
    assert len(quantized) == 1 and sum("mpq decode" in line for line in lines) == 2 * 4
    assert not any("mpq train-lm" in line or "conf/am_ssl.yaml" in line for line in lines)
    assert any("--sets dev-clean,dev-other,test-clean,test-other" in line for line in lines)
    words = (*corpus, "--checkpoint", "HUBERT_LARGE", "--smoke")
    lines, quantized = commands(tmp_path, "librispeech", "ssl", "ssl-kl-w3a8", *words)
    assert any("mpq train-am --config conf/am_ssl.yaml" in line and "HUBERT_LARGE" in line for line in lines)
    assert "plan/ssl-kl-w3a8.yaml" in quantized["ssl-kl-w3a8"] and "--epoch_part 0.5" in quantized["ssl-kl-w3a8"]
    assert not any("--checkpoint" in line or "--model.dim" in line for line in (*quantized.values(), *lines[-20:]))


def test_commands_of_both_ends(tmp_path: Path) -> None:
    rows = "conformer+lstm,conformer-w3a8+lstm-kl-node-18x,conformer-kl-w3a8+lstm-kl-node-18x"
    lines, _ = commands(tmp_path, "mini", "both", rows, "--stage", "4")
    assert sum("mpq train-am" in line for line in lines) == sum("mpq train-lm" in line for line in lines) == 1
    quantized = {line.rpartition("/quant/")[2].split("/")[0] for line in lines if "mpq quantize" in line}
    assert quantized == {"conformer-w3a8", "conformer-kl-w3a8", "lstm-kl-node-18x"}
    rescored = [line for line in lines if "mpq rescore" in line and "table-both/rescore/conformer-w3a8+" in line]
    assert len(rescored) == 1 and "table-conformer/decode/conformer-w3a8/test/nbest.jsonl.gz" in rescored[0]
    assert "--lm" in rescored[0] and "table-lm/quant/lstm-kl-node-18x/model.mpq" in rescored[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "lstm"], "--rows is for --table; give both or neither"),
        (["--rows", "list"], "--rows is for --table; give both or neither"),
        (["--table", "ml"], "--table 'ml': expected one of none, lm, conformer, ssl, both"),
        (
            ["--table", "lm", "--rows", "lstm,lstm-lk-2"],
            "--rows: no row fits 'lstm-lk-2'; did you mean 'lstm-kl-2'?; --rows list names them",
        ),
        (["--table", "lm", "--rows", "*-7"], "--rows: no row fits '*-7'; --rows list names them"),
        (["--table", "lm", "--rows", "lstm,,"], "--rows: no row fits ''; did you mean 'lstm'?; --rows list names them"),
    ],
)
def test_wrong_rows(tmp_path: Path, words: list[str], message: str) -> None:
    failed = ask(tmp_path, *words)
    assert failed.returncode == 2
    assert failed.stderr == f"mini: error: {message}\n"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_table_of_some_rows(mini_copy: Recipe) -> None:
    table = mini_copy.exp / "table-lm"
    words = ("--table", "lm", "--stage", "6", "--rows", ROWS)
    printed = mini_copy.finish(*words)
    assert printed.count("-- lstm-kl: starts") == 1 and (table / "lm/lstm/model.mpq").exists()
    rows = {(row["system"], row["set"]): row for _, row in read_jsonl(table / "results.jsonl")}
    systems = ("first-pass", "lstm", "lstm-admm-2", "lstm-kl-2", "lstm-admm-2-seed1")
    assert sorted(rows) == sorted((name, part) for name in (*systems, "oracle") for part in ("dev", "test"))
    kl, admm, again = (rows[name, "test"] for name in ("lstm-kl-2", "lstm-admm-2", "lstm-admm-2-seed1"))
    assert kl["bits"] <= 2.0 and read_plan(table / "plan" / "lstm-kl-2.yaml").method == "kl"
    assert 0 < kl["extra"]["Search min"] < 10 and 0 < kl["extra"]["Train min"] < 10
    assert admm["bits"] == 2.0 < 2.0 + admm["extra"]["Stored bits"] == pytest.approx(2 + 32 / admm["ratio"], rel=0.02)
    assert (admm["seed"], again["seed"]) == (0, 1) and 0 <= admm["p_float32"] <= 1
    text = (table / "RESULTS.md").read_text()
    assert "| lstm-kl-2 |" in text and "| lstm-admm-2-seed1 |" not in text and "| lstm-admm-2 | 2 |" in text
    assert "2112.11438" in text and "about 16 times" in text
    page = (table / "report.html").read_text()
    assert "LSTM at 2 bits: ADMM against straight-through" in page and "Over seeds" in page
    assert (table / "size_wer.png").stat().st_size > 500

    printed = mini_copy.finish(*words)
    assert "starts" not in printed and "runs again" not in printed


TIMED = """
source "$0"
dir=$1
timed "$dir" "$dir/checkpoint" bash -c '
  [ -e "$0/checkpoint" ] || { sleep 0.6; touch "$0/checkpoint"; sleep "$1"; }
' "$dir" "$2"
"""


def timed(folder: Path, seconds: int) -> list[str]:
    """A command that writes a checkpoint after 0.6 s and then takes so long, unless it is there.

    Times of files lag some milliseconds behind the clock: a checkpoint after 0.5 s has seemed to come before.
    """
    table = ROOT / "utils" / "tables.sh"
    return ["bash", "-euo", "pipefail", "-c", TIMED, str(table), str(folder), str(seconds)]


def test_time_of_a_killed_row_counts_up_to_its_checkpoint(tmp_path: Path) -> None:
    row = tmp_path / "row"
    process = subprocess.Popen(timed(row, 60), start_new_session=True)
    while not (row / "checkpoint").exists():
        time.sleep(0.02)
    time.sleep(0.7)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (row / "seconds").exists()
    kept = (row / "checkpoint").stat().st_mtime - float((row / "running").read_text().split()[0])
    began = time.time()
    subprocess.run(timed(row, 60), check=True, timeout=50)
    assert 0.5 < kept < float((row / "seconds").read_text()) + 0.1 < kept + time.time() - began + 0.2

    subprocess.run(timed(row, 0), check=True, timeout=50)
    assert float((row / "seconds").read_text()) > 0.4, "a finished one starts in an empty folder"
