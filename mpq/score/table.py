"""The results table: its rows and columns, on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mpq.score.records import FIRST_PASS, RESCORED, ResultRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid

SIGNIFICANCE = 0.05
FLOAT_BITS = 32
EMPTY = "–"
NO_DIFFERENCE = "no significant difference"

_FULL_WIDTH, _WIDEST = 140, 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One system: its records by set."""

    system: str
    records: dict[str, ResultRecord]

    @property
    def any(self) -> ResultRecord:
        """A record of the system, for what does not depend on the set."""
        return next(iter(self.records.values()))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        title: its heading.
        meaning: what it means, in words for a newcomer.
        cell: its text in a row.
        numeric: numbers, to be aligned at the right.
        short: heading where there is little room.
        shorten: what to do to a cell's text where there is little room.
    """

    title: str
    meaning: str
    cell: Callable[[Row], str]
    numeric: bool = True
    short: str = ""
    shorten: Callable[[str], str] = str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows and columns, ready to be shown."""

    columns: list[Column]
    rows: list[Row]

    def cells(self) -> list[list[str]]:
        """The text of every cell, row by row."""
        return [[column.cell(row) for column in self.columns] for row in self.rows]


@dataclass(frozen=True, slots=True)
class SideTable:
    """A further table of the report: heading, a note under it, headings of columns, and rows of texts."""

    title: str
    note: str
    heads: list[str]
    rows: list[list[str]]


def make_table(
    records: Sequence[ResultRecord], tune_set: str = "dev", meanings: Mapping[str, str] | None = None
) -> Table:
    """Put records into rows, one a system, and columns, of which only those are made that have a value.

    Args:
        records: what to show, in order.
        tune_set: set on which weights were tuned: its rate is shown without interval or test.
        meanings: what the columns mean that the records bring themselves, and others where it is not the usual.
    """
    rows: dict[str, Row] = {}
    for record in records:
        rows.setdefault(record.system, Row(record.system, {})).records[record.set] = record
    sets = list(dict.fromkeys(record.set for record in records))
    test_sets = [name for name in sets if name != tune_set]
    columns = [
        Column(
            "System",
            "What chose the words: the first pass with its n-gram model alone, or a neural language model "
            "that reorders the first pass's n-best lists. The oracle takes the best hypothesis of each list: "
            "no reordering can do better.",
            lambda row: row.system,
            numeric=False,
        ),
        *_cost_columns(),
        *([_tuned_column(tune_set)] if tune_set in sets else []),
        *(column for name in test_sets for column in _test_columns(name, records, len(test_sets) == 1)),
        *_extra_columns(records, meanings or {}),
    ]
    shown = [column for column in columns if any(column.cell(row) != EMPTY for row in rows.values())]
    shown = [replace(column, meaning=(meanings or {}).get(column.title, column.meaning)) for column in shown]
    return Table(shown, list(rows.values()))


def verdict(record: ResultRecord, records: Iterable[ResultRecord]) -> str:
    """What the matched pairs test says of a system, in words.

    A float32 system, or a larger n-gram model, is held against the first pass, another one against the float32 system
    of its family.

    Args:
        record: the system's result.
        records: all results; the one to compare with is found in them, on the same set.
    """
    if record.role != RESCORED:
        return EMPTY
    is_float = record.bits in (None, FLOAT_BITS)  # None: a larger n-gram model
    p, other_name = (record.p_first_pass, "first pass") if is_float else (record.p_float32, "float32")
    others = (other for other in records if other.set == record.set and other.system != record.system)
    other = next((other for other in others if _is_reference(other, record, is_float)), None)
    if p is None or other is None:
        return EMPTY
    if p >= SIGNIFICANCE:
        return NO_DIFFERENCE
    return f"{'better' if record.errors < other.errors else 'worse'} than {other_name}"


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table to the terminal (or the given rich console), shortened where that is narrow, but nothing cut."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    console = console or Console()
    narrow = console.width < _FULL_WIDTH
    grid = Grid(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 0 if narrow else 1, 0, 0))
    for column in table.columns:
        title = column.short if narrow and column.short else column.title
        grid.add_column(escape(title), justify="right" if column.numeric else "left", no_wrap=column.title == "System")
    for cells in table.cells():
        pairs = zip(table.columns, cells, strict=True)
        grid.add_row(*(escape(column.shorten(text) if narrow else text) for column, text in pairs))
    while _is_cut(grid, console) and console.width < _WIDEST:  # lines that are too long can be read, cut numbers cannot
        console.width += 4
    console.print(grid)


def _is_cut(grid: Grid, console: Console) -> bool:
    """Whether rich cuts a cell of a grid to fit the console."""
    with console.capture() as captured:
        console.print(grid)
    return "…" in captured.get()


def render_markdown(table: Table) -> str:
    """The table in Markdown."""
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    return markdown_lines([[column.title for column in table.columns], rule, *table.cells()])


def markdown_lines(lines: Iterable[Sequence[str]]) -> str:
    """Lines of cells as Markdown writes them."""
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _is_reference(other: ResultRecord, record: ResultRecord, is_float: bool) -> bool:
    """Whether ``other`` is what ``record`` is compared with."""
    if is_float:
        return other.role == FIRST_PASS
    return other.role == RESCORED and other.bits == FLOAT_BITS and other.family == record.family


def _cost_columns() -> list[Column]:
    """What a system costs, whatever the set."""
    return [
        Column(
            "Bits",
            "Mean bits of a quantized weight; 32 is the uncompressed model. "
            "Symmetric codes of 2 bits have three values and take 1.6 bits of the file, hence ratios above 16.",
            lambda row: _number(row.any.bits, "{:.3g}"),
        ),
        Column(
            "MB on disk",
            "Size of the model's file, in millions of bytes: all that has to be stored or sent.",
            lambda row: _number(row.any.bytes and row.any.bytes / 1e6, "{:.2f}"),
            short="MB",
        ),
        Column(
            "Ratio",
            "How many times smaller the file is than that of the uncompressed model.",
            lambda row: _number(row.any.ratio, "{:.1f}"),
        ),
        Column(
            "Perplexity",
            "How surprised the language model is by each word of the development text: lower is better.",
            lambda row: _number(row.any.perplexity, "{:.1f}"),
            short="PPL",
        ),
    ]


def _tuned_column(name: str) -> Column:
    def cell(row: Row) -> str:
        return f"{row.records[name].wer:.2f}" if name in row.records else EMPTY

    return Column(
        f"{name} WER",
        f"Word error rate in percent on the {name} set. The weights of the language models were tuned on it, "
        "so it flatters every system.",
        cell,
        short=name,
    )


def _test_columns(name: str, records: Sequence[ResultRecord], alone: bool) -> list[Column]:
    """Rate with interval, p and verdict on one test set."""

    def rate(row: Row) -> str:
        record = row.records.get(name)
        if record is None:
            return EMPTY
        interval = "" if record.interval is None else " ({:.2f} to {:.2f})".format(*record.interval)
        return f"{record.wer:.2f}{interval}"

    def p_value(row: Row) -> str:
        return format_p(row.records[name].p_float32) if name in row.records else EMPTY

    def judged(row: Row) -> str:
        return verdict(row.records[name], records) if name in row.records else EMPTY

    where = "" if alone else f" ({name})"
    return [
        Column(
            f"{name} WER (95 % interval)",
            "Word error rate: inserted, deleted and substituted words per hundred words of the reference. "
            "Lower is better. The interval tells how far it may be off because the test set is a sample "
            "(bootstrap over utterances).",
            rate,
            short=name,
            shorten=lambda text: text.partition(" ")[0],
        ),
        Column(
            f"p against float32{where}",
            "Probability of a difference in errors at least this large if the compressed model were in truth "
            "as good as its uncompressed version (MAPSSWE, NIST's matched pairs test, two-sided).",
            p_value,
            short=f"p{where}",
            shorten=lambda text: text.replace(" ", ""),
        ),
        Column(
            f"Verdict{where}",
            f"What the test says at p < {SIGNIFICANCE:g}: a compressed model is compared with its "
            "uncompressed version, an uncompressed one with the first pass. No significant difference does "
            "not prove that both are equal; this test set just does not tell them apart.",
            judged,
            numeric=False,
            shorten=lambda text: "no diff" if text == NO_DIFFERENCE else text.partition(" ")[0],
        ),
    ]


def _extra_columns(records: Sequence[ResultRecord], meanings: Mapping[str, str]) -> list[Column]:
    """Columns that the records bring themselves."""

    def column(key: str) -> Column:
        def cell(row: Row) -> str:
            value = row.any.extra.get(key)
            return value if isinstance(value, str) else _number(value, "{:.3g}")

        return Column(key, meanings.get(key, ""), cell)

    return [column(key) for key in dict.fromkeys(key for record in records for key in record.extra)]


def format_p(p: float | None) -> str:
    """A probability with three digits behind the point."""
    if p is None:
        return EMPTY
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float | None, form: str) -> str:
    return EMPTY if value is None else form.format(value)
