"""Features in lhotse's Shar format: a few numbered tar files, which are copied and mounted as they are.

A Shar folder holds `cuts.000000.jsonl.gz`, `features.000000.tar` and so on, and nothing else is needed for training: no
audio, no other storage, and the folder may be of another machine.  An utterance's features are one stretch of bytes of
a tar file, so they are read in any order, where they lie, and are those that were packed, bit for bit.  They are
float32, 115 MB for an hour of 80 mel filters: lilcom, which compresses other storage, would lose a little once more.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from lhotse import CutSet, MonoCut
from lhotse.shar import SharWriter
from lhotse.utils import fastcopy

from mpq.data.features import load_feature_cuts
from mpq.data.manifests import read_cuts
from mpq.data.tarred import TARRED
from mpq.io import BadInput, PathLike, progress, write_jsonl

SHARD = 1000  # utterances of a tar file


def pack_features(folder: PathLike, shard_size: int = SHARD) -> str:
    """Turns features that `mpq.data.features.extract` wrote, or waveforms, into a Shar folder.

    Args:
        folder: what `extract` wrote; its `shards` go, `shar` comes, and `cuts.jsonl.gz` refers to it.
        shard_size: utterances of a tar file.

    Returns:
        What was made, for a summary line.
    """
    manifest, shar = Path(folder, "cuts.jsonl.gz"), Path(folder, "shar")
    write_shar(load_feature_cuts(manifest), shar, shard_size)
    said = index_shar(shar, manifest)
    shutil.rmtree(Path(folder, "shards"), ignore_errors=True)  # waveforms have none
    return said


def write_shar(cuts: CutSet, out: PathLike, shard_size: int = SHARD) -> None:
    """Packs the features of cuts into a Shar folder; what a killed run left there is replaced."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("cuts.*.jsonl.gz"), *out.glob("features.*.tar")]:
        old.unlink()
    items = [fastcopy(cut, recording=None) for cut in cuts]
    with SharWriter(str(out), fields={"features": "numpy"}, shard_size=shard_size) as writer:
        for cut in progress(items, len(items), "pack (utterances)"):
            writer.write(cut)


def index_shar(shar: PathLike, manifest: PathLike) -> str:
    """Writes a manifest of cuts whose features are read from the tar files of a Shar folder.

    Returns:
        What was found, for a summary line.

    Raises:
        BadInput: no shards, one without its tar file, a broken one, or cuts without features there.
    """
    paths = sorted(Path(shar).glob("cuts.*.jsonl.gz"))
    if not paths:
        raise BadInput(f"{shar}: holds no cuts.*.jsonl.gz; expected a Shar folder, as mpq features --pack writes it")
    rows = [cut.to_dict() for path in paths for cut in _read_shard(path)]
    write_jsonl(manifest, rows)
    hours = sum(row["duration"] for row in rows) / 3600
    return f"{len(rows)} utterances, {hours:.2f} h, in {len(paths)} tar file{'s' if len(paths) > 1 else ''}"


def _read_shard(path: Path) -> Iterator[MonoCut]:
    tar = path.with_name(path.name.replace("cuts.", "features.", 1).removesuffix(".jsonl.gz") + ".tar")
    places = _index(tar)
    for cut in read_cuts(path):
        if cut.id not in places or not cut.has_features:
            raise BadInput(f"{path}: utterance {cut.id}: has no features in {tar.name}; pack the corpus again")
        offset, size = places[cut.id]
        stored = {
            "storage_type": TARRED,
            "storage_path": str(tar.resolve()),
            "storage_key": f"{offset},{size}",
        }
        yield fastcopy(cut, features=fastcopy(cut.features, **stored))


def _index(tar: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of the features of each utterance."""
    try:
        with tarfile.open(tar, "r:") as archive:
            return {
                os.path.splitext(member.name)[0]: (member.offset_data, member.size)
                for member in archive
                if member.name.endswith(".npy")
            }
    except FileNotFoundError:
        raise BadInput(f"{tar}: no such file; a Shar folder has a tar file for each of its cuts files") from None
    except tarfile.TarError as error:
        raise BadInput(f"{tar}: broken tar file ({error}); copy or pack it again") from None
