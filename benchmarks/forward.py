"""Time of a language model's forward pass on integers against torch's float32; JSON lines.

The peer is the same network in float32: torch's embedding, LSTM or linear layers, logits of all positions, cross
entropy (`peer_onednn`: with our linear layers, which take oneDNN; see peers.py). All score the same batch of sentences,
one after the other, several times; the median of each counts. Weights are random: they make no difference to the time.
`gmacs` are billions of products of weights and activations a second, with everything else that takes time.

    python benchmarks/forward.py                  # recipe mini's sizes and the papers', one thread and two
    python benchmarks/forward.py --sizes mini --threads 1 --sentences 32
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Callable, Iterator
from math import prod

import torch
import torch.nn.functional as F
from peers import as_torch_has_it
from timing import medians
from torch import Tensor

from mpq.data.lmtext import LmBatch, pad_sentences
from mpq.lm import LanguageModel, LmConfig, build_lm
from mpq.quant import freeze, quantizable, quantize_model, uniform_plan

SIZES = {
    "mini": [(LmConfig("lstm", dim=320), 2000), (LmConfig("transformer", dim=256, layers=2, dim_ff=1024), 2000)],
    "papers": [
        (LmConfig("lstm", dim=1024), 10_000),
        (LmConfig("lstm", dim=1024, layers=2), 30_000),
        (LmConfig("transformer", dim=512, layers=6, heads=8, dim_ff=4096), 30_000),
    ],
}
WAYS = [(2, "int8"), (2, "packed"), (4, "packed")]  # unpacked, all bits are as fast


def float_scores(model: LanguageModel, batch: LmBatch) -> Tensor:
    """The peer."""
    logits = model.output(model.hidden(batch.inputs)[batch.mask])
    return -F.cross_entropy(logits, batch.targets[batch.mask], reduction="none")


def integer_models(model: LanguageModel) -> Iterator[LanguageModel]:
    """The model quantized and held in each of `WAYS`."""
    quantized = {bits: quantize_model(copy.deepcopy(model), uniform_plan(model, bits)) for bits, _ in WAYS}
    for bits, held in WAYS:
        yield freeze(copy.deepcopy(quantized[bits]), packed=held == "packed").eval()


@torch.no_grad()
def measure(config: LmConfig, n_units: int, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One line for each number of threads and way of holding the weights."""
    torch.manual_seed(0)
    model = build_lm(config, n_units).eval()
    models, stock = list(integer_models(model)), as_torch_has_it(model)
    batch = pad_sentences(torch.randint(3, n_units, (args.sentences, args.length - 1)).tolist(), 1, 2)
    weights = {name: prod(shape) for name, shape in quantizable(model).items()}
    macs = (sum(weights.values()) - weights["embedding.weight"]) * args.sentences * args.length / 1e9

    def work(served: LanguageModel) -> Callable[[], object]:
        return lambda: served.log_probs(batch)

    for threads in args.threads:
        torch.set_num_threads(threads)
        peers = [lambda: float_scores(stock, batch), lambda: float_scores(model, batch)]
        (peer, _), (onednn, _), *ours = medians([*peers, *map(work, models)], args.repeats)
        for (bits, held), (seconds, _) in zip(WAYS, ours, strict=True):
            yield {
                "benchmark": "forward", "arch": config.arch, "dim": config.dim, "layers": config.layers,
                "units": n_units, "weights": sum(weights.values()), "bits": bits, "held": held, "threads": threads,
                "sentences": args.sentences, "length": args.length,
                "seconds": round(seconds, 4), "peer_seconds": round(peer, 4), "speedup": round(peer / seconds, 2),
                "peer_onednn_seconds": round(onednn, 4), "speedup_onednn": round(onednn / seconds, 2),
                "gmacs": round(macs / seconds), "peer_gmacs": round(macs / peer),
            }  # fmt: skip


def main() -> None:
    """Print one JSON line for each model, number of threads and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sentences", type=int, default=100, help="in the batch, as hypotheses of an n-best list")
    parser.add_argument("--length", type=int, default=20, help="units of a sentence")
    parser.add_argument("--repeats", type=int, default=5, help="measurements, of which the median counts")
    args = parser.parse_args()
    print(json.dumps({"machine": platform.machine(), "torch": torch.__version__}), flush=True)
    for size in args.sizes:
        for config, n_units in SIZES[size]:
            for line in measure(config, n_units, args):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
