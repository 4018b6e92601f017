"""The recipe mini killed at random moments and resumed: the results are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.recipes.recipe_runs import Recipe, check_same, longest_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = ((1, "group"), (3, "runner"), (4, "command"), (6, "group"), (8, "command"), (9, "runner"))
MADE = {4: "am", 6: "lm", 8: "quant", 9: "rescore"}  # by the stages that are killed where time is short


def test_killed_at_random_moments_and_resumed(mini: Recipe, mini_copy: Recipe, tmp_path: Path) -> None:
    """Four stages of a finished run are made anew, and the others recognize that nothing has changed.

    With MPQ_KILLS=1 all is made anew, and killed more often. Kills of `mpq prepare` are in tests/local, too.
    """
    rng = random.Random(20)
    everything = "MPQ_KILLS" in os.environ
    recipe = Recipe("mini", tmp_path / "all") if everything else mini_copy
    kills = [kill for kill in KILLS if everything or kill[0] in MADE]
    if not everything:
        for stage, folder in MADE.items():
            shutil.rmtree(recipe.exp / folder)
            for mark in (recipe.exp / ".done").glob(f"{stage}.*"):
                mark.unlink()
    hit = 0
    for stage, how in kills:
        hit += recipe.kill_during(stage, rng.uniform(0, 0.5) * longest_step(mini, stage), how)
    assert hit >= len(kills) // 2, "a machine whose speed varies may be past some of the stages"
    printed = recipe.finish()
    assert everything or ("-- features: already done" in printed and "-- dev: already done" in printed)
    check_same(recipe, mini)
