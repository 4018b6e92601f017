"""The Conformer: shapes, padding, speaker inputs, and that torchaudio is imported when one is made."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from mpq.am import ConformerConfig, ConformerModel
from mpq.io import BadInput
from tests.am.settle import settled

SMALL: dict[str, Any] = {
    "feature_dim": 16,
    "dim": 12,
    "heads": 2,
    "feed_forward": 24,
    "layers": 2,
    "kernel": 5,
    "channels": 4,
}


def make(**options: Any) -> ConformerModel:
    torch.manual_seed(1)
    return settled(ConformerModel(ConformerConfig(**{**SMALL, **options}), n_outputs=7))


@pytest.mark.parametrize("n_frames", [1, 4, 5, 59, 60, 61])
def test_output_lengths(n_frames: int) -> None:
    log_probs, lengths = make()(torch.randn(1, n_frames, 16), torch.tensor([n_frames]))
    assert log_probs.shape == (1, -(-n_frames // 4), 7) and lengths.tolist() == [-(-n_frames // 4)]
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(1, int(lengths)), atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_an_utterance_does_not_depend_on_its_batch(train: bool) -> None:
    model = make(ivector_dim=3, dropout=0.0)
    for module in model.modules():
        module.training = train and not isinstance(module, torch.nn.BatchNorm1d)
    features, ivectors, lengths = torch.randn(2, 90, 16), torch.randn(2, 9, 3), torch.tensor([90, 47])
    features[1, 47:] = 123.0  # padding may hold anything
    batched, out_lengths = model(features, lengths, ivectors)
    alone, _ = model(features[1:, :47], lengths[1:], ivectors[1:, :5])
    assert torch.allclose(batched[1, : out_lengths[1]], alone[0], atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_without_padding_the_layers_are_torchaudios() -> None:
    from torchaudio.models import Conformer

    model = make()
    reference = Conformer(12, 2, 24, 2, 5, 0.1).eval()
    reference.conformer_layers.load_state_dict(model.layers.state_dict())
    features, lengths = torch.randn(2, 40, 16), torch.tensor([40, 40])
    inputs: list[torch.Tensor] = []
    handle = model.dropout.register_forward_hook(lambda module, args, output: inputs.append(output))
    hidden, out_lengths = model.hidden(features, lengths)
    handle.remove()
    expected, _ = reference(inputs[0], out_lengths)
    assert torch.allclose(hidden, expected, atol=1e-5)


def test_lhuc_scales_each_layers_output() -> None:
    model = make()
    features, lengths = torch.randn(1, 40, 16), torch.tensor([40])
    logits = torch.zeros(1, 2, 12)
    plain, _ = model.hidden(features, lengths)
    same, _ = model.hidden(features, lengths, None, logits)
    logits[0, 1] = 40.0  # amplitude 2 behind the last layer
    doubled, _ = model.hidden(features, lengths, None, logits)
    assert torch.allclose(same, plain, atol=1e-6) and torch.allclose(doubled, 2 * plain, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"feature_dim": 18}, "feature_dim: 18 must be a multiple of 4"),
        ({"dim": 13}, "dim: 13 must be a multiple of 2"),
        ({"kernel": 4}, "kernel: 4 must be odd"),
        ({"layers": 0}, "layers: 0 must be at least 1"),
        ({"dropout": 1.0}, "dropout: 1.0"),
    ],
)
def test_bad_sizes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        ConformerConfig(**{**SMALL, **options})


def test_importing_acoustic_models_does_not_import_torchaudios_models() -> None:
    code = "import sys, mpq.am.conformer; sys.exit('torchaudio.models' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
