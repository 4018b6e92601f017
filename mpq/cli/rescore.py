"""Rescore n-best lists or lattices with a language model, with weights given or tuned on a development set.

Reads   --nbest: JSON lines (.gz allowed), {"utt": "id", "hyps": [{"text": "w w", "am": -12.3, "lm": -4.5}, ...]},
        natural-log scores; or a Kaldi n-best folder (words_text, ac_cost, lm_cost);
        or --lattice: a Kaldi archive of lattices, or a .pt file of k2's, with --words, the words.txt it was made with.
Writes  --out: the lists, best first, with the neural LM's score "nnlm" and the sum "score" (JSON lines, or a Kaldi
        folder where --out ends in /); of lattices an archive whose graph costs hold the weighted sum of both models;
        --hyp-out: the best hypotheses as Kaldi text; --weights-out: the weights (YAML).

score = am + ngram_weight * lm + lm_weight * nnlm + word_bonus * words

Without --lm the scores "nnlm" that are in the lists are used, if any; --lm without a weight only adds them to lists in
JSON.  --tune REF finds weights that make few word errors against the Kaldi text REF, those of the weights around them
counted in: the middle of a good region, since the very best point is luck. Use a development set, never a test set;
lattices take its result by --weights.
--nbest takes several files, --out and --hyp-out then one for each: weights are tuned on the first, which REF is of.

--arpa gives lists the scores "lm", and lattices the graph costs, of another n-gram model first, such as the whole one
of which the first pass has a pruned copy. Words that it lacks are its <unk> and counted; without <unk> they are
refused. Of a large file only what occurs in them is kept in memory. Lattices may be rescored with it alone, without
--lm.

Each distinct history of an utterance is computed once; --merge-order N takes histories for the same whose last N - 1
words are (exact where N exceeds the words of every path).  --carry-over lets every utterance go on from the best
hypotheses of its recording so far; with --tune, the weights are tuned first without and then with it.

Examples:
  mpq rescore --nbest dev.jsonl.gz --lm exp/quant/lstm-2/model.mpq --tune exp/data/dev/text --weights-out weights.yaml
  mpq rescore --nbest test.jsonl.gz --lm exp/quant/lstm-2/model.mpq --weights weights.yaml --hyp-out hyp-test.txt
  mpq rescore --nbest dev.jsonl.gz test.jsonl.gz --lm model.mpq --tune dev.txt --hyp-out hyp-dev.txt hyp-test.txt
  mpq rescore --nbest exp/decode/dev/nbest.jsonl.gz --arpa 4-gram.arpa.gz --out exp/decode-4-gram/dev/nbest.jsonl.gz
  mpq rescore --lattice lat.gz --words exp/lang/words.txt --lm model.mpq --weights weights.yaml --hyp-out hyp-test.txt
  mpq rescore --lattice lat.gz --words exp/lang/words.txt --arpa 4-gram.arpa.gz --out lat-4-gram.gz
  mpq rescore --nbest nbest.jsonl --lm model.mpq --lm-weight 0.5 --carry-over utt2rec --out rescored.jsonl
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mpq.io import Lattice, NBest, SymbolTable
    from mpq.lang.arpa import NgramLm
    from mpq.lm import LoadedLm
    from mpq.rescore import Weights

_BATCH_MB = 64.0
_OF_THE_LM = {  # options that say how --lm scores, as they are by default
    **dict.fromkeys(("tokenizer", "merge_order", "beam", "carry_over")),
    "packed": False,
    "batch_mb": _BATCH_MB,
    "device": "cpu",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq rescore``."""
    parser.add_argument("--nbest", type=str, nargs="+", metavar="FILE", help="n-best lists, or a Kaldi folder")
    parser.add_argument("--lattice", type=str, metavar="FILE", help="lattices, instead of n-best lists")
    parser.add_argument("--words", type=str, metavar="FILE", help="symbol table of the lattices")
    parser.add_argument("--lm", "--model", type=str, metavar="FILE", help="model.mpq, float or packed, or its folder")
    parser.add_argument("--tokenizer", type=str, metavar="FILE", help="the model's units (default: beside the model)")
    parser.add_argument("--packed", action="store_true", help="keep low-bit weights packed in memory (slower)")
    parser.add_argument(
        "--arpa", type=str, metavar="FILE", help="n-gram model whose scores take the place of the first pass's"
    )
    parser.add_argument("--depth", type=int, metavar="N", help="look at the first N hypotheses of each list only")
    parser.add_argument("--ngram-weight", type=float, help="weight of the first pass's LM score (default: 1)")
    parser.add_argument("--lm-weight", type=float, help="weight of the neural LM's score (default: 0)")
    parser.add_argument("--word-bonus", type=float, help="added for every word (default: 0)")
    parser.add_argument("--weights", type=str, metavar="YAML", help="the three weights, as --weights-out writes them")
    parser.add_argument("--tune", type=str, metavar="REF", help="tune the weights on the first lists against this text")
    parser.add_argument("--weights-out", type=str, metavar="YAML", help="write the weights")
    parser.add_argument("--out", type=str, nargs="+", metavar="FILE", help="write the result; ends in /: Kaldi folder")
    parser.add_argument("--hyp-out", type=str, nargs="+", metavar="FILE", help="write the best hypotheses, Kaldi text")
    parser.add_argument(
        "--batch-mb", type=float, default=_BATCH_MB, help="memory for the model's activations, never exceeded"
    )
    parser.add_argument("--merge-order", type=int, metavar="N", help="merge histories (lists: exact; lattices: 4)")
    parser.add_argument("--beam", type=float, help="leave out arcs of lattices that are worse than the best by more")
    parser.add_argument("--carry-over", type=str, metavar="MAP", help="carry state: utt2rec, or a manifest of cuts")
    parser.add_argument("--device", type=str, default="cpu", help="where to compute: cpu, cuda, cuda:1, ...")


def run(args: Namespace) -> None:
    """Runs ``mpq rescore``."""
    _check(args)
    if args.lattice:
        _rescore_lattices(args)
    else:
        _rescore_lists(args)


def _rescore_lists(args: Namespace) -> None:
    from mpq.io import BadInput, NBest, split_words, write_text
    from mpq.rescore import best_texts, read_needed_arpa, replace_ngram_scores, rerank

    lm = _load(args) if args.lm else None
    ngram = read_needed_arpa(args.arpa, (nbest for path in args.nbest for nbest in _read(path))) if args.arpa else None
    weights = None if args.tune else _weights(args)
    for i, path in enumerate(args.nbest):
        nbests = [NBest(nbest.utt, nbest.hyps[: args.depth]) for nbest in _read(path)]
        nbests = list(replace_ngram_scores(nbests, ngram)) if ngram else nbests
        if not nbests:
            raise BadInput(f"{path}: holds no n-best lists; expected at least one")
        nbests, weights, note = _scored(args, path, nbests, lm, weights)
        note += _lacking(ngram, (word for nbest in nbests for hyp in nbest.hyps for word in split_words(hyp.text)))
        rescored = [rerank(nbest, weights) for nbest in nbests]
        if args.weights_out and i == 0:  # they stay those of the first lists
            weights.write(args.weights_out)
        if args.out:
            _write(args.out[i], rescored)
        if args.hyp_out:
            write_text(args.hyp_out[i], best_texts(rescored))
        n_hyps = sum(len(nbest.hyps) for nbest in nbests)
        written = (args.out or args.hyp_out or ["-"] * len(args.nbest))[i]
        print(f"rescore: {len(nbests)} utterances, {n_hyps} hypotheses, {weights}{note}: {written}")


def _scored(
    args: Namespace, path: str, nbests: list[NBest], lm: LoadedLm | None, weights: Weights | None
) -> tuple[list[NBest], Weights, str]:
    """The lists of `path` with the model's scores, the weights (tuned where there are none), and what tuning found."""
    from mpq.io import read_text
    from mpq.rescore import (
        Budget,
        Scoring,
        add_lm_scores,
        carry_over,
        check_refs,
        check_units,
        oracle,
        read_recordings,
        tune,
    )

    scoring = Scoring(Budget.of_mb(args.batch_mb), args.merge_order)
    places = read_recordings(args.carry_over) if args.carry_over else {}
    refs = read_text(args.tune) if weights is None else {}
    if weights is None:
        check_refs(nbests, refs, path, args.tune)
    if lm:
        check_units(lm.tokenizer, nbests)
    if lm and (weights is None or not args.carry_over):
        nbests = list(add_lm_scores(lm.model, lm.tokenizer, nbests, scoring))
    tuned = None
    if weights is None:
        tuned = tune(nbests, refs)
        weights = tuned.weights
    if lm and args.carry_over:
        nbests = carry_over(lm.model, lm.tokenizer, nbests, places, weights, scoring)
        tuned = tune(nbests, refs) if tuned else None
    if tuned is None:
        return nbests, weights, ""
    return nbests, tuned.weights, f", WER {tuned.rate:.2f} (oracle {oracle(nbests, refs).rate:.2f})"


def _rescore_lattices(args: Namespace) -> None:
    from mpq.io import check_symbols_hash, progress, read_symbols, write_lattices, write_text
    from mpq.rescore import Budget, LatticeScoring, best_words, rescore_lattices

    check_symbols_hash(args.lattice, args.words)
    words, weights = read_symbols(args.words), _weights(args)
    order = {} if args.merge_order is None else {"merge_order": args.merge_order}
    scoring = LatticeScoring(weights, beam=args.beam, budget=Budget.of_mb(args.batch_mb), **order)
    lattices, ngram = _read_lattices(args, words)
    if args.lm:
        lm = _load(args)
        lattices = rescore_lattices(lm.model, lm.tokenizer, lattices, words, scoring)
    best: dict[str, list[str]] = {}
    n_arcs, labels = 0, {0}

    def rescored() -> Iterator[Lattice]:
        nonlocal n_arcs
        for lattice in progress(lattices, what="rescore"):
            best[lattice.utt] = best_words(lattice, words)
            n_arcs += lattice.n_arcs
            if ngram:
                labels.update(lattice.labels.tolist())
            yield lattice

    if args.out:
        write_lattices(args.out[0], rescored())
    else:
        for _ in rescored():
            pass
    if args.hyp_out:
        write_text(args.hyp_out[0], best)
    if args.weights_out:
        weights.write(args.weights_out)
    note = _lacking(ngram, (words.words[label] for label in labels - {0}))
    print(f"rescore: {len(best)} lattices, {n_arcs} arcs, {weights}{note}: {(args.out or args.hyp_out or ['-'])[0]}")


def _read_lattices(args: Namespace, words: SymbolTable) -> tuple[Iterator[Lattice], NgramLm | None]:
    """The lattices, with the scores of --arpa, and its model."""
    from mpq.io import read_lattices
    from mpq.rescore import read_lattices_arpa, replace_lattice_scores

    lattices = read_lattices(args.lattice, words)
    if not args.arpa:
        return lattices, None
    ngram = read_lattices_arpa(args.arpa, lattices, words)
    return (replace_lattice_scores(lattice, ngram, words) for lattice in read_lattices(args.lattice, words)), ngram


def _lacking(ngram: NgramLm | None, words: Iterable[str]) -> str:
    """How many different ones of the words --arpa lacks, for the summary; without --arpa they are not looked at."""
    if ngram is None:
        return ""
    lacking = set(words) - ngram.words
    return f", {len(lacking)} words that --arpa lacks scored as {ngram.unknown}" if lacking else ""


def _load(args: Namespace) -> LoadedLm:
    from mpq.cli._device import find_device
    from mpq.lm import load_lm

    lm = load_lm(args.lm, args.tokenizer, packed=args.packed)
    lm.model.to(find_device(args.device))
    return lm


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
    if bool(args.nbest) == bool(args.lattice):
        raise BadInput("give --nbest or --lattice, one of them")
    if args.lattice and not (args.words and (args.lm or args.arpa)):
        raise BadInput("--lattice: give its symbol table by --words and a language model by --lm or --arpa")
    if args.lattice and not args.lm and (given or ways):
        raise BadInput("--lattice: weights are of --lm; the scores of --arpa alone are written as they are")
    _check_lm_options(args)
    wrong = ("tune", "depth", "carry_over") if args.lattice else ("words", "beam")
    for name in wrong:
        if args[name] is not None:
            kind, other = ("--lattice", "--nbest") if args.lattice else ("--nbest", "--lattice")
            raise BadInput(f"--{name.replace('_', '-')}: not for {kind}; it goes with {other}")
    n_files = 1 if args.lattice else len(args.nbest)
    for name in ("out", "hyp_out"):
        if args[name] and len(args[name]) != n_files:
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"{option}: {len(args[name])} given; expected {n_files}, one for each file that is read")
    _check_outputs(args)


def _check_lm_options(args: Namespace) -> None:
    """Refuses options that say how to use a model where there is none, and a model whose scores would go nowhere."""
    from mpq.io import BadInput

    for name, default in _OF_THE_LM.items():
        if not args.lm and args[name] != default:
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"{option}: has no effect without --lm; give the language model, or leave {option} out")
    # lists in JSON keep "nnlm" whatever its weight is; the other outputs have what it ranks or the sum only
    lost = args.lattice or args.hyp_out or any(path.endswith("/") for path in args.out or ())
    if args.lm and lost and args.lm_weight is None and not (args.weights or args.tune):
        ways = "--lm-weight or --weights" if args.lattice else "--lm-weight, --weights or --tune"
        raise BadInput(f"--lm: its scores have weight 0, nothing would come of them; give {ways}")


def _check_outputs(args: Namespace) -> None:
    """Refuses outputs that cannot be written, overwrite an input, or are one file."""
    from pathlib import Path

    from mpq.io import BadInput, check_writable

    folders = [path for path in args.out or () if path.endswith("/")]
    paths = [*([args.weights_out] if args.weights_out else []), *(args.out or ()), *(args.hyp_out or ())]
    outputs = [Path(path) for path in paths]
    if len(set(outputs)) < len(outputs):
        raise BadInput(f"--out, --hyp-out and --weights-out: {', '.join(map(str, outputs))}: expected different files")
    inputs = [
        *(args.nbest or ()),
        args.lattice,
        args.words,
        args.lm,
        args.arpa,
        args.weights,
        args.tune,
        args.carry_over,
    ]
    for path in paths:
        check_writable(Path(path, "words_text") if path in folders else path, inputs)


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
