"""`mpq search --lossless`: its options, and what it prints and writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpq.lm import LoadedLm
    from mpq.quant import BitPlan
    from mpq.rescore.lossless import Comparison, Lists, LosslessSearch, Trial

NEEDED = ("text", "dev", "nbest", "ref")
RATIOS = "32,28,26,24,22,20,18,16,14,12,10,8,6,4"


def add_lossless_arguments(parser: ArgumentParser) -> None:
    """Adds the options that only ``--lossless`` has."""
    from mpq.train.lm import QuantTrainConfig

    parser.add_argument("--lossless", action="store_true", help="find the smallest model without significant loss")
    parser.add_argument("--ratios", type=str, default=RATIOS, metavar="LIST", help="times smaller than float32, to try")
    parser.add_argument("--nbest", type=str, metavar="FILE", help="n-best lists of the development set")
    parser.add_argument("--ref", type=str, metavar="FILE", help="its reference")
    parser.add_argument("--test-nbest", type=str, metavar="FILE", help="n-best lists to report the found model on")
    parser.add_argument("--test-ref", type=str, metavar="FILE", help="their reference")
    parser.add_argument("--alpha", type=float, default=0.05, help="level of significance of a loss")
    parser.add_argument(
        "--max-perplexity-increase", type=float, default=float("inf"), metavar="PCT", help="over float, in percent"
    )
    parser.add_argument("--train", type=Literal["ste", "admm"], default="ste", help="how to train each plan")
    parser.add_class_arguments(QuantTrainConfig, "quantize")


def check_lossless(args: Namespace) -> None:
    """Refuses options that are missing or do not fit."""
    from mpq.io import BadInput, check_range

    for name in ("bits", "ratio"):
        if args[name] is not None:
            raise BadInput(f"--{name}: --lossless looks for the size itself; name the ratios to try by --ratios")
    for name in NEEDED:
        if not args[name]:
            raise BadInput(
                f"--{name} must be given with --lossless: training text, held-out text, dev lists, reference"
            )
    if bool(args.test_nbest) != bool(args.test_ref):
        raise BadInput("--test-nbest and --test-ref: give both or neither")
    check_range("--alpha", args.alpha, "(0, 1)")
    check_range("--max-perplexity-increase", args.max_perplexity_increase, "[0, inf]")
    _ratios(args)


def _ratios(args: Namespace) -> list[float]:
    """Those to try, descending."""
    from mpq.io import BadInput, check_range

    try:
        ratios = sorted({float(part) for part in args.ratios.split(",")}, reverse=True)
    except ValueError:
        raise BadInput(f"--ratios: '{args.ratios}': expected numbers with commas between them, as {RATIOS}") from None
    for ratio in ratios:
        check_range("--ratios", ratio, "[1, inf)")
    return ratios


def run_lossless(args: Namespace, lm: LoadedLm, plan_of_ratio: Callable[[float], BitPlan]) -> None:
    """Tries the plans of the ratios, and writes plan, model and figures of the smallest that holds.

    Raises:
        BadInput: none holds.
    """
    from mpq.io import BadInput

    search = _search(args, lm)
    first = search.against_first_pass()
    print(f"dev set: {first.words} words; the float model against the first pass: {first}")
    if first.p >= args.alpha:
        print("this set cannot tell the float model from the first pass: that a model is not worse on it says little")
    plans = _plans(_ratios(args), plan_of_ratio)
    for trial in search.trials(plans):
        failure = trial.failure(args.alpha, args.max_perplexity_increase)
        print(f"{trial}: {failure or 'holds'}", flush=True)
        if not failure:
            break
    else:
        raise BadInput(f"--ratios {args.ratios}: none holds; the last: {trial}; give smaller ones, or train longer")
    test = _test(args, search, trial)
    _write(args, search, trial, first, test)
    shown = f"; test {test}" if test else ""
    print(
        f"search: lossless: {trial.ratio:.2f} times smaller than float32 with {trial.bits:.3f} bits a weight, "
        f"dev {trial.dev}{shown}: {Path(args.out) / 'model.mpq'}"
    )


def _plans(ratios: list[float], plan_of_ratio: Callable[[float], BitPlan]) -> dict[float, BitPlan]:
    """The plan of each ratio that can be reached.

    Raises:
        BadInput: none can.
    """
    from mpq.io import BadInput

    plans = {}
    for ratio in ratios:
        try:
            plans[ratio] = plan_of_ratio(ratio)
        except BadInput as error:
            if ratio == ratios[-1]:
                raise
            print(str(error))
    return plans


def _search(args: Namespace, lm: LoadedLm) -> LosslessSearch:
    from mpq.cli._options import quant_train_config
    from mpq.io import sha256_file
    from mpq.quant import model_path
    from mpq.rescore import check_units
    from mpq.rescore.lossless import LosslessSearch
    from mpq.train.lm import LmTexts

    texts = LmTexts.open(args.text, args.dev, lm.tokenizer, args.cache or Path(args.dev).parent / "units")
    dev = _lists(args.nbest, args.ref)
    check_units(lm.tokenizer, dev.nbests)
    folder = Path(args.out) / "tried"
    key = sha256_file(model_path(args.model))
    return LosslessSearch(lm, texts, dev, quant_train_config(args.quantize), args.train, folder, key)


def _lists(nbest: str, ref: str) -> Lists:
    """N-best lists and their reference."""
    from mpq.io import BadInput, read_nbest, read_text, sha256_file
    from mpq.rescore import check_refs
    from mpq.rescore.lossless import Lists

    lists, refs = list(read_nbest(nbest)), read_text(ref)
    if not lists:
        raise BadInput(f"{nbest}: holds no n-best lists; expected at least one")
    check_refs(lists, refs, nbest, ref)
    return Lists(lists, refs, sha256_file(nbest) + sha256_file(ref))


def _test(args: Namespace, search: LosslessSearch, trial: Trial) -> Comparison | None:
    """The found model against the float one on the test lists, with the weights of the development set."""
    from mpq.lm import load_lm
    from mpq.rescore.lossless import compare, rescore_set

    if not args.test_nbest:
        return None
    lists = _lists(args.test_nbest, args.test_ref)
    system = rescore_set(load_lm(search.model_path(trial)), lists, trial.weights)
    return compare(lists, system, rescore_set(search.lm, lists, search.float.weights))


def _write(args: Namespace, search: LosslessSearch, trial: Trial, first: Comparison, test: Comparison | None) -> None:
    """Model, units, plan and figures into --out."""
    import shutil
    from dataclasses import asdict

    from mpq.io import write_yaml
    from mpq.io.files import atomic_path

    source = search.model_path(trial).parent
    for path in source.iterdir():
        if path.is_file():
            with atomic_path(Path(args.out) / path.name) as temporary:
                shutil.copyfile(path, temporary)
    figures = {"chosen": asdict(trial), "float_against_first_pass": asdict(first)}
    write_yaml(Path(args.out) / "lossless.yaml", figures | ({"test": asdict(test)} if test else {}))
