"""Resident memory of a language model of 2 bits against float32; JSON lines.

Every line is a process of its own that loads a model file as `mpq rescore` does and then scores 20 sentences:
`resident_mb` is what its resident memory has grown by after loading, over the same process with everything imported but
no model; `scoring_mb` the most it has grown by while it scored; `tensors_mb` what weights, scales and biases take. The
float32 model is the peer. Weights are random.

    python benchmarks/memory.py                   # LSTM and Transformer of the papers' size, 30,000 words
    python benchmarks/memory.py --bits 4 --words 10000
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from resident import begin_maximum, status

from mpq.data.lmtext import Tokenizer
from mpq.lm import LmConfig, build_lm, load_lm, save_lm
from mpq.quant import quantize_model, uniform_plan
from mpq.rescore.forest import prefix_forest
from mpq.rescore.tree import score_edges

MB = 1 << 20
CONFIGS = [
    LmConfig("lstm", dim=1024, layers=2),
    LmConfig("transformer", dim=512, layers=6, heads=8, dim_ff=4096),
]


def settle() -> int:
    """Resident memory once what is free has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def measure(path: Path, packed: bool) -> dict[str, float]:
    """What this process grows by when it loads and runs a model."""
    torch.set_num_threads(1)
    torch.randn(8, 8) @ torch.randn(8, 8)  # libraries that load at first use
    before = settle()
    lm = load_lm(path, packed=packed)
    resident = settle() - before
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in lm.model.state_dict().values()}
    hyps = [torch.randint(3, len(lm.tokenizer), (20,)).tolist() for _ in range(20)]
    begin_maximum()
    score_edges(lm.model, prefix_forest([hyps], lm.tokenizer.eos, [[lm.tokenizer.bos]])[0])
    scoring = status("VmHWM") - before
    sizes = {"tensors_mb": sum(tensors.values()), "resident_mb": resident, "scoring_mb": scoring}
    return {name: round(size / MB, 1) for name, size in sizes.items()}


def write_models(config: LmConfig, args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """(precision, file, whether to keep it packed) of each way to hold the model; the peer first."""
    (folder / "words.txt").write_text("".join(f"w{i}\n" for i in range(args.words - 3)))
    tokenizer = Tokenizer(folder / "words.txt")
    torch.manual_seed(0)
    model = build_lm(config, args.words)
    plan = uniform_plan(model, args.bits)
    save_lm(folder / "float.mpq", model, tokenizer)
    save_lm(folder / "low.mpq", quantize_model(model, plan), tokenizer, plan)
    yield "float32", folder / "float.mpq", False
    yield f"{args.bits} bits, int8 in memory", folder / "low.mpq", False
    yield f"{args.bits} bits, packed in memory", folder / "low.mpq", True


def main() -> None:
    """Print one JSON line for each model and way to hold it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--words", type=int, default=30_000)
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "PACKED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), args.measure[1] == "True")))
        return
    print(json.dumps({"machine": platform.machine(), "torch": torch.__version__}), flush=True)
    for config in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            peer: dict[str, float] = {}
            for held, path, packed in write_models(config, args, Path(folder)):
                command = [sys.executable, __file__, "--measure", str(path), str(packed)]
                sizes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                peer = peer or sizes
                ratios = {name.replace("_mb", "_ratio"): round(peer[name] / size, 1) for name, size in sizes.items()}
                line = {"benchmark": "memory", "arch": config.arch, "held": held, **sizes, **ratios}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
