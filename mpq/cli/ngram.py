"""Estimate an n-gram language model, or measure the perplexity of one.

Reads   text files, one sentence a line.
Writes  an ARPA file (interpolated Kneser-Ney, entropy-pruned) when --text is given; with --ppl the perplexity
        of the model on that text is printed.

Example:
  mpq ngram --text exp/data/lm/train.txt --lm lm.arpa --order 3 --prune 1e-6 --ppl exp/data/lm/dev.txt
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq ngram``."""
    parser.add_argument("--text", type=str, nargs="+", metavar="FILE", help="training text")
    parser.add_argument("--lm", type=str, required=True, metavar="ARPA", help="model to write (or only read)")
    parser.add_argument("--order", type=int, default=3, help="largest n, 2 to 5")
    parser.add_argument("--prune", type=float, default=0.0, help="relative perplexity that an n-gram must be worth")
    parser.add_argument("--ppl", type=str, metavar="FILE", help="text to measure the perplexity on")


def run(args: Namespace) -> None:
    """Runs ``mpq ngram``."""
    from mpq.io import BadInput, check_writable
    from mpq.lang.arpa import measure_perplexity, read_arpa
    from mpq.lang.ngram import read_sentences, train_ngram

    if not args.text and not args.ppl:
        raise BadInput("nothing to do; give --text to estimate a model, --ppl to measure one, or both")
    if args.text:
        check_writable(args.lm, [*args.text, args.ppl])
        train_ngram(read_sentences(args.text), args.lm, args.order, args.prune)
    model = read_arpa(args.lm)
    result = f", {measure_perplexity(model, read_sentences([args.ppl]))}" if args.ppl else ""
    print(f"ngram: order {model.order}, {len(model.log_prob)} n-grams of {len(model.words)} words{result}: {args.lm}")
