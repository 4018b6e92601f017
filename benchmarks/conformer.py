"""Time of a quantized Conformer on integers against torch's float32, in use and in training; JSON lines.

In use: the forward pass of a batch of utterances, log-probabilities of all frames, one thread. The peer is the same
network in float32 as torch has it, with gradients off (`peer_onednn`: with its linear layers by oneDNN, see peers.py).
In training: a step of native integer training (forward on integers, backward, AdamW) against one of float training of
the same network, both with the same stand-in for a loss, since LF-MMI's takes as long for both. Ways take turns several
times, and the median counts. Weights and features are random: they make no difference to the time.

    python benchmarks/conformer.py
    python benchmarks/conformer.py --sizes mini --bits 4 --a-bits 8 --repeats 9
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Callable, Iterator

import torch
from timing import medians
from torch import nn

from mpq.am import AcousticModel, ConformerConfig, make_am
from mpq.quant import FloatLinear, freeze, quantize_model, uniform_plan

SIZES = {
    "mini": ConformerConfig(dim=144, heads=4, feed_forward=576, layers=4, kernel=15, channels=16, dropout=0.0),
    "small": ConformerConfig(dropout=0.0),  # Gulati et al., but for its depth of 12 instead of 16
    "medium": ConformerConfig(dim=256, heads=4, feed_forward=1024, layers=16, kernel=31, dropout=0.0),
}
N_OUTPUTS = 150


def by_onednn(model: AcousticModel) -> AcousticModel:
    """A copy whose linear layers take oneDNN."""
    copied = copy.deepcopy(model)
    for layer in copied.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = FloatLinear
    return copied


def step(model: AcousticModel, features: torch.Tensor, lengths: torch.Tensor) -> Callable[[], object]:
    """A step of training."""
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-4)

    def work() -> None:
        optimizer.zero_grad()
        model(features, lengths)[0][..., 0].mean().backward()
        optimizer.step()

    return work


def measure(size: str, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Lines of one size: in use for each way of holding the weights, and in training."""
    torch.manual_seed(0)
    model = make_am(SIZES[size], N_OUTPUTS).eval()
    quantized = quantize_model(copy.deepcopy(model), uniform_plan(model, args.bits, a_bits=args.a_bits))
    held = {way: freeze(copy.deepcopy(quantized), packed=way == "packed").eval() for way in ("int8", "packed")}
    features = torch.randn(args.utterances, args.frames, SIZES[size].feature_dim)
    lengths = torch.full((args.utterances,), args.frames)
    seconds = args.utterances * args.frames / 100
    same = {"benchmark": "conformer", "size": size, "weights": sum(p.numel() for p in model.parameters()),
            "bits": args.bits, "a_bits": args.a_bits, "audio_seconds": seconds}  # fmt: skip

    def forward(served: AcousticModel) -> Callable[[], object]:
        return lambda: served(features, lengths)

    with torch.no_grad():
        works = map(forward, (model, by_onednn(model), *held.values()))
        (peer, _), (onednn, _), *ours = medians(list(works), args.repeats)
    for way, (time, _) in zip(held, ours, strict=True):
        yield {**same, "what": "inference", "held": way, "seconds": round(time, 4), "peer_seconds": round(peer, 4),
               "speedup": round(peer / time, 2), "peer_onednn_seconds": round(onednn, 4),
               "speedup_onednn": round(onednn / time, 2), "times_real_time": round(seconds / time)}  # fmt: skip
    (peer, _), (time, _) = medians([step(model, features, lengths), step(quantized, features, lengths)], args.repeats)
    yield {**same, "what": "training step", "seconds": round(time, 4), "peer_seconds": round(peer, 4),
           "times_float": round(time / peer, 2)}  # fmt: skip


def main() -> None:
    """Print one JSON line for each size and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--bits", type=int, default=4, help="of the weights")
    parser.add_argument("--a-bits", type=int, default=8, help="of the activations")
    parser.add_argument("--utterances", type=int, default=10, help="in the batch")
    parser.add_argument("--frames", type=int, default=800, help="of an utterance, 100 a second")
    parser.add_argument("--repeats", type=int, default=5, help="measurements, of which the median counts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({"machine": platform.machine(), "torch": torch.__version__}), flush=True)
    for size in args.sizes:
        for line in measure(size, args):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
