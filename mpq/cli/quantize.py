"""Quantize a language model: round its weights, or train it quantized, and write it packed.

Reads   a float model from `mpq train-lm` (its units beside it); bits for every weight matrix, one number (--bits)
        or a plan from `mpq search` (--plan); to train, the text, and a YAML file that says how.
Writes  OUT.mpq, packed, and a copy of the units beside it; where it trains, checkpoints and logs in OUT.train/.

--train none rounds to nearest (post-training quantization); --train ste trains with the straight-through estimator
from the float model, whose forward pass is the integer arithmetic of serving; --train admm trains float weights that
are pulled towards quantized ones ever more firmly (--admm options), and keeps the quantized ones. --scratch true starts
from random weights.

Examples:
  mpq quantize --model exp/lm/lstm/model.mpq --bits 8 --train none --out lstm-8.mpq
  mpq quantize --model exp/lm/lstm/model.mpq --bits 2 --train ste --text train.txt --dev dev.txt \\
    --config conf/quantize.yaml --out exp/quant/lstm-2/model.mpq
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mpq.lm import LanguageModel, LoadedLm
    from mpq.quant import BitPlan
    from mpq.train.lm import LmTexts


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq quantize``."""
    from mpq.train.lm import QuantTrainConfig

    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--model", "--lm", type=str, required=True, metavar="FILE", help="float model, or its folder")
    parser.add_argument("--bits", type=int, metavar="N", help="bits of every weight, 1 to 8")
    parser.add_argument("--plan", type=str, metavar="YAML", help="bits of each weight matrix, instead of --bits")
    parser.add_argument("--train", type=Literal["none", "ste", "admm"], default="none", help="how to train")
    parser.add_argument("--text", type=str, metavar="FILE", help="training text, for --train ste and admm")
    parser.add_argument("--dev", type=str, metavar="FILE", help="held-out text; needed to train")
    parser.add_argument("--tokenizer", type=str, metavar="FILE", help="the model's units (default: beside the model)")
    parser.add_argument("--out", type=str, required=True, metavar="FILE", help="packed model to write")
    parser.add_argument("--cache", type=str, metavar="DIR", help="for tokenized text (default: DIR of --dev/units)")
    parser.add_argument("--scale", type=str, default="row", help="with --bits: one for each row, matrix, or N columns")
    parser.add_argument("--table", type=Literal["uniform", "pow2"], default="uniform", help="with --bits: the levels")
    parser.add_class_arguments(QuantTrainConfig)


def run(args: Namespace) -> None:
    """Runs ``mpq quantize``."""
    from pathlib import Path

    from mpq.io import check_writable
    from mpq.lm import load_float_lm, load_lm, perplexity, save_lm
    from mpq.quant import model_path, quantize_model
    from mpq.train.lm import LmTexts

    check_writable(args.out, [model_path(args.model), args.plan, args.text, args.dev])
    lm = load_float_lm(args.model, args.tokenizer)
    plan = _plan(args, lm)
    texts = None
    if args.dev:
        cache = args.cache or Path(args.dev).parent / "units"
        texts = LmTexts.open(args.text or args.dev, args.dev, lm.tokenizer, cache)
    before = perplexity(lm.model, texts.dev).value if texts else None
    model = _train(args, lm, plan, texts) if args.train != "none" else quantize_model(lm.model, plan)
    after = perplexity(model.eval(), texts.dev).value if texts else None
    figures = {"perplexity": round(after, 2)} if after else {}
    save_lm(args.out, model, lm.tokenizer, plan, {"train": args.train, **figures})
    packed = load_lm(args.out)
    change = f", perplexity {before:.2f} -> {after:.2f}" if before and after else ""
    print(
        f"quantize: {8 * packed.n_bytes / packed.n_parameters:.2f} bits a parameter, {packed.n_bytes} bytes, "
        f"{packed.ratio:.2f} times smaller than float32{change}: {args.out}"
    )


def _plan(args: Namespace, lm: LoadedLm) -> BitPlan:
    """The plan of --plan, or the same --bits everywhere."""
    from mpq.io import BadInput
    from mpq.quant import quantizable, read_plan, uniform_plan

    if (args.bits is None) == (args.plan is None):
        raise BadInput("give the bits of the weights by --bits or by --plan, one of the two")
    if args.plan is None:
        scale = int(args.scale) if args.scale.isdecimal() else args.scale
        plan = uniform_plan(lm.model, args.bits, scale=scale, table=args.table)
    else:
        plan = read_plan(args.plan)
    plan.check(quantizable(lm.model), args.plan or "--bits and --scale")
    return plan


def _train(args: Namespace, lm: LoadedLm, plan: BitPlan, texts: LmTexts | None) -> LanguageModel:
    """Straight-through training, or ADMM."""
    from mpq.cli._options import quant_train_config
    from mpq.io import BadInput, sha256_file
    from mpq.quant import model_path
    from mpq.train.lm import train_quantized_lm

    if texts is None or not args.text:
        raise BadInput(f"--train {args.train} needs the training text (--text) and the held-out text (--dev)")
    config = quant_train_config(args)
    key = sha256_file(model_path(args.model))
    return train_quantized_lm(lm, plan, config, texts, f"{args.out}.train", key, args.train)[0]
