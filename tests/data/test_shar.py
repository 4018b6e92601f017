"""Shar folders: the same features, batches and manifests as before packing, read by lhotse too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from mpq.cli.main import load
from mpq.data.batches import FeatureSet, batches
from mpq.data.features import FeatureConfig, extract
from mpq.data.shar import index_shar, pack_features
from mpq.io import BadInput


@pytest.fixture
def features(cuts_path: Path, tmp_path: Path) -> Path:
    """A folder of features with copies at another speed."""
    extract(cuts_path, tmp_path / "features", FeatureConfig(n_mels=16, speeds=(0.9, 1.0)))
    return tmp_path / "features"


def all_batches(manifest: Path) -> list[object]:
    """Everything that training sees of two epochs."""
    data = FeatureSet(manifest, cache_bytes=0)
    found: list[object] = []
    for epoch in range(2):
        for batch in batches(data, seed=1, epoch=epoch, max_frames=600, augment=True, one_copy=True):
            found.append((batch.features, batch.lengths.tolist(), batch.texts, batch.utts, batch.speakers))
    return found


def test_training_sees_the_same(features: Path, tmp_path: Path) -> None:
    before = all_batches(features / "cuts.jsonl.gz")
    said = pack_features(features, shard_size=10)
    assert said.startswith("24 utterances, 0.01 h, in 3 tar files")
    assert sorted(path.name for path in features.iterdir()) == ["cuts.jsonl.gz", "shar"]
    for theirs, ours in zip(all_batches(features / "cuts.jsonl.gz"), before, strict=True):
        assert torch.equal(theirs[0], ours[0])  # type: ignore[index]
        assert theirs[1:] == ours[1:]  # type: ignore[index]


def test_a_folder_from_elsewhere(features: Path, tmp_path: Path) -> None:
    before = all_batches(features / "cuts.jsonl.gz")
    pack_features(features)
    shutil.move(features / "shar", tmp_path / "elsewhere")
    shutil.rmtree(features)
    index_shar(tmp_path / "elsewhere", tmp_path / "cuts.jsonl.gz")
    assert str(all_batches(tmp_path / "cuts.jsonl.gz")) == str(before)


def test_lhotse_reads_it(features: Path) -> None:
    pack_features(features, shard_size=10)
    ours = FeatureSet(features / "cuts.jsonl.gz", normalization="none")
    theirs = CutSet.from_shar(in_dir=features / "shar")
    for index, cut in enumerate(theirs):
        assert cut.id == ours.utts[index]
        assert torch.equal(torch.from_numpy(cut.load_features()), torch.from_numpy(ours._read(index)))


def test_broken_folders(features: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no cuts.\*.jsonl.gz; expected a Shar folder"):
        index_shar(tmp_path, tmp_path / "cuts.jsonl.gz")
    pack_features(features, shard_size=10)
    tars = sorted((features / "shar").glob("*.tar"))
    shutil.copy(tars[0], tars[1])
    with pytest.raises(BadInput, match=r"utterance \S+: has no features in features.000001.tar"):
        index_shar(features / "shar", tmp_path / "cuts.jsonl.gz")
    tars[1].write_bytes(b"no tar file")
    with pytest.raises(BadInput, match=r"features.000001.tar: broken tar file"):
        index_shar(features / "shar", tmp_path / "cuts.jsonl.gz")
    tars[1].unlink()
    with pytest.raises(BadInput, match=r"features.000001.tar: no such file"):
        index_shar(features / "shar", tmp_path / "cuts.jsonl.gz")


def test_commands(cuts_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mpq features --pack`, then `--shar` where the folder was moved to."""
    command, parser = load("features")
    command.run(parser.parse(["--cuts", str(cuts_path), "--out", str(tmp_path / "a"), "--pack", "--n-mels", "16"]))
    assert "packed: 12 utterances, 0.00 h, in 1 tar file: " in capsys.readouterr().out
    before = all_batches(tmp_path / "a" / "cuts.jsonl.gz")
    shutil.move(tmp_path / "a" / "shar", tmp_path / "b")
    command.run(parser.parse(["--shar", str(tmp_path / "b"), "--out", str(tmp_path / "c")]))
    assert str(all_batches(tmp_path / "c" / "cuts.jsonl.gz")) == str(before)
    with pytest.raises(BadInput, match="give either --cuts"):
        command.run(parser.parse(["--shar", str(tmp_path / "b"), "--cuts", "x", "--out", str(tmp_path / "c")]))
