"""The recipe mini killed at random moments and resumed: the results are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.recipes.recipe_runs import Recipe, check_same, longest_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = ((1, "group"), (3, "runner"), (4, "command"), (6, "group"), (8, "command"), (9, "runner"))
if "MPQ_KILLS" not in os.environ:
    KILLS = KILLS[::2] + KILLS[-1:]  # four, for the time that the tests may take


def test_killed_at_random_moments_and_resumed(mini: Recipe, tmp_path: Path) -> None:
    rng = random.Random(20)
    recipe = Recipe("mini", tmp_path / "exp")
    hit = 0
    for stage, how in KILLS:
        hit += recipe.kill_during(stage, rng.uniform(0, 0.8) * longest_step(mini, stage), how)
    assert hit >= len(KILLS) - 1, "a machine whose speed varies may be past the last stage"
    recipe.finish()
    check_same(recipe, mini)
