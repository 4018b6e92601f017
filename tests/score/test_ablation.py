"""The table of an ablation: rates over seeds, the test against the full system, and what the command reads."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest

from mpq.cli.main import main
from mpq.io import write_text
from mpq.score import AblationRow, ablation_table
from mpq.score.ablation import paired_p, spread

REF = {f"u{i}": ["a", "b", "c", "d"] for i in range(10)}
TABLE = """
title: "an ablation"
summary: of two systems
rows: {full: everything, less: without a piece, never: nothing ran}
facts: {Corpus: toy}
"""


def wrong(*utts: int) -> dict[str, list[str]]:
    """Hypotheses with one word of some utterances wrong."""
    return {utt: ["x", *words[1:]] if int(utt[1:]) in utts else words for utt, words in REF.items()}


def row(name: str, *hyps: dict[str, list[str]], minutes: bool = True) -> AblationRow:
    seeds = range(len(hyps))
    return AblationRow(
        name, "what", {i: {"dev": REF, "test": hyps[i]} for i in seeds}, {i: 2.0 + i for i in seeds if minutes}
    )


def test_table_of_means_and_spreads() -> None:
    full, less = row("full", wrong(1), wrong(1, 2)), row("less", wrong(1, 2, 3), wrong(1, 2, 3), minutes=False)
    lines = [
        line.strip("| ").split(" | ")
        for line in ablation_table([full, less], {"dev": REF, "test": REF}, "test").splitlines()
    ]
    assert lines[0] == ["System", "What", "Seeds", "dev WER", "test WER", "p (test)", "Train min"]
    assert lines[2] == ["full", "what", "2", "0.00 ± 0.00 (0.00 to 0.00)", "3.75 ± 1.77 (2.50 to 5.00)", "–", "2.5"]
    assert lines[3][4] == "7.50 ± 0.00 (7.50 to 7.50)" and lines[3][6] == "–"
    # of ten utterances one is wrong once more, one twice
    differences = [0, 0, 1, 2, 0, 0, 0, 0, 0, 0]
    z = statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(10))
    assert float(lines[3][5]) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=6e-4)


def test_only_seeds_that_both_have_are_compared() -> None:
    full = row("full", wrong(1), wrong())
    assert paired_p(full, row("less", wrong(1)), REF, "test") == 1.0
    assert paired_p(full, AblationRow("less", "", {7: {"test": REF}}, {}), REF, "test") is None
    assert spread([5.0]) == "5.00"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.yaml").write_text(TABLE)
    for name in ("dev", "test"):
        write_text(tmp_path / "data" / name / "text", REF)
        for system, hyp in (("full-seed0", wrong()), ("full-seed4", wrong(0)), ("less-seed0", wrong(0, 1))):
            write_text(tmp_path / "table-am" / "rescore" / system / f"hyp-{name}.txt", hyp)
    for seed, seconds in ((0, "60.0"), (4, "180.0")):
        folder = tmp_path / "table-am" / "am" / f"full-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "seconds").write_text(seconds)
    words = [
        "ablation",
        "--exp",
        str(tmp_path),
        "--dir",
        str(tmp_path / "table-am"),
        "--table",
        str(tmp_path / "table.yaml"),
    ]
    assert main(words) == 0
    assert "2 systems" in capsys.readouterr().out
    text = (tmp_path / "table-am" / "RESULTS.md").read_text()
    assert text.startswith("# an ablation\n\nof two systems\n") and "- Corpus: toy" in text and "never" not in text
    assert "| full | everything | 2 | 1.25 ± 1.77 (0.00 to 2.50) | 1.25 ± 1.77 (0.00 to 2.50) | – | 2.0 |" in text
    assert "| less | without a piece | 1 | 5.00 | 5.00 |" in text


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (TABLE.replace("full:", "whole:"), "no results of 'whole', which all others are compared with"),
        (TABLE.replace("title:", "name:"), "unknown key 'name'; expected title, summary, words, rows, facts"),
        (TABLE.replace("rows: {full: everything, less: without a piece, never: nothing ran}", ""), "'rows' is missing"),
    ],
)
def test_bad_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, says: str) -> None:
    (tmp_path / "table.yaml").write_text(table)
    for name in ("dev", "test"):
        write_text(tmp_path / "data" / name / "text", REF)
    assert (
        main(["ablation", "--exp", str(tmp_path), "--dir", str(tmp_path), "--table", str(tmp_path / "table.yaml")]) == 2
    )
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
