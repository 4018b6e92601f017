"""Show what a model file holds: bits and bytes of every layer, totals, and the ratio to float32.

Reads   a model file *.mpq, packed or float, or a folder that holds it as model.mpq.
Writes  nothing; the table goes to the terminal, or with --json to standard output as one JSON object.

Example:
  mpq inspect exp/quant/lstm-2/model.mpq
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq inspect``."""
    parser.add_argument("file", type=str, metavar="FILE", help="model.mpq, or its folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: Namespace) -> None:
    """Runs ``mpq inspect``."""
    import json

    from mpq.quant import read_model_file
    from mpq.quant.report import describe, render

    report = describe(read_model_file(args.file))
    print(json.dumps(report, indent=2) if args.json else render(report))
