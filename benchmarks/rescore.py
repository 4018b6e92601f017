"""Time to score n-best lists: this project's prefix trees against padded hypotheses; JSON lines.

The peer is what icefall's `rescore_with_rnn_lm` does: for every utterance, all hypotheses padded to the longest one
in one batch, float32, cross entropy over all of it; once by torch's own linear layers, as icefall has them (`peer`),
once by ours, which take oneDNN (`peer_onednn`; see peers.py). Each line holds the times, their ratios, the units that
the model reads with and without the tree (and padding), and the largest difference of a score from the same model's
padded ones. With --exp, models and lists are a recipe's, and `wer` is that of the lists reranked with the weights
that the recipe tuned for the model (`peer_wer`: for the float model), the same for every way. With two threads ours are
two processes, as in `mpq rescore`, once there are lists enough (80 of mini's) to be worth starting them.

    python benchmarks/rescore.py                                # made-up lists and models, 10- to 1000-best
    python benchmarks/rescore.py --exp egs/mini/exp             # 60 of its 100-best lists; --utts 0: all of them
    mpq decode ... --n-best 1000 --out deep                     # time against depth
    python benchmarks/rescore.py --exp egs/mini/exp --nbest deep/nbest.jsonl.gz --depths 10 100 1000 --utts 10
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peers import as_torch_has_it
from timing import medians

from mpq.data.lmtext import pad_sentences
from mpq.data.parallel import map_processes
from mpq.io import NBest, read_nbest, read_text, split_words
from mpq.lm import LanguageModel, LmConfig, build_lm, load_lm
from mpq.quant import freeze, quantize_model, uniform_plan
from mpq.rescore import Budget, Weights, best_texts, rerank
from mpq.rescore.forest import Forest, Paths, prefix_forest
from mpq.rescore.history import merged_forest
from mpq.rescore.scoring import share_out
from mpq.rescore.tree import BATCH_MB, score_edges
from mpq.score import wer

BOS, EOS = 1, 2  # <unk> is 0
N_UNITS = 2000
CONFIGS = [LmConfig("lstm", dim=320), LmConfig("transformer", dim=256, layers=2, dim_ff=1024)]

Lists = list[list[list[int]]]  # utterances, hypotheses, units
Rate = Callable[[np.ndarray], float]  # scores of all hypotheses, list after list, to a word error rate


class Case:
    """A float model and a low-bit one, and lists of hypotheses: words, and their units."""

    def __init__(
        self, models: dict[int, LanguageModel], words: list[list[list[str]]], encode: Callable[[str], list[int]]
    ) -> None:
        self.models, self.words, self.encode = models, words, cache(encode)
        self.units: Lists = [[[unit for word in hyp for unit in self.encode(word)] for hyp in hyps] for hyps in words]
        self.rates: dict[int, Rate] = {}


def made_up_lists(n_utts: int, n_hyps: int, seed: int = 0) -> list[list[list[str]]]:
    """Distinct hypotheses that differ from a first one in a few places, which later ones of a list vary further."""
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(n_utts):
        length = int(rng.integers(10, 30))
        choices = rng.integers(3, N_UNITS, (length, 4))  # what was confused with what
        unlikely = rng.dirichlet(np.full(length, 0.4))  # some places are much less certain than others
        hyps: dict[tuple[int, ...], None] = {}
        while len(hyps) < n_hyps:
            n_changes = min(length, int(rng.geometric(0.25)))
            picks = np.zeros(length, np.int64)
            picks[rng.choice(length, n_changes, p=0.98 * unlikely + 0.02 / length)] = rng.integers(0, 4, n_changes)
            hyps[tuple(choices[np.arange(length), picks].tolist())] = None
        lists.append([[str(unit) for unit in hyp] for hyp in hyps])
    return lists


@torch.no_grad()
def padded(model: LanguageModel, lists: Lists) -> np.ndarray:
    """The peer: a batch of all hypotheses of an utterance."""
    scores = []
    for hyps in lists:
        batch = pad_sentences(hyps, BOS, EOS)
        logits = model.output(model.hidden(batch.inputs))
        nll = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view(batch.mask.shape)
        scores.append(-nll.masked_fill(~batch.mask, 0.0).sum(1).numpy())
    return np.concatenate(scores)


@dataclass(frozen=True)
class Way:
    """One way to score: a model of some bits, and how its forest is made."""

    bits: int
    name: str
    model: LanguageModel
    make: Callable[[slice], tuple[Forest, Paths]]

    def score(self, n_words: Sequence[int], budget: Budget) -> np.ndarray:
        """Scores of all hypotheses, the making of the forest included, as `mpq rescore` gets them."""
        shares = share_out(n_words, budget, self.model.device)
        scores = map_processes(partial(self.score_some, shares.budget), shares.spans, shares.budget.n_processes)
        return np.concatenate(list(scores))

    def score_some(self, budget: Budget, span: slice) -> np.ndarray:
        """Those of some utterances."""
        forest, paths = self.make(span)
        return paths.total(score_edges(self.model, forest, budget))


def ways(case: Case, order: int) -> Iterator[Way]:
    """Exact, and with histories of words merged at an n-gram order, for each model."""
    roots = [[BOS]] * len(case.units)

    def exact(span: slice) -> tuple[Forest, Paths]:
        return prefix_forest(case.units[span], EOS, roots[span])

    def merged(span: slice) -> tuple[Forest, Paths]:
        return merged_forest(case.words[span], case.encode, EOS, roots[span], order)

    for bits, model in case.models.items():
        yield Way(bits, "exact", model, exact)
        yield Way(bits, f"merged at order {order}", model, merged)


def measure(case: Case, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One line for each number of threads, precision and way; the peer is float32."""
    lists, budget = case.units, Budget.of_mb(args.batch_mb)
    n_words = [sum(map(len, hyps)) for hyps in case.words]
    expected = {bits: padded(model, lists) for bits, model in case.models.items()}
    compared = list(ways(case, args.merge_order))
    for threads in args.threads:
        torch.set_num_threads(threads)
        peers = [partial(padded, model, lists) for model in (as_torch_has_it(case.models[32]), case.models[32])]
        works = [*peers, *(partial(way.score, n_words, budget) for way in compared)]
        # scoring for `expected` has filled the caches
        (peer, _), (onednn, _), *ours = medians(works, args.repeats, warm=False)
        for way, (seconds, scores) in zip(compared, ours, strict=True):
            rates = {}
            if case.rates:
                rates = {"wer": case.rates[way.bits](scores), "peer_wer": case.rates[32](expected[32])}
            yield {
                "benchmark": "rescore", "arch": way.model.config.arch, "bits": way.bits, "way": way.name,
                "utts": len(lists), "n_best": max(map(len, lists)), "threads": threads,
                "seconds": round(seconds, 3), "peer_seconds": round(peer, 3), "speedup": round(peer / seconds, 2),
                "peer_onednn_seconds": round(onednn, 3), "speedup_onednn": round(onednn / seconds, 2),
                **rates, "units": len(way.make(slice(None))[0]),
                "units_unpadded": sum(len(hyp) + 1 for hyps in lists for hyp in hyps),
                "units_peer": sum(len(hyps) * (max(map(len, hyps)) + 1) for hyps in lists),
                "max_difference": float(f"{np.abs(scores - expected[way.bits]).max():.2g}"),
            }  # fmt: skip


def error_rate(nbests: Sequence[NBest], weights: Weights, refs: dict[str, list[str]], scores: np.ndarray) -> float:
    """Word error rate in percent of the lists reranked with these scores of a language model."""
    values = iter(scores.tolist())
    filled = [NBest(nbest.utt, [replace(hyp, nnlm=next(values)) for hyp in nbest.hyps]) for nbest in nbests]
    hyps = best_texts(rerank(nbest, weights) for nbest in filled)
    return round(wer({utt: refs[utt] for utt in hyps}, hyps).rate, 2)


def recipe_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Models, lists, references and weights of a recipe's folder."""
    nbests = list(read_nbest(args.nbest or args.exp / "decode" / "test" / "nbest.jsonl.gz"))
    step = max(1, len(nbests) // args.utts) if args.utts else 1
    nbests = nbests[::step][: args.utts or None]
    refs = read_text(args.exp / "data" / "test" / "text")
    for arch in ("lstm", "transformer"):
        low = f"{arch}-{args.bits}bit"
        files = {32: args.exp / "lm" / arch, args.bits: args.exp / "quant" / low}
        lms = {bits: load_lm(path) for bits, path in files.items()}
        units = lms[32].tokenizer
        if (units.bos, units.eos) != (BOS, EOS):
            raise SystemExit(f"{units.path}: expected <s> to be unit {BOS} and </s> to be unit {EOS}")
        for depth in args.depths or [max(len(nbest.hyps) for nbest in nbests)]:
            some = [NBest(nbest.utt, nbest.hyps[:depth]) for nbest in nbests]
            words = [[split_words(hyp.text) for hyp in nbest.hyps] for nbest in some]
            case = Case({bits: lm.model.eval() for bits, lm in lms.items()}, words, units.encode)
            for bits, name in ((32, arch), (args.bits, low)):
                weights = Weights.read(args.exp / "rescore" / name / "weights.yaml")
                case.rates[bits] = partial(error_rate, some, weights, refs)
            yield case


def made_up_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Models and lists that need no files."""
    for config in CONFIGS:
        torch.manual_seed(0)
        model = build_lm(config, N_UNITS).eval()
        low = freeze(quantize_model(copy.deepcopy(model), uniform_plan(model, args.bits))).eval()
        n_utts = min(8, args.utts or 8)
        for n_best, n in ((10, 2 * n_utts), (100, n_utts), (1000, max(1, n_utts // 8))):
            if not args.depths or n_best in args.depths:
                yield Case({32: model, args.bits: low}, made_up_lists(n, n_best), lambda word: [int(word)])


def main() -> None:
    """Print one JSON line for each model, list length, number of threads, precision and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", type=Path, help="a recipe's folder: decode, lm, quant, rescore, data")
    parser.add_argument("--nbest", type=Path, help="other lists of its test set")
    parser.add_argument("--depths", type=int, nargs="+", help="hypotheses that lists are cut to")
    parser.add_argument("--utts", type=int, default=60, help="utterances, spread over the set; 0: all (made-up: 8)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="measurements, of which the median counts")
    parser.add_argument("--bits", type=int, default=2, help="of the integer model")
    parser.add_argument("--merge-order", type=int, default=4)
    parser.add_argument("--batch-mb", type=float, default=BATCH_MB, help="memory of this project's batches")
    args = parser.parse_args()
    if args.nbest and not args.exp:
        parser.error("--nbest goes with --exp")
    print(json.dumps({"machine": platform.machine(), "torch": torch.__version__}), flush=True)
    for case in recipe_cases(args) if args.exp else made_up_cases(args):
        for line in measure(case, args):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
