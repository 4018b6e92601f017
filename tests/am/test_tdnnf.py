"""The CNN-TDNN-F: shapes, padding, receptive field, bad input; the semi-orthogonal constraint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.am import Tdnnf, TdnnfConfig
from mpq.io import BadInput
from mpq.train.loop import FitConfig, fit
from mpq.train.orthonormal import SemiOrthogonal, constrain
from tests.am.settle import settled

SMALL: dict[str, Any] = {
    "feature_dim": 16,
    "channels": [4, 4, 8],
    "height_strides": [2, 1, 2],
    "hidden": 24,
    "bottleneck": 6,
    "first_bottleneck": 8,
    "strides": [1, 2],
    "prefinal": 12,
}


def make(**options: Any) -> Tdnnf:
    torch.manual_seed(1)
    return settled(Tdnnf(TdnnfConfig(**{**SMALL, **options}), n_outputs=7))


def test_kaldis_shape_by_default() -> None:
    model = Tdnnf(TdnnfConfig(ivector_dim=100), n_outputs=40)
    assert [conv.conv.out_channels for conv in model.convs] == [48, 48, 64, 64, 64, 128]
    assert [conv.conv.stride[0] for conv in model.convs] == [1, 1, 1, 1, 1, 3]
    assert model.convs[0].conv.in_channels == 6  # the features and five channels of the i-vector
    assert tuple(model.first.reduce.weight.shape) == (192, 5 * 128, 1)  # 80 filters become 5 by four halvings
    assert all(tuple(layer.reduce.weight.shape) == (96, 768, 2) for layer in model.layers)
    assert all(layer.bypass == 0.66 for layer in model.layers) and model.first.bypass == 0.0
    assert len(model.semi_orthogonal()) == 1 + 8 + 1


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4, 59, 60, 61])
def test_output_lengths(n_frames: int) -> None:
    log_probs, lengths = make()(torch.randn(1, n_frames, 16), torch.tensor([n_frames]))
    assert log_probs.shape == (1, -(-n_frames // 3), 7)
    assert lengths.tolist() == [-(-n_frames // 3)]
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(1, int(lengths)), atol=1e-5)


@pytest.mark.parametrize("strides", [[1, 2], [3], []])
def test_receptive_field(strides: list[int]) -> None:
    model = make(strides=strides)
    features = torch.randn(1, 120, 16, requires_grad=True)
    log_probs, _ = model(features, torch.tensor([120]))
    (gradient,) = torch.autograd.grad(log_probs[0, 20].square().sum(), features)
    seen = gradient[0].abs().sum(1).nonzero()[:, 0]
    before, after = model.context
    assert (60 - int(seen.min()), int(seen.max()) - 60) == (before, after)
    assert before == 3 + 3 * sum(strides)


def test_an_utterance_does_not_depend_on_its_batch() -> None:
    model = make(ivector_dim=5)
    features, ivectors, lengths = torch.randn(2, 90, 16), torch.randn(2, 9, 5), torch.tensor([90, 47])
    features[1, 47:] = 123.0  # padding may hold anything
    batched, out_lengths = model(features, lengths, ivectors)
    alone, _ = model(features[1:, :47], lengths[1:], ivectors[1:, :5])
    assert torch.allclose(batched[1, : out_lengths[1]], alone[0], atol=1e-5)


def test_ivectors_change_the_frames_they_are_of() -> None:
    model = make(ivector_dim=5, strides=[])
    features, lengths = torch.randn(1, 90, 16), torch.tensor([90])
    ivectors = torch.randn(1, 9, 5)
    other = ivectors.clone()
    other[0, 6:] += 1.0  # from frame 60 on
    first, second = (model(features, lengths, given)[0][0] for given in (ivectors, other))
    differ = (first - second).abs().amax(1) > 1e-6
    assert not differ[:19].any() and differ[20:].all()


def test_lhuc_scales_units_and_zero_logits_change_nothing() -> None:
    model = make()
    assert model.lhuc_shape == (3, 24)
    features, lengths = torch.randn(2, 30, 16), torch.tensor([30, 30])
    plain, _ = model(features, lengths)
    logits = torch.zeros(2, 3, 24)
    assert torch.allclose(model(features, lengths, lhuc=logits)[0], plain)
    logits[1] = 40.0  # amplitude 2
    adapted, _ = model(features, lengths, lhuc=logits)
    assert torch.allclose(adapted[0], plain[0]) and not torch.allclose(adapted[1], plain[1], atol=1e-3)
    layer = model.layers[1]
    with torch.no_grad():  # the same model with doubled units of its last factorized layer
        logits = torch.zeros(1, 3, 24)
        logits[0, 2] = 40.0
        expected, _ = model(features[:1], lengths[:1], lhuc=logits)
        layer.norm.running_var.copy_((layer.norm.running_var + layer.norm.eps) / 4 - layer.norm.eps)
        doubled, _ = model(features[:1], lengths[:1])
    assert torch.allclose(expected, doubled, atol=1e-4)


def test_dropout_scales_units_alike_in_all_frames() -> None:
    model = make(dropout=0.3)
    dropout = model.layers[0].dropout.train()
    torch.manual_seed(2)
    scaled = dropout(torch.ones(200, 24, 5))
    assert torch.equal(scaled, scaled[:, :, :1].expand_as(scaled))
    assert 0.4 <= float(scaled.min()) < 0.45 and 1.55 < float(scaled.max()) <= 1.6
    assert float(scaled.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(dropout.eval()(scaled), scaled)


def spread(weight: Tensor) -> float:
    """Largest over smallest singular value."""
    values = torch.linalg.svdvals(weight.flatten(1))
    return float(values.max() / values.min())


@pytest.mark.parametrize("shape", [(6, 24, 2), (6, 24), (24, 6), (8, 8)])
def test_constraint_converges_to_a_semi_orthogonal_matrix(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    norm = float(weight.norm())
    assert spread(weight) > 1.5
    for _ in range(60):
        constrain(weight)
    matrix = weight.flatten(1) if weight.flatten(1).shape[0] <= weight.flatten(1).shape[1] else weight.flatten(1).T
    product = matrix @ matrix.T
    scale = float(product.trace()) / len(product)
    assert torch.allclose(product, scale * torch.eye(len(product)), atol=1e-4 * scale)
    assert spread(weight) == pytest.approx(1.0, abs=1e-4)
    assert float(weight.norm()) == pytest.approx(norm, rel=0.5)  # the scale floats: it is not driven to 1


def test_constraint_is_the_gradient_step_of_the_paper() -> None:
    """`4 nu / a^2 (P - a^2 I) M` is `nu / a^2` times the gradient of `|P - a^2 I|^2` (Povey et al. 2018, eq. 3)."""
    torch.manual_seed(0)
    weight = torch.linalg.qr(torch.randn(24, 6)).Q.T + 0.01 * torch.randn(6, 24)
    free = weight.clone().requires_grad_()
    product = free @ free.T
    scale = (product.square().sum() / product.trace()).detach()
    (gradient,) = torch.autograd.grad((product - scale * torch.eye(6)).square().sum(), free)
    before = weight.clone()
    constrain(weight)
    assert torch.allclose(weight, before - 0.125 / scale * gradient, atol=1e-6)


class Still:
    """A training task whose loss pulls at nothing but the factors."""

    name = "still"

    def __init__(self) -> None:
        self.model: nn.Module = make()

    def steps_per_epoch(self) -> int:
        return 40

    def batches(self, epoch: int) -> Any:
        return iter(range(40))

    def loss(self, model: Any, batch: Any, done: float) -> Tensor:
        total: Tensor = sum((w * torch.linspace(0, 1, w.numel()).view(w.shape)).sum() for w in model.semi_orthogonal())
        return 0.01 * total

    def validate(self) -> dict[str, float]:
        return {"loss": 1.0}


def test_training_keeps_the_factors_semi_orthogonal(tmp_path: Any) -> None:
    worst = []
    for plugins in (True, False):
        task = Still()
        given = [SemiOrthogonal(task.model)] if plugins else []  # type: ignore[arg-type]
        fit(task, FitConfig(epochs=2, lr=1e-3), tmp_path / str(plugins), given)
        worst.append(max(spread(w.detach()) for w in task.model.semi_orthogonal()))  # type: ignore[operator]
    assert worst[0] < 1.1 < worst[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hidden": 0}, "hidden: 0 must be at least 1"),
        ({"channels": [4, 4]}, "height_strides: 3 numbers for 2 channels"),
        ({"channels": [], "height_strides": []}, "at least one convolution"),
        ({"strides": [1, 0]}, "strides: 0"),
        ({"bypass": 1.5}, "bypass: 1.5"),
        ({"dropout": 0.6}, "dropout: 0.6"),
        ({"ivector_dim": -1}, "ivector_dim: -1"),
    ],
)
def test_bad_sizes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        TdnnfConfig(**{**SMALL, **options})


def test_wrong_speaker_inputs() -> None:
    model, features, lengths = make(ivector_dim=5), torch.randn(1, 30, 16), torch.tensor([30])
    with pytest.raises(BadInput, match="no i-vectors, the model expects dimension 5"):
        model(features, lengths)
    with pytest.raises(BadInput, match="i-vectors of dimension 4, the model expects dimension 5"):
        model(features, lengths, torch.randn(1, 3, 4))
    with pytest.raises(BadInput, match=r"LHUC logits are \(2, 24\) \(layers, units\), the model expects \(3, 24\)"):
        model(features, lengths, torch.randn(1, 3, 5), torch.zeros(1, 2, 24))
    with pytest.raises(BadInput, match="12 bins a frame, the model expects 16"):
        model(features[:, :, :12], lengths, torch.randn(1, 3, 5))
