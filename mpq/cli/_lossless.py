"""`mpq search --lossless`: its options, and what it prints and writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from mpq.cli._options import make_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpq.cli._searched import Searched
    from mpq.data.batches import FeatureSet
    from mpq.lm import LoadedLm
    from mpq.quant import BitPlan
    from mpq.rescore.lossless import Comparison, Lists, LmLosslessSearch, LosslessSearch, Trial
    from mpq.rescore.lossless_am import AmLosslessSearch, Decoding

NEEDED = {
    "training text, held-out text, dev lists, reference": ("text", "dev", "nbest", "ref"),
    "training features, those of the dev set, folder of mpq lang": ("features", "dev", "lang"),
}
RATIOS = "32,28,26,24,22,20,18,16,14,12,10,8,6,4"


def add_lossless_arguments(parser: ArgumentParser) -> None:
    """Adds the options that only ``--lossless`` has."""
    from mpq.fst.decoder import DecoderConfig
    from mpq.train.lm import QuantTrainConfig
    from mpq.train.quant_am import QuantAmConfig

    group = parser.add_argument_group("the smallest model without loss")
    group.add_argument("--lossless", action="store_true", help="find the smallest model without significant loss")
    group.add_argument("--ratios", type=str, default=RATIOS, metavar="LIST", help="times smaller than float32, to try")
    group.add_argument("--nbest", type=str, metavar="FILE", help="n-best lists of the development set")
    group.add_argument("--ref", type=str, metavar="FILE", help="its reference")
    group.add_argument("--test-nbest", type=str, metavar="FILE", help="n-best lists to report the found model on")
    group.add_argument("--test-ref", type=str, metavar="FILE", help="their reference")
    group.add_argument("--test-features", type=str, metavar="MANIFEST", help="or features, of an acoustic model")
    group.add_argument("--alpha", type=float, default=0.05, help="level of significance of a loss")
    group.add_argument(
        "--max-perplexity-increase", type=float, default=float("inf"), metavar="PCT", help="over float, in percent"
    )
    group.add_argument("--train", type=Literal["ste", "admm"], default="ste", help="how to train each plan")
    group.add_argument("--nj", type=int, default=2, help="processes that decode")
    parser.add_class_arguments(QuantTrainConfig, "quantize", help="--lossless: training of a quantized language model")
    parser.add_class_arguments(QuantAmConfig, "quantize_am", help="--lossless: training of a quantized acoustic model")
    parser.add_class_arguments(DecoderConfig, "decode", help="--lossless: search of an acoustic model")


def check_lossless(args: Namespace) -> None:
    """Refuses options that are missing or do not fit."""
    from dataclasses import asdict

    from mpq.fst.phone_lm import PhoneLmConfig
    from mpq.io import BadInput, check_range

    for name in ("bits", "ratio"):
        if args[name] is not None:
            raise BadInput(f"--{name}: --lossless looks for the size itself; name the ratios to try by --ratios")
    for name, default in asdict(PhoneLmConfig()).items():
        if args[name] != default:
            option = name.replace("_", "-")
            raise BadInput(f"--{option}: --lossless trains by the loss that it looks at: give --quantize-am.{option}")
    if not any(args[name] for names in NEEDED.values() for name in names):
        raise BadInput(
            "--lossless needs "
            + ", or ".join(f"{', '.join(f'--{name}' for name in names)} ({what})" for what, names in NEEDED.items())
        )
    what, names = list(NEEDED.items())[bool(args.features or args.lang)]
    for name in names:
        if not args[name]:
            raise BadInput(f"--{name} must be given with --lossless: {what}")
    if bool(args.test_nbest) != bool(args.test_ref):
        raise BadInput("--test-nbest and --test-ref: give both or neither")
    check_range("--alpha", args.alpha, "(0, 1)")
    check_range("--nj", args.nj, "[1, inf)")
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


def run_lossless(args: Namespace, searched: Searched, measure: Callable[[], Callable[[float], BitPlan]]) -> None:
    """Tries the plans of the ratios, and writes plan, model and figures of the smallest that holds.

    Args:
        args: the options.
        searched: the float model.
        measure: finds out how sensitive the weights are, and returns what makes the plan of a ratio; called once all
            inputs have been read, since it may take hours.

    Raises:
        BadInput: none holds.
    """
    first, test = None, None
    if searched.lm is not None:
        lists = _lists(args.test_nbest, args.test_ref) if args.test_nbest else None
        search: LosslessSearch = (lm_search := _lm_search(args, searched.lm))
        plan_of_ratio = measure()
        first = _compare_first_pass(args, lm_search)
        trial = _first_that_holds(args, lm_search, plan_of_ratio)
        test = _test(lm_search, trial, lists) if lists else None
    else:
        features = _test_features(args, searched)
        search = am_search = _am_search(args, searched)
        trial = _first_that_holds(args, am_search, measure())
        test = _test_am(am_search, trial, features) if features else None
    _write(args, search, trial, first, test)
    shown = f"; test {test}" if test else ""
    print(
        f"search: lossless: {trial.ratio:.2f} times smaller than float32 with {trial.bits:.3f} bits a weight, "
        f"dev {trial.dev}{shown}: {Path(args.out) / 'model.mpq'}"
    )


def _compare_first_pass(args: Namespace, search: LmLosslessSearch) -> Comparison:
    """Says whether the development set can show what a language model does at all."""
    first = search.against_first_pass()
    print(f"dev set: {first.words} words; the float model against the first pass: {first}")
    if first.p >= args.alpha:
        print("this set cannot tell the float model from the first pass: that a model is not worse on it says little")
    return first


def _first_that_holds(args: Namespace, search: LosslessSearch, plan_of_ratio: Callable[[float], BitPlan]) -> Trial:
    """The smallest model that holds.

    Raises:
        BadInput: none does.
    """
    from mpq.io import BadInput

    for trial in search.trials(_plans(_ratios(args), plan_of_ratio)):
        failure = trial.failure(args.alpha, args.max_perplexity_increase)
        print(f"{trial}: {failure or 'holds'}", flush=True)
        if not failure:
            return trial
    raise BadInput(f"--ratios {args.ratios}: none holds; the last: {trial}; give smaller ones, or train longer")


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


def _lm_search(args: Namespace, lm: LoadedLm) -> LmLosslessSearch:
    from mpq.io import sha256_file
    from mpq.quant import model_path
    from mpq.rescore import check_units
    from mpq.rescore.lossless import LmLosslessSearch
    from mpq.train.lm import LmTexts, QuantTrainConfig

    texts = LmTexts.open(args.text, args.dev, lm.tokenizer, args.cache or Path(args.dev).parent / "units")
    dev = _lists(args.nbest, args.ref)
    check_units(lm.tokenizer, dev.nbests)
    folder = Path(args.out) / "tried"
    key = sha256_file(model_path(args.model))
    return LmLosslessSearch(lm, texts, dev, make_config(QuantTrainConfig, args, "quantize"), args.train, folder, key)


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


def _am_search(args: Namespace, searched: Searched) -> AmLosslessSearch:
    from mpq.am import AcousticModel
    from mpq.cli._options import am_data
    from mpq.io import sha256_file
    from mpq.quant import model_path
    from mpq.rescore.lossless_am import AmLosslessSearch
    from mpq.train.quant_am import QuantAmConfig

    model = searched.model
    assert isinstance(model, AcousticModel)
    config = make_config(QuantAmConfig, args, "quantize_am")
    key, folder = sha256_file(model_path(args.model)), Path(args.out) / "tried"
    data = am_data(args, model, searched.units)
    return AmLosslessSearch(model, searched.units, data, _decoding(args), config, args.train, folder, key)


def _decoding(args: Namespace) -> Decoding:
    """The decoder of --lang."""
    from dataclasses import asdict

    from mpq.fst.backend import check_backend
    from mpq.fst.decoder import Decoder, DecoderConfig
    from mpq.fst.graph import GRAPH_NAME, load_graph
    from mpq.io import hash_config, read_symbols, sha256_file
    from mpq.lang.arpa import read_arpa
    from mpq.rescore.lossless_am import Decoding

    lang, config = Path(args.lang), make_config(DecoderConfig, args, "decode")
    check_backend(config.fst)
    files = [sha256_file(lang / name) for name in (GRAPH_NAME, "lm.arpa", "words.txt")]
    decoder = Decoder(load_graph(lang), read_arpa(lang / "lm.arpa"), read_symbols(lang / "words.txt"), config)
    return Decoding(decoder, args.nj, hash_config([asdict(config), files]))


def _test_features(args: Namespace, searched: Searched) -> FeatureSet | None:
    """Those of --test-features, if it is given."""
    from mpq.am import AcousticModel
    from mpq.data.batches import FeatureSet

    assert isinstance(searched.model, AcousticModel)
    return FeatureSet(args.test_features, searched.model.normalization) if args.test_features else None


def _test_am(search: AmLosslessSearch, trial: Trial, features: FeatureSet) -> Comparison:
    """The found model against the float one on the test features."""
    from mpq.am import load_am
    from mpq.rescore.lossless import compare
    from mpq.rescore.lossless_am import reference

    refs, path = reference(features), search.model_path(trial)
    models = {path.with_name("test"): load_am(path), search.folder / "float-test": search.model}
    system, uncompressed = (search.decoding(m, features, out, [trial.key, refs.key]) for out, m in models.items())
    return compare(refs, system, uncompressed)


def _test(search: LmLosslessSearch, trial: Trial, lists: Lists) -> Comparison:
    """The found model against the float one on the test lists, with the weights of the development set."""
    from mpq.lm import load_lm
    from mpq.rescore.lossless import compare, rescore_set

    system = rescore_set(load_lm(search.model_path(trial)), lists, trial.weights)
    return compare(lists, system, rescore_set(search.lm, lists, search.uncompressed.weights))


def _write(
    args: Namespace, search: LosslessSearch, trial: Trial, first: Comparison | None, test: Comparison | None
) -> None:
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
    comparisons = {"float_against_first_pass": first, "test": test}
    figures = {name: asdict(found) for name, found in comparisons.items() if found}
    write_yaml(Path(args.out) / "lossless.yaml", {"chosen": asdict(trial), **figures})
