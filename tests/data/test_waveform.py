"""Waveforms in the place of features: samples, copies at other speeds, segments, batches, Shar folders, other rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mpq.cli.main import main
from mpq.data.batches import FeatureSet, batches
from mpq.data.features import load_feature_cuts
from mpq.data.manifests import Spoken, write_manifests
from mpq.data.waveform import refer_to_audio
from mpq.io import BadInput
from tests.data.conftest import RATE


def test_frames_are_the_samples_of_the_files(cuts_path: Path, tmp_path: Path) -> None:
    assert refer_to_audio(cuts_path, tmp_path / "w") == "12 utterances, 0.00 h, waveforms"
    data = FeatureSet(tmp_path / "w" / "cuts.jsonl.gz")
    assert data.is_waveform and data.n_features == 160
    for index, cut in enumerate(load_feature_cuts(tmp_path / "w" / "cuts.jsonl.gz")):
        samples = cut.load_audio()[0]
        for frames in (cut.load_features(), data.load(index), data.load(index)):
            wave = frames.reshape(-1)
            assert abs(len(wave) - len(samples)) <= 80 and len(frames) == data.lengths[index]
            assert np.array_equal(wave[: len(samples)], samples[: len(wave)]) and not wave[len(samples) :].any()


def test_copies_at_other_speeds_are_lhotses(cuts_path: Path, tmp_path: Path) -> None:
    refer_to_audio(cuts_path, tmp_path / "w", (0.9, 1.1))
    cuts = list(load_feature_cuts(tmp_path / "w" / "cuts.jsonl.gz"))
    assert len(cuts) == 24 and cuts[0].supervisions[0].speaker == "sp0.9-s0"
    for cut in cuts:
        samples, wave = cut.load_audio()[0], cut.load_features().reshape(-1)
        assert len(cut.load_features()) == cut.num_frames
        n = min(len(samples), len(wave))
        assert abs(len(samples) - len(wave)) <= 80 and np.allclose(wave[:n], samples[:n], atol=1e-6)


def test_segments_of_a_channel(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(-9000, 9000, (RATE * 3, 2)).astype(np.int16)
    soundfile.write(tmp_path / "talk.wav", samples, RATE)
    segments = [Spoken(f"u{n}", f"s{n}", tmp_path / "talk.wav", "word", "talk", n, n + 1.5, n, 2) for n in range(2)]
    write_manifests(tmp_path / "data", segments, RATE)
    refer_to_audio(tmp_path / "data" / "cuts.jsonl.gz", tmp_path / "w", (1.0, 0.9))
    cuts = {cut.id: cut for cut in load_feature_cuts(tmp_path / "w" / "cuts.jsonl.gz")}
    for number in range(2):
        expected = samples[number * RATE : number * RATE + 24000, number] / 32768
        assert np.array_equal(cuts[f"u{number}"].load_features().reshape(-1), expected.astype(np.float32))
        slow = cuts[f"u{number}_sp0.9"]
        # away from the ends, where lhotse's resampler sees the samples beside the segment
        wave, theirs = slow.load_features().reshape(-1)[500:-500], slow.load_audio()[0][500:-500]
        assert np.allclose(wave[: len(theirs)], theirs[: len(wave)], atol=1e-4)


def test_batches_are_not_masked(cuts_path: Path, tmp_path: Path) -> None:
    refer_to_audio(cuts_path, tmp_path / "w")
    data = FeatureSet(tmp_path / "w" / "cuts.jsonl.gz", "speaker")
    for batch in batches(data, max_frames=600, augment=True):
        assert batch.features.shape[0] * batch.features.shape[1] <= 600
        for wave, length, utt in zip(batch.features, batch.lengths.tolist(), batch.utts, strict=True):
            expected = torch.from_numpy(data.load(data.utts.index(utt)))
            assert torch.equal(wave[:length], expected) and not wave[length:].any()


def test_the_command_packs_waveforms(cuts_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    main(["features", "--type", "waveform", "--cuts", str(cuts_path), "--out", str(plain)])
    assert "12 utterances, 0.00 h, waveforms" in capsys.readouterr().out
    main(["features", "--type", "waveform", "--cuts", str(cuts_path), "--out", str(packed), "--pack"])
    sets = [FeatureSet(folder / "cuts.jsonl.gz") for folder in (plain, packed)]
    assert all(data.is_waveform for data in sets)
    assert all(np.array_equal(sets[0].load(index), sets[1].load(index)) for index in range(12))


def test_another_rate_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    write_manifests(tmp_path / "data", [Spoken("u1", "s1", tmp_path / "a.wav", "word")], 8000)
    says = r"u1: .*a.wav: sampled at 8000 Hz, expected 16000; mend .* \(wav2vec 2.0 and HuBERT read 16000 Hz"
    with pytest.raises(BadInput, match=says):
        refer_to_audio(tmp_path / "data" / "cuts.jsonl.gz", tmp_path / "w")


def test_audio_that_was_cut_short_since_is_named(cuts_path: Path, tmp_path: Path) -> None:
    refer_to_audio(cuts_path, tmp_path / "w")
    data = FeatureSet(tmp_path / "w" / "cuts.jsonl.gz")
    soundfile.write(tmp_path / "audio" / "u01.flac", np.zeros(200), RATE)
    with pytest.raises(BadInput, match=r"u01.flac: features of utterance u01 cannot be read \(holds 200 samples"):
        data.load(1)
