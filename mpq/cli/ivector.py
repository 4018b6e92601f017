"""Train an i-vector extractor, or extract online i-vectors, which tell acoustic models about speaker and channel.

Reads   features of `mpq features` (--features), or those of all parts of a folder (--data); to extract also an
        extractor (--extractor).
Writes  train: the extractor, a model file (--out FILE); extract: OUT/cuts.jsonl.gz, the same cuts with i-vectors, one
        every 10 frames, and OUT/ivectors.lca, their storage. `mpq train-am` and `mpq decode` take the manifest.
        With --data, OUT/train and so on, where --history is of train only.

An i-vector knows what was heard of the speaker so far, in --history utterances at most (0: all of them, in the order
of the manifest). Training features want --history 2, as Kaldi does it, so that the model meets poor estimates too.

Examples:
  mpq ivector train --features exp/features/train/cuts.jsonl.gz --out exp/ivector.mpq --dim 100 --gaussians 512
  mpq ivector extract --extractor exp/ivector.mpq --features exp/features/train/cuts.jsonl.gz --history 2 \\
    --out exp/ivectors/train
  mpq ivector extract --extractor exp/ivector.mpq --data exp/features --history 2 --out exp/ivectors --nj 2
"""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from mpq.cli._options import make_config


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq ivector``."""
    from mpq.am.ivector import IvectorConfig

    parser.add_argument("action", type=Literal["train", "extract"], help="train or extract")
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--features", type=str, metavar="MANIFEST", help="cuts with features")
    parser.add_argument("--data", type=str, metavar="DIR", help="extract: folder with {train,dev,...}/cuts.jsonl.gz")
    parser.add_argument("--out", type=str, required=True, metavar="PATH", help="extractor, or folder, to write")
    parser.add_argument("--extractor", type=str, metavar="FILE", help="extract: what train wrote")
    parser.add_argument("--history", type=int, default=0, help="extract: utterances that share a history; 0: all")
    parser.add_argument("--nj", type=int, default=2, help="extract: number of processes")
    parser.add_argument("--iterations", type=int, default=10, help="train: of EM")
    parser.add_argument("--max-utts", type=int, default=10000, help="train: utterances that are used, drawn by --seed")
    parser.add_argument("--seed", type=int, default=1, help="train: seed")
    parser.add_class_arguments(IvectorConfig)


def run(args: Namespace) -> None:
    """Runs ``mpq ivector``."""
    from pathlib import Path

    from mpq.io import SEEDS, BadInput, check_range, check_writable

    for name, interval in (("nj", "[1, 1e6]"), ("iterations", "[1, 1e6]"), ("max_utts", "[1, inf)")):
        check_range(f"--{name.replace('_', '-')}", args[name], interval)
    check_range("--history", args.history, "[0, inf)")
    check_range("--seed", args.seed, SEEDS)
    if (args.extractor is None) == (args.action == "extract"):
        raise BadInput(f"--extractor: {args.extractor}; expected an extractor with 'extract', and none with 'train'")
    if (args.features is None) == (args.data is None) or (args.action == "train" and args.data):
        raise BadInput("give --features (one manifest), or with 'extract' --data (a folder of mpq features)")
    out = Path(args.out)
    check_writable(out if args.action == "train" else out / "cuts.jsonl.gz", [args.features, args.extractor])
    print(f"ivector {args.action}: {_train(args) if args.action == 'train' else _extract(args)}: {args.out}")


def _train(args: Namespace) -> str:
    """Trains and saves an extractor; what was done."""
    import numpy as np
    import torch

    from mpq.am.ivector import IvectorConfig, save_extractor, train_extractor
    from mpq.data.batches import FeatureSet

    features = FeatureSet(args.features, normalization="none")
    config = make_config(IvectorConfig, args)
    chosen = np.random.default_rng(args.seed).permutation(len(features))[: args.max_utts]
    utterances = [torch.from_numpy(features.load(int(index))) for index in chosen]
    extractor, likelihoods = train_extractor(utterances, config, args.iterations, args.seed)
    save_extractor(args.out, extractor)
    return (
        f"dimension {config.dim}, {config.gaussians} Gaussians, {len(utterances)} utterances, "
        f"log-likelihood of a frame {likelihoods[0]:.2f} to {likelihoods[-1]:.2f}"
    )


def _extract(args: Namespace) -> str:
    """Extracts i-vectors of one set or of all; what was done."""
    from pathlib import Path

    from mpq.am.ivector import load_extractor
    from mpq.am.ivector_set import extract_set
    from mpq.data.batches import FeatureSet
    from mpq.data.manifests import find_parts

    extractor = load_extractor(args.extractor)
    out = Path(args.out)
    parts = [(args.features, out, args.history, "")]
    if args.data is not None:
        found = [(path, path.parent.name) for path in find_parts(Path(args.data))]
        parts = [(path, out / name, args.history if name == "train" else 0, f"{name} ") for path, name in found]
    said = []
    for path, folder, history, name in parts:
        features = FeatureSet(path, normalization="none")
        n_histories = extract_set(extractor, features, folder, history, args.nj)
        said.append(f"{name}{len(features)} utterances in {n_histories} histories")
    return f"{'; '.join(said)}, dimension {extractor.config.dim}"
