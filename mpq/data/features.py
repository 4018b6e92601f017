"""Log-mel filter banks with real speed perturbation, stored with lhotse; the same for any number of jobs.

The extractor is lhotse's ``Fbank`` in Kaldi's definition (kaldi-native-fbank differs by less than 1e-3),
without dither so that features are reproducible. The work is cut into shards of fixed size whose file names
hold a hash of the audio, the cuts and the settings: a shard that exists is complete and right, any other is
made anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet, Fbank, FbankConfig, LilcomChunkyWriter, MonoCut
from lhotse.audio.utils import AudioLoadingError, DurationMismatchError
from lhotse.utils import fastcopy

from mpq.data.audio import inspect_audio, raise_problems
from mpq.data.manifests import read_cuts, save_manifest
from mpq.data.parallel import map_processes
from mpq.data.tarred import TARRED as _TARRED  # noqa: F401 (registers how packed features are read)
from mpq.io import (
    BadInput,
    PathLike,
    atomic_path,
    check_range,
    hash_config,
    progress,
    read_jsonl,
    sha256_file,
    write_jsonl,
)

N_MELS = 80
SHARD = 100  # cuts a shard; fixed, so that files do not depend on the number of processes
_SHORTEST = 0.025  # seconds: one analysis window


@dataclass(frozen=True, slots=True)
class FeatureConfig:
    """What determines the features besides the audio.

    Attributes:
        n_mels: number of mel filters.
        low_freq: lower edge of the first filter in Hz.
        high_freq: upper edge of the last filter in Hz; below zero it counts from the Nyquist frequency.
        speeds: factors of speed perturbation; 1.0 is the recording itself.
    """

    n_mels: int = N_MELS
    low_freq: float = 20.0
    high_freq: float = -400.0
    speeds: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True)
class _Shard:
    """One unit of work: ``directory/{feats,cuts}-NNNN-HASH.*`` are made from `cuts`."""

    directory: Path
    number: int
    cuts: tuple[MonoCut, ...]
    config: FeatureConfig
    rate: int


def extract(cuts_path: PathLike, out: Path, config: FeatureConfig, nj: int = 1) -> str:
    """Computes the features of a cut manifest and writes ``out/cuts.jsonl.gz``, which refers to them.

    Args:
        cuts_path: manifest of cuts with one supervision each.
        out: folder of the result; the storage goes to ``out/shards``.
        config: what to compute.
        nj: number of processes.

    Returns:
        What was made, for a summary line.

    Raises:
        BadInput: wrong manifest, or all missing and broken audio files of it in one message.
    """
    cuts = list(read_cuts(cuts_path))
    rate = next((cut.recording.sampling_rate for cut in cuts if cut.has_recording), 0)
    bins = 2 ** math.ceil(math.log2(max(2, int(_SHORTEST * (rate or 16_000))))) // 2
    check_range("--n-mels", config.n_mels, f"[4, {bins}]")  # more filters than the spectrum of a window has bins
    directory = out / "shards"
    shards = [
        _Shard(directory, start // SHARD, tuple(cuts[start : start + SHARD]), config, rate)
        for start in range(0, len(cuts), SHARD)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the processes are the parallelism, and sums keep their order
    try:
        paths = _make_shards(shards, nj, str(cuts_path))
    finally:
        torch.set_num_threads(threads)
    rows = [row for path in paths for _, row in read_jsonl(path)]
    write_jsonl(out / "cuts.jsonl.gz", rows)
    keep = {name for path in paths for name in (path.name, _storage_name(path).name)}
    for path in directory.iterdir():
        if path.name not in keep:
            path.unlink()
    hours = sum(row["duration"] for row in rows) / 3600
    return f"{len(rows)} utterances, {hours:.2f} h, {config.n_mels} mel filters"


def _make_shards(shards: list[_Shard], nj: int, source: str) -> list[Path]:
    """Makes all shards and returns their manifests; problems of all of them are raised together."""
    paths: list[Path] = []
    problems: list[str] = []
    made = map_processes(_make_shard, shards, nj)
    for result in progress(made, len(shards), f"features (shards of {SHARD})"):
        if isinstance(result, Path):
            paths.append(result)
        else:
            problems += result
    raise_problems(problems, source, "mend or remove the files named and run again")
    return paths


def _storage_name(manifest: Path) -> Path:
    """The storage file beside a shard's manifest."""
    name = manifest.name.replace("cuts-", "feats-", 1).removesuffix(".jsonl.gz")
    return manifest.with_name(f"{name}.lca")


def _make_shard(shard: _Shard) -> Path | list[str]:
    """Makes one shard unless it exists; returns its manifest, or what is wrong with its audio."""
    problems = [problem for cut in shard.cuts if (problem := audio_problem(cut, shard.rate))]
    if problems:
        return problems
    content = {
        "config": asdict(shard.config),
        "cuts": [cut.to_dict() for cut in shard.cuts],
        "audio": _hash_sources(shard.cuts),
        "storage": str(shard.directory.resolve()),
    }
    manifest = shard.directory / f"cuts-{shard.number:04d}-{hash_config(content)[:16]}.jsonl.gz"
    storage = _storage_name(manifest).resolve()
    if manifest.is_file() and storage.is_file():
        return manifest
    config = shard.config
    extractor = Fbank(
        FbankConfig(
            sampling_rate=shard.rate,
            num_mel_bins=config.n_mels,
            low_freq=config.low_freq,
            high_freq=config.high_freq,
            dither=0.0,
        )
    )
    made: list[Any] = []
    with atomic_path(storage) as temporary, LilcomChunkyWriter(temporary) as writer:
        for cut in shard.cuts:
            try:
                made += [_compute(cut, speed, extractor, writer) for speed in config.speeds]
            except (AudioLoadingError, DurationMismatchError, OSError, RuntimeError, ValueError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # a full disk is not the audio's fault
                problems.append(f"utterance {cut.id}: {_source(cut)}: cannot be decoded ({_first_line(error)})")
    if problems:
        return problems
    save_manifest(manifest, [_stored_at(cut, storage) for cut in made])
    return manifest


def _hash_sources(cuts: Sequence[MonoCut]) -> list[str]:
    """Hashes of the files behind `cuts`, in order, each file once: a meeting holds the cuts of many shards."""
    paths = dict.fromkeys(str(source.source) for cut in cuts for source in cut.recording.sources)
    return [sha256_file(path) for path in paths]


def _source(cut: MonoCut) -> str:
    return str(cut.recording.sources[0].source)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:120]


def audio_problem(cut: MonoCut, rate: int) -> str | None:
    """What is wrong with the audio of a cut, in one clause, or None."""
    if cut.recording is None:
        return f"utterance {cut.id}: has no recording"
    path = _source(cut)
    try:
        frames = inspect_audio(Path(path), rate, cut.recording.num_channels)
    except BadInput as problem:
        return f"utterance {cut.id}: {path}: {problem}"
    if frames != cut.recording.num_samples:
        expected = cut.recording.num_samples
        return f"utterance {cut.id}: {path}: holds {frames} samples, its manifest says {expected}"
    if cut.duration < _SHORTEST:
        return f"utterance {cut.id}: {path}: lasts {cut.duration:.4f} s, less than one window of {_SHORTEST} s"
    return None


def _compute(cut: MonoCut, speed: float, extractor: Fbank, writer: LilcomChunkyWriter) -> Any:
    """Stores the features of one copy of a cut."""
    return at_speed(cut, speed).compute_and_store_features(extractor, writer)


def at_speed(cut: MonoCut, speed: float) -> MonoCut:
    """The cut played at a speed; a sped-up copy is a speaker of its own, as in Kaldi."""
    if speed == 1.0:
        return cut
    cut = cut.perturb_speed(speed)
    segment = cut.supervisions[0]
    if segment.speaker:
        cut.supervisions = [fastcopy(segment, speaker=f"sp{speed:g}-{segment.speaker}")]
    return cut


def _stored_at(cut: Any, storage: Path) -> Any:
    """The same cut, its features in `storage` (they were written under a temporary name)."""
    return fastcopy(cut, features=fastcopy(cut.features, storage_path=str(storage)))


def load_feature_cuts(path: PathLike) -> CutSet:
    """Reads a manifest that `extract` wrote.

    Raises:
        BadInput: cuts without features.
    """
    cuts = read_cuts(path)
    missing = [f"utterance {cut.id}: has no features" for cut in cuts if not cut.has_features]
    raise_problems(missing, str(path), "run `mpq features` on this manifest and give the manifest it writes")
    return cuts
