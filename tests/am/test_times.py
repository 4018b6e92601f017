"""`mpq ctm`: the times of recognized words, of segments of longer recordings."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mpq.am import Tdnn, TdnnConfig, save_am
from mpq.cli.main import load
from mpq.data.audio import write_flac
from mpq.data.features import FeatureConfig, extract
from mpq.data.manifests import Spoken, write_manifests
from mpq.io import BadInput, write_text
from mpq.lang.lexicon import Lexicon
from mpq.score import TimedWord, read_ctm

LEXICON = Lexicon({"yes": [["a", "b"]], "no": [["c"], ["c", "a"]]})
TEXTS = {"u1": ["yes", "no"], "u2": [], "u3": ["no", "no", "yes"], "u4": ["yes"] * 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two channels of a recording with features, an untrained model, its lexicon and recognized words."""
    folder = tmp_path_factory.mktemp("ctm")
    samples = np.random.default_rng(0).integers(-2000, 2000, (8 * 16000, 2)).astype(np.int16)
    write_flac(folder / "call.flac", samples, 16000)
    times = {"u1": (0.5, 2.0, 0), "u2": (2.0, 3.0, 0), "u3": (4.0, 6.5, 1), "u4": (7.0, 7.5, 1)}
    spoken = [
        Spoken(utt, "s", folder / "call.flac", "yes", "call", start, end, channel, channels=2)
        for utt, (start, end, channel) in times.items()
    ]
    write_manifests(folder / "data", spoken, 16000)
    extract(folder / "data" / "cuts.jsonl.gz", folder / "features", FeatureConfig(n_mels=16))
    torch.manual_seed(0)
    model = Tdnn(TdnnConfig(feature_dim=16, channels=(2, 2), hidden=8, dilations=[1]), len(LEXICON.phones) + 1)
    save_am(folder / "model.mpq", model, LEXICON.phones)
    LEXICON.write(folder / "lang")
    write_text(folder / "hyp.txt", TEXTS)
    return folder


def run(folder: Path, *words: str) -> list[TimedWord]:
    command, parser = load("ctm")
    files = {"--hyp": folder / "hyp.txt", "--features": folder / "features/cuts.jsonl.gz", "--out": folder / "hyp.ctm"}
    command.run(parser.parse([*(str(word) for item in files.items() for word in item), *words]))
    return read_ctm(folder / "hyp.ctm")


def test_words_are_aligned_within_their_segments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = run(folder, "--am", str(folder / "model.mpq"), "--lang", str(folder / "lang"))
    assert [(item.recording, item.channel, item.word) for item in words[:2]] == [
        ("call", "A", "yes"),
        ("call", "A", "no"),
    ]
    assert [item.word for item in words if item.channel == "B"] == [*TEXTS["u3"], *TEXTS["u4"]]
    for of_utt, start, end in ((words[:2], 0.5, 2.0), (words[2:5], 4.0, 6.5), (words[5:], 7.0, 7.51)):
        times = [time for item in of_utt for time in (item.start, item.start + item.duration)]
        assert start <= times[0] and times[-1] <= end + 0.03
        assert all(after >= before - 1e-9 for before, after in itertools.pairwise(times))
        assert all(item.duration > 0 for item in of_utt)
    said = capsys.readouterr()
    assert "utterance u4: shorter than its words" in said.err
    assert said.out == f"ctm: 35 words of 4 utterances, aligned, 1 warnings: {folder / 'hyp.ctm'}\n"


def test_without_a_model_words_are_equally_long(folder: Path) -> None:
    words = run(folder)
    assert [(item.start, item.duration) for item in words[:2]] == [(0.5, 0.75), (1.25, 0.75)]


def test_wrong_input(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--am and --lang go together"):
        run(folder, "--am", str(folder / "model.mpq"))
    write_text(tmp_path / "hyp.txt", {"u1": ["yes"]})
    with pytest.raises(BadInput, match="lacks 3 utterances"):
        run(folder, "--hyp", str(tmp_path / "hyp.txt"))
    write_text(tmp_path / "hyp.txt", {**TEXTS, "u1": ["perhaps"]})
    with pytest.raises(BadInput, match="'perhaps' is not in the lexicon"):
        run(
            folder,
            "--hyp",
            str(tmp_path / "hyp.txt"),
            "--am",
            str(folder / "model.mpq"),
            "--lang",
            str(folder / "lang"),
        )
