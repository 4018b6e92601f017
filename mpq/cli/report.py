"""Make the results table, the page and the size-versus-WER plot of a run.

Reads   EXP/results.jsonl (one result record a line) and EXP/report.yaml, which may be missing:
          title: heading                       summary: a sentence under it
          synthetic: true                      if the speech is: this is then said wherever numbers are shown
          tune_set: dev                        the set on which weights were tuned
          facts: {Recipe: mini, Date: ...}     shown as they are
          columns: {train min: ...}            what the columns mean that the records bring themselves
          curves: [{title: ..., y_title: ..., metric: perplexity, files: {LSTM: lm/lstm/metrics.jsonl}}]
                  with x: step the horizontal axis is another key of the lines; with optional: true files may be missing
          words: [...]                         paragraphs on what the results say
          papers: {arXiv 2112.11438: ...}      what papers report
        Systems NAME-seedN are NAME with other seeds: they are summed up in a table of their own.
Writes  EXP/RESULTS.md, EXP/report.html (one file, nothing fetched) and EXP/size_wer.png.

Example:
  mpq report egs/mini/exp
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of ``mpq report``."""
    parser.add_argument("exp", type=str, metavar="EXP", help="folder of the run")


def run(args: Namespace) -> None:
    """Runs ``mpq report``."""
    from mpq.score import load_report, print_table, write_report
    from mpq.score.records import ORACLE

    exp = Path(args.exp)
    report = load_report(exp)
    write_report(exp, report)
    print_table(report.table)
    systems = len({record.system for record in report.records if record.role != ORACLE})
    note = "; the speech is synthetic" if report.synthetic else ""
    print(f"report: {systems} systems{note}: {exp / 'RESULTS.md'}, {exp / 'report.html'}, {exp / 'size_wer.png'}")
