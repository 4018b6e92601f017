"""Collect word error rates, significance and sizes of every system of an experiment.

Reads   EXP/data/SET/text (references), EXP/decode/SET/nbest.jsonl.gz (for the oracle), and for every folder
        EXP/rescore/SYSTEM its hyp-SET.txt and the model EXP/{lm,am,quant}/SYSTEM/model.mpq; the folder without a
        model is the first pass. With --rows whose systems all have an acoustic model there is none, and no oracle.
        With --systems DIR, rescore/, lm/, am/ and quant/ of DIR are looked at before those of EXP. How fast an acoustic
        model was is read from decode/SYSTEM/SET/speed.yaml beside its am/ or quant/ (column AM RTF: its time over that
        of the speech).
Writes  EXP/results.jsonl (DIR/results.jsonl), one record for each system and set; `mpq report` makes table, plot and
        page of it.

--rows FILE names the systems of the table, in its order, a JSON line each: {"system": "lstm-kl-2", "seed": 1,
"columns": {"Train min": 2.5}}; seed and columns may be left out. A system of several models, one acoustic and one of
language, has "models": [FILE, ...], relative to EXP: its bytes, bits and ratio are those of all together, and it
is compared with the system of the same architectures whose models are all float.

Examples:
  mpq results exp --seed 0
  mpq results exp --systems exp/table-lm --rows exp/table-lm/rows.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mpq.quant import ModelFile
    from mpq.score.records import ResultRecord
    from mpq.score.wer import Texts

FLOAT_BITS = 32.0
METHODS = {"kl": "KL", "hessian": "Hessian", "nas": "NAS"}
TRAINING = {"ste": "STE", "admm": "ADMM", "none": "only rounded"}


@dataclass
class System:
    """One row of the table to be: hypotheses, and the models behind them (none: the first pass of language models)."""

    name: str
    hyps: dict[str, Texts]
    models: list[ModelFile]
    seconds: float | None
    notes: dict[str, Any]

    @property
    def family(self) -> str | None:
        """Architectures of the models."""
        return "+".join(model.arch for model in self.models) or None

    @property
    def line(self) -> str | None:
        """How it was compressed, its line of the plot."""
        return " + ".join(line for model in self.models if (line := _line(model))) or None

    @property
    def bits(self) -> float:
        """Mean bits of a quantizable weight."""
        sizes = [sum(map(prod, model.shapes.values())) for model in self.models]
        total = sum(model.plan.average_bits(model.shapes) * n for model, n in zip(self.models, sizes, strict=True))
        return total / sum(sizes) if self.models else FLOAT_BITS

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(model.n_bytes for model in self.models)

    @property
    def perplexity(self) -> float | None:
        """Of the language model."""
        return next((model.extra["perplexity"] for model in self.models if "perplexity" in model.extra), None)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq results``."""
    parser.add_argument("exp", type=str, metavar="EXP", help="folder of the experiment")
    parser.add_argument("--sets", type=str, default="dev,test", metavar="LIST", help="sets; tuned on the first")
    parser.add_argument("--systems", type=str, metavar="DIR", help="more rescore/ and quant/; takes results.jsonl")
    parser.add_argument("--rows", type=str, metavar="JSONL", help="the systems of the table (default: all)")
    parser.add_argument("--ngram", type=str, metavar="SYSTEM", help="system with no model but a larger n-gram model")
    parser.add_argument("--seed", type=int, default=0, help="seed that the systems were trained with, noted down")


def run(args: Namespace) -> None:
    """Runs ``mpq results``."""
    from mpq.io import read_text
    from mpq.score.records import write_results

    exp = Path(args.exp)
    out = Path(args.systems or exp)
    sets = [name.strip() for name in args.sets.split(",")]
    refs = {name: read_text(exp / "data" / name / "text") for name in sets}
    git = {"git": _git_id()}
    systems = _systems(exp, out, sets, _rows(args.rows), {"seed": args.seed, **git}, args.ngram)
    first = next((system for system in systems if not system.models and system.name != args.ngram), None)
    records = [record for name in sets for record in _records(exp, name, refs[name], systems, first, git)]
    write_results(out / "results.jsonl", records)
    best = min((r for r in records if r.set == sets[-1] and r.role != "oracle"), key=lambda r: r.wer)
    print(
        f"results: {len(systems)} systems on {' and '.join(sets)}; best on {best.set}: "
        f"{best.system} {best.wer:.2f} %: {out / 'results.jsonl'}"
    )


def _rows(path: str | None) -> dict[str, dict[str, Any]]:
    """What --rows says of each system, by name; nothing without it."""
    from mpq.io import BadInput, read_jsonl

    rows = {}
    for number, row in read_jsonl(path) if path else ():
        name, unknown = row.pop("system", None), row.keys() - {"seed", "columns", "models"}
        if not isinstance(name, str) or name in rows or unknown:
            wrong = f"unknown key {min(unknown)!r}" if unknown else f"system {name!r}"
            form = '{"system": NAME, "seed": N, "columns": {...}, "models": [FILE, ...]}'
            raise BadInput(f"{path}:{number}: {wrong}; expected {form}, once")
        rows[name] = {"extra" if key == "columns" else key: value for key, value in row.items()}
    return rows


def _systems(
    exp: Path, out: Path, sets: list[str], rows: dict[str, dict[str, Any]], notes: dict[str, Any], ngram: str | None
) -> list[System]:
    """Those of the rows; without rows every folder of rescore/, float systems before their quantized versions."""
    from mpq.am import CONFIGS
    from mpq.io import BadInput, read_text, read_yaml
    from mpq.quant import read_model_file

    systems = []
    for name in rows or sorted(folder.name for folder in (out / "rescore").glob("*/")):
        folder = next(
            (path for root in (out, exp) if (path := root / "rescore" / name).is_dir()), out / "rescore" / name
        )
        row = dict(rows.get(name, {}))
        places = [root / kind / name / "model.mpq" for root in (out, exp) for kind in ("lm", "am", "quant")]
        paths = [exp / file for file in row.pop("models", [])] or [path for path in places if path.exists()][:1]
        hyps: dict[str, Texts] = {set_name: read_text(folder / f"hyp-{set_name}.txt") for set_name in sets}
        seconds = read_yaml(folder / "weights.yaml").get("seconds")
        systems.append(System(name, hyps, [read_model_file(path) for path in paths], seconds, notes | row))
        if (rtf := _rtf(paths, sets)) is not None and "extra" in row:
            systems[-1].notes["extra"] = row["extra"] | {"AM RTF": rtf}
    acoustic = all(any(model.arch in CONFIGS for model in system.models) for system in systems)
    if not acoustic and sum(not system.models and system.name != ngram for system in systems) != 1:
        raise BadInput(f"{out / 'rescore'}: expected one system without a model, the first pass; run stage 9 again")
    return systems if rows else sorted(systems, key=lambda s: (s.family or "", -s.bits, s.name))


def _rtf(models: list[Path], sets: list[str]) -> float | None:
    """Real time factor of the acoustic model over all sets, where all have been decoded and timed."""
    from mpq.am.decode import SPEED
    from mpq.io import read_yaml

    for model in models:
        files = [model.parent.parent.parent / "decode" / model.parent.name / name / SPEED for name in sets]
        if all(file.exists() for file in files):
            speeds = [read_yaml(file) for file in files]
            seconds, audio = (sum(speed[key] for speed in speeds) for key in ("am_seconds", "audio_seconds"))
            return float(round(seconds / audio, 5))
    return None


def _line(model: ModelFile) -> str | None:
    """How a model was compressed: what chose the bits (where they differ), how it was trained."""
    plan, train = model.plan, str(model.extra.get("train"))
    if plan.average_bits(model.shapes) == FLOAT_BITS:
        return None
    by_row = any(not isinstance(bits, int) for bits in plan.bits.values())
    trained = TRAINING.get(train, train)
    chosen = METHODS.get(plan.method, plan.method) + (" by row" if by_row else "")
    words = [] if plan.method == "uniform" else [chosen]
    if train != "ste" or not words:
        words.append(trained)
    if plan.table == "asym":
        words.append("asymmetric")
    if plan.a_bits != 8:
        words.append("float activations" if plan.a_bits == FLOAT_BITS else f"{plan.a_bits}-bit activations")
    return ", ".join(words)


def _records(
    exp: Path, set_name: str, ref: Texts, systems: list[System], first: System | None, git: dict[str, Any]
) -> Iterator[ResultRecord]:
    """The records of one set: the first pass and the oracle, where there are any, then every model."""
    from mpq.io import read_nbest
    from mpq.rescore import oracle
    from mpq.score.records import ORACLE, ResultRecord

    floats = {s.family: s for s in systems if s.models and s.bits == FLOAT_BITS}
    if first:
        yield _record(first, set_name, ref, None, None)
        best = oracle(read_nbest(exp / "decode" / set_name / "nbest.jsonl.gz"), ref)
        counts: dict[str, Any] = {"words": best.words, "errors": best.errors, "wer": round(best.rate, 3)}
        yield ResultRecord(system="oracle", set=set_name, **counts, role=ORACLE, seed=first.notes["seed"], **git)
    for system in systems:
        if system is not first:
            yield _record(system, set_name, ref, floats.get(system.family), first)


def _record(
    system: System, set_name: str, ref: Texts, float_system: System | None, first: System | None
) -> ResultRecord:
    """Errors of one system, and how they compare with its float version's and the first pass's."""
    from mpq.io import hash_config
    from mpq.quant.report import describe
    from mpq.score import mapsswe
    from mpq.score.records import FIRST_PASS, RESCORED

    hyp = system.hyps[set_name]
    p_first: dict[str, Any] = {"p_first_pass": mapsswe(ref, hyp, first.hyps[set_name]).p} if first else {}
    if not system.models:
        role = RESCORED if first else FIRST_PASS
        return _score(system.name, set_name, ref, hyp, role=role, **p_first, **system.notes)
    costs: dict[str, Any] = {
        "family": system.family,
        "line": system.line,
        "bits": round(system.bits, 4),
        "bytes": system.n_bytes,
        "perplexity": system.perplexity,
        "seconds": system.seconds,
        "layer_bits": _layer_bits(system.models),
        "config_hash": hash_config([{"config": m.config, "plan": m.plan.to_dict()} for m in system.models]),
    }
    notes = dict(system.notes)
    if "extra" in notes:
        n_parameters = sum(describe(model)["parameters"] for model in system.models)
        notes["extra"] = {"Stored bits": round(8 * system.n_bytes / n_parameters, 3)} | notes["extra"]
    if float_system:
        costs["ratio"] = round(float_system.n_bytes / system.n_bytes, 3)
        if float_system is not system:
            costs["p_float32"] = mapsswe(ref, hyp, float_system.hyps[set_name]).p
    return _score(system.name, set_name, ref, hyp, role=RESCORED, **costs, **p_first, **notes)


def _layer_bits(models: list[ModelFile]) -> dict[str, float]:
    """Mean bits by kind of matrix; of several models by architecture too, since both may have an `output`."""
    from mpq.quant.report import kind_bits

    kinds = [(model.arch, kind, bits) for model in models for kind, bits in kind_bits(model).items()]
    return {kind if len(models) == 1 else f"{arch} {kind}": bits for arch, kind, bits in kinds}


def _score(name: str, set_name: str, ref: Texts, hyp: Texts, **more: Any) -> ResultRecord:
    from mpq.score import bootstrap_interval, total, utterance_counts
    from mpq.score.records import ResultRecord

    counts = utterance_counts(ref, hyp)
    result = total(counts.values())
    low, high = bootstrap_interval(counts.values())
    interval = (round(low, 3), round(high, 3))
    wer = round(result.rate, 3)
    return ResultRecord(
        system=name, set=set_name, words=result.words, errors=result.errors, wer=wer, interval=interval, **more
    )


def _git_id() -> str | None:
    """Commit of the checkout that this runs from, with a + where files differ from it."""
    import subprocess

    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
