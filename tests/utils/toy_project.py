"""A project of its own for each test: the real run.sh, path.sh and utils with a small recipe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HEAD = """#!/usr/bin/env bash
# toy: a recipe for tests
# with a second line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/stage.sh"
units=bpe
option units "bpe|word" "units of the language models"
recipe "$@"
exp=$exp_dir
"""


class Project:
    """A checkout in a folder whose name has a space, with one recipe, `toy`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe_dir = root / "egs" / "toy"
        self.exp = self.recipe_dir / "exp"
        self.recipe_dir.mkdir(parents=True)
        for name in ("run.sh", "path.sh", "requirements.lock"):
            shutil.copy(ROOT / name, root / name)
        shutil.copytree(ROOT / "utils", root / "utils", ignore=shutil.ignore_patterns("__pycache__"))
        self.env = dict(os.environ, MPQ_VENV=sys.prefix)

    def recipe(self, body: str) -> None:
        """Writes the recipe."""
        (self.recipe_dir / "run.sh").write_text(HEAD + body + "\nfinish\n")

    def command(self, *words: str) -> list[str]:
        return ["bash", str(self.root / "run.sh"), "toy", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs ``./run.sh toy WORDS...`` from another folder."""
        return subprocess.run(self.command(*words), env=self.env, cwd="/", capture_output=True, text=True, timeout=60)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts it in a process group of its own, as a terminal does."""
        return subprocess.Popen(
            self.command(*words),
            env=self.env,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
