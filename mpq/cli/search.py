"""Search bits for every weight matrix of a language or acoustic model, or for every row, within a budget.

Reads   a float model: a language model from `mpq train-lm` (its units beside it), with held-out text (--dev) for kl,
        hessian, nas and one-stage, and the training text (--text) for the last two; or an acoustic model from
        `mpq train-am`, with held-out features (--dev), and the training features (--features) and --lang for the loss
        that hessian, nas and one-stage look at.
Writes  OUT.yaml, a plan for `mpq quantize --plan`; with --costs the measured sensitivities, which then serve any other
        budget at once; for nas and one-stage checkpoints and logs in OUT.search/ (a killed search continues there), for
        one-stage also OUT.search/latent.mpq, the weights and scales for `mpq quantize --init`.

--method kl       divergence of the predictions when one matrix is rounded; rows share their matrix's
                  by Fisher information
--method hessian  trace of the loss's Hessian times squared rounding error
--method nas      architecture search: probabilities of bits, learned with the weights (layer level only); with
                  --nas.penalty budget it aims at --bits, and is done anew for each budget
--method one-stage  bits and weights are learned in one run, which aims at --bits and leaves both (layer level only):
                  pass 1 of 2; `mpq quantize --plan OUT.yaml --init OUT.yaml.search/latent.mpq --train ste` is pass 2,
                  and with `--train none` packs what pass 1 left
--method uniform  the same bits everywhere; --method random: random sensitivities; --method rule: squared rounding
                  error, with extra bits for some matrices by --rule
Whatever the method, the plan is the best one within the budget, proved.

--lossless looks for the smallest model whose word errors are not significantly more than the float model's. It makes
a plan (by kl, unless --method says otherwise) for each of --ratios, trains it (--quantize FILE, or --quantize.fit.lr
and so on, as of `mpq quantize`), packs it, and rescores --nbest with weights tuned on them, smallest file first, until
the matched pairs test against the float model's rescoring finds no loss: all that are left are larger. (Bisection would
trust that error rates fall with every bit, which, being noisy, they do not.) "Not significantly worse" can also mean
that the set is too small to tell: the interval of the difference says what it can show, and --max-perplexity-increase
refuses what it cannot. Into the folder --out go model.mpq, plan.yaml, lossless.yaml (figures) and tried/ (every model,
and tried.jsonl, from which a killed search goes on). With --test-nbest and --test-ref the significance of what was
found is reported on lists that had no part in the search. An acoustic model is trained on --features as --quantize-am
says, whose phone model (--quantize-am.phone-order and so on) is that of the loss too, and decodes --dev with the graph
of --lang (--decode.beam and so on, --nj); --test-features is its test set.

Examples:
  mpq search --method kl --model exp/lm/lstm --bits 2.5 --dev dev.txt --out plan.yaml
  mpq search --method kl --level node --model exp/lm/lstm --ratio 20 --dev dev.txt --out plan.yaml
  mpq quantize --model exp/lm/lstm --plan plan.yaml --train ste --text train.txt --dev dev.txt --out lstm-2.5.mpq
  mpq search --method kl --model exp/am --bits 3.5 --candidates 2,4,8 --dev features/dev/cuts.jsonl.gz --out plan.yaml
  mpq search --method one-stage --model exp/am --bits 3.5 --candidates 2,4,8 --features features/train/cuts.jsonl.gz \\
    --dev features/dev/cuts.jsonl.gz --lang exp/lang --out plan.yaml
  mpq search --lossless --model exp/lm/lstm --text train.txt --dev dev.txt --quantize conf/quantize.yaml \\
    --nbest dev.jsonl.gz --ref dev/text --test-nbest test.jsonl.gz --test-ref test/text --out exp/lossless
  mpq search --lossless --model exp/am --features features/train/cuts.jsonl.gz --dev features/dev/cuts.jsonl.gz \\
    --lang exp/lang --test-features features/test/cuts.jsonl.gz --quantize-am conf/quantize_am.yaml --out exp/lossless
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from mpq.cli._options import make_config, naming

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpq.cli._searched import Searched
    from mpq.quant import BitPlan
    from mpq.search import Costs, Grid

METHODS = Literal["kl", "hessian", "nas", "one-stage", "uniform", "random", "rule"]


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq search``."""
    from mpq.cli._lossless import add_lossless_arguments
    from mpq.search import HessianConfig, NasConfig, OneStageConfig

    parser.add_argument("--model", "--lm", type=str, required=True, metavar="FILE", help="float model, or its folder")
    parser.add_argument(
        "--out", type=str, required=True, metavar="YAML", help="plan to write; with --lossless a folder"
    )
    parser.add_argument("--method", type=METHODS, help="what tells how sensitive the weights are")
    parser.add_argument("--bits", type=float, metavar="B", help="average bits of a weight, at most")
    parser.add_argument("--ratio", type=float, metavar="R", help="instead: at least R times smaller than float32")
    parser.add_argument("--candidates", type=str, default="1,2,4,8", metavar="LIST", help="bits to choose from")
    parser.add_argument("--level", type=Literal["layer", "node"], default="layer", help="bits per matrix or per row")
    parser.add_argument(
        "--dev", type=str, metavar="FILE", help="held-out text or features, for kl, hessian, nas, one-stage"
    )
    parser.add_argument("--text", type=str, metavar="FILE", help="training text, for nas and one-stage")
    parser.add_argument("--features", type=str, metavar="MANIFEST", help="training features of an acoustic model")
    parser.add_argument("--lang", type=str, metavar="DIR", help="folder made by mpq lang, for an acoustic model's loss")
    parser.add_argument(
        "--costs", type=str, metavar="JSON", help="sensitivities: read if there, else measured, written"
    )
    parser.add_argument(
        "--device", type=str, default="auto", help="where to measure: auto (a GPU if there is one), cpu, cuda"
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    _add_rare_arguments(parser)
    add_lossless_arguments(parser)
    parser.add_class_arguments(HessianConfig, "hessian", help="--method hessian: how the trace is estimated")
    parser.add_class_arguments(NasConfig, "nas", help="--method nas: how architecture search learns bits")
    parser.add_class_arguments(OneStageConfig, "one_stage", help="--method one-stage: how weights and bits are learned")


def _add_rare_arguments(parser: ArgumentParser) -> None:
    """Adds those that are seldom needed."""
    from mpq.fst.phone_lm import PhoneLmConfig

    group = parser.add_argument_group("seldom needed")
    group.add_argument("--tokens", type=int, default=20_000, help="held-out tokens (output frames) that kl looks at")
    group.add_argument("--rule", type=str, default="", help="extra bits, as embedding.*=+2 (default: first, last +2)")
    group.add_argument("--scale", type=str, default="row", help="one for each row, matrix, or N columns")
    group.add_argument("--table", type=Literal["uniform", "pow2", "asym"], default="uniform", help="the levels")
    group.add_argument(
        "--a-bits", type=Literal[4, 8, 32], default=8, help="bits of the activations, as the plan shall say; 32: float"
    )
    group.add_argument("--seed", type=int, default=1, help="of samples, probes and random plans")
    group.add_argument("--loss", type=Literal["lfmmi", "ctc"], default="lfmmi", help="of an acoustic model")
    group.add_argument("--tokenizer", type=str, metavar="FILE", help="the model's units (default: beside the model)")
    group.add_argument("--cache", type=str, metavar="DIR", help="for tokenized text (default: DIR of --dev/units)")
    parser.add_class_arguments(PhoneLmConfig)


def run(args: Namespace) -> None:
    """Runs ``mpq search``."""
    with naming(("candidates", "level", "table", "scale", "rule")):
        _search(args)


def _search(args: Namespace) -> None:
    """Writes the plan, or with --lossless the model."""
    import time

    from mpq.cli._lossless import run_lossless
    from mpq.quant import quantizable, write_plan

    started = time.monotonic()
    _check(args)
    searched, grid = _load(args)
    if args.lossless:
        run_lossless(args, searched, lambda: _plan_of_ratio(args, searched, grid))
        return
    plan = _plan(args, searched, grid) if args.ratio is None else _plan_of_ratio(args, searched, grid)(args.ratio)
    write_plan(args.out, plan)
    bits = plan.average_bits(quantizable(searched.model))
    allowed = f" of {args.bits:g} allowed" if args.bits else f", {args.ratio:g} times smaller"
    cost = "" if plan.cost is None else f", cost {plan.cost:.6g}"
    print(
        f"search: {args.method}, {args.level} level: {bits:.3f} bits a weight{allowed}, {_spread(plan)}{cost}, "
        f"{time.monotonic() - started:.1f} s: {args.out}"
    )


def _check(args: Namespace) -> None:
    """Refuses options that are missing or do not go together; sets the default method of --lossless."""
    from pathlib import Path

    from mpq.cli._lossless import check_lossless
    from mpq.io import BadInput, check_range, check_writable
    from mpq.quant import model_path

    if args.lossless:
        args.method = args.method or "kl"
        check_lossless(args)
        check_writable(Path(args.out) / "model.mpq", [model_path(args.model)])
        return
    check_writable(args.out, [model_path(args.model), args.text, args.features, args.dev, args.costs])
    if args.method is None:
        raise BadInput("--method must be given; see mpq search --help")
    if (args.bits is None) == (args.ratio is None):
        raise BadInput("give the budget by --bits or by --ratio, one of the two")
    if args.ratio is not None:
        check_range("--ratio", args.ratio, "[1, inf)")
    elif not 1 <= args.bits <= 8:
        raise BadInput(f"--bits: {args.bits:g}: expected 1 to 8 bits of a weight on average")
    if args.method == "one-stage" and args.bits is None:
        raise BadInput("--ratio: one-stage learns weights for average bits; give these by --bits")
    if args.method == "one-stage" and args.costs:
        raise BadInput("--costs: one-stage leaves weights besides, in OUT.search, where it also goes on if killed")


def _load(args: Namespace) -> tuple[Searched, Grid]:
    """The float model, and what is searched."""
    from dataclasses import replace

    from mpq.cli._searched import load_searched
    from mpq.io import BadInput
    from mpq.quant import quantizable
    from mpq.search import Grid, read_candidates, uniform_plan_of_ratio, uniform_plan_within

    scale = int(args.scale) if args.scale.isdecimal() else args.scale
    grid = Grid(read_candidates(args.candidates), args.level, args.table, scale)
    fewest, most = grid.candidates[0], grid.candidates[-1]
    if args.bits is not None and args.bits < fewest:
        raise BadInput(f"--bits: {args.bits:g} cannot be met: the fewest of --candidates are {fewest}")
    if args.bits is not None and args.bits > most:
        raise BadInput(f"--bits: {args.bits:g} cannot be reached: the most of --candidates are {most}")
    searched = load_searched(args)
    shapes = quantizable(searched.model)
    uniform_plan_within(shapes, grid, fewest).check(shapes, "--scale")
    if args.ratio is not None:  # out of reach? said before hours of measuring
        uniform_plan_of_ratio(searched.model, replace(grid, candidates=(fewest,)), args.ratio)
    return searched, grid


def _plan(args: Namespace, searched: Searched, grid: Grid) -> BitPlan:
    """The best plan within --bits."""
    from dataclasses import replace

    from mpq.quant import quantizable
    from mpq.search import uniform_plan_within

    shapes = quantizable(searched.model)
    if args.method == "uniform":
        plan = uniform_plan_within(shapes, grid, args.bits)
    elif args.method == "one-stage":
        plan = _one_stage(args, searched, grid)
    else:
        plan = _costs(args, searched, grid).plan(shapes, args.bits)
    return replace(plan, a_bits=args.a_bits)


def _one_stage(args: Namespace, searched: Searched, grid: Grid) -> BitPlan:
    """The plan that pass 1 ends with; its weights and scales are written."""
    from pathlib import Path

    from mpq.cli._searched import open_data
    from mpq.io import sha256_file
    from mpq.quant import model_path, quantizable
    from mpq.search import OneStageConfig, search_one_stage

    config, folder = make_config(OneStageConfig, args, "one_stage"), Path(f"{args.out}.search")
    key = sha256_file(model_path(args.model))
    costs, net = search_one_stage(open_data(args, searched), grid, config, folder, key, args.bits)
    plan = costs.plan(quantizable(searched.model), args.bits)
    made_for = {"plan": dict(plan.bits), "table": plan.table, "scale": plan.scale}
    searched.save(folder / "latent.mpq", net.latent(plan), {"train": "one-stage", **made_for})
    return plan


def _plan_of_ratio(args: Namespace, searched: Searched, grid: Grid) -> Callable[[float], BitPlan]:
    """What makes the best plan for a ratio of file sizes; costs are measured now."""
    from dataclasses import replace
    from functools import partial

    from mpq.search import plan_of_ratio, uniform_plan_of_ratio

    if args.method == "uniform":
        plan = partial(uniform_plan_of_ratio, searched.model, grid)
    else:
        plan = partial(plan_of_ratio, searched.model, _costs(args, searched, grid))
    return lambda ratio: replace(plan(ratio), a_bits=args.a_bits)


def _spread(plan: BitPlan) -> str:
    """How many matrices or rows have how many bits."""
    from collections import Counter

    counts: Counter[int] = Counter()
    for bits in plan.bits.values():
        counts.update([bits] if isinstance(bits, int) else bits)
    return ", ".join(f"{counts[n]} with {n}" for n in sorted(counts))


def _nas_budget(args: Namespace) -> float | None:
    """The average bits that an architecture search aims at; its costs serve no other budget."""
    bits: float | None = args.bits
    return bits if args.method == "nas" and args.nas.penalty == "budget" else None


def _costs(args: Namespace, searched: Searched, grid: Grid) -> Costs:
    """The costs of --costs, or measured ones."""
    from pathlib import Path

    from mpq.cli._searched import inputs_key
    from mpq.io import hash_config, sha256_file
    from mpq.quant import model_path
    from mpq.search import Costs

    if not args.costs:
        return _measure(args, searched, grid)
    settings = {
        name: args[name] for name in ("method", "candidates", "level", "scale", "table", "tokens", "seed", "rule")
    }
    if args.method in ("hessian", "nas"):
        settings |= {"options": args[args.method].as_dict(), "budget": _nas_budget(args)}
    key = hash_config({**settings, "model": sha256_file(model_path(args.model)), **inputs_key(args, searched)})
    if Path(args.costs).exists():
        return Costs.read(args.costs, key, args.method, grid)
    costs = _measure(args, searched, grid)
    costs.write(args.costs, key)
    return costs


def _measure(args: Namespace, searched: Searched, grid: Grid) -> Costs:
    """The costs by the chosen method."""
    from mpq.cli._searched import open_data
    from mpq.io import BadInput, sha256_file
    from mpq.quant import model_path
    from mpq.search import (
        HessianConfig,
        NasConfig,
        hessian_costs,
        kl_costs,
        nas_costs,
        random_costs,
        read_rule,
        rule_costs,
    )

    if args.method == "random":
        return random_costs(searched.model, grid, args.seed)
    if args.method == "rule":
        return rule_costs(searched.model, grid, read_rule(args.rule))
    data = open_data(args, searched)
    if args.method == "nas":
        config = make_config(NasConfig, args, "nas")
        key = sha256_file(model_path(args.model))
        return nas_costs(data, grid, config, f"{args.out}.search", key, _nas_budget(args))
    if args.method == "hessian":
        return hessian_costs(data, grid, make_config(HessianConfig, args, "hessian"), args.seed)
    if args.tokens < 1:
        raise BadInput(f"--tokens: {args.tokens} must be at least 1")
    return kl_costs(data, grid, args.tokens, args.seed)
