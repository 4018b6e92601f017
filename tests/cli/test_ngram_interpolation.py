"""`mpq ngram --interpolate` from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Cli = Callable[..., "CompletedProcess[str]"]
ARPA = (
    "\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n-99 <s> 0\n{} </s>\n{} a\n{} b\n\n\\2-grams:\n{} <s> a\n\n\\end\\\n"
)


def test_two_models_become_one_and_wrong_words_are_told(mpq_cli: Cli, tmp_path: Path) -> None:
    for name, values in (("one", (-0.5, -0.5, -0.4346, -0.2)), ("two", (-0.2, -0.8, -0.6759, -0.9))):
        (tmp_path / name).write_text(ARPA.format(*values))
    (tmp_path / "held-out").write_text("a b a\na\nb\n")
    mix = ("ngram", "--interpolate", "one", "two", "--lm", "mix")
    done = mpq_cli(*mix, "--held-out", "held-out", "--ppl", "held-out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ngram: order 2, 5 n-grams of 2 words, weights ") and "perplexity" in done.stdout
    words = done.stdout.split("weights ")[1].split(",")[0].split()
    assert sum(map(float, words)) == pytest.approx(1, abs=1e-3)
    failed = mpq_cli(*mix)
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1
    assert "--interpolate takes two or more models, and --held-out the text" in failed.stderr
