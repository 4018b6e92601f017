"""What the recipes' files of options say alike, and in which commands they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mpq.fst.phone_lm import PhoneLmConfig
from tests.recipes.recipe_runs import ROOT, Recipe

EGS = ROOT / "egs"
PHONES = tuple(PhoneLmConfig.__dataclass_fields__)


def read(path: str) -> dict[str, Any]:
    options = yaml.safe_load((EGS / path).read_text())
    return options.get("lhuc", options) if path.endswith("lhuc.yaml") else options


@pytest.mark.parametrize(
    ("training", "later"),
    [
        ("swbd/conf/am.yaml", ["swbd/conf/lhuc.yaml"]),
        ("ami/conf/am.yaml", ["ami/conf/lhuc.yaml"]),
        ("librispeech/conf/am_tdnnf.yaml", ["librispeech/conf/am_ssl.yaml", "librispeech/conf/lhuc.yaml"]),
        (
            "librispeech/conf/am_ssl.yaml",
            ["librispeech/conf/table/ssl-search.yaml", "librispeech/conf/table/ssl-ste.yaml"],
        ),
        ("librispeech/conf/am.yaml", [f"librispeech/conf/table/conformer-{n}.yaml" for n in ("search", "ste")]),
        ("mini/conf/am_ssl.yaml", [f"mini/conf/table/ssl-{n}.yaml" for n in ("search", "ste")]),
        ("mini/conf/am_conformer.yaml", [f"mini/conf/table/conformer-{n}.yaml" for n in ("search", "ste")]),
    ],
)
def test_the_denominator_is_that_of_the_training(training: str, later: list[str]) -> None:
    expected = {name: read(training).get(name) for name in PHONES}
    assert [{name: read(path).get(name) for name in PHONES} for path in later] == [expected] * len(later)


@pytest.mark.parametrize("path", sorted((EGS / "librispeech/conf").glob("**/*.yaml")), ids=str)
def test_parts_of_a_pass_make_passes(path: Path) -> None:
    options = yaml.safe_load(path.read_text())
    base = path.with_name(path.name.replace("one-stage", "ste"))  # goes on from there
    part = options.get("epoch_part", yaml.safe_load(base.read_text()).get("epoch_part", 1.0))
    passes = {key: part * value for key, value in options.get("fit", {}).items() if key in ("epochs", "average")}
    if passes.get("epochs", 0.0) >= 1.0:
        assert all(number == pytest.approx(round(number)) for number in passes.values()), passes


@pytest.mark.slow
@pytest.mark.parametrize(("am", "is_given"), [("conformer", False), ("tdnnf", True)])
def test_lhuc_of_librispeech_has_the_phone_model_of_the_training(tmp_path: Path, am: str, is_given: bool) -> None:
    words = (
        "--corpus-dir",
        str(tmp_path),
        "--dry-run",
        "--lhuc",
        "true",
        "--am",
        am,
        "--stage",
        "5",
        "--stop-stage",
        "5",
    )
    lines = Recipe("librispeech", tmp_path / "exp", *words).finish().splitlines()
    decoded = [line for line in lines if "mpq decode" in line]
    assert len(decoded) == 2 and all("--adapt lhuc" in line for line in decoded)
    assert [("--config=conf/lhuc.yaml" in line) for line in decoded] == [is_given] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("listed", "gpus"), [("GPU 0: some card", "1"), ("No devices were found", "0")])
def test_a_gpu_is_used_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, gpus: str
) -> None:
    """Of real corpora; a default, which the user's own --gpus comes before."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{listed}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    recipe = Recipe(
        "ami", tmp_path / "exp", "--corpus-dir", str(tmp_path), "--dry-run", "--stage", "4", "--stop-stage", "4"
    )
    assert f"--gpus N               GPUs to use; 0: none (default: {gpus})\n" in recipe.finish("--help")
    assert ("torchrun" in recipe.finish("--gpus", "2")) and "torchrun" not in recipe.finish()
    recipe.env["CUDA_VISIBLE_DEVICES"] = ""
    assert "GPUs to use; 0: none (default: 0)\n" in recipe.finish("--help"), "hidden"
