"""Systems trained with several seeds: mean and spread of what they reach."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean, stdev

from mpq.score.records import ResultRecord
from mpq.score.table import SideTable

_NOTE = "Mean, sample standard deviation and range over systems that differ in nothing but the seed of their training."


def base_name(system: str) -> str:
    """The name of a system without its seed: ``lstm-ste-2`` of ``lstm-ste-2-seed1``."""
    return re.sub(r"-seed\d+$", "", system)


def summarize_seeds(records: Sequence[ResultRecord], set_name: str) -> list[SideTable]:
    """Perplexity and error rate on a set over the seeds of each system; nothing where none has two."""
    groups: dict[str, list[ResultRecord]] = {}
    for record in records:
        if record.set == set_name:
            groups.setdefault(base_name(record.system), []).append(record)
    rows = [
        [name, str(len(group)), spread([record.perplexity for record in group], 1), spread([r.wer for r in group])]
        for name, group in groups.items()
        if len(group) > 1
    ]
    return [SideTable("Over seeds", _NOTE, ["System", "Seeds", "Perplexity", f"{set_name} WER"], rows)] if rows else []


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """``110.2 ± 0.4 (109.8 to 110.6)``; one value stands alone, and there is nothing where a value is missing."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return ""
    if len(numbers) == 1:
        return f"{numbers[0]:.{digits}f}"
    low, high = min(numbers), max(numbers)
    return f"{mean(numbers):.{digits}f} ± {stdev(numbers):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
