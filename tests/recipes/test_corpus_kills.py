"""The recipes of real corpora killed and resumed: the results are those of a run that nobody disturbed.

With MPQ_KILLS=1 all three are killed in each of their stages; else one is, in the longest.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.recipes.recipe_runs import Recipe, check_same, longest_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

HOW = ("group", "runner", "command")
STAGES = (1, 2, 3, 4, 5, 6, 8, 9, 10)


def resumed(undisturbed: Recipe, exp: Path) -> Recipe:
    """The same recipe in another folder."""
    recipe = Recipe("none", exp)
    recipe.command = [word if not word.startswith("--exp-dir=") else f"--exp-dir={exp}" for word in undisturbed.command]
    return recipe


def test_killed_while_the_acoustic_model_is_trained(librispeech: Recipe, tmp_path: Path) -> None:
    recipe = resumed(librispeech, tmp_path / "exp")
    shutil.copytree(librispeech.exp, recipe.exp)
    shutil.rmtree(recipe.exp / "am")
    (recipe.exp / ".done" / "4.am").unlink()
    assert recipe.kill_during(4, 0.3 * longest_step(librispeech, 4), "group")
    assert not (recipe.exp / ".done" / "4.am").exists()
    printed = recipe.finish()
    assert "-- am: starts" in printed and "-- dev-clean: already done" in printed
    check_same(recipe, librispeech)


@pytest.mark.skipif("MPQ_KILLS" not in os.environ, reason="kills in all stages take many minutes: MPQ_KILLS=1")
@pytest.mark.parametrize("name", ["swbd", "ami", "librispeech"])
def test_killed_in_each_stage(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    undisturbed = request.getfixturevalue(name)
    rng = random.Random(name)
    recipe = resumed(undisturbed, tmp_path / "exp")
    hit = 0
    for number, stage in enumerate(STAGES):
        hit += recipe.kill_during(stage, rng.uniform(0, 0.5) * longest_step(undisturbed, stage), HOW[number % 3])
    assert hit >= len(STAGES) - 1, "a machine whose speed varies may be past the last stage"
    recipe.finish()
    check_same(recipe, undisturbed)
    for scores in ("hub5.txt", "nist.txt"):
        if (undisturbed.exp / scores).exists():
            assert (recipe.exp / scores).read_text() == (undisturbed.exp / scores).read_text()
