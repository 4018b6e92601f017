"""Compute log-mel features of a corpus, or refer to its waveforms, with copies at other speeds.

Reads   a lhotse manifest of cuts, one supervision each (--cuts), or those of all parts (train, dev, test, ...) of a
        folder that `mpq prepare` wrote (--data), and the audio files they name, of any sampling rate.
Writes  OUT/cuts.jsonl.gz, the same cuts (and their copies at other speeds) with features, and OUT/shards with
        the storage; with --data, OUT/train and so on, where only train has copies at other speeds.
        With --type waveform, which wav2vec 2.0 and HuBERT read, the manifest refers to the audio files, of 16 kHz, and
        nothing else is stored: a frame of 10 ms is its 160 samples, and copies are resampled when they are read.
        With --pack, OUT/shar instead of OUT/shards: a Shar folder (lhotse), a few large tar files with all that
        training needs; --shar makes OUT/cuts.jsonl.gz of such a folder, which may come from another machine.
A killed run continues where it stopped; the result does not depend on --nj, and training not on --pack.

Examples:
  mpq features --cuts exp/data/train/cuts.jsonl.gz --out exp/features/train --speed 0.9,1.0,1.1 --nj 2
  mpq features --data exp/data --out exp/features --speed 0.9,1.0,1.1 --nj 2
  mpq features --shar /mnt/train/shar --out exp/features/train
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from mpq.io import BadInput, check_range, check_writable


def parse_speeds(text: str) -> tuple[float, ...]:
    """Reads ``0.9,1.0,1.1``.

    Raises:
        BadInput: not numbers, outside 0.5 to 2, or one given twice.
    """
    try:
        speeds = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise BadInput(f"--speed {text}: expected numbers separated by commas, like 0.9,1.0,1.1") from None
    if not all(0.5 <= speed <= 2 for speed in speeds) or len(set(speeds)) < len(speeds):
        raise BadInput(f"--speed {text}: expected different factors between 0.5 and 2, like 0.9,1.0,1.1")
    return speeds


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq features``."""
    parser.add_argument("--cuts", type=str, metavar="MANIFEST", help="cuts.jsonl.gz to read")
    parser.add_argument("--data", type=str, metavar="DIR", help="folder with {train,dev,...}/cuts.jsonl.gz")
    parser.add_argument("--shar", type=str, metavar="DIR", help="Shar folder of features, made by --pack")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--pack", action="store_true", help="pack features into a Shar folder")
    parser.add_argument("--type", type=Literal["fbank", "waveform"], default="fbank", help="what a model reads")
    parser.add_argument("--speed", type=str, default="1.0", help="speed factors, separated by commas")
    parser.add_argument("--n-mels", type=int, default=80, help="number of mel filters of --type fbank")
    parser.add_argument("--nj", type=int, default=2, help="number of processes")


def run(args: Namespace) -> None:
    """Runs ``mpq features``."""
    check_range("--nj", args.nj, "[1, inf)")
    if sum(source is not None for source in (args.cuts, args.data, args.shar)) != 1:
        raise BadInput("give either --cuts (one manifest), --data (a folder of `mpq prepare`) or --shar")
    out, speeds = Path(args.out), parse_speeds(args.speed)
    check_writable(out / "cuts.jsonl.gz")
    from mpq.data.features import FeatureConfig, extract
    from mpq.data.manifests import find_parts
    from mpq.data.shar import index_shar, pack_features
    from mpq.data.waveform import refer_to_audio

    if args.shar is not None:
        print(f"features: {index_shar(args.shar, out / 'cuts.jsonl.gz')}: {out}")
        return
    # manifest, folder, speeds, and what it is called
    parts = [(args.cuts, out, speeds, "")]
    if args.data is not None:
        found = [(path, path.parent.name) for path in find_parts(Path(args.data))]
        parts = [(path, out / name, speeds if name == "train" else (1.0,), f"{name} ") for path, name in found]
    said = []
    for path, folder, use, name in parts:
        if args.type == "waveform":
            what = refer_to_audio(path, folder, use, args.nj)
        else:
            what = extract(path, folder, FeatureConfig(n_mels=args.n_mels, speeds=use), args.nj)
        said.append(f"{name}{what}" + (f", packed: {pack_features(folder)}" if args.pack else ""))
    print(f"features: {'; '.join(said)}: {out}")
