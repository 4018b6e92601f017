"""Search bits for every weight matrix of a language model, or for every row, within a budget.

Reads   a float model from `mpq train-lm` (its units beside it); held-out text (--dev) for kl, hessian and nas; the
        training text (--text) for nas.
Writes  OUT.yaml, a plan for `mpq quantize --plan`; with --costs the measured sensitivities, which then serve any other
        budget at once; for nas checkpoints and logs in OUT.search/ (a killed search continues there).

--method kl       divergence of the predictions when one matrix is rounded; rows share their matrix's
                  by Fisher information
--method hessian  trace of the loss's Hessian times squared rounding error
--method nas      architecture search: probabilities of bits, learned with the weights (layer level only); with
                  --nas.penalty budget it aims at --bits, and is done anew for each budget
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
found is reported on lists that had no part in the search.

Examples:
  mpq search --method kl --model exp/lm/lstm --bits 2.5 --dev dev.txt --out plan.yaml
  mpq search --method kl --level node --model exp/lm/lstm --ratio 20 --dev dev.txt --out plan.yaml
  mpq quantize --model exp/lm/lstm --plan plan.yaml --train ste --text train.txt --dev dev.txt --out lstm-2.5.mpq
  mpq search --lossless --model exp/lm/lstm --text train.txt --dev dev.txt --quantize conf/quantize.yaml \\
    --nbest dev.jsonl.gz --ref dev/text --test-nbest test.jsonl.gz --test-ref test/text --out exp/lossless
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpq.lm import LoadedLm
    from mpq.quant import BitPlan
    from mpq.search import Costs, Grid

METHODS = Literal["kl", "hessian", "nas", "uniform", "random", "rule"]


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq search``."""
    from mpq.cli._lossless import add_lossless_arguments
    from mpq.search import HessianConfig, NasConfig

    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--method", type=METHODS, help="what tells how sensitive the weights are")
    parser.add_argument("--model", "--lm", type=str, required=True, metavar="FILE", help="float model, or its folder")
    parser.add_argument("--bits", type=float, metavar="B", help="average bits of a weight, at most")
    parser.add_argument("--ratio", type=float, metavar="R", help="instead: at least R times smaller than float32")
    parser.add_argument("--candidates", type=str, default="1,2,4,8", metavar="LIST", help="bits to choose from")
    parser.add_argument("--level", type=Literal["layer", "node"], default="layer", help="bits per matrix or per row")
    parser.add_argument("--text", type=str, metavar="FILE", help="training text, for nas")
    parser.add_argument("--dev", type=str, metavar="FILE", help="held-out text, for kl, hessian and nas")
    parser.add_argument("--tokens", type=int, default=20_000, help="units of the held-out text that kl looks at")
    parser.add_argument("--tokenizer", type=str, metavar="FILE", help="the model's units (default: beside the model)")
    parser.add_argument("--cache", type=str, metavar="DIR", help="for tokenized text (default: DIR of --dev/units)")
    parser.add_argument(
        "--costs", type=str, metavar="JSON", help="sensitivities: read if there, else measured, written"
    )
    parser.add_argument("--rule", type=str, default="", help="extra bits, as embedding.*=+2 (default: first, last +2)")
    parser.add_argument("--scale", type=str, default="row", help="one for each row, matrix, or N columns")
    parser.add_argument("--table", type=Literal["uniform", "pow2"], default="uniform", help="the levels")
    parser.add_argument("--seed", type=int, default=1, help="of samples, probes and random plans")
    parser.add_argument(
        "--out", type=str, required=True, metavar="YAML", help="plan to write; with --lossless a folder"
    )
    parser.add_class_arguments(HessianConfig, "hessian")
    parser.add_class_arguments(NasConfig, "nas")
    add_lossless_arguments(parser)


def run(args: Namespace) -> None:
    """Runs ``mpq search``."""
    import time

    from mpq.cli._lossless import run_lossless
    from mpq.quant import quantizable, write_plan

    started = time.monotonic()
    _check(args)
    lm, grid = _load(args)
    if args.lossless:
        run_lossless(args, lm, _plan_of_ratio(args, lm, grid))
        return
    plan = _plan(args, lm, grid) if args.ratio is None else _plan_of_ratio(args, lm, grid)(args.ratio)
    write_plan(args.out, plan)
    bits = plan.average_bits(quantizable(lm.model))
    allowed = f" of {args.bits:g} allowed" if args.bits else f", {args.ratio:g} times smaller"
    cost = "" if plan.cost is None else f", cost {plan.cost:.6g}"
    print(
        f"search: {args.method}, {args.level} level: {bits:.3f} bits a weight{allowed}, {_spread(plan)}{cost}, "
        f"{time.monotonic() - started:.1f} s: {args.out}"
    )


def _check(args: Namespace) -> None:
    """Refuses options that are missing or do not go together; sets the default method of --lossless."""
    from mpq.cli._lossless import check_lossless
    from mpq.io import BadInput, check_range

    if args.lossless:
        args.method = args.method or "kl"
        check_lossless(args)
        return
    if args.method is None:
        raise BadInput("--method must be given; see mpq search --help")
    if (args.bits is None) == (args.ratio is None):
        raise BadInput("give the budget by --bits or by --ratio, one of the two")
    if args.ratio is not None:
        check_range("--ratio", args.ratio, "[1, inf)")
    elif not 1 <= args.bits <= 8:
        raise BadInput(f"--bits: {args.bits:g}: expected 1 to 8 bits of a weight on average")


def _load(args: Namespace) -> tuple[LoadedLm, Grid]:
    """The float model, and what is searched."""
    from mpq.io import BadInput
    from mpq.lm import load_float_lm
    from mpq.quant import quantizable
    from mpq.search import Grid, read_candidates, uniform_plan_within

    scale = int(args.scale) if args.scale.isdecimal() else args.scale
    grid = Grid(read_candidates(args.candidates), args.level, args.table, scale)
    fewest = grid.candidates[0]
    if args.bits is not None and args.bits < fewest:
        raise BadInput(f"--bits: {args.bits:g} cannot be met: the fewest of --candidates are {fewest}")
    lm = load_float_lm(args.model, args.tokenizer)
    shapes = quantizable(lm.model)
    uniform_plan_within(shapes, grid, fewest).check(shapes, "--scale")
    return lm, grid


def _plan(args: Namespace, lm: LoadedLm, grid: Grid) -> BitPlan:
    """The best plan within --bits."""
    from mpq.quant import quantizable
    from mpq.search import uniform_plan_within

    shapes = quantizable(lm.model)
    if args.method == "uniform":
        return uniform_plan_within(shapes, grid, args.bits)
    return _costs(args, lm, grid).plan(shapes, args.bits)


def _plan_of_ratio(args: Namespace, lm: LoadedLm, grid: Grid) -> Callable[[float], BitPlan]:
    """What makes the best plan for a ratio of file sizes; costs are measured now."""
    from functools import partial

    from mpq.search import plan_of_ratio, uniform_plan_of_ratio

    if args.method == "uniform":
        return partial(uniform_plan_of_ratio, lm.model, grid)
    return partial(plan_of_ratio, lm.model, _costs(args, lm, grid))


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


def _costs(args: Namespace, lm: LoadedLm, grid: Grid) -> Costs:
    """The costs of --costs, or measured ones."""
    from pathlib import Path

    from mpq.io import hash_config, sha256_file
    from mpq.quant import model_path
    from mpq.search import Costs

    if not args.costs:
        return _measure(args, lm, grid)
    settings = {
        name: args[name] for name in ("method", "candidates", "level", "scale", "table", "tokens", "seed", "rule")
    }
    settings |= {"hessian": args.hessian.as_dict(), "nas": args.nas.as_dict(), "nas_budget": _nas_budget(args)}
    texts = [sha256_file(path) for path in (args.text, args.dev) if path]
    key = hash_config({**settings, "model": sha256_file(model_path(args.model)), "texts": texts})
    if Path(args.costs).exists():
        return Costs.read(args.costs, key, args.method, grid)
    costs = _measure(args, lm, grid)
    costs.write(args.costs, key)
    return costs


def _measure(args: Namespace, lm: LoadedLm, grid: Grid) -> Costs:
    """The costs by the chosen method."""
    from pathlib import Path

    from mpq.data.lmtext import open_lm_text
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
    from mpq.train.lm import LmTexts
    from mpq.train.loop import FitConfig

    if args.method == "random":
        return random_costs(lm.model, grid, args.seed)
    if args.method == "rule":
        return rule_costs(lm.model, grid, read_rule(args.rule))
    if not args.dev:
        raise BadInput(f"--method {args.method} needs held-out text (--dev)")
    cache = args.cache or Path(args.dev).parent / "units"
    if args.method == "nas":
        if not args.text:
            raise BadInput("--method nas needs the training text (--text)")
        options = args.nas.as_dict()
        config = NasConfig(**{**options, "fit": FitConfig(**options["fit"])})
        texts = LmTexts.open(args.text, args.dev, lm.tokenizer, cache)
        key = sha256_file(model_path(args.model))
        return nas_costs(lm.model, texts, grid, config, f"{args.out}.search", key, _nas_budget(args))
    text = open_lm_text(args.dev, lm.tokenizer, cache)
    if args.method == "hessian":
        return hessian_costs(lm.model, text, grid, HessianConfig(**args.hessian.as_dict()), args.seed)
    if args.tokens < 1:
        raise BadInput(f"--tokens: {args.tokens} must be at least 1")
    return kl_costs(lm.model, text, grid, args.tokens, args.seed)
