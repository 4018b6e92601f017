"""One undisturbed smoke run of each recipe, looked at by several tests and then repeated with kills."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.recipes.recipe_runs import Recipe


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """mini after its first run (read it only)."""
    recipe = Recipe("mini", tmp_path_factory.mktemp("mini") / "exp")
    recipe.finish()
    return recipe


@pytest.fixture
def mini_copy(mini: Recipe, tmp_path: Path) -> Recipe:
    """A copy of that experiment in another place, to change and run again."""
    shutil.copytree(mini.exp, tmp_path / "exp", ignore=shutil.ignore_patterns("audio"))
    return Recipe("mini", tmp_path / "exp")


@pytest.fixture(scope="session")
def swbd(swbd_dirs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """swbd after its first run (read it only)."""
    words = [word for folder in swbd_dirs for word in ("--corpus-dir", str(folder))]
    return _run(Recipe("swbd", tmp_path_factory.mktemp("swbd-run") / "exp", *words))


@pytest.fixture(scope="session")
def ami(ami_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """ami after its first run (read it only)."""
    return _run(Recipe("ami", tmp_path_factory.mktemp("ami-run") / "exp", "--corpus-dir", str(ami_dir)))


@pytest.fixture(scope="session")
def librispeech(librispeech_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """librispeech after its first run (read it only)."""
    words = ("--corpus-dir", str(librispeech_dir))
    return _run(Recipe("librispeech", tmp_path_factory.mktemp("librispeech-run") / "exp", *words))


def _run(recipe: Recipe) -> Recipe:
    (recipe.exp.parent / "printed").write_text(recipe.finish())
    return recipe
