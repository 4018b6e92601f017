"""Time to score n-best lists: this project's prefix trees against padded hypotheses; JSON lines.

The peer is what icefall's `rescore_with_rnn_lm` does: for every utterance, all hypotheses padded to the longest one in
one batch, float32, cross entropy over all of it. Each line holds both times, their ratio, the units that the model
reads with and without the tree (and padding), and the largest difference of a score from the same model's padded ones.

    python benchmarks/rescore.py                            # made-up lists and models, 10-, 100- and 1000-best
    python benchmarks/rescore.py --threads 2
    python benchmarks/rescore.py --nbest nbest.jsonl.gz --lm lm/lstm/model.mpq --utts 60
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from mpq.data.lmtext import pad_sentences
from mpq.io import read_nbest, split_words
from mpq.lm import LanguageModel, LmConfig, build_lm, load_lm
from mpq.quant import freeze, quantizable, quantize_model, uniform_plan
from mpq.rescore.forest import Forest, Paths, prefix_forest
from mpq.rescore.history import merged_forest
from mpq.rescore.tree import BATCH_MB, Budget, score_edges

UNK, BOS, EOS = 0, 1, 2
N_UNITS = 2000
CONFIGS = [LmConfig("lstm", dim=320), LmConfig("transformer", dim=256, layers=2, dim_ff=1024)]

Lists = list[list[list[int]]]  # utterances, hypotheses, units


class Case:
    """A float model, and lists of hypotheses: words, and their units."""

    def __init__(self, model: LanguageModel, words: list[list[list[str]]], encode: Callable[[str], list[int]]) -> None:
        self.model, self.words, self.encode = model, words, encode
        look_up = cache(encode)
        self.units: Lists = [[[unit for word in hyp for unit in look_up(word)] for hyp in hyps] for hyps in words]


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


def seconds(score: Callable[[], np.ndarray], repeats: int) -> tuple[float, np.ndarray]:
    """Shortest time on the clock, and the scores."""
    times, value = [], np.empty(0)
    for _ in range(repeats):
        begin = time.perf_counter()
        value = score()
        times.append(time.perf_counter() - begin)
    return min(times), value


def ways(case: Case, order: int) -> Iterator[tuple[str, Callable[[], tuple[Forest, Paths]]]]:
    """The forests that are compared: exact, and with histories of words merged at an n-gram order."""
    roots = [[BOS]] * len(case.units)
    yield "exact", lambda: prefix_forest(case.units, EOS, roots)
    yield f"merged at order {order}", lambda: merged_forest(case.words, cache(case.encode), EOS, roots, order)


def measure(case: Case, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One line for each precision and way; the peer runs once, in float32."""
    model, lists = case.model, case.units
    budget = Budget.of_mb(args.batch_mb)
    peer, expected = seconds(lambda: padded(model, lists), args.repeats)
    n_read = sum(len(hyps) * (max(map(len, hyps)) + 1) for hyps in lists)
    for bits in (32, args.bits):
        served = model
        if bits < 32:
            served = copy.deepcopy(model)
            freeze(quantize_model(served, uniform_plan(served, bits)))
            expected = padded(served, lists)
        for name, make in ways(case, args.merge_order):
            forest, _ = make()

            def score(make: Callable[[], tuple[Forest, Paths]] = make, served: LanguageModel = served) -> np.ndarray:
                forest, paths = make()
                return paths.total(score_edges(served, forest, budget))

            ours, scores = seconds(score, args.repeats)
            yield {
                "benchmark": "rescore", "arch": model.config.arch, "bits": bits, "way": name, "utts": len(lists),
                "n_best": max(map(len, lists)), "threads": torch.get_num_threads(),
                "seconds": round(ours, 3), "peer_seconds": round(peer, 3), "speedup": round(peer / ours, 2),
                "units": len(forest), "units_unpadded": sum(len(hyp) + 1 for hyps in lists for hyp in hyps),
                "units_peer": n_read, "max_difference": float(f"{np.abs(scores - expected).max():.2g}"),
            }  # fmt: skip


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Models and lists: those of the files, or made-up ones."""
    if args.nbest:
        lm = load_lm(args.lm)
        if quantized := [name for name in quantizable(lm.model) if lm.plan.bits.get(name, 32) != 32]:
            raise SystemExit(f"{args.lm}: {quantized[0]} is quantized; the peer needs a float model")
        units = lm.tokenizer
        if (units.bos, units.eos) != (BOS, EOS):
            raise SystemExit(f"{units.path}: expected <s> to be unit {BOS} and </s> to be unit {EOS}")
        nbests = list(read_nbest(args.nbest))[: args.utts]
        words = [[split_words(hyp.text) for hyp in nbest.hyps] for nbest in nbests]
        yield Case(lm.model.eval(), words, units.encode)
        return
    for config in CONFIGS:
        torch.manual_seed(0)
        model = build_lm(config, N_UNITS).eval()
        for n_best, n_utts in ((10, 2 * args.utts), (100, args.utts), (1000, max(1, args.utts // 8))):
            yield Case(model, made_up_lists(n_utts, n_best), lambda word: [int(word)])


def main() -> None:
    """Print one JSON line for each model, list length, precision and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2, help="measurements, of which the shortest counts")
    parser.add_argument("--utts", type=int, default=8, help="utterances (of made-up lists: of 100 hypotheses)")
    parser.add_argument("--bits", type=int, default=2, help="of the integer model")
    parser.add_argument("--merge-order", type=int, default=4)
    parser.add_argument("--batch-mb", type=float, default=BATCH_MB, help="memory of this project's batches")
    parser.add_argument("--nbest", metavar="FILE", help="n-best lists, with the --lm to score them")
    parser.add_argument("--lm", metavar="FILE", help="float model")
    args = parser.parse_args()
    if bool(args.nbest) != bool(args.lm):
        parser.error("give --nbest and --lm together")
    torch.set_num_threads(args.threads)
    print(json.dumps({"machine": platform.machine(), "torch": torch.__version__, "threads": args.threads}), flush=True)
    for case in cases(args):
        for line in measure(case, args):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
