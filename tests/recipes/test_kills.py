"""The recipe mini killed at random moments and resumed: the results are those of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.recipes.recipe_runs import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = ((1, "group"), (3, "runner"), (4, "command"), (6, "group"), (8, "command"), (9, "runner"))
if "MPQ_KILLS" not in os.environ:
    KILLS = KILLS[::2] + KILLS[-1:]  # four, for the time that the tests may take
SAME_BYTES = ("lang/HLG.fst", "am/model.mpq", "lm/*/model.mpq", "quant/*/model.mpq", "decode/*/nbest.jsonl.gz")


def test_killed_at_random_moments_and_resumed(mini: Recipe, tmp_path: Path) -> None:
    rng = random.Random(20)
    recipe = Recipe("mini", tmp_path / "exp")
    hit = 0
    for stage, how in KILLS:
        marks = (mini.exp / ".done").glob(f"{stage}.*")
        longest = max(json.loads(mark.read_text())["seconds"] for mark in marks)
        hit += recipe.kill_during(stage, rng.uniform(0, 0.8) * longest, how)
    assert hit >= len(KILLS) - 1, "a machine whose speed varies may be past the last stage"
    recipe.finish()
    assert recipe.rows() == mini.rows()
    assert (recipe.exp / "RESULTS.md").read_text() == (mini.exp / "RESULTS.md").read_text()
    for pattern in SAME_BYTES:
        files = sorted(mini.exp.glob(pattern))
        assert files
        for path in files:
            name = path.relative_to(mini.exp)
            assert (recipe.exp / name).read_bytes() == path.read_bytes(), name
