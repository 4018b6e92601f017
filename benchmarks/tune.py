"""What smoothing the error surface is worth when weights are tuned: JSON lines.

Both ways tune on the same part of a recipe's rescored test lists, drawn anew each time, and are tried on the rest: the
project's (`mpq.rescore.tune`), and its peer, the point with the fewest errors of the same grid. Each line holds the
mean word error rates, their difference and its standard error over the draws.

    python benchmarks/tune.py --exp egs/mini/exp                # the float32 models; --systems lstm-2bit ... others
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from mpq.io import read_nbest, read_text
from mpq.rescore import Weights, tune
from mpq.rescore.tune import SHARES, TOTALS, WORD_BONUSES, ErrorSurface


def fewest_errors(surface: ErrorSurface) -> Weights:
    """The best point of the grid."""
    errors = surface.grid(SHARES, 1.0)
    s, t, b = np.unravel_index(errors.argmin(), errors.shape)
    return Weights(TOTALS[t] * (1 - SHARES[s]), TOTALS[t] * SHARES[s], WORD_BONUSES[b])


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", type=Path, required=True, help="a recipe's folder, after stage 9")
    parser.add_argument("--systems", nargs="+", default=["lstm", "transformer"], help="rescored systems of it")
    parser.add_argument("--utts", type=int, default=300, help="utterances to tune on")
    parser.add_argument("--draws", type=int, default=10)
    args = parser.parse_args()
    refs = read_text(args.exp / "data/test/text")
    for system in args.systems:
        nbests = list(read_nbest(args.exp / f"rescore/{system}/test.jsonl.gz"))
        rng = np.random.default_rng(0)
        rates: dict[str, list[float]] = {"smoothed": [], "fewest": []}
        for _ in range(args.draws):
            order = rng.permutation(len(nbests))
            ours, others = ([nbests[i] for i in part] for part in (order[: args.utts], order[args.utts :]))
            tune_refs, try_refs = ({n.utt: refs[n.utt] for n in part} for part in (ours, others))
            surface, words = ErrorSurface(others, try_refs), sum(map(len, try_refs.values()))
            rates["smoothed"].append(100 * surface.errors(tune(ours, tune_refs).weights) / words)
            rates["fewest"].append(100 * surface.errors(fewest_errors(ErrorSurface(ours, tune_refs))) / words)
        gain = [a - b for a, b in zip(rates["smoothed"], rates["fewest"], strict=True)]
        line = {"benchmark": "tune", "system": system, "utts": args.utts, "draws": args.draws}
        line |= {"wer": round(mean(rates["smoothed"]), 3), "peer_wer": round(mean(rates["fewest"]), 3)}
        line |= {"difference": round(mean(gain), 3), "standard_error": round(stdev(gain) / len(gain) ** 0.5, 3)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
