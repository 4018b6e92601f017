"""Collect word error rates, significance and sizes of every system of an experiment.

Reads   EXP/data/{dev,test}/text (references), EXP/decode/*/nbest.jsonl.gz (for the oracle), and for every folder
        EXP/rescore/SYSTEM its hyp-{dev,test}.txt and the model EXP/lm/SYSTEM/model.mpq or EXP/quant/SYSTEM/model.mpq;
        the folder without a model is the first pass.
Writes  EXP/results.jsonl, one record for each system and set; `mpq report` makes table, plot and page of it.

Example:
  mpq results exp --seed 0
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mpq.quant import ModelFile
    from mpq.score.records import ResultRecord
    from mpq.score.wer import Texts

SETS = ("dev", "test")
FLOAT_BITS = 32.0


@dataclass
class System:
    """One row of the table to be: hypotheses, and the model behind them (none: the first pass)."""

    name: str
    hyps: dict[str, Texts]
    model: ModelFile | None
    seconds: float | None

    @property
    def family(self) -> str | None:
        """Architecture of the language model."""
        return self.model.arch if self.model else None


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq results``."""
    parser.add_argument("exp", type=str, metavar="EXP", help="folder of the experiment")
    parser.add_argument("--seed", type=int, default=0, help="seed that the systems were trained with, noted down")


def run(args: Namespace) -> None:
    """Runs ``mpq results``."""
    from mpq.io import read_text
    from mpq.score.records import write_results

    exp = Path(args.exp)
    refs = {name: read_text(exp / "data" / name / "text") for name in SETS}
    systems = _systems(exp)
    notes = {"git": _git_id(), "seed": args.seed}
    records = [record for name in SETS for record in _records(exp, name, refs[name], systems, notes)]
    write_results(exp / "results.jsonl", records)
    best = min((r for r in records if r.set == "test" and r.role != "oracle"), key=lambda r: r.wer)
    print(
        f"results: {len(systems)} systems on {' and '.join(SETS)}; best on test: "
        f"{best.system} {best.wer:.2f} %: {exp / 'results.jsonl'}"
    )


def _systems(exp: Path) -> list[System]:
    """Every folder of EXP/rescore, the first pass first, float systems before their quantized versions."""
    from mpq.io import BadInput, read_text, read_yaml
    from mpq.quant import read_model_file

    systems = []
    for folder in sorted((exp / "rescore").glob("*/")):
        models = [path for part in ("lm", "quant") if (path := exp / part / folder.name / "model.mpq").exists()]
        model = read_model_file(models[0]) if models else None
        hyps: dict[str, Texts] = {name: read_text(folder / f"hyp-{name}.txt") for name in SETS}
        seconds = read_yaml(folder / "weights.yaml").get("seconds")
        systems.append(System(folder.name, hyps, model, seconds))
    if sum(system.model is None for system in systems) != 1:
        raise BadInput(f"{exp / 'rescore'}: expected one system without a model, the first pass; run stage 9 again")
    return sorted(systems, key=lambda s: (s.family or "", -_bits(s.model), s.name))


def _bits(model: ModelFile | None) -> float:
    return model.plan.average_bits(model.shapes) if model else FLOAT_BITS


def _records(
    exp: Path, set_name: str, ref: Texts, systems: list[System], notes: dict[str, Any]
) -> Iterator[ResultRecord]:
    """The records of one set: the first pass, the oracle, then every language model."""
    from mpq.io import read_nbest
    from mpq.rescore import oracle
    from mpq.score.records import ORACLE, ResultRecord

    floats = {s.family: s for s in systems if s.model and _bits(s.model) == FLOAT_BITS}
    first = next(s for s in systems if s.model is None)
    yield _record(first, set_name, ref, None, None, notes)
    best = oracle(read_nbest(exp / "decode" / set_name / "nbest.jsonl.gz"), ref)
    wer = round(best.rate, 3)
    yield ResultRecord(
        system="oracle", set=set_name, words=best.words, errors=best.errors, wer=wer, role=ORACLE, **notes
    )
    for system in systems:
        if system.model:
            yield _record(system, set_name, ref, floats.get(system.family), first, notes)


def _record(
    system: System, set_name: str, ref: Texts, float_system: System | None, first: System | None, notes: dict[str, Any]
) -> ResultRecord:
    """Errors of one system, and how they compare with its float version's and the first pass's."""
    from mpq.io import hash_config
    from mpq.score import mapsswe
    from mpq.score.records import FIRST_PASS, RESCORED

    hyp, model = system.hyps[set_name], system.model
    if model is None:
        return _score(system.name, set_name, ref, hyp, role=FIRST_PASS, **notes)
    costs: dict[str, Any] = {
        "family": system.family,
        "line": f"{system.family}, only rounded" if model.extra.get("train") == "none" else None,
        "bits": round(_bits(model), 4),
        "bytes": model.n_bytes,
        "perplexity": model.extra.get("perplexity"),
        "seconds": system.seconds,
        "config_hash": hash_config({"config": model.config, "plan": model.plan.to_dict()}),
    }
    if float_system and float_system.model:
        costs["ratio"] = round(float_system.model.n_bytes / model.n_bytes, 3)
        if float_system is not system:
            costs["p_float32"] = mapsswe(ref, hyp, float_system.hyps[set_name]).p
    if first:
        costs["p_first_pass"] = mapsswe(ref, hyp, first.hyps[set_name]).p
    return _score(system.name, set_name, ref, hyp, role=RESCORED, **costs, **notes)


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
