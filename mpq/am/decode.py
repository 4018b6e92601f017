"""Decode a data set: acoustic model, graph search, n-best lists and lattices, in parallel and resumable.

Utterances are cut into parts of a fixed size, whatever the number of processes; each part is written when it is
done, and a killed run continues at the first part that is missing. Each process runs the acoustic model on its own
parts; where the model is on a GPU, this process runs it, on some parts for each process, which then search.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import kaldialign
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpq.am.model import run_batch
from mpq.data.batches import FRAME_SHIFT, FeatureSet
from mpq.data.parallel import map_processes
from mpq.fst.decoder import Decoder
from mpq.io import (
    Lattice,
    NBest,
    hash_config,
    progress,
    read_jsonl,
    read_lattices,
    read_nbest,
    split_words,
    write_jsonl,
    write_lattices,
    write_nbest,
    write_text,
    write_yaml,
)

SPEED = "speed.yaml"
PART = 40  # utterances that a process decodes at a time
_MAX_FRAMES = 12_000  # padded frames of a batch of the acoustic model
_PORTION = 4  # parts for each process, at most, that a GPU scores before they are searched
_HELD = 1 << 30  # bytes of scores, after which it scores no more than a part for each


@dataclass(frozen=True)
class DecodeSummary:
    """What was decoded: counts, word errors (best and oracle of the n-best lists), and how long the model took.

    Attributes:
        am_seconds: processor time of the acoustic model alone; on a GPU the time until its outputs were there.
        audio_seconds: length of the speech.
    """

    utts: int
    words: int
    errors: int
    oracle_errors: int
    hyps: int
    warnings: int
    am_seconds: float
    audio_seconds: float

    @property
    def am_rtf(self) -> float:
        """Real time factor of the acoustic model: its time over that of the speech."""
        return self.am_seconds / max(self.audio_seconds, FRAME_SHIFT)

    def __str__(self) -> str:
        wer, oracle = (100 * n / max(1, self.words) for n in (self.errors, self.oracle_errors))
        errors = f"WER {wer:.2f}, oracle {oracle:.2f}" if self.words else "no transcripts"
        return (
            f"{self.utts} utterances, {self.hyps / max(1, self.utts):.0f} hypotheses each, {errors}, "
            f"{self.warnings} warnings, acoustic model {self.am_rtf:.3g} of real time"
        )


class Stopwatch:
    """Adds up the time of what runs inside `with`.

    Args:
        on_gpu: the clock on the wall; else the processor time of this process, which waiting for other programs on the
            machine does not count to.
    """

    def __init__(self, on_gpu: bool) -> None:
        self._clock = time.perf_counter if on_gpu else time.process_time
        self.seconds = 0.0

    def __enter__(self) -> None:
        self.seconds -= self._clock()

    def __exit__(self, *_: object) -> None:
        self.seconds += self._clock()


Scores = Iterator[tuple[str, NDArray[np.float32]]]
"""Utterances and their log-probabilities `(T', C)`."""


@dataclass(frozen=True)
class _Job:
    """What every process needs; set before processes are forked, since graphs cannot be pickled.

    Attributes:
        scored: of parts that a GPU has scored: what `score_frames` gave, and the seconds that it took.
    """

    model: nn.Module
    lhuc: Mapping[str, Tensor] | None
    features: FeatureSet
    decoder: Decoder
    folder: Path
    scored: dict[int, tuple[list[tuple[str, NDArray[np.float32]]], float]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the model is on a GPU, which forked processes cannot use."""
        return next(self.model.parameters()).is_cuda

    def scores(self, begin: int, watch: Stopwatch) -> Scores:
        """Scores of the utterances of a part."""
        if begin in self.scored:
            scores, watch.seconds = self.scored[begin]
            return iter(scores)
        indexes = range(begin, min(begin + PART, len(self.features)))
        return score_frames(self.model, self.features, indexes, self.lhuc, watch)

    def score(self, begins: Sequence[int], nj: int) -> int:
        """Scores the first parts in this process, and forgets others; how many: a few for each of `nj` processes."""
        self.scored.clear()
        held = 0
        for begin in begins[: _PORTION * nj]:
            watch = Stopwatch(self.on_gpu)
            scores = list(self.scores(begin, watch))
            self.scored[begin] = scores, watch.seconds
            held += sum(frames.nbytes for _, frames in scores)
            if held > _HELD and len(self.scored) >= nj:
                break
        return len(self.scored)


_jobs: list[_Job] = []


def decode_set(
    model: nn.Module,
    features: FeatureSet,
    decoder: Decoder,
    out: Path,
    key: object,
    nj: int,
    lhuc: Mapping[str, Tensor] | None = None,
) -> DecodeSummary:
    """Decode all utterances of a manifest.

    Args:
        model: ``forward(features (N, T, F), lengths (N,)) -> (log-probabilities (N, T', C), lengths (N,))``.
        features: what to decode; its texts are the references.
        decoder: the search.
        out: folder for `nbest.jsonl.gz`, `lat.gz`, `hyp.txt`, `warnings.jsonl` and `speed.yaml`.
        key: everything that the result depends on; parts of a killed run with another key are not used.
        nj: number of processes; it does not change the result.
        lhuc: LHUC logits by speaker; None: the model is not adapted.
    """
    out.mkdir(parents=True, exist_ok=True)
    folder = out / f"parts-{hash_config(key)[:12]}"
    for old in out.glob("parts-*"):
        if old != folder:
            shutil.rmtree(old)
    folder.mkdir(exist_ok=True)
    numbers = range(0, len(features), PART)
    missing = [begin for begin in numbers if not _part(folder, begin, "speed").exists()]
    _jobs[:] = [job := _Job(model.eval(), lhuc, features, decoder, folder)]
    try:
        while missing:
            size = job.score(missing, nj) if job.on_gpu else len(missing)
            portion, missing = missing[:size], missing[size:]
            for _ in progress(map_processes(_decode_part, portion, nj), len(portion), "decode (parts)"):
                pass
    finally:
        _jobs.clear()
    summary = _merge(features, folder, list(numbers), out)
    shutil.rmtree(folder)
    return summary


def _part(folder: Path, begin: int, kind: str) -> Path:
    return folder / f"{begin:07d}.{kind}"


def _decode_part(begin: int) -> None:
    """Decode utterances ``begin`` to ``begin + PART - 1`` and write their files; the last one tells it is done."""
    (job,) = _jobs
    indexes = range(begin, min(begin + PART, len(job.features)))
    watch = Stopwatch(job.on_gpu)
    results = {utt: job.decoder.decode(utt, scores) for utt, scores in job.scores(begin, watch)}
    decoded = [results[job.features.utts[index]] for index in indexes]
    write_nbest(_part(job.folder, begin, "nbest.jsonl"), (result.nbest for result in decoded))
    write_lattices(_part(job.folder, begin, "lat"), [r.lattice for r in decoded if r.lattice is not None])
    problems = [{"utt": r.nbest.utt, "problem": r.problem} for r in decoded if r.problem]
    write_jsonl(_part(job.folder, begin, "problems"), problems)
    write_jsonl(_part(job.folder, begin, "speed"), [{"am_seconds": watch.seconds}])


def score_frames(
    model: nn.Module,
    features: FeatureSet,
    indexes: Sequence[int],
    lhuc: Mapping[str, Tensor] | None = None,
    watch: Stopwatch | None = None,
) -> Scores:
    """Log-probabilities `(T', C)` of utterances; those of similar lengths go through the acoustic model together.

    Args:
        model: as of `decode_set`.
        features: the set.
        indexes: of the utterances.
        lhuc: LHUC logits by speaker; None: the model is not adapted.
        watch: takes the model's time.
    """
    by_length = sorted(indexes, key=lambda index: (-features.lengths[index], index))
    while by_length:
        size = max(1, _MAX_FRAMES // max(1, int(features.lengths[by_length[0]])))
        batch = features.batch(by_length[:size])
        by_length = by_length[size:]
        with torch.inference_mode(), watch or nullcontext():
            outputs, lengths = run_batch(model, batch, lhuc)
            log_probs = outputs.float().cpu()
        for utt, scores, length in zip(batch.utts, log_probs, lengths.tolist(), strict=True):
            yield utt, scores[:length].numpy()


def _merge(features: FeatureSet, folder: Path, begins: Sequence[int], out: Path) -> DecodeSummary:
    """Join the parts in order, tell the warnings, and count errors against the texts of the manifest; and the time."""

    def nbests() -> Iterator[NBest]:
        for begin in begins:
            yield from read_nbest(_part(folder, begin, "nbest.jsonl"))

    def lattices() -> Iterator[Lattice]:
        for begin in begins:
            yield from read_lattices(_part(folder, begin, "lat"))

    problems = [row for begin in begins for _, row in read_jsonl(_part(folder, begin, "problems"))]
    for row in problems:
        print(f"warning: utterance {row['utt']}: {row['problem']}", file=sys.stderr)
    errors = oracle = n_words = n_hyps = 0
    best: dict[str, list[str]] = {}
    texts = features.texts if features.has_texts else [""] * len(features)
    for nbest, text in zip(nbests(), texts, strict=True):
        reference = split_words(text)
        counts = [kaldialign.edit_distance(reference, split_words(hyp.text))["total"] for hyp in nbest.hyps]
        errors, oracle = errors + counts[0], oracle + min(counts)
        n_words, n_hyps = n_words + len(reference), n_hyps + len(counts)
        best[nbest.utt] = split_words(nbest.hyps[0].text)
    write_lattices(out / "lat.gz", lattices())
    write_text(out / "hyp.txt", best)
    write_jsonl(out / "warnings.jsonl", problems)
    seconds = sum(row["am_seconds"] for begin in begins for _, row in read_jsonl(_part(folder, begin, "speed")))
    audio = FRAME_SHIFT * float(features.lengths.sum())
    write_yaml(out / SPEED, {"am_seconds": round(seconds, 3), "audio_seconds": round(audio, 2)})
    write_nbest(out / "nbest.jsonl.gz", nbests())
    return DecodeSummary(len(best), n_words, errors, oracle, n_hyps, len(problems), seconds, audio)
