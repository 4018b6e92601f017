"""Perplexity of a text under a language model, float or packed, per word.

Reads   a model (its units beside it, or by --tokenizer) and text, one sentence a line (.gz allowed).
Prints  log-probability, perplexity per word with </s> counted as one, and the out-of-vocabulary words left out of
        both, as SRILM counts; models over different units compare.

Example:
  mpq ppl --lm exp/quant/lstm-2/model.mpq --text data/lm/test.txt
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq ppl``."""
    parser.add_argument("--lm", "--model", type=str, required=True, metavar="FILE", help="model.mpq, or its folder")
    parser.add_argument("--text", type=str, required=True, metavar="FILE", help="text, one sentence a line")
    parser.add_argument("--tokenizer", type=str, metavar="FILE", help="the model's units (default: beside the model)")
    parser.add_argument("--device", type=str, default="cpu", help="where to compute: cpu, cuda, cuda:1, ...")


def run(args: Namespace) -> None:
    """Runs ``mpq ppl``."""
    import tempfile

    from mpq.cli._device import find_device
    from mpq.data.lmtext import open_lm_text
    from mpq.lm import load_lm, perplexity

    device = find_device(args.device)
    lm = load_lm(args.lm, args.tokenizer)
    lm.model.to(device)
    with tempfile.TemporaryDirectory() as cache:
        result = perplexity(lm.model, open_lm_text(args.text, lm.tokenizer, cache))
    print(f"ppl: {result}, log-probability {result.logprob:.2f}: {args.lm}")
