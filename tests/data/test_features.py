"""Features: values against two references, speed copies, resuming, broken audio, the command."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import kaldi_native_fbank
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lhotse import CutSet, load_manifest

import mpq.data.features as features_module
from mpq.cli import features as command
from mpq.cli.features import parse_speeds
from mpq.data.audio import write_flac
from mpq.data.features import FeatureConfig, extract, load_feature_cuts
from mpq.data.manifests import Spoken, find_parts, write_manifests
from mpq.io import BadInput, PathLike

LILCOM = 2.0**-5  # half a step of the storage is the largest rounding error, in natural-log units


def kaldi_reference(samples: np.ndarray) -> np.ndarray:
    """80 log-mel energies (T, 80) by kaldi-native-fbank."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400.0
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, samples)
    fbank.input_finished()
    return np.stack([fbank.get_frame(index) for index in range(fbank.num_frames_ready)])


def loaded(path: PathLike) -> dict[str, np.ndarray]:
    return {cut.id: cut.load_features() for cut in load_feature_cuts(path)}


def test_values_equal_kaldi(tmp_path: Path, cuts_path: Path) -> None:
    said = extract(cuts_path, tmp_path / "f", FeatureConfig())
    assert said == "12 utterances, 0.00 h, 80 mel filters"
    cuts = load_feature_cuts(tmp_path / "f" / "cuts.jsonl.gz")
    assert len(cuts) == 12
    for cut in cuts:
        expected = kaldi_reference(cut.load_audio()[0])
        assert cut.load_features().shape == expected.shape == (cut.num_frames, 80)
        np.testing.assert_allclose(cut.load_features(), expected, atol=LILCOM / 2 + 1e-3)


def test_values_equal_torchaudio(tmp_path: Path, cuts_path: Path) -> None:
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi", reason="torchaudio does not import here")
    extract(cuts_path, tmp_path / "f", FeatureConfig(n_mels=40, high_freq=7000.0))
    for cut in load_feature_cuts(tmp_path / "f" / "cuts.jsonl.gz"):
        samples = torch.from_numpy(cut.load_audio())
        expected = kaldi.fbank(samples, num_mel_bins=40, high_freq=7000.0, dither=0.0, snip_edges=False)
        np.testing.assert_allclose(cut.load_features(), expected.numpy(), atol=LILCOM / 2 + 1e-3)


def test_speed_copies_are_resampled_audio(tmp_path: Path, cuts_path: Path) -> None:
    extract(cuts_path, tmp_path / "f", FeatureConfig(speeds=(0.9, 1.0, 1.1)))
    cuts = load_feature_cuts(tmp_path / "f" / "cuts.jsonl.gz")
    assert len(cuts) == 36
    by_id = {cut.id: cut for cut in cuts}
    slow, plain, fast = by_id["u04_sp0.9"], by_id["u04"], by_id["u04_sp1.1"]
    assert (slow.num_frames, plain.num_frames, fast.num_frames) == (267, 240, 218)
    assert slow.supervisions[0].speaker == "sp0.9-s1" and plain.supervisions[0].speaker == "s1"
    assert slow.supervisions[0].text == plain.supervisions[0].text
    # 0.9 of the speed: the samples at 0.9 of the rate, heard at the rate itself
    from scipy.signal import resample_poly

    samples = resample_poly(plain.load_audio()[0].astype(np.float64), 10, 9).astype(np.float32)
    # away from the edges and the top, where the two low-pass filters differ
    expected = kaldi_reference(samples)[5:-5, :65]
    assert np.abs(slow.load_features()[5:-5, :65] - expected).mean() < 0.05


def test_result_does_not_depend_on_nj_and_is_kept(
    tmp_path: Path, cuts_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "SHARD", 5)
    config = FeatureConfig(speeds=(1.0, 1.1))
    extract(cuts_path, tmp_path / "f", config, nj=1)
    names = sorted(path.name for path in (tmp_path / "f" / "shards").iterdir())
    assert len(names) == 6
    first = {path: path.read_bytes() for path in (tmp_path / "f").rglob("*") if path.is_file()}
    for path in list(first)[:4]:
        path.unlink()
    extract(cuts_path, tmp_path / "f", config, nj=3)
    assert {path: path.read_bytes() for path in first} == first
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "f" / "shards").iterdir()}
    (tmp_path / "f" / "shards" / ".tmp-dead-feats.lca").write_text("left by a killed run")
    extract(cuts_path, tmp_path / "f", config, nj=2)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "f" / "shards").iterdir()} == times


def test_changed_audio_remakes_its_shard_only(
    tmp_path: Path, cuts_path: Path, spoken: list[Spoken], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "SHARD", 5)
    extract(cuts_path, tmp_path / "f", FeatureConfig())
    before, old = loaded(tmp_path / "f" / "cuts.jsonl.gz"), set((tmp_path / "f" / "shards").iterdir())
    other = next(item.audio for item in spoken if item.utt == "u06")
    import soundfile

    samples, rate = soundfile.read(other, dtype="int16")
    soundfile.write(other, samples[::-1], rate)
    extract(cuts_path, tmp_path / "f", FeatureConfig())
    after, new = loaded(tmp_path / "f" / "cuts.jsonl.gz"), set((tmp_path / "f" / "shards").iterdir())
    assert len(old & new) == 4 and len(new) == 6
    assert [utt for utt in before if not np.array_equal(before[utt], after[utt])] == ["u06"]


def test_broken_audio_is_told_all_at_once(
    tmp_path: Path, cuts_path: Path, spoken: list[Spoken], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "SHARD", 5)
    spoken[0].audio.unlink()
    data = bytearray(spoken[7].audio.read_bytes())
    spoken[7].audio.write_bytes(data[: len(data) // 2])
    spoken[9].audio.write_bytes(spoken[8].audio.read_bytes())
    data = bytearray(spoken[11].audio.read_bytes())
    data[200:3000] = bytes(2800)  # header and end are right, the middle is not
    spoken[11].audio.write_bytes(data)
    with pytest.raises(BadInput) as error:
        extract(cuts_path, tmp_path / "f", FeatureConfig(), nj=2)
    message = str(error.value)
    assert message.startswith(f"{cuts_path}: 4 problems: ")
    assert f"utterance u00: {spoken[0].audio}: no such file" in message
    assert f"utterance u07: {spoken[7].audio}: " in message
    assert f"utterance u09: {spoken[9].audio}: holds 8000 samples, its manifest says 32000" in message
    assert f"utterance u11: {spoken[11].audio}: cannot be decoded" in message
    assert not (tmp_path / "f" / "cuts.jsonl.gz").exists()


def test_too_short_and_wrong_rate(tmp_path: Path, cuts_path: Path) -> None:
    cuts = list(load_manifest(cuts_path))
    cuts[2].duration = 0.02
    CutSet.from_cuts(cuts).to_file(tmp_path / "short.jsonl")
    with pytest.raises(BadInput, match=r"utterance u02: .*lasts 0.0200 s, less than one window"):
        extract(tmp_path / "short.jsonl", tmp_path / "f", FeatureConfig())
    cuts[2].duration, cuts[2].recording = 1.2, None
    CutSet.from_cuts(cuts).to_file(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="utterance u02: has no recording"):
        extract(tmp_path / "none.jsonl", tmp_path / "f", FeatureConfig())


def test_cuts_without_features_are_refused(cuts_path: Path) -> None:
    with pytest.raises(BadInput, match=r"12 problems: utterance u00: has no features.*mpq features"):
        load_feature_cuts(cuts_path)


@pytest.mark.parametrize("text", ["", "0.9,", "fast", "0.9,0.9", "0,1", "-1", "nan", "3"])
def test_bad_speeds(text: str) -> None:
    with pytest.raises(BadInput, match="--speed"):
        parse_speeds(text)


def test_command_refuses_bad_options(tmp_path: Path, cuts_path: Path) -> None:
    def run(**options: object) -> None:
        parser = ArgumentParser()
        command.add_arguments(parser)
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        command.run(parser.parse_args(["--out", str(tmp_path / "g"), "--nj", "1", *words]))

    for options, expected in (
        ({"cuts": str(tmp_path / "nothing.jsonl.gz")}, "nothing.jsonl.gz: no such file"),
        ({"cuts": str(cuts_path), "nj": 0}, "--nj: 0 must be at least 1"),
        ({"cuts": str(cuts_path), "n_mels": -1}, "--n-mels: -1 must be at least 4 and at most 256"),
        ({"cuts": str(cuts_path), "n_mels": 4000}, "--n-mels: 4000 must be at least 4 and at most 256"),
        ({}, "give either --cuts"),
        ({"cuts": str(cuts_path), "data": str(tmp_path)}, "give either --cuts"),
    ):
        with pytest.raises(BadInput, match=expected):
            run(**options)
    assert not (tmp_path / "g").exists()


def test_command_on_a_prepared_folder(tmp_path: Path, cuts_path: Path, mpq_cli) -> None:  # type: ignore[no-untyped-def]
    for part in ("train", "dev", "eval-2"):
        (tmp_path / "d" / part).mkdir(parents=True)
        (tmp_path / "d" / part / "cuts.jsonl.gz").write_bytes(cuts_path.read_bytes())
    (tmp_path / "d" / "lm").mkdir()
    done = mpq_cli("features", "--data", tmp_path / "d", "--out", tmp_path / "f", "--speed", "0.9,1.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("features: train 24 utterances")
    sizes = [len(load_feature_cuts(tmp_path / "f" / part / "cuts.jsonl.gz")) for part in ("train", "dev", "eval-2")]
    assert sizes == [24, 12, 12]
    with pytest.raises(BadInput, match="holds no PART/cuts"):
        find_parts(tmp_path / "f" / "dev")
    (tmp_path / "f" / "train" / "cuts.jsonl.gz").unlink()  # what is only decoded has no training part
    assert [path.parent.name for path in find_parts(tmp_path / "f")] == ["dev", "eval-2"]


def test_telephone_speech(tmp_path: Path) -> None:
    """At 8 kHz all filters of 40 lie below the Nyquist frequency, and hold what is there."""
    rate = 8000
    noise = np.random.default_rng(0).standard_normal(rate) * 3000
    write_flac(tmp_path / "a.flac", noise.astype(np.int16), rate)
    write_manifests(tmp_path, [Spoken("a", "s", tmp_path / "a.flac", "noise")], rate)
    extract(tmp_path / "cuts.jsonl.gz", tmp_path / "f", FeatureConfig(n_mels=40, speeds=(1.0, 0.9)))
    features = loaded(tmp_path / "f" / "cuts.jsonl.gz")
    assert features["a"].shape == (100, 40) and features["a_sp0.9"].shape == (111, 40)
    means = features["a"].mean(axis=0)
    assert np.isfinite(means).all() and means.min() > -10  # an empty filter holds -23.0, the logarithm of the floor


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, cuts_path: Path, mpq_cli) -> None:  # type: ignore[no-untyped-def]
    """A limit on the size of files stands for a full disk: writing fails in the middle."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = mpq_cli("features", "--cuts", cuts_path, "--out", tmp_path / "f", preexec_fn=limit)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "File too large" in done.stderr
    assert [path for path in (tmp_path / "f").rglob("*") if path.is_file()] == []
