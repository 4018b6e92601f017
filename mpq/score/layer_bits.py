"""Where mixed precision put its bits: the mean bits of each kind of matrix, by system."""

from __future__ import annotations

from collections.abc import Sequence

from mpq.score.records import ResultRecord
from mpq.score.table import EMPTY, SideTable

_NOTE = "Mean bits of a weight in all matrices of a kind; nothing stands where the bits are the same everywhere."


def summarize_layer_bits(records: Sequence[ResultRecord], set_name: str) -> list[SideTable]:
    """A table for each family that has systems of mixed bits, the systems in their order."""
    families: dict[str, list[ResultRecord]] = {}
    for record in records:
        if record.set == set_name and record.layer_bits:
            families.setdefault(record.family or "", []).append(record)
    return [_table(family, group) for family, group in families.items()]


def _table(family: str, records: Sequence[ResultRecord]) -> SideTable:
    kinds = list(dict.fromkeys(kind for record in records for kind in record.layer_bits))
    rows = [
        [record.system, *(f"{bits:.2g}" if (bits := record.layer_bits.get(kind)) else EMPTY for kind in kinds)]
        for record in records
    ]
    return SideTable(f"Where the bits went: {family}", _NOTE, ["System", *kinds], rows)
