"""Quantize a language model or an acoustic model: round its weights, or train it quantized, and write it packed.

Reads   a float model from `mpq train-lm` (its units beside it) or `mpq train-am`; bits for every weight matrix, one
        number (--bits) or a plan (--plan); to train, a YAML file that says how, and
        language models: text (--text, and held out --dev);
        acoustic models: features (--features, and held out --dev) and the folder of `mpq lang` (--lang).
Writes  OUT.mpq, packed (and a copy of a language model's units beside it); where it trains, checkpoints and logs in
        OUT.train/.

--train none rounds to nearest (post-training quantization); --train ste trains with the straight-through estimator
from the float model, whose forward pass is the integer arithmetic of serving; --train admm trains float weights that
are pulled towards quantized ones ever more firmly (--admm options), and keeps the quantized ones. --scratch true starts
from random weights, --init FILE from those of that file, such as a one-stage search of `mpq search` leaves with the
scales that it learned; with --train none these are packed as they are.

Examples:
  mpq quantize --model exp/lm/lstm/model.mpq --bits 8 --train none --out lstm-8.mpq
  mpq quantize --model exp/lm/lstm/model.mpq --bits 2 --train ste --text train.txt --dev dev.txt \\
    --config conf/quantize.yaml --out exp/quant/lstm-2/model.mpq
  mpq quantize --model exp/am/model.mpq --bits 4 --train ste --features exp/features/train/cuts.jsonl.gz \\
    --dev exp/features/dev/cuts.jsonl.gz --lang exp/lang --out exp/quant/am-4/model.mpq
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal, TypeVar

from jsonargparse import ArgumentParser, Namespace

from mpq.cli._options import make_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mpq.am import AcousticModel
    from mpq.lm import LanguageModel, LoadedLm
    from mpq.quant import BitPlan
    from mpq.train.lm import LmTexts
    from mpq.train.quant_am import AmData

    _Init = dict[str, Tensor] | None
    _Key = str | list[str]

_Model = TypeVar("_Model", bound="nn.Module")
_FOR_LMS = ("text", "tokenizer", "cache")
_FOR_AMS = ("features", "lang")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq quantize``."""
    from mpq.train.lm import QuantTrainConfig
    from mpq.train.quant_am import QuantAmConfig

    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--model", "--lm", type=str, required=True, metavar="FILE", help="float model, or its folder")
    parser.add_argument("--bits", type=int, metavar="N", help="bits of every weight, 1 to 8")
    parser.add_argument("--plan", type=str, metavar="YAML", help="bits of each weight matrix, instead of --bits")
    parser.add_argument("--train", type=Literal["none", "ste", "admm"], default="none", help="how to train")
    parser.add_argument("--init", type=str, metavar="FILE", help="weights to start from, instead of --model's")
    parser.add_argument("--text", type=str, metavar="FILE", help="language models: training text, to train")
    parser.add_argument("--features", type=str, metavar="MANIFEST", help="acoustic models: training features, to train")
    parser.add_argument("--dev", type=str, metavar="FILE", help="held-out text or features; needed to train")
    parser.add_argument("--lang", type=str, metavar="DIR", help="acoustic models: folder of mpq lang; with --dev")
    parser.add_argument("--tokenizer", type=str, metavar="FILE", help="a language model's units (default: beside it)")
    parser.add_argument("--out", type=str, required=True, metavar="FILE", help="packed model to write")
    parser.add_argument("--cache", type=str, metavar="DIR", help="for tokenized text (default: DIR of --dev/units)")
    parser.add_argument("--scale", type=str, help="with --bits: one for each row, matrix, or N columns (default: row)")
    parser.add_argument(
        "--table", type=Literal["uniform", "pow2", "asym"], help="with --bits: the levels (default: uniform)"
    )
    parser.add_argument(
        "--clipping",
        type=Literal["squares", "search", "none"],
        help="with --bits: scales at first by least squared error, by clipping search, or to the largest weight "
        "(default: squares)",
    )
    parser.add_argument("--a-bits", type=Literal[4, 8, 32], help="with --bits: bits of the activations (default: 8)")
    parser.add_class_arguments(QuantTrainConfig)
    parser.add_class_arguments(QuantAmConfig, skip=set(QuantTrainConfig.__dataclass_fields__))


def run(args: Namespace) -> None:
    """Runs ``mpq quantize``."""
    from mpq.am import CONFIGS
    from mpq.io import check_writable
    from mpq.quant import model_path, read_model_file
    from mpq.quant.report import describe

    check_writable(args.out, [model_path(args.model), args.plan, args.text, args.features, args.dev])
    stored = read_model_file(args.model)
    is_acoustic = stored.arch in CONFIGS
    _check_kind(args, stored.arch, is_acoustic)
    change = _quantize_am(args, stored.config["phones"]) if is_acoustic else _quantize_lm(args)
    report = describe(read_model_file(args.out))
    print(
        f"quantize: {report['bits_per_parameter']:.2f} bits a parameter, {report['bytes']} bytes, "
        f"{report['ratio']:.2f} times smaller than float32{change}: {args.out}"
    )


def _check_kind(args: Namespace, arch: str, is_acoustic: bool) -> None:
    """See that no option is of the other kind of model, and that --init has a use."""
    from mpq.io import BadInput

    kind, needs = ("an acoustic", "--features, --dev and --lang") if is_acoustic else ("a language", "--text and --dev")
    if args.init is not None and args.scratch:
        raise BadInput("--init: weights to start from, --scratch true: random ones; leave one of the two out")
    for name in _FOR_LMS if is_acoustic else _FOR_AMS:
        if args[name] is not None:
            raise BadInput(f"--{name}: {args.model} is {kind} model ({arch}); it is trained with {needs}")
    if args.text is not None and args.train == "none" and args.dev is None:
        raise BadInput("--text: --train none reads no training text; give held-out text by --dev, or none")
    if args.train == "none":
        _tell_unused(args, is_acoustic)


def _tell_unused(args: Namespace, is_acoustic: bool) -> None:
    """Says that --train none trains nothing, where there are data or options to train with, as recipes give."""
    from mpq.train.lm import QuantTrainConfig
    from mpq.train.quant_am import QuantAmConfig

    kind, data = (QuantAmConfig, "features") if is_acoustic else (QuantTrainConfig, "text")
    if args[data] is not None or make_config(kind, args) != kind():
        what = f"--{data} and " if args[data] is not None else ""
        print(
            f"quantize: nothing is trained: --train none; {what}training options have no effect, "
            "give --train ste or admm for them",
            file=sys.stderr,
        )


def _start(args: Namespace, model: nn.Module, plan: BitPlan) -> tuple[_Init, _Key]:
    """The weights of --init, if any, with learned scales if it has some, and what identifies these and the model."""
    from mpq.io import BadInput, sha256_file
    from mpq.quant import model_path, read_model_file
    from mpq.quant.layers import LEARNED

    key = sha256_file(model_path(args.model))
    if args.init is None:
        return None, key
    stored = read_model_file(model_path(args.init))
    weights = stored.state_dict()
    expected = {name: tuple(w.shape) for name, w in model.state_dict().items()}
    found = {name: tuple(w.shape) for name, w in weights.items() if not name.endswith(LEARNED)}
    if found != expected:
        name = next(name for name in (*expected, *found) if expected.get(name) != found.get(name))
        raise BadInput(
            f"{args.init}: {name} has the shape {found.get(name)}, in {args.model} {expected.get(name)}; "
            "give float weights of the same model, as mpq search --method one-stage leaves them"
        )
    if len(found) < len(weights):
        wanted = {"plan": dict(plan.bits), "table": plan.table, "scale": plan.scale}
        for name, value in wanted.items():
            if stored.extra.get(name, value) != value:
                what = "bits" if name == "plan" else name
                raise BadInput(f"{args.init}: holds scales for another plan ({what}); give the one it was made for")
    return weights, [key, sha256_file(model_path(args.init))]


def _quantize_only(model: _Model, plan: BitPlan, init: _Init) -> _Model:
    """Rounds the weights of a float model, or in their place those of --init, by the scales that were learned there."""
    from mpq.train.quantized import load_start, quantize_start

    if init is not None:
        load_start(model, init)
    quantize_start(model, plan, init)
    return model


def _plan(args: Namespace, model: nn.Module) -> BitPlan:
    """The plan of --plan, or the same --bits everywhere."""
    from mpq.io import BadInput
    from mpq.quant import quantizable, read_plan, uniform_plan
    from mpq.quant.plan import FLOAT_BITS

    if (args.bits is None) == (args.plan is None):
        raise BadInput("give the bits of the weights by --bits or by --plan, one of the two")
    # what is not given is as BitPlan has it by default, or as the plan says
    settings = {name: args[name] for name in ("scale", "table", "clipping", "a_bits") if args[name] is not None}
    if "scale" in settings and args.scale.isdecimal():
        settings["scale"] = int(args.scale)
    if args.plan is None:
        if args.bits not in (*range(1, 9), FLOAT_BITS):
            raise BadInput(f"--bits: {args.bits}: expected 1 to 8")
        plan = uniform_plan(model, args.bits, **settings)
    else:
        plan = read_plan(args.plan)
        for name, value in settings.items():
            if value != getattr(plan, name):
                rest = f"{value}: goes with --bits; {args.plan} says {getattr(plan, name)}, change it there"
                raise BadInput(f"--{name.replace('_', '-')}: {rest}")
    plan.check(quantizable(model), args.plan or "--bits and --scale")
    return plan


def _quantize_lm(args: Namespace) -> str:
    """Writes a quantized language model; what has become of its perplexity."""
    from pathlib import Path

    from mpq.cli._device import find_device
    from mpq.lm import load_float_lm, perplexity, save_lm
    from mpq.lm.files import check_units_copy
    from mpq.train.lm import LmTexts

    lm = load_float_lm(args.model, args.tokenizer)
    check_units_copy(lm.tokenizer, args.out)
    plan = _plan(args, lm.model)
    texts = None
    if args.dev:
        cache = args.cache or Path(args.dev).parent / "units"
        texts = LmTexts.open(args.text or args.dev, args.dev, lm.tokenizer, cache)
        lm.model.to(find_device("auto"))  # where training trains
    before = perplexity(lm.model, texts.dev).value if texts else None
    init, key = _start(args, lm.model, plan)
    if args.train == "none":
        model = _quantize_only(lm.model, plan, init)
    else:
        model = _train_lm(args, lm, plan, texts, init, key)
    after = perplexity(model.eval(), texts.dev).value if texts else None
    figures = {"perplexity": round(after, 2)} if after else {}
    save_lm(args.out, model, lm.tokenizer, plan, {"train": args.train, **figures})
    return f", perplexity {before:.2f} -> {after:.2f}" if before and after else ""


def _train_lm(
    args: Namespace, lm: LoadedLm, plan: BitPlan, texts: LmTexts | None, init: _Init, key: _Key
) -> LanguageModel:
    """Straight-through training, or ADMM."""
    from mpq.io import BadInput
    from mpq.train.lm import QuantTrainConfig, train_quantized_lm

    if texts is None or not args.text:
        raise BadInput(f"--train {args.train} needs the training text (--text) and the held-out text (--dev)")
    config = make_config(QuantTrainConfig, args)
    return train_quantized_lm(lm, plan, config, texts, f"{args.out}.train", key, args.train, init)[0]


def _quantize_am(args: Namespace, units: list[str]) -> str:
    """Writes a quantized acoustic model of these units; what has become of its loss."""
    from mpq.am.model import load_float_am, save_am
    from mpq.cli._device import find_device
    from mpq.io import BadInput
    from mpq.train.am import loss_name
    from mpq.train.quant_am import QuantAmConfig, dev_loss, train_quantized_am

    model = load_float_am(args.model)
    plan = _plan(args, model)
    config = make_config(QuantAmConfig, args)
    if args.train != "none" and not (args.features and args.dev and args.lang):
        raise BadInput(f"--train {args.train} needs training features (--features), held-out ones (--dev) and --lang")
    data = _am_data(args, model, units)
    init, key = _start(args, model, plan)
    if data:
        model.to(find_device("auto"))  # where training trains
    before = dev_loss(model, config, data) if data else None
    if args.train == "none":
        model = _quantize_only(model, plan, init)
    else:
        assert data is not None
        model = train_quantized_am(model, plan, config, data, f"{args.out}.train", key, args.train, init)[0]
    after = dev_loss(model, config, data) if data else None
    figures = {"dev_loss": round(after, 4)} if after is not None else {}
    save_am(args.out, model, units, {"train": args.train, **figures}, plan)
    return f", {loss_name(config.ctc_part)} loss {before:.4f} -> {after:.4f} per frame" if data else ""


def _am_data(args: Namespace, model: AcousticModel, units: list[str]) -> AmData | None:
    """The features and the lexicon, if they were named."""
    from mpq.cli._options import am_data
    from mpq.io import BadInput

    if not (args.features or args.dev or args.lang):
        return None
    if not (args.dev and args.lang):
        raise BadInput("the loss needs held-out features (--dev) and --lang: give both, or neither and no --features")
    return am_data(args, model, units)
