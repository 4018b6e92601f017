"""Table, plot and page of made-up results, and the commands that make and print them."""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest
from rich.console import Console

from mpq.io import BadInput, write_jsonl, write_yaml
from mpq.score import (
    Report,
    highlights,
    load_report,
    make_table,
    print_table,
    render_html,
    render_markdown,
    render_results,
    size_wer,
    size_wer_plot,
    update_results,
    verdict,
    write_report,
)
from mpq.score.plot import Point, _lowest

MpqCli = Callable[..., "subprocess.CompletedProcess[str]"]


def row(report: Report, system: str) -> dict[str, str]:
    table = make_table(report.records)
    rows = [dict(zip([column.title for column in table.columns], cells, strict=True)) for cells in table.cells()]
    return next(cells for cells in rows if cells["System"] == system)


def test_rows_say_what_records_hold(report: Report) -> None:
    assert row(report, "LSTM 2-bit") == {
        "System": "LSTM 2-bit",
        "Bits": "2",
        "MB on disk": "0.29",
        "Ratio": "14.5",
        "Perplexity": "131.9",
        "dev WER": "7.95",
        "test WER (95 % interval)": "8.46 (7.94 to 9.01)",
        "p against float32": "0.012",
        "Verdict": "worse than float32",
        "train min": "2.5",
    }
    assert row(report, "LSTM 4-bit")["Verdict"] == "no significant difference"
    assert row(report, "LSTM 1-bit")["p against float32"] == "< 0.001"
    assert row(report, "Transformer float32")["Verdict"] == "better than first pass"
    assert row(report, "n-gram first pass")["Verdict"] == row(report, "n-best oracle")["Bits"] == "–"


def test_columns_without_any_value_are_left_out(report: Report) -> None:
    plain = [replace(record, bits=None, perplexity=None, extra={}) for record in report.records]
    titles = {column.title for column in make_table(plain).columns}
    assert {"Bits", "Perplexity", "train min"}.isdisjoint(titles)
    assert "Ratio" in titles


def test_several_test_sets_have_columns_each(report: Report) -> None:
    more = [*report.records, *(replace(record, set="callhome") for record in report.records if record.set == "test")]
    titles = [column.title for column in make_table(more).columns]
    for title in ("p against float32 (test)", "Verdict (callhome)", "callhome WER (95 % interval)"):
        assert title in titles


def test_a_compressed_model_may_be_better(report: Report) -> None:
    records = {record.system: record for record in report.records if record.set == "test"}
    better = replace(records["LSTM 4-bit"], errors=1, p_float32=0.01)
    assert verdict(better, report.records) == "better than float32"
    assert verdict(replace(better, family="GRU"), report.records) == "–"
    worse = replace(records["LSTM float32"], errors=10**6, p_first_pass=0.01)
    assert verdict(worse, report.records) == "worse than first pass"


@pytest.mark.parametrize(("width", "cell"), [(40, "Bits"), (80, "no diff"), (200, "no significant difference")])
def test_terminal_table_fits(report: Report, width: int, cell: str) -> None:
    console = Console(width=width, file=io.StringIO())
    print_table(make_table(report.records), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert cell in text
    assert "…" not in text
    assert "Transformer float32" in text


def test_markdown_is_a_table(report: Report) -> None:
    lines = render_markdown(make_table(report.records)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 10
    odd = replace(report, records=[replace(record, system=f"a|{record.system}") for record in report.records])
    assert r"| a\|LSTM 4-bit |" in render_results(odd)


def test_highlights(report: Report) -> None:
    values = {name: value for name, value, _ in highlights(report)}
    assert values == {
        "First pass": "10.24 %",
        "Best uncompressed": "8.06 %",
        "Smaller, no significant loss": "7.9 ×",
        "Test set": "12,346 words",
    }


class Checker(HTMLParser):
    """Every element is closed, and nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        assert names.isdisjoint({"src", "href", "onload", "onclick"})
        self.tags.append(tag)
        if tag not in ("meta", "path", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_self_contained(report: Report) -> None:
    page = render_html(report)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.tags.count("svg") == 6  # two panels, two keys of their legend, two charts of curves
    assert {"script", "link", "img", "iframe"}.isdisjoint(checker.tags)
    assert not re.search(r"https?:|url\(|@import", page)
    for text in (report.title, "This corpus is synthetic", "better than first pass", "0123abc", "n-best oracle 4.39"):
        assert text in page


def test_page_escapes_text_and_takes_little(report: Report) -> None:
    records = [replace(report.records[0], system="<script>alert(1)</script>")]
    page = render_html(Report(title="a < b", records=records))
    assert "<script>" not in page
    assert "<title>a &lt; b</title>" in page
    assert "synthetic" not in page
    assert "<svg" not in page


def test_plot_is_drawn_the_same_each_time(tmp_path: Path, report: Report) -> None:
    data = size_wer(report.records, "test")
    assert [panel.family for panel in data.panels] == ["LSTM", "Transformer"]
    assert data.panels[0].title == "LSTM: float32 8.24 % (95 %: 7.72 to 8.79)"
    assert [point.label for point in data.panels[0].lines["quantized"]] == ["1 bit", "2 bits", "4 bits", "8 bits"]
    assert [point.worse for point in data.panels[0].lines["quantized"]] == [True, True, False, False]
    assert list(data.levels) == ["n-gram first pass", "n-best oracle"]
    assert data.note == "n-best oracle 4.39 %"
    for name in ("a.png", "b.png"):
        size_wer_plot(tmp_path / name, data, report.title)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert image.shape[:2] == (810, 1560)
    assert image.std() > 0.05


def test_each_method_has_a_line_and_the_front_its_labels(report: Report) -> None:
    kinds = {(1.0, 40): "ADMM", (2.0, 50): "KL", (2.0, 60): "ADMM", (4.0, 55): "KL", (4.0, 45): "STE"}
    (low,) = (r for r in report.records if r.set == "test" and r.system == "LSTM 2-bit")
    made = [
        replace(low, system=f"{line} {bits:g} {n}", line=line, bits=bits, bytes=int(1000 * bits), errors=errors + n)
        for (bits, errors), line in kinds.items()
        for n in range(4)
    ]
    (panel,) = size_wer(made, "test").panels
    assert {name: len(line) for name, line in panel.lines.items()} == {"ADMM": 8, "KL": 8, "STE": 4}
    assert [point.name for point in panel.labelled] == ["ADMM 1 0"]  # the smallest has the fewest errors
    assert size_wer(made, "test").methods == ["ADMM", "KL", "STE"]


def test_a_line_leads_through_the_best_of_each_size() -> None:
    points = [Point(0.5, 9.0, "a"), Point(0.5001, 8.0, "b"), Point(0.501, 10.0, "c"), Point(1.0, 7.0, "d")]
    assert [point.name for point in _lowest(points)] == ["b", "d"]


def test_plot_without_sizes(tmp_path: Path, report: Report) -> None:
    data = size_wer([record for record in report.records if record.role != "rescored"], "test")
    size_wer_plot(tmp_path / "plot.png", data)
    assert (tmp_path / "plot.png").exists()


@pytest.fixture
def exp(tmp_path: Path, report: Report) -> Path:
    """The folder of a run with results, training metrics and a description."""
    folder = tmp_path / "exp"
    for record in report.records:
        update_results(folder / "results.jsonl", record)
    metrics = [{"epoch": epoch, "perplexity": 200 / epoch} for epoch in (1, 2, 3)]
    write_jsonl(folder / "lm" / "lstm" / "metrics.jsonl", metrics)
    curves = [
        {"title": "LM", "y_title": "perplexity", "metric": "perplexity", "files": {"LSTM": "lm/lstm/metrics.jsonl"}}
    ]
    write_yaml(
        folder / "report.yaml",
        {
            "title": "A run",
            "synthetic": True,
            "facts": {"Seed": 3},
            "columns": {"train min": "Minutes."},
            "curves": curves,
        },
    )
    return folder


def test_folder_to_report(exp: Path, report: Report) -> None:
    loaded = load_report(exp)
    assert (loaded.title, loaded.synthetic, loaded.facts, loaded.records) == (
        "A run",
        True,
        {"Seed": "3"},
        report.records,
    )
    assert loaded.curves[0].lines == {"LSTM": [(1.0, 200.0), (2.0, 100.0), (3.0, 200 / 3)]}
    write_report(exp, loaded)
    text = (exp / "RESULTS.md").read_text()
    assert text.startswith("# A run\n\n> **This corpus is synthetic")
    assert "- Seed: 3" in text
    assert "- **train min**: Minutes.\n" in text
    (exp / "report.yaml").unlink()
    assert load_report(exp).title == "Results"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel: x\n", "report.yaml: unknown key 'titel'; expected some of title, summary"),
        ("synthetic: 3\n", "'synthetic' is 3; expected a value of type bool"),
        ("curves: [{title: a}]\n", "'y_title' is None; expected a value of type str"),
        ("curves: [3]\n", "found 3 under 'curves'"),
        (
            "curves: [{title: a, y_title: b, metric: loss, files: {LSTM: lm/lstm/metrics.jsonl}}]\n",
            "metrics.jsonl:1: expected numbers under 'epoch' and 'loss'",
        ),
        ("curves: [{title: a, y_title: b, metric: loss, files: {LSTM: none}}]\n", "none: no such file"),
    ],
)
def test_wrong_description(exp: Path, text: str, message: str) -> None:
    (exp / "report.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        load_report(exp)


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"results\.jsonl: no such file"):
        load_report(tmp_path)
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(BadInput, match="holds no results"):
        load_report(tmp_path)


def test_report_command(exp: Path, mpq_cli: MpqCli) -> None:
    done = mpq_cli("report", exp)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == (
        f"report: 9 systems; the speech is synthetic: {exp}/RESULTS.md, {exp}/report.html, {exp}/size_wer.png"
    )
    assert json.loads((exp / "results.jsonl").read_text().splitlines()[0])["role"] == "first-pass"
    assert (exp / "size_wer.png").read_bytes().startswith(b"\x89PNG")
