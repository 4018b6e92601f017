"""Acoustic model files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpq.am import ConformerConfig, ModelConfig, Tdnn, TdnnConfig, TdnnfConfig, load_am, make_am, save_am
from mpq.io import BadInput
from mpq.quant import save_model, uniform_plan

PHONES = ["AA", "B", "K"]


@pytest.mark.parametrize(
    "config",
    [
        TdnnfConfig(channels=[4], height_strides=[2], hidden=24, bottleneck=8, strides=[1], prefinal=8, ivector_dim=3),
        ConformerConfig(dim=8, heads=2, feed_forward=16, layers=1, kernel=3, channels=4, ivector_dim=3),
    ],
)
def test_every_architecture_is_stored(tmp_path: Path, config: ModelConfig) -> None:
    torch.manual_seed(1)
    model = make_am(config, len(PHONES) + 1).eval()
    model.normalization, model.sampling_rate = "speaker", 8000
    save_am(tmp_path / "model.mpq", model, PHONES)
    stored = load_am(tmp_path / "model.mpq", PHONES)
    assert type(stored) is type(model) and stored.config == config and stored.normalization == "speaker"
    assert stored.sampling_rate == 8000
    batch = torch.randn(2, 30, 80), torch.tensor([30, 20]), torch.randn(2, 3, 3)
    assert torch.equal(stored(*batch)[0], model(*batch)[0])


def make() -> Tdnn:
    torch.manual_seed(3)
    return Tdnn(TdnnConfig(hidden=24, dilations=[1, 2], channels=(4, 8)), len(PHONES) + 1).eval()


def test_round_trip_gives_the_same_outputs(tmp_path: Path) -> None:
    model = make()
    save_am(tmp_path / "model.mpq", model, PHONES, {"epoch": 3})
    features, lengths = torch.randn(2, 30, 80), torch.tensor([30, 20])
    expected, _ = model(features, lengths)
    stored, _ = load_am(tmp_path / "model.mpq", PHONES)(features, lengths)
    assert torch.equal(stored, expected)


def test_phones_of_another_graph(tmp_path: Path) -> None:
    save_am(tmp_path / "model.mpq", make(), PHONES)
    with pytest.raises(BadInput, match="trained for 3 units that are not the 3 of the decoding graph"):
        load_am(tmp_path / "model.mpq", ["AA", "K", "B"])


def test_a_language_model_is_no_acoustic_model(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    save_model(tmp_path / "lm.mpq", model, "lstm", {}, uniform_plan(model, 32), "0")
    with pytest.raises(BadInput, match=r"lm.mpq: holds a lstm model, expected an acoustic model"):
        load_am(tmp_path / "lm.mpq")
