"""Online i-vectors of a whole set of features, in parallel, stored with lhotse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lhotse import LilcomChunkyWriter
from lhotse.utils import fastcopy
from numpy.typing import NDArray

from mpq.am.ivector import History, IvectorExtractor, check_bins
from mpq.data.batches import FeatureSet
from mpq.data.features import load_feature_cuts
from mpq.data.manifests import save_manifest
from mpq.data.parallel import map_processes
from mpq.io import PathLike, atomic_path, progress

_ACCURACY = -8  # i-vectors, whose components are about 1, are stored as multiples of 2 to this power


@dataclass(frozen=True)
class _Job:
    """What every process needs; set before processes are forked."""

    extractor: IvectorExtractor
    features: FeatureSet


_jobs: list[_Job] = []


def histories(speakers: Sequence[str], most: int) -> list[list[int]]:
    """Numbers of the utterances that share a history: those of a speaker, `most` at a time (0: all), in their order."""
    by_speaker: dict[str, list[int]] = {}
    for index, speaker in enumerate(speakers):
        by_speaker.setdefault(speaker, []).append(index)
    return [
        indexes[begin : begin + (most or len(indexes))]
        for indexes in by_speaker.values()
        for begin in range(0, len(indexes), most or len(indexes))
    ]


def extract_set(extractor: IvectorExtractor, features: FeatureSet, out: PathLike, most: int, nj: int) -> int:
    """Writes ``out/cuts.jsonl.gz``, the cuts of a set with i-vectors, and ``out/ivectors.lca``, which it refers to.

    Args:
        extractor: a trained one.
        features: the set, not normalized.
        out: folder of the result.
        most: utterances of a speaker that share a history, in the order of the manifest; 0: all.
        nj: number of processes; it does not change the result.

    Returns:
        The number of histories.

    Raises:
        BadInput: features of another number of bins than the extractor's.
    """
    check_bins(extractor.config, features.n_features, features.path)
    groups = histories(features.speakers, most)
    cuts = list(load_feature_cuts(features.path))
    storage = Path(out, "ivectors.lca").resolve()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the processes are the parallelism, and sums keep their order
    _jobs[:] = [_Job(extractor.prepare(), features)]
    try:
        made = progress(map_processes(_extract_group, groups, nj), len(groups), "i-vectors (speakers)")
        with atomic_path(storage) as temporary, LilcomChunkyWriter(temporary, tick_power=_ACCURACY) as writer:
            for group, ivectors in zip(groups, made, strict=True):
                for index, values in zip(group, ivectors, strict=True):
                    stored = fastcopy(writer.store_array(cuts[index].id, values), storage_path=str(storage))
                    cuts[index] = cuts[index].with_custom("ivectors", stored)
    finally:
        _jobs.clear()
        torch.set_num_threads(threads)
    save_manifest(Path(out, "cuts.jsonl.gz"), cuts)
    return len(groups)


def _extract_group(indexes: Sequence[int]) -> list[NDArray[np.float32]]:
    """I-vectors `(P, R)` of the utterances of one history."""
    (job,) = _jobs
    history: History | None = None
    ivectors = []
    for index in indexes:
        values, history = job.extractor.extract(torch.from_numpy(job.features.load(index)), history)
        ivectors.append(values.float().numpy())
    return ivectors
