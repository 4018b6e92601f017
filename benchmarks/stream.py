"""Peak memory of language-model training against the size of its text; JSON lines.

Every line is a process of its own that tokenizes a text, reads one epoch of it in shuffled batches and trains on the
first 50 of them, as `mpq train-lm` does. The peer is the smallest text: memory must not grow with it.

    python benchmarks/stream.py                   # 300,000 sentences, and 10 times as many
    python benchmarks/stream.py --times 1 3 10 30
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mpq.data.lmtext import Tokenizer, open_lm_text
from mpq.lm import LmConfig, build_lm

MB = 1 << 20
N_WORDS, STEPS = 1000, 50


def write_text(path: Path, n_sentences: int) -> None:
    """Random sentences of 1 to 15 words, which follow Zipf's law."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(n_sentences // 1000):
            ids = np.minimum(rng.zipf(1.3, 15_000), N_WORDS) - 1
            words = iter([f"w{i}" for i in ids.tolist()])
            lengths = rng.integers(1, 16, 1000).tolist()
            file.writelines(" ".join(next(words) for _ in range(n)) + "\n" for n in lengths)


def measure(text: Path, units: Path) -> dict[str, float]:
    """Times and the peak of this process."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer(units)
    begin = time.perf_counter()
    source = open_lm_text(text, tokenizer, text.parent / "cache")
    tokenized = time.perf_counter() - begin
    model = build_lm(LmConfig("lstm", dim=64), len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters())
    expected, n_batches = source.n_batches(1024), 0
    for batch in source.batches(1024, seed=0, epoch=0):
        if n_batches < STEPS:
            optimizer.zero_grad()
            F.cross_entropy(model(batch.inputs, batch.mask), batch.targets[batch.mask]).backward()
            optimizer.step()
        n_batches += 1
    if n_batches != expected:
        raise RuntimeError(f"{n_batches} batches, expected {expected}")
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return {
        "sentences": source.n_sentences,
        "units": source.n_units,
        "text_mb": round(text.stat().st_size / MB, 1),
        "batches": n_batches,
        "peak_mb": round(peak / 1024, 1),
        "tokenize_seconds": round(tokenized, 1),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    """Print one JSON line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=300_000, help="of the smallest text (a window is 131,072)")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10], help="sizes, in smallest texts")
    parser.add_argument("--measure", nargs=2, metavar=("TEXT", "WORDS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*map(Path, args.measure))))
        return
    print(json.dumps({"machine": platform.machine(), "torch": torch.__version__}), flush=True)
    peer = 0.0
    for times in args.times:
        with tempfile.TemporaryDirectory() as folder:
            text, units = Path(folder) / "text.txt", Path(folder) / "words.txt"
            units.write_text("".join(f"w{i}\n" for i in range(N_WORDS)))
            write_text(text, times * args.sentences)
            command = [sys.executable, __file__, "--measure", str(text), str(units)]
            sizes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peer = peer or sizes["peak_mb"]
        line = {"benchmark": "stream", "times": times, **sizes, "peak_over_smallest": round(sizes["peak_mb"] / peer, 3)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
