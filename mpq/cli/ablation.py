"""Make the table of an ablation: systems that lack one piece each, over several seeds, beside the full system.

Reads   EXP/data/SET/text (references); a YAML file (--config) with
          title: heading            summary: a sentence under it
          words: [...]              paragraphs on what the results say
          facts: {Corpus: ...}      what was run, shown as it is
          rows: {full: what it is, no-xent: ...}    the systems; all are held against the first
        and for every row, with the seed in its name (full-seed0, full-seed1), DIR/rescore/ROW-seedN/hyp-SET.txt, and
        DIR/am/ROW-seedN/seconds, what its training took, where the row has a model of its own. Rows without any
        result are left out.
Writes  DIR/RESULTS.md.

Example:
  mpq ablation --exp exp --dir exp/table-am --table conf/table_am.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mpq.score import AblationRow


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq ablation``."""
    parser.add_argument("--exp", type=str, required=True, metavar="DIR", help="folder of the experiment")
    parser.add_argument("--dir", type=str, required=True, metavar="DIR", help="folder of the table's systems")
    parser.add_argument("--table", type=str, required=True, metavar="FILE", help="YAML file: title, rows, ...")
    parser.add_argument("--sets", type=str, default="dev,test", metavar="LIST", help="sets; tuned on the first")


def run(args: Namespace) -> None:
    """Runs ``mpq ablation``."""
    from mpq.io import BadInput, atomic_write, check_writable, read_text, read_yaml
    from mpq.score import ablation_table
    from mpq.score.ablation import P_NOTE

    out = Path(args.dir) / "RESULTS.md"
    check_writable(out, [args.table])
    given = _check_keys(args.table, read_yaml(args.table))
    sets = [name.strip() for name in args.sets.split(",")]
    refs = {name: read_text(Path(args.exp, "data", name, "text")) for name in sets}
    rows = [row for name, what in given["rows"].items() if (row := _row(Path(args.dir), name, what, sets)).hyps]
    if not rows or rows[0].name != next(iter(given["rows"])):
        raise BadInput(f"{args.dir}: no results of {next(iter(given['rows']))!r}, which all others are compared with")
    table = ablation_table(rows, refs, sets[-1])
    with atomic_write(out) as file:
        file.write(_page(given, table.rstrip(), P_NOTE))
    print(f"ablation: {len(rows)} systems, {sum(len(row.hyps) for row in rows)} trained or decoded: {out}")


def _check_keys(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the YAML file holds, which must be what is needed and nothing else."""
    from mpq.io import BadInput

    kinds = {"title": str, "summary": str, "words": list, "rows": dict, "facts": dict}
    for key, value in given.items():
        if key not in kinds:
            raise BadInput(f"{path}: unknown key {key!r}; expected {', '.join(kinds)}")
        if not isinstance(value, kinds[key]):
            raise BadInput(f"{path}: {key!r} is {value!r:.60}; expected a value of type {kinds[key].__name__}")
    for key in ("title", "summary", "rows"):
        if not given.get(key):
            raise BadInput(f"{path}: {key!r} is missing; expected title, summary and rows")
    return given


def _row(folder: Path, name: str, what: str, sets: list[str]) -> AblationRow:
    """All that there is of a system."""
    from mpq.io import read_text
    from mpq.score import AblationRow

    hyps, minutes = {}, {}
    for path in sorted((folder / "rescore").glob(f"{name}-seed*")):
        seed = int(path.name.removeprefix(f"{name}-seed"))
        hyps[seed] = {set_name: read_text(path / f"hyp-{set_name}.txt") for set_name in sets}
        seconds = folder / "am" / path.name / "seconds"
        if seconds.exists():
            minutes[seed] = float(seconds.read_text()) / 60
    return AblationRow(name, what, hyps, minutes)


def _page(given: dict[str, Any], table: str, note: str) -> str:
    """The whole file in Markdown."""
    parts = [f"# {given['title']}", given["summary"], *given.get("words", []), table, f"- **p**: {note}"]
    parts += ["## What was run", "\n".join(f"- {name}: {value}" for name, value in given.get("facts", {}).items())]
    return "\n\n".join(parts) + "\n"
