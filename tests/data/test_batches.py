"""Batches: normalization, grouping, determinism, masks, damaged storage."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch

from mpq.data.batches import Batch, FeatureSet, SpecAugment, batches, read_ahead
from mpq.data.features import FeatureConfig, extract, load_feature_cuts
from mpq.io import BadInput

from .conftest import SECONDS


@pytest.fixture
def features_path(tmp_path: Path, cuts_path: Path) -> Path:
    """Features of twelve utterances at three speeds."""
    extract(cuts_path, tmp_path / "f", FeatureConfig(speeds=(0.9, 1.0, 1.1)))
    return tmp_path / "f" / "cuts.jsonl.gz"


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.utts == b.utts and a.texts == b.texts and torch.equal(a.features, b.features)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_utterance_normalization_and_padding(features_path: Path, cache_bytes: int) -> None:
    data = FeatureSet(features_path, cache_bytes=cache_bytes)
    stored = {cut.id: cut for cut in load_feature_cuts(features_path)}
    seen = []
    for _ in range(2):  # the second round comes from memory where there is a cache
        for batch in batches(data, max_frames=600):
            assert batch.features.dtype == torch.float32 and batch.lengths.dtype == torch.int64
            for row, utt in enumerate(batch.utts):
                length = int(batch.lengths[row])
                raw = stored[utt].load_features()
                assert length == len(raw)
                assert batch.texts[row] == stored[utt].supervisions[0].text
                assert batch.speakers[row] == stored[utt].supervisions[0].speaker
                expected = (raw - raw.mean(0)) / raw.std(0)
                np.testing.assert_allclose(batch.features[row, :length], expected, atol=4e-3)
                assert not batch.features[row, length:].any()
                seen.append(utt)
    assert sorted(seen) == sorted([*stored] * 2)


def test_cache_changes_nothing_within_rounding(features_path: Path) -> None:
    with_cache, without = FeatureSet(features_path), FeatureSet(features_path, cache_bytes=0)
    np.testing.assert_array_equal(with_cache.load(3), with_cache.load(3))
    np.testing.assert_allclose(with_cache.load(3), without.load(3), atol=4e-3)


def test_speaker_normalization(features_path: Path) -> None:
    data = FeatureSet(features_path, normalization="speaker", cache_bytes=0)
    assert len(set(data.speakers)) == 9
    for speaker in ("s0", "sp0.9-s2"):
        members = [data.load(index) for index, who in enumerate(data.speakers) if who == speaker]
        assert len(members) == 4
        frames = np.concatenate(members)
        np.testing.assert_allclose(frames.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(frames.std(0), 1, atol=1e-3)
        assert abs(members[0].mean()) > 1e-3  # of the speaker, not of the utterance


def test_no_normalization(features_path: Path) -> None:
    data = FeatureSet(features_path, normalization="none", cache_bytes=0)
    first = next(iter(load_feature_cuts(features_path)))
    np.testing.assert_array_equal(data.load(0), first.load_features())


def test_batches_are_full_of_similar_lengths_and_hold_all(features_path: Path) -> None:
    data = FeatureSet(features_path)
    done = list(batches(data, seed=1, epoch=0, max_frames=700, augment=True))
    assert sorted(utt for batch in done for utt in batch.utts) == sorted(data.utts)
    for batch in done:
        n, t, _ = batch.features.shape
        assert n * t <= 700 or n == 1
        assert t == batch.lengths[0] == batch.lengths.max()
        assert batch.lengths.tolist() == sorted(batch.lengths.tolist(), reverse=True)
    padded = sum(batch.features.shape[0] * batch.features.shape[1] for batch in done)
    assert padded < 1.25 * int(data.lengths.sum())


def test_same_seed_and_epoch_same_batches(features_path: Path) -> None:
    def epoch(seed: int, number: int, cache_bytes: int = 1 << 30) -> list[Batch]:
        data = FeatureSet(features_path, cache_bytes=cache_bytes)
        return list(batches(data, seed, number, max_frames=700, augment=True))

    np.random.seed(5)
    first = epoch(1, 0)
    torch.manual_seed(7)
    assert same(first, epoch(1, 0))
    for other in (epoch(1, 1), epoch(2, 0)):
        assert not same(first, other)
        assert [batch.utts for batch in first] != [batch.utts for batch in other]


def test_without_augmentation_the_order_is_fixed(features_path: Path) -> None:
    first = list(batches(features_path, 1, 0, max_frames=700))
    assert same(first, list(batches(features_path, 2, 5, max_frames=700)))
    lengths = [int(batch.lengths[0]) for batch in first]
    assert lengths == sorted(lengths, reverse=True)


def test_one_copy_of_each_utterance(features_path: Path) -> None:
    data = FeatureSet(features_path)
    drawn = set()
    for epoch in range(8):
        utts = [utt for b in batches(data, 0, epoch, augment=True, one_copy=True) for utt in b.utts]
        assert sorted(utt.partition("_")[0] for utt in utts) == [f"u{n:02d}" for n in range(len(SECONDS))]
        drawn |= set(utts)
    assert len(drawn) > 30  # of 36 copies


@pytest.mark.parametrize("world_size", [2, 5, 100])
def test_ranks_share_the_batches(features_path: Path, world_size: int) -> None:
    data = FeatureSet(features_path)
    whole = list(batches(data, 3, 1, max_frames=700, augment=True))
    parts = [
        list(batches(data, 3, 1, max_frames=700, augment=True, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert {len(part) for part in parts} == {-(-len(whole) // world_size)}
    turns = [batch for turn in zip(*parts, strict=True) for batch in turn]
    assert same(whole, turns[: len(whole)])
    assert all(batch.utts in [b.utts for b in whole] for batch in turns)


@pytest.mark.parametrize("epoch_part", [1.0, 0.5, 0.25, 0.3, 1 / 3, 0.1, 0.08])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_parts_of_a_pass_are_the_pass(features_path: Path, epoch_part: float, world_size: int) -> None:
    """The same copies, order and masks, nothing twice; and each process has as many batches."""
    data = FeatureSet(features_path)
    passes = [list(batches(data, 3, number, max_frames=300, augment=True, one_copy=True)) for number in range(4)]
    expected = []
    for whole in passes:
        utts = [utt.partition("_")[0] for batch in whole for utt in batch.utts]
        assert sorted(utts) == [f"u{n:02d}" for n in range(len(SECONDS))]
        steps = max(-(-len(whole) // world_size), math.ceil(1 / epoch_part))  # small data: no part is empty
        expected += [(batch, i < len(whole)) for i, batch in zip(range(steps * world_size), cycle(whole), strict=False)]
    found = []
    for epoch in range(round(3 / epoch_part)):
        ranks = [
            list(
                batches(
                    data, 3, epoch, max_frames=300, augment=True, one_copy=True,
                    epoch_part=epoch_part, rank=rank, world_size=world_size,
                )
            )
            for rank in range(world_size)
        ]  # fmt: skip
        assert len({len(part) for part in ranks}) == 1 and ranks[0]
        found += [batch for step in zip(*ranks, strict=True) for batch in step]
    assert len(found) >= sum(map(len, passes[:3]))
    for batch, (other, is_first) in zip(found, expected, strict=False):
        assert batch.utts == other.utts and (not is_first or torch.equal(batch.features, other.features))


def test_what_a_part_leaves_out_is_not_read(features_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, load = FeatureSet(features_path), FeatureSet.load
    read: list[str] = []

    def watched(self: FeatureSet, index: int) -> np.ndarray:
        read.append(self.utts[index])
        return load(self, index)

    monkeypatch.setattr(FeatureSet, "load", watched)
    found = list(batches(data, 3, 6, max_frames=300, augment=True, one_copy=True, epoch_part=0.25))
    utts = [utt for batch in found for utt in batch.utts]
    assert 0 < len(utts) < len(SECONDS) and sorted(read) == sorted(utts)


def test_masks_follow_the_policy() -> None:
    lengths = torch.tensor([1000, 300, 20])
    masks = SpecAugment(n_feature_masks=2, feature_mask=10, n_frame_masks=4, frame_mask=40, frame_fraction=0.15)
    frames, bands = [], []
    for seed in range(60):
        features = masks(torch.ones(3, 1000, 80), lengths, np.random.default_rng(seed))
        for row, length in enumerate(lengths.tolist()):
            whole = features[row, :length]
            masked_bands = (whole == 0).all(0)
            masked_frames = (whole[:, ~masked_bands] == 0).all(1)
            assert int(masked_bands.sum()) <= 20
            assert int(masked_frames.sum()) <= 0.15 * length
            outside = whole[~masked_frames][:, ~masked_bands]
            assert (outside == 1).all()
            frames.append(int(masked_frames.sum()) / length)
            bands.append(int(masked_bands.sum()))
    assert 0.03 < np.mean(frames) < 0.12 and 6 < np.mean(bands) < 12


def test_damaged_storage_is_named(features_path: Path) -> None:
    storage = next((features_path.parent / "shards").glob("*.lca"))
    storage.write_bytes(storage.read_bytes()[:5000])
    with pytest.raises(
        BadInput, match=rf"{storage.name}: features of utterance u.* cannot be read .*run `mpq features`"
    ):
        list(batches(features_path))
    storage.unlink()
    with pytest.raises(BadInput, match=f"{storage.name}: features of utterance"):
        list(batches(features_path))


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_read_ahead_they_are_the_same_and_random_numbers_are_left_alone(features_path: Path) -> None:
    def epoch() -> Iterator[Batch]:
        return batches(FeatureSet(features_path), 1, 0, max_frames=700, augment=True)

    state, other = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    assert same(list(epoch()), list(read_ahead(epoch())))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == other).all()  # type: ignore[index]
    assert not readers() and not list(read_ahead(iter(())))


def test_the_thread_is_so_many_ahead_and_ends_with_its_reader() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = read_ahead(numbers(), depth=3)
    assert next(ahead) == 0 and made == [0] and not readers(), "one alone is made here"
    assert [next(ahead) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert len(readers()) == 1
    ahead.close()  # type: ignore[attr-defined]
    assert not readers() and 6 <= len(made) <= 10
    with pytest.raises(KeyboardInterrupt):
        for number in read_ahead(numbers()):
            if number == 4:
                raise KeyboardInterrupt
    assert not readers()


@pytest.mark.parametrize("good", [0, 1, 2, 7])
def test_an_error_of_the_thread_comes_after_the_good_ones(good: int) -> None:
    def numbers() -> Iterator[int]:
        yield from range(good)
        raise BadInput("features cannot be read")

    seen = []
    with pytest.raises(BadInput, match="features cannot be read"):
        for number in read_ahead(numbers()):
            seen.append(number)
    assert seen == list(range(good)) and not readers()


def test_damaged_storage_is_named_from_the_thread(features_path: Path) -> None:
    for storage in (features_path.parent / "shards").glob("*.lca"):
        storage.write_bytes(storage.read_bytes()[:5000])
    with pytest.raises(BadInput, match=r"features of utterance u.* cannot be read .*run `mpq features`"):
        list(read_ahead(batches(features_path, max_frames=100)))
