"""Compute log-mel features of a cut manifest, with copies at other speeds.

Reads   a lhotse manifest of cuts (one supervision each) and the audio it names.
Writes  OUT/cuts.jsonl.gz, the same cuts (and their sped-up copies) with features, and OUT/shards with the
storage. A killed run continues where it stopped; the result does not depend on --nj.

Example:
  mpq features --cuts exp/data/train/cuts.jsonl.gz --out exp/features/train --speed 0.9,1.0,1.1 --nj 2
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq features``."""
    parser.add_argument("--cuts", type=str, required=True, metavar="MANIFEST", help="cuts.jsonl.gz to read")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--speed", type=str, default="1.0", help="speed factors, separated by commas")
    parser.add_argument("--n-mels", type=int, default=80, help="number of mel filters")
    parser.add_argument("--nj", type=int, default=2, help="number of processes")


def run(args: Namespace) -> None:
    """Runs ``mpq features``."""
    from mpq.data.features import FeatureConfig, extract, load_feature_cuts, parse_speeds
    from mpq.io import BadInput

    for name in ("nj", "n_mels"):
        if args[name] < 1:
            raise BadInput(f"--{name.replace('_', '-')} {args[name]}: expected a number above 0")
    config = FeatureConfig(n_mels=args.n_mels, speeds=parse_speeds(args.speed))
    target = extract(args.cuts, Path(args.out), config, args.nj)
    cuts = load_feature_cuts(target)
    hours = sum(cut.duration for cut in cuts) / 3600
    print(f"features: {len(cuts)} utterances, {hours:.2f} h, {args.n_mels} mel filters: {target}")
