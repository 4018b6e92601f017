"""One undisturbed smoke run of mini, looked at by several tests and then repeated with kills."""

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
