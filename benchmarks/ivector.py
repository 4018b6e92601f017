"""Speed of online i-vectors on one core, and what selecting Gaussians changes; one JSON line for each size.

The peer is the model as it is written, without selection: every frame counts for every Gaussian, in dense products of
the same library. Both take the same features, of a recipe's folder, in turns; the median of each counts. The extractor
is trained on them for one iteration: the time depends on its size alone. `difference`: of the i-vectors, as part of
their length; `counts_kept`: what selected Gaussians have of all counts.

    python benchmarks/ivector.py exp --set test --utts 60
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from timing import medians
from torch import Tensor

from mpq.am.ivector import IvectorConfig, IvectorExtractor, TotalVariability, train_extractor
from mpq.data.batches import IVECTOR_PERIOD, FeatureSet

SIZES = [(512, 100), (2048, 100)]  # of Kaldi's online i-vectors, and of its speaker recognition


def dense(extractor: IvectorExtractor, model: TotalVariability, features: Tensor) -> Tensor:
    """The peer: i-vectors `(P, R)` of an utterance."""
    frames = extractor.project(features)
    gaussians, counts = extractor.posteriors(frames)
    posteriors = torch.zeros(len(frames), len(model.means), dtype=frames.dtype).scatter_(1, gaussians, counts)
    linear = torch.einsum("tg,gdr,td->tr", posteriors, model.projections, frames)
    linear = linear - posteriors @ torch.einsum("gdr,gd->gr", model.projections, model.means)
    count, linear = posteriors.cumsum(0)[::IVECTOR_PERIOD], linear.cumsum(0)[::IVECTOR_PERIOD]
    factor = (extractor.config.max_count / count.sum(1, keepdim=True)).clamp(max=1.0)
    return model.posterior(count * factor, linear * factor)[0]


def main() -> None:
    """Print one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exp", type=Path, help="a recipe's folder with features")
    parser.add_argument("--set", default="test")
    parser.add_argument("--utts", type=int, default=40, help="utterances, for training and for extraction")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = FeatureSet(args.exp / "features" / args.set / "cuts.jsonl.gz", normalization="none")
    utterances = [torch.from_numpy(data.load(index)) for index in range(min(args.utts, len(data)))]
    n_frames = sum(map(len, utterances))
    for gaussians, dim in SIZES:
        config = IvectorConfig(feature_dim=data.n_features, gaussians=gaussians, dim=dim)
        ours = train_extractor(utterances, config, 1)[0].prepare()
        whole = IvectorExtractor(replace(config, num_gselect=gaussians, min_post=0.0))
        whole.load_state_dict(ours.state_dict())

        def extract(ours: IvectorExtractor = ours) -> Tensor:
            return torch.cat([ours.extract(features)[0] for features in utterances])

        def peer(whole: IvectorExtractor = whole) -> Tensor:
            return torch.cat([dense(whole, whole.model, features) for features in utterances])

        (seconds, found), (peer_seconds, expected) = medians([extract, peer], args.repeats)
        line = {
            "benchmark": "ivector",
            "gaussians": gaussians,
            "dim": dim,
            "audio_seconds": round(n_frames / 100),
            "times_real_time": round(n_frames / 100 / seconds),
            "peer_times_real_time": round(n_frames / 100 / peer_seconds),
            "speedup": round(peer_seconds / seconds, 1),
            "difference": round(float((found - expected).norm() / expected.norm()), 3),
            "counts_kept": round(kept(ours, whole, utterances[0]), 3),
        }
        print(json.dumps(line), flush=True)


def kept(ours: IvectorExtractor, whole: IvectorExtractor, features: Tensor) -> float:
    """Part of the counts without selection that is of Gaussians that are selected."""
    frames = whole.project(features)
    gaussians, counts = whole.posteriors(frames)
    selected, with_selection = ours.posteriors(frames)
    dense = torch.zeros(len(frames), counts.shape[1], dtype=counts.dtype).scatter_(1, gaussians, counts)
    return float(dense.gather(1, selected)[with_selection > 0].sum() / counts.sum())


if __name__ == "__main__":
    main()
