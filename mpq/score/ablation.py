"""Systems that lack one piece each, trained with several seeds, beside the full system: table and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from mpq.score.mapsswe import matched_pairs
from mpq.score.seeds import spread
from mpq.score.table import EMPTY, format_p, markdown_lines
from mpq.score.wer import Texts, total, utterance_counts

P_NOTE = (
    "Two-sided probability of a difference at least this large if the row were in truth as good as the full system: "
    "matched pairs by utterance, an utterance's errors summed over the seeds that both have."
)


@dataclass(frozen=True, slots=True)
class AblationRow:
    """One system.

    Attributes:
        name: short name.
        what: what it is, in words.
        hyps: its words, by seed and set.
        minutes: what its training took, by seed; empty where it has none of its own.
    """

    name: str
    what: str
    hyps: Mapping[int, Mapping[str, Texts]]
    minutes: Mapping[int, float]


def ablation_table(rows: Sequence[AblationRow], refs: Mapping[str, Texts], test_set: str) -> str:
    """The table in Markdown: error rates over the seeds on every set, and p against the first row on `test_set`.

    Args:
        rows: the systems; the first one has all pieces.
        refs: references by set.
        test_set: set of the test.
    """
    heads = ["System", "What", "Seeds", *(f"{name} WER" for name in refs), f"p ({test_set})", "Train min"]
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for row in rows:
        rates = [
            spread([total(utterance_counts(ref, hyps[name]).values()).rate for hyps in row.hyps.values()])
            for name, ref in refs.items()
        ]
        p = EMPTY if row is rows[0] else format_p(paired_p(rows[0], row, refs[test_set], test_set))
        minutes = f"{mean(row.minutes.values()):.1f}" if row.minutes else EMPTY
        lines.append([row.name, row.what, str(len(row.hyps)), *rates, p, minutes])
    return markdown_lines(lines)


def paired_p(full: AblationRow, other: AblationRow, ref: Texts, name: str) -> float | None:
    """p of the difference between two systems over the seeds that both have; None where they share none."""
    seeds = full.hyps.keys() & other.hyps.keys()
    differences = dict.fromkeys(ref, 0)
    for seed in seeds:
        ours, theirs = (utterance_counts(ref, system.hyps[seed][name]) for system in (full, other))
        for utt in ref:
            differences[utt] += theirs[utt].errors - ours[utt].errors
    return matched_pairs(list(differences.values()))[3] if seeds else None
