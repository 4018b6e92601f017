"""Estimate an n-gram language model, interpolate several, or measure the perplexity of one.

Reads   text files, one sentence a line (--text), or ARPA files (--interpolate) and the text that their weights are to
        suit (--held-out: none of the models may have seen it).
Writes  an ARPA file: interpolated Kneser-Ney, entropy-pruned, of --text; or the one model that gives every n-gram
        of --interpolate its interpolated probability, with weights found by EM. With --ppl the perplexity of the model
        on that text is printed.

Examples:
  mpq ngram --text exp/data/lm/train.txt --lm lm.arpa --order 3 --prune 1e-6 --ppl exp/data/lm/dev.txt
  mpq ngram --interpolate near.arpa large.arpa --held-out exp/data/lm/dev.txt --lm lm.arpa --ppl exp/data/lm/dev.txt
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq ngram``."""
    parser.add_argument("--text", type=str, nargs="+", metavar="FILE", help="training text")
    parser.add_argument("--lm", type=str, required=True, metavar="ARPA", help="model to write (or only read)")
    parser.add_argument("--order", type=int, default=3, help="largest n, 2 to 5")
    parser.add_argument("--prune", type=float, default=0.0, help="relative perplexity that an n-gram must be worth")
    parser.add_argument("--interpolate", type=str, nargs="+", metavar="ARPA", help="models to make one of, instead")
    parser.add_argument("--held-out", type=str, metavar="FILE", help="text that the interpolation weights are to suit")
    parser.add_argument("--ppl", type=str, metavar="FILE", help="text to measure the perplexity on")


def run(args: Namespace) -> None:
    """Runs ``mpq ngram``."""
    from mpq.io import BadInput, check_writable
    from mpq.lang.arpa import measure_perplexity, read_arpa
    from mpq.lang.mix import mix_arpa
    from mpq.lang.ngram import prune_arpa, read_sentences, train_ngram

    if args.text and args.interpolate:
        raise BadInput("--text and --interpolate: estimate each model first, then interpolate them in a second command")
    if not args.text and not args.interpolate and not args.ppl:
        raise BadInput(
            "nothing to do; give --text to estimate a model, --interpolate to mix some, or --ppl to measure one"
        )
    if bool(args.interpolate) != bool(args.held_out) or (args.interpolate and len(args.interpolate) < 2):
        raise BadInput("--interpolate takes two or more models, and --held-out the text that their weights are to suit")
    check_writable(args.lm, [*(args.text or ()), *(args.interpolate or ()), args.held_out, args.ppl])
    said = ""
    if args.text:
        train_ngram(read_sentences(args.text), args.lm, args.order, args.prune)
    elif args.interpolate:
        weights = mix_arpa(args.interpolate, read_sentences([args.held_out]), args.lm)
        said = f", weights {' '.join(f'{weight:.4f}' for weight in weights)}"
        if args.prune:
            prune_arpa(args.lm, args.lm, args.prune)
    model = read_arpa(args.lm)
    if args.ppl:
        said += f", {measure_perplexity(model, read_sentences([args.ppl]))}"
    print(f"ngram: order {model.order}, {len(model.log_prob)} n-grams of {len(model.words)} words{said}: {args.lm}")
