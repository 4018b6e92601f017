"""Time and memory of LF-MMI's loss and gradient against k2's; JSON lines.

The peer is k2 1.23.4, `intersect_dense` without a beam and its gradient, of `.venv-k2` (utils/k2_env.sh makes it). The
two have a process each, one thread, the same graphs and the same batch of the acoustic model's output, and take turns:
`seconds` is the median CPU time of a turn, `peak_mb` what resident memory grows by, at most, in the first one. Batch
and transcripts are of a trained recipe. The denominators are phone n-gram models, of the order that `graph` says, of as
many of the training transcripts as `texts`; k2 holds every arc of every frame, so the larger have fewer utterances.

    python benchmarks/lfmmi.py --exp egs/mini/exp
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resident import begin_maximum, status

ROOT = Path(__file__).resolve().parents[1]
MB = 1 << 20
CASES = [(2, None, None), (3, None, 4), (4, 300, 2)]  # order, texts and utterances (None: all)
Sums = Callable[[torch.Tensor, torch.Tensor, Any], Any]  # totals and posteriors of frames, lengths and graphs


def take_turns(backend: str, path: str) -> None:
    """A process of one back end: a turn for each line of standard input; runs under Python 3.9 too."""
    torch.set_num_threads(1)
    data = np.load(path)
    frames, lengths = torch.from_numpy(data["log_probs"]), torch.from_numpy(data["lengths"])
    numerators = torch.split(torch.from_numpy(data["numerators"]), data["sizes"].tolist())
    denominator = torch.from_numpy(data["denominator"])
    sums, numerators, denominator = (
        native(numerators, denominator) if backend == "native" else k2(numerators, denominator)
    )
    before = begin_maximum()
    for _ in sys.stdin:
        begin = time.process_time()
        num, num_posteriors = sums(frames, lengths, numerators)
        den, den_posteriors = sums(frames, lengths, denominator)
        loss, grad = den - num, den_posteriors - num_posteriors
        seconds = time.process_time() - begin
        np.savez(f"{path}.{backend}.npz", loss=loss, grad=grad)
        print(json.dumps({"seconds": seconds, "peak": status("VmHWM") - before}), flush=True)


def k2(numerators: Any, denominator: Any) -> tuple[Sums, Any, Any]:
    """k2's path sums, and the graphs in its form."""
    from mpq.fst.k2 import path_sums

    return path_sums, numerators, [denominator]


def native(numerators: Any, denominator: Any) -> tuple[Sums, Any, Any]:
    """Our path sums, and the graphs in our form."""
    from mpq.fst.fsa import Fsa
    from mpq.fst.lfmmi import native_path_sums

    def graph(arcs: torch.Tensor) -> Fsa:
        src, dst, label, bits = arcs.numpy().astype(np.int64).T
        score = bits.astype(np.int32).view(np.float32).astype(np.float64)
        ends = label < 0
        final = np.full(int(dst.max()), -np.inf)  # the last state is where k2's paths end
        final[src[ends]] = score[ends]
        return Fsa(src[~ends], dst[~ends], label[~ends], score[~ends], final)

    return native_path_sums, [graph(arcs) for arcs in numerators], graph(denominator)


def write_cases(exp: Path, folder: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """A file and a description of each case."""
    from mpq.am import load_am
    from mpq.am.model import run_batch
    from mpq.data.batches import FeatureSet, batches
    from mpq.fst.backend import k2_arcs
    from mpq.fst.fsa import ctc_graph, pronunciation_graph
    from mpq.fst.phone_lm import PhoneLmConfig, apply_phone_ngram
    from mpq.fst.units import read_units
    from mpq.lang.lexicon import read_lexicon
    from mpq.train.graphs import phone_model

    lexicon = read_lexicon(exp / "lang")
    units = read_units(exp / "lang", lexicon.phones)
    train = FeatureSet(exp / "features/train/cuts.jsonl.gz")
    batch = next(iter(batches(train, 0, 0, max_frames=10000, shuffle=True, one_copy=True)))
    with torch.inference_mode():
        log_probs, lengths = run_batch(load_am(exp / "am", units.names), batch)
    for order, n_texts, n_utts in CASES:
        # the batch's own transcripts first: their numerators must be part of the denominator
        size = PhoneLmConfig(phone_order=order, phone_histories=0)
        lm = phone_model([*batch.texts, *train.texts][:n_texts], lexicon, size)
        denominator = ctc_graph(units.expand(lm.fsa))
        numerators = []
        for text in batch.texts[:n_utts]:
            phones = pronunciation_graph([lexicon.pronunciations(word) for word in text.split()])
            numerators.append(k2_arcs(ctc_graph(units.expand(apply_phone_ngram(phones, lm)))))
        frames, counts = log_probs[:n_utts].numpy(), lengths[:n_utts].numpy()
        path = folder / f"{order}.npz"
        np.savez(path, log_probs=frames, lengths=counts, denominator=k2_arcs(denominator),
                 numerators=np.concatenate(numerators), sizes=[len(arcs) for arcs in numerators])  # fmt: skip
        yield path, {
            "graph": f"{order}-gram", "texts": n_texts or len(train.texts), "states": len(denominator.final),
            "arcs": len(denominator.src), "utts": len(frames), "frames": int(counts.sum()),
        }  # fmt: skip


def measure(path: Path, turns: int) -> dict[str, object]:
    """Median times, peaks and differences of the two back ends on one file."""
    pythons = {"native": sys.executable, "k2": str(ROOT / ".venv-k2" / "bin" / "python")}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = {
        name: subprocess.Popen([python, __file__, "--take-turns", name, str(path)], env=env, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name, python in pythons.items()
    }  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for _ in range(turns + 1):
        for name, worker in workers.items():
            worker.stdin.write("\n")
            worker.stdin.flush()
            found[name].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    (ours, theirs), (peak, k2_peak) = (
        [statistics.median(turn["seconds"] for turn in found[name][1:]) for name in workers],
        [found[name][0]["peak"] / MB for name in workers],
    )
    values = [np.load(f"{path}.{name}.npz") for name in workers]
    loss, grad = ([value[name] for value in values] for name in ("loss", "grad"))
    return {
        "seconds": round(ours, 4), "k2_seconds": round(theirs, 4), "speedup": round(theirs / ours, 1),
        "peak_mb": round(peak, 1), "k2_peak_mb": round(k2_peak, 1), "memory_ratio": round(k2_peak / peak, 1),
        "relative_difference": float(np.abs((loss[0] - loss[1]) / loss[1]).max()),
        "gradient_difference": float(np.abs(grad[0] - grad[1]).max()),
    }  # fmt: skip


def main() -> None:
    """Print one JSON line for each denominator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", type=Path, help="a recipe's folder: features, lang and am")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each, after one that fills caches")
    parser.add_argument("--take-turns", nargs=2, metavar=("BACKEND", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.take_turns:
        take_turns(*args.take_turns)
        return
    if not args.exp:
        parser.error("--exp is required")
    print(
        json.dumps({"machine": platform.machine(), "torch": torch.__version__, "k2": "1.23.4", "threads": 1}),
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for path, described in write_cases(args.exp, Path(folder)):
            print(json.dumps({"benchmark": "lfmmi", **described, **measure(path, args.turns)}), flush=True)


if __name__ == "__main__":
    main()
