"""The report of a run, from its folder to ``RESULTS.md``, ``report.html`` and ``size_wer.png``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpq.io import BadInput, PathLike, atomic_write, read_jsonl, read_yaml
from mpq.score.page import PAPERS_TITLE, SYNTHETIC_NOTE, WORDS_TITLE, Curves, Report, render_html
from mpq.score.plot import size_wer, size_wer_plot
from mpq.score.records import read_results
from mpq.score.table import markdown_lines, render_markdown

_TITLE = "Results"


def load_report(exp: PathLike) -> Report:
    """Read ``results.jsonl`` and, where it is there, ``report.yaml`` of a run.

    Raises:
        BadInput: a missing or broken file, no results in it, or a key of ``report.yaml`` that is unknown or holds
            something of the wrong kind.
    """
    root = Path(exp)
    records = read_results(root / "results.jsonl")
    if not records:
        raise BadInput(f"{root / 'results.jsonl'}: holds no results; run the stages that score first")
    path = root / "report.yaml"
    given = _Given(path, read_yaml(path) if path.exists() else {})
    report = Report(
        title=given.take("title", str, _TITLE),
        records=records,
        summary=given.take("summary", str, ""),
        facts=_texts(given.take("facts", dict, {})),
        synthetic=given.take("synthetic", bool, False),
        tune_set=given.take("tune_set", str, "dev"),
        columns=_texts(given.take("columns", dict, {})),
        curves=[
            curves for item in given.take("curves", list, []) if (curves := _read_curves(root, _Given(path, item)))
        ],
        words=[str(words) for words in given.take("words", list, [])],
        papers=_texts(given.take("papers", dict, {})),
    )
    given.finish()
    return report


def write_report(exp: PathLike, report: Report) -> None:
    """Write ``RESULTS.md``, ``report.html`` and ``size_wer.png`` into the folder of a run."""
    root = Path(exp)
    with atomic_write(root / "RESULTS.md") as file:
        file.write(render_results(report))
    with atomic_write(root / "report.html") as file:
        file.write(render_html(report))
    said = not report.synthetic or "synthetic" in report.title
    title = report.title if said else f"{report.title} (synthetic speech)"
    size_wer_plot(root / "size_wer.png", size_wer(report.shown, report.test_set), title)


def render_results(report: Report) -> str:
    """The report in Markdown: what the results say, the table, the plot, what the columns mean, and what was run."""
    table = report.table
    parts = [f"# {report.title}", report.summary]
    if report.synthetic:
        parts.append(f"> **{SYNTHETIC_NOTE}**")
    meanings = [f"- **{column.title}**: {column.meaning}" for column in table.columns if column.meaning]
    if report.words:
        parts += [f"## {WORDS_TITLE}", *report.words, "## Results"]
    parts += [render_markdown(table).rstrip(), "![size against word error rate](size_wer.png)"]
    parts += ["\n".join(meanings)]
    for side in report.side_tables:
        rule = ["---", *["---:"] * (len(side.heads) - 1)]
        parts += [f"## {side.title}", side.note, markdown_lines([side.heads, rule, *side.rows]).rstrip()]
    for title, items in ((PAPERS_TITLE, report.papers), ("What was run", report.facts)):
        if items:
            parts += [f"## {title}", "\n".join(f"- {name}: {value}" for name, value in items.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _texts(given: Mapping[object, object]) -> dict[str, str]:
    return {str(name): str(value) for name, value in given.items()}


class _Given:
    """Keys of ``report.yaml``, taken one by one, so that an unknown key is noticed."""

    def __init__(self, path: Path, keys: object) -> None:
        if not isinstance(keys, Mapping):
            raise BadInput(f"{path}: found {keys!r:.60} under 'curves'; expected 'title: ...' and the other keys")
        self.path = path
        self.keys = dict(keys)
        self.known: list[str] = []

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key, which must be of this kind; without a default the key must be there."""
        self.known.append(key)
        value = self.keys.pop(key, default)
        if not isinstance(value, kind):
            raise BadInput(f"{self.path}: {key!r} is {value!r:.60}; expected a value of type {kind.__name__}")
        return value

    def finish(self) -> None:
        """Raise BadInput if a key is left over."""
        if self.keys:
            known = ", ".join(self.known)
            raise BadInput(f"{self.path}: unknown key {next(iter(self.keys))!r}; expected some of {known}")


def _read_curves(root: Path, given: _Given) -> Curves | None:
    """One chart: a metric in files of JSON lines that training wrote; None where an optional one has no file."""
    title, y_title, metric = (given.take(key, str) for key in ("title", "y_title", "metric"))
    files, x = given.take("files", dict), given.take("x", str, "epoch")
    optional = given.take("optional", bool, False)
    given.finish()
    lines = {}
    for name, file in files.items():
        path = root / str(file)
        if optional and not path.exists():
            continue
        points = []
        for number, row in read_jsonl(path):
            point = row.get(x), row.get(metric)
            if not all(isinstance(value, int | float) for value in point):
                raise BadInput(f"{path}:{number}: expected numbers under {x!r} and {metric!r}")
            points.append((float(row[x]), float(row[metric])))
        lines[str(name)] = points
    return Curves(title, y_title, lines, x) if lines else None
