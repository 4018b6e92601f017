"""The report of a run: one HTML page that holds everything it shows."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mpq.score.chart import Chart, Mark, render_chart, render_key
from mpq.score.layer_bits import summarize_layer_bits
from mpq.score.page_style import STYLE
from mpq.score.plot import FLOAT, Panel, SizeWer, size_wer
from mpq.score.records import FIRST_PASS, RESCORED, ResultRecord
from mpq.score.seeds import base_name, summarize_seeds
from mpq.score.table import EMPTY, FLOAT_BITS, SIGNIFICANCE, SideTable, Table, format_p, make_table, verdict

WORDS_TITLE, PAPERS_TITLE = "What the results say", "What the papers report"
SYNTHETIC_NOTE = (
    "This corpus is synthetic: the speech was made by a speech synthesizer. The numbers compare the systems "
    "with each other; they say nothing about how well real speech would be recognized."
)


@dataclass(frozen=True, slots=True)
class Curves:
    """Training curves in one chart: what the axes show, and ``(x, value)`` by name."""

    title: str
    y_title: str
    lines: dict[str, list[tuple[float, float]]]
    x_title: str = "epoch"


@dataclass(frozen=True, slots=True)
class Report:
    """What the report shows.

    Attributes:
        title: heading.
        records: results, in the order of the table's rows; ``NAME-seedN`` is ``NAME`` trained with another seed, and
            goes into the summary over seeds instead of the table.
        summary: one or two sentences under the heading.
        facts: what was run and on what, shown as it is: recipe, date, git commit, seed, hours of speech ...
        synthetic: whether the speech is synthetic, which is then said plainly.
        tune_set: set on which weights were tuned.
        curves: training curves.
        columns: what the columns mean that the records bring themselves.
        words: what the results say, paragraph by paragraph.
        papers: what papers report, by paper.
    """

    title: str
    records: Sequence[ResultRecord]
    summary: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    synthetic: bool = False
    tune_set: str = "dev"
    curves: Sequence[Curves] = ()
    columns: dict[str, str] = field(default_factory=dict)
    words: Sequence[str] = ()
    papers: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> list[ResultRecord]:
        """The records of the table: those that are no repetition with another seed."""
        return [record for record in self.records if base_name(record.system) == record.system]

    @property
    def table(self) -> Table:
        """The results table."""
        return make_table(self.shown, self.tune_set, self.columns)

    @property
    def side_tables(self) -> list[SideTable]:
        """The summary over seeds, if any system was trained with several; where the bits went, if they are mixed."""
        return summarize_seeds(self.records, self.test_set) + summarize_layer_bits(self.shown, self.test_set)

    @property
    def test_set(self) -> str:
        """The set that the plot and the highlights are about: the first one not tuned on."""
        sets = dict.fromkeys(record.set for record in self.records)
        return next((name for name in sets if name != self.tune_set), self.tune_set)


def render_html(report: Report) -> str:
    """The report as a self-contained HTML page."""
    table = report.table
    data = size_wer(report.shown, report.test_set)
    banner = f'<p class="banner" role="note">{_text(SYNTHETIC_NOTE)}</p>' if report.synthetic else ""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(report.title)}</title><style>{STYLE}</style></head><body><main>",
        f'<h1>{_text(report.title)}</h1><p class="under">{_text(report.summary)}</p>{banner}',
        _highlights(report),
        _words_section(report.words),
        _plot_section(data),
        _table_section(table, report.shown),
        *map(_side_section, report.side_tables),
        _list_section(PAPERS_TITLE, report.papers),
        _curves_section(report.curves),
        _columns_section(table),
        _list_section("What was run", report.facts),
        "<footer>Made by <code>mpq report</code>.</footer></main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def highlights(report: Report) -> list[tuple[str, str, str]]:
    """The few numbers that a reader wants first: name, value, and what to know about it."""
    records = [record for record in report.shown if record.set == report.test_set]
    shown: list[tuple[str, str, str]] = []
    first = next((record for record in records if record.role == FIRST_PASS), None)
    if first is not None:
        shown.append(
            ("First pass", f"{first.wer:.2f} %", f"word errors on the {report.test_set} set with the n-gram model")
        )
    rescored = [record for record in records if record.role == RESCORED]
    floats = [record for record in rescored if record.bits == FLOAT_BITS]
    if floats:
        best = min(floats, key=lambda record: record.wer)
        told = verdict(best, records)
        judged = f", {told} (p {format_p(best.p_first_pass)})" if told != EMPTY else ""
        shown.append(("Best uncompressed", f"{best.wer:.2f} %", f"{best.system}{judged}"))
    kept = [record for record in rescored if record.ratio and _keeps_up(record, records)]
    if kept:
        small = max(kept, key=lambda record: record.ratio or 0)
        shown.append(
            (
                "Smaller, no significant loss",
                f"{small.ratio:.1f} ×",
                f"{small.system}: {small.wer:.2f} %, p {format_p(small.p_float32)} against float32",
            )
        )
    if first is not None:
        shown.append(("Test set", f"{first.words:,} words", f"{first.errors:,} of them wrong in the first pass"))
    return shown


def _keeps_up(record: ResultRecord, records: Sequence[ResultRecord]) -> bool:
    """Whether a compressed system was tested and is not significantly worse than its float32 version."""
    if record.p_float32 is None or record.bits == FLOAT_BITS:
        return False
    return record.p_float32 >= SIGNIFICANCE or verdict(record, records).startswith("better")


def size_wer_chart(panel: Panel, data: SizeWer) -> Chart:
    """One panel of the plot of size against error rate, for the page."""
    labelled = set(panel.labelled)
    marks = {
        point: Mark(
            point.megabytes,
            point.wer,
            point.label if point in labelled else "",
            f"{point.name}, {point.label}: {point.megabytes:.2f} MB, {point.wer:.2f} %",
            point.worse,
        )
        for point in panel.points
    }
    low, high = data.rates
    return Chart(
        "size of the model file, MB",
        f"{data.set} word error rate, %",
        {name: [marks[point] for point in line] for name, line in panel.lines.items()},
        {name: rate for name, rate in data.levels.items() if low <= rate <= high},
        marks[panel.reference] if panel.reference else None,
        log_x=True,
        x_ends=data.sizes,
        y_ends=data.rates,
        styles=tuple(map(data.methods.index, panel.lines)),
        width=600,
        height=420,
    )


def _highlights(report: Report) -> str:
    cards = [
        f'<div class="highlight"><span class="name">{_text(name)}</span><b>{_text(value)}</b>'
        f'<span class="more">{_text(more)}</span></div>'
        for name, value, more in highlights(report)
    ]
    return f'<div class="highlights">{"".join(cards)}</div>' if cards else ""


def _plot_section(data: SizeWer) -> str:
    if not data.panels:
        return ""
    note = (
        "Each point is a language model: further left is smaller, lower is better. Hollow points make significantly "
        "more errors than their float32 version (matched pairs test, p < 0.05). Of many points those are labelled than "
        "which no smaller one makes as few errors; point at the others. The ranges are 95 % intervals."
    )
    far = f" Beyond the axis: {_text(data.note)}." if data.note else ""
    keys = [(render_key(index), name) for index, name in enumerate(data.methods)]
    if any(panel.reference for panel in data.panels):
        keys.append((render_key(None), FLOAT))
    legend = "".join(f"<span>{key}{_text(name)}</span>" for key, name in keys)
    figures = "".join(
        f"<figure><h3>{_text(panel.title)}</h3>{render_chart(size_wer_chart(panel, data))}</figure>"
        for panel in data.panels
    )
    return (
        f'<section><h2>Size against word error rate</h2><p class="note">{note}{far}</p>'
        f'<div class="legend">{legend}</div><div class="charts plots">{figures}</div></section>'
    )


def _table_section(table: Table, records: Sequence[ResultRecord]) -> str:
    heads = "".join(
        f'<th scope="col"{_number_class(column.numeric)}>{_text(column.title)}</th>' for column in table.columns
    )
    lines = []
    family: str | None = None
    for row, cells in zip(table.rows, table.cells(), strict=True):
        record = row.any
        classes = ["reference"] if record.role != RESCORED else []
        if record.family != family:
            classes.append("family")
        family = record.family
        line = "".join(
            f"<td{_number_class(column.numeric)}>{_cell(column.title, text)}</td>"
            for column, text in zip(table.columns, cells, strict=True)
        )
        lines.append(f'<tr class="{" ".join(classes)}">{line}</tr>')
    return (
        f'<section><h2>Results</h2><div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _cell(title: str, text: str) -> str:
    """A cell's text; a verdict gets a colour."""
    if not title.startswith("Verdict") or text == EMPTY:
        return _text(text)
    kind = next((word for word in ("better", "worse") if text.startswith(word)), "")
    return f'<span class="pill {kind}">{_text(text)}</span>'


def _curves_section(curves: Sequence[Curves]) -> str:
    figures = []
    for item in curves:
        lines = {
            name: [Mark(x, y, hint=f"{name}, {item.x_title} {x:g}: {y:.4g}") for x, y in points]
            for name, points in item.lines.items()
        }
        drawing = render_chart(Chart(item.x_title, item.y_title, lines, width=520, height=320))
        figures.append(f"<figure><h3>{_text(item.title)}</h3>{_legend(lines)}{drawing}</figure>")
    if not figures:
        return ""
    return f'<section><h2>Training</h2><div class="charts">{"".join(figures)}</div></section>'


def _columns_section(table: Table) -> str:
    items = "".join(
        f"<dt>{_text(column.title)}</dt><dd>{_text(column.meaning)}</dd>" for column in table.columns if column.meaning
    )
    return f"<section><h2>What the columns mean</h2><dl>{items}</dl></section>"


def _words_section(paragraphs: Sequence[str]) -> str:
    if not paragraphs:
        return ""
    return f"<section><h2>{WORDS_TITLE}</h2>{''.join(f'<p>{_text(words)}</p>' for words in paragraphs)}</section>"


def _side_section(table: SideTable) -> str:
    heads = "".join(f'<th scope="col"{_number_class(i > 0)}>{_text(head)}</th>' for i, head in enumerate(table.heads))
    lines = "".join(
        "<tr>" + "".join(f"<td{_number_class(i > 0)}>{_text(cell)}</td>" for i, cell in enumerate(cells)) + "</tr>"
        for cells in table.rows
    )
    return (
        f'<section><h2>{_text(table.title)}</h2><p class="note">{_text(table.note)}</p><div class="scroll">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def _list_section(title: str, items: dict[str, str]) -> str:
    if not items:
        return ""
    parts = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in items.items())
    return f"<section><h2>{title}</h2><dl>{parts}</dl></section>"


def _legend(names: Iterable[str]) -> str:
    items = "".join(f'<span><i class="s{index % 8}"></i>{_text(name)}</span>' for index, name in enumerate(names))
    return f'<div class="legend">{items}</div>'


def _number_class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _text(text: str) -> str:
    return html.escape(text)
