"""The CNN-TDNN: shapes, padding and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpq.am.tdnn import Tdnn, TdnnConfig
from mpq.io import BadInput
from tests.am.settle import settled


def make() -> Tdnn:
    torch.manual_seed(1)
    return settled(Tdnn(TdnnConfig(hidden=32, dilations=[1, 3], channels=(4, 8)), n_outputs=11))


def test_shapes_and_normalization() -> None:
    log_probs, lengths = make()(torch.randn(3, 61, 80), torch.tensor([61, 60, 1]))
    assert log_probs.shape == (3, 21, 11)
    assert lengths.tolist() == [21, 20, 1]
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(3, 21), atol=1e-5)


def test_an_utterance_does_not_depend_on_its_batch() -> None:
    model = make()
    features = torch.randn(2, 90, 80)
    lengths = torch.tensor([90, 47])
    features[1, 47:] = 123.0  # padding may hold anything
    batched, out_lengths = model(features, lengths)
    alone, _ = model(features[1:, :47], torch.tensor([47]))
    assert torch.allclose(batched[1, : out_lengths[1]], alone[0], atol=1e-5)


def test_wrong_feature_dimension() -> None:
    with pytest.raises(BadInput, match="40 bins a frame, the model expects 80"):
        make()(torch.randn(1, 10, 40), torch.tensor([10]))
    with pytest.raises(BadInput, match="multiple of 4"):
        TdnnConfig(feature_dim=81)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"feature_dim": 0}, "feature_dim: 0"),
        ({"hidden": 0}, "hidden: 0 must be at least 1"),
        ({"channels": (16, -1)}, "channels"),
        ({"dilations": []}, "dilations"),
        ({"dilations": [1, 0]}, "dilations"),
        ({"dropout": 1.0}, "dropout: 1.0"),
    ],
)
def test_bad_sizes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        TdnnConfig(**options)
