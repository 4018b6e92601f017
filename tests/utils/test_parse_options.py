"""Options of recipes, and run.sh as dispatcher: what is wrong is told in one line before anything is made."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from toy_project import Project

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def showing(project: Project) -> Project:
    """A recipe that shows its options."""
    project.recipe("""
if stage 0; then
  step show -- sh -c 'echo "[$corpus_dir|$exp_dir|$nj|$gpus|$cmd|$seed|$smoke|$units]"; pwd'
fi
""")
    return project


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stge", "3"], "no option '--stge'; did you mean '--stage'?; see --help"),
        (["--stop-stge=3"], "no option '--stop-stge'; did you mean '--stop-stage'?; see --help"),
        (["--unit", "word"], "no option '--unit'; did you mean '--units'?; see --help"),
        (["--xylophone", "3"], "no option '--xylophone'; see --help"),
        (["--stage", "x"], "--stage 'x': expected a whole number from 0"),
        (["--stage", "-1"], "--stage '-1': expected a whole number from 0"),
        (["--stage", "08"], "--stage '08': expected a whole number from 0"),
        (["--stage", "11"], "--stage 11: the last stage is 10 (see --help)"),
        (["--stage", "5", "--stop-stage", "4"], "--stage 5 comes after --stop-stage 4: nothing to run"),
        (["--nj", "0"], "--nj '0': expected a whole number from 1"),
        (["--nj", "2.5"], "--nj '2.5': expected a whole number from 1"),
        (["--nj="], "--nj '': expected a whole number from 1"),
        (["--nj"], "--nj needs a value: jobs or threads at once"),
        (["--nj", "--smoke"], "--nj needs a value: jobs or threads at once"),
        (["--gpus", "two"], "--gpus 'two': expected a whole number from 0"),
        (["--seed", "1e3"], "--seed '1e3': expected a whole number from 0"),
        (["--cmd", "queue"], "--cmd 'queue': expected one of run, slurm"),
        (["--units", "bpe|word"], "--units 'bpe|word': expected one of bpe, word"),
        (["--smoke=maybe"], "--smoke 'maybe': expected true, false or no value"),
        (["--corpus-dir", "/no/such"], "--corpus-dir '/no/such': expected a folder that exists"),
        (["3"], "unexpected '3'; options start with -- (see --help)"),
        (["--smoke", "true"], "unexpected 'true'; options start with -- (see --help)"),
    ],
)
def test_wrong_option(showing: Project, words: list[str], message: str) -> None:
    showing.env["MPQ_VENV"] = "/no/such/venv"  # an error must not wait for the environment
    failed = showing.run(*words)
    assert failed.returncode == 2
    assert failed.stderr == f"toy: error: {message}\n"
    assert not showing.exp.exists()


def test_slurm_needs_sbatch(showing: Project, tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "basename", "realpath", "nproc", "sed", "awk", "env"):
        (tmp_path / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
    showing.env["PATH"] = str(tmp_path)
    failed = showing.run("--cmd", "slurm")
    assert failed.returncode == 2
    assert "--cmd slurm: no sbatch on PATH" in failed.stderr


def test_values_reach_the_steps(showing: Project, tmp_path: Path) -> None:
    out = showing.run("--corpus-dir", str(tmp_path), "--nj=3", "--seed", "7", "--units", "word").stdout
    assert f"[{tmp_path}|{showing.exp}|3|0|run|7|false|word]\n{showing.recipe_dir}\n" in out


def test_a_folder_may_be_given_more_than_once(project: Project, tmp_path: Path) -> None:
    (tmp_path / "two words").mkdir()
    project.recipe('if stage 0; then step show -- echo "<${corpus_dirs[*]/%/>}"; fi')
    words = ("--corpus-dir", str(tmp_path / "two words"), f"--corpus-dir={tmp_path}", "--corpus-dir", "/usr")
    assert f"<{tmp_path}/two words> {tmp_path}> /usr>\n" in project.run(*words).stdout


def test_relative_folders_are_those_of_the_caller(showing: Project, tmp_path: Path) -> None:
    command = ["bash", str(showing.root / "run.sh"), "toy", "--exp-dir", "x/../out", "--corpus-dir", "."]
    out = subprocess.run(command, env=showing.env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"[{tmp_path}|{tmp_path}/out|" in out


def test_smoke_has_its_own_folder(showing: Project) -> None:
    assert f"|{showing.recipe_dir}/exp-smoke|" in showing.run("--smoke").stdout


def test_needed_option(project: Project) -> None:
    project.recipe("")
    script = project.recipe_dir / "run.sh"
    need = 'need_option corpus-dir "the folder that holds wav and etc"'
    script.write_text(script.read_text().replace('recipe "$@"', f'{need}\nrecipe "$@"'))
    project.env["MPQ_VENV"] = "/no/such/venv"  # an error must not wait for the environment
    failed = project.run()
    assert failed.returncode == 2
    assert not project.exp.exists()
    assert failed.stderr == "toy: error: --corpus-dir is needed: the folder that holds wav and etc\n"


def test_help_of_a_recipe(showing: Project) -> None:
    showing.env["MPQ_VENV"] = "/no/such/venv"
    shown = showing.run("--help")
    assert shown.returncode == 0 and shown.stderr == ""
    assert shown.stdout.startswith("toy: a recipe for tests\nwith a second line.\n\nusage: ./run.sh toy [options]\n")
    options = re.findall(r"^  --([a-z-]+)", shown.stdout, re.M)
    assert " ".join(options) == "corpus-dir exp-dir stage stop-stage nj gpus cmd seed smoke dry-run units"
    assert re.search(r"^  --units bpe\|word +units of the language models \(default: bpe\)$", shown.stdout, re.M)
    assert "  10 score, compare, report" in shown.stdout


def run_sh(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(project.root / "run.sh"), *words], env=project.env, capture_output=True, text=True, timeout=60
    )


def test_run_sh_help_lists_the_recipes(showing: Project) -> None:
    shown = run_sh(showing, "--help")
    assert shown.returncode == 0
    assert re.search(r"^  toy +toy: a recipe for tests$", shown.stdout, re.M)


def test_unknown_recipe_names_the_nearest(showing: Project) -> None:
    failed = run_sh(showing, "tou")
    assert failed.returncode == 2
    assert failed.stderr == "run.sh: no recipe named 'tou'; did you mean 'toy'?; ./run.sh --help lists them\n"


def test_no_recipe_name_means_mini(showing: Project) -> None:
    showing.recipe_dir.rename(showing.root / "egs" / "mini")
    for words in ([], ["--seed", "3"]):
        shown = run_sh(showing, *words)
        assert shown.returncode == 0, shown.stderr
        assert "== mini, stage 0: check" in shown.stdout
