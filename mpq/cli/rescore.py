"""Rescore n-best lists with a language model, with weights given or tuned on a development set.

Reads   n-best lists: JSON lines (.gz allowed), {"utt": "id", "hyps": [{"text": "w w", "am": -12.3, "lm": -4.5}, ...]},
        natural-log scores; or a Kaldi n-best folder (words_text, ac_cost, lm_cost).
Writes  --out: the lists, best first, with the neural LM's score "nnlm" and the sum "score" (JSON lines, or a Kaldi
        folder where --out ends in /); --hyp-out: the best hypotheses as Kaldi text; --weights-out: the weights (YAML).

score = am + ngram_weight * lm + lm_weight * nnlm + word_bonus * words

Without --lm the scores "nnlm" that are in the lists are used, if any.  --tune REF finds the weights with the fewest
word errors against the Kaldi text REF: use a development set, never a test set.

Examples:
  mpq rescore --nbest dev.jsonl.gz --lm exp/quant/lstm-2/model.mpq --tune exp/data/dev/text --weights-out weights.yaml
  mpq rescore --nbest test.jsonl.gz --lm exp/quant/lstm-2/model.mpq --weights weights.yaml --hyp-out hyp-test.txt
  mpq rescore --nbest nbest.jsonl --lm model.mpq --lm-weight 0.5 --out rescored.jsonl
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mpq.io import NBest
    from mpq.rescore import Weights


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq rescore``."""
    parser.add_argument("--nbest", type=str, required=True, metavar="FILE", help="n-best lists, or a Kaldi folder")
    parser.add_argument("--lm", type=str, metavar="FILE", help="language model, float or packed, or its folder")
    parser.add_argument("--tokenizer", type=str, metavar="FILE", help="the model's units (default: beside the model)")
    parser.add_argument("--depth", type=int, metavar="N", help="look at the first N hypotheses of each list only")
    parser.add_argument("--ngram-weight", type=float, help="weight of the first pass's LM score (default: 1)")
    parser.add_argument("--lm-weight", type=float, help="weight of the neural LM's score (default: 0)")
    parser.add_argument("--word-bonus", type=float, help="added for every word (default: 0)")
    parser.add_argument("--weights", type=str, metavar="YAML", help="the three weights, as --weights-out writes them")
    parser.add_argument("--tune", type=str, metavar="REF", help="tune the weights on these lists, against this text")
    parser.add_argument("--weights-out", type=str, metavar="YAML", help="write the weights")
    parser.add_argument("--out", type=str, metavar="FILE", help="write the rescored lists; ends in /: a Kaldi folder")
    parser.add_argument("--hyp-out", type=str, metavar="FILE", help="write the best hypotheses as Kaldi text")
    parser.add_argument("--device", type=str, default="cpu", help="where to compute: cpu, cuda, cuda:1, ...")


def run(args: Namespace) -> None:
    """Runs ``mpq rescore``."""
    from mpq.io import NBest, read_text, write_text
    from mpq.lm import load_lm
    from mpq.rescore import add_lm_scores, best_texts, oracle, rerank, tune

    _check(args)
    nbests = [NBest(nbest.utt, nbest.hyps[: args.depth]) for nbest in _read(args.nbest)]
    if args.lm:
        lm = load_lm(args.lm, args.tokenizer)
        lm.model.to(args.device)
        nbests = list(add_lm_scores(lm.model, lm.tokenizer, nbests))
    note = ""
    if args.tune:
        refs = read_text(args.tune)
        tuned = tune(nbests, refs)
        weights, note = tuned.weights, f", WER {tuned.rate:.2f} (oracle {oracle(nbests, refs).rate:.2f})"
    else:
        weights = _weights(args)
    rescored = [rerank(nbest, weights) for nbest in nbests]
    if args.weights_out:
        weights.write(args.weights_out)
    if args.out:
        _write(args.out, rescored)
    if args.hyp_out:
        write_text(args.hyp_out, best_texts(rescored))
    n_hyps = sum(len(nbest.hyps) for nbest in nbests)
    print(f"rescore: {len(nbests)} utterances, {n_hyps} hypotheses, {weights}{note}: {args.out or args.hyp_out or '-'}")


def _check(args: Namespace) -> None:
    """Refuses options that contradict each other, before any work is done."""
    from mpq.io import BadInput

    given = [name for name in ("ngram_weight", "lm_weight", "word_bonus") if args[name] is not None]
    ways = [*(["weights"] if args.weights else []), *(["tune"] if args.tune else [])]
    if len(ways) > 1 or (ways and given):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in [*ways, *given])
        raise BadInput(f"{options}: give the weights in one way only: by numbers, by --weights or by --tune")
    if args.depth is not None and args.depth < 1:
        raise BadInput(f"--depth: {args.depth} must be at least 1")
    if not (args.out or args.hyp_out or args.weights_out):
        raise BadInput("nothing to write: give --out, --hyp-out or --weights-out")


def _weights(args: Namespace) -> Weights:
    from mpq.rescore import Weights

    if args.weights:
        return Weights.read(args.weights)
    given = {name: args[name] for name in ("ngram_weight", "lm_weight", "word_bonus") if args[name] is not None}
    return Weights(**given)


def _read(path: str) -> Iterable[NBest]:
    from pathlib import Path

    from mpq.io import read_kaldi_nbest, read_nbest

    return read_kaldi_nbest(path) if Path(path).is_dir() else read_nbest(path)


def _write(path: str, nbests: Iterable[NBest]) -> None:
    from mpq.io import write_kaldi_nbest, write_nbest

    if path.endswith("/"):
        write_kaldi_nbest(path, nbests)
    else:
        write_nbest(path, nbests)
