"""wav2vec 2.0 and HuBERT: torchaudio's outputs, padding, masks, sizes, files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio

from mpq.am import CONFIGS, PRESETS, HubertConfig, SslModel, Wav2Vec2Config, expand_preset, load_am, make_am, save_am
from mpq.am.model import check_features
from mpq.data.batches import FeatureSet
from mpq.data.features import FeatureConfig, extract
from mpq.data.manifests import write_manifests
from mpq.io import BadInput
from mpq.quant import quantizable, quantize_model, uniform_plan, without_numbers
from tests.data.conftest import make_spoken

SMALL: dict[str, Any] = {
    "conv_channels": (8, 12, 12),
    "conv_kernels": (10, 8, 8),
    "conv_strides": (5, 8, 8),
    "dim": 16,
    "layers": 2,
    "heads": 2,
    "feed_forward": 24,
    "position_kernel": 6,
    "position_groups": 4,
    "freeze_extractor": False,
}
NORMS: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {"conv_norm": "layer_norm", "conv_bias": True, "normalize": True, "norm_first": True},
}


def make(kind: str = "base", **options: Any) -> SslModel:
    torch.manual_seed(1)
    return SslModel(Wav2Vec2Config(**{**SMALL, **NORMS[kind], **options}), n_outputs=7).eval()


def reference(model: SslModel) -> torchaudio.models.Wav2Vec2Model:
    """torchaudio's own model with the same weights."""
    config = model.config
    theirs = torchaudio.models.wav2vec2_model(
        config.conv_norm, list(zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True)),
        config.conv_bias, config.dim, 0.0, config.position_kernel, config.position_groups, config.layers, config.heads,
        0.0, config.feed_forward, 0.0, 0.0, config.norm_first, 0.0, model.n_outputs,
    ).eval()  # fmt: skip
    state = {name.replace("output.", "aux."): tensor for name, tensor in model.state_dict().items()}
    del state["mask_embedding"]
    position = "encoder.transformer.pos_conv_embed.conv"
    weight = state.pop(f"{position}.weight")
    state[f"{position}.parametrizations.weight.original0"] = weight.norm(dim=(0, 1), keepdim=True)
    state[f"{position}.parametrizations.weight.original1"] = weight
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("n_frames", [3, 50, 77])
def test_outputs_are_torchaudios(kind: str, n_frames: int) -> None:
    model, waves = make(kind), torch.randn(2, n_frames, 160)
    for wave in waves:
        log_probs, lengths = model(wave[None], torch.tensor([n_frames]))
        samples = wave.reshape(1, -1)
        if model.config.normalize:
            samples = torch.nn.functional.layer_norm(samples, samples.shape)
        logits, their_lengths = reference(model)(samples, torch.tensor([samples.shape[1]]))
        assert lengths.tolist() == their_lengths.tolist() == [logits.shape[1]]
        assert torch.allclose(log_probs, logits.log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("train", [False, True])
def test_an_utterance_does_not_depend_on_its_batch(kind: str, train: bool) -> None:
    off = dict.fromkeys(["dropout", "attention_dropout", "activation_dropout", "projection_dropout", "layer_drop"], 0.0)
    model = make(kind, mask_prob=0.0, mask_channel_prob=0.0, **off).train(train)
    waves, lengths = torch.randn(3, 90, 160), torch.tensor([90, 47, 2])
    waves[1, 47:], waves[2, 2:] = 123.0, 123.0  # padding may hold anything
    batched, out_lengths = model(waves, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, n_frames = model(waves[row : row + 1, :length], lengths[row : row + 1])
        assert torch.allclose(batched[row, : out_lengths[row]], alone[0, : n_frames[0]], atol=1e-5)


@pytest.mark.parametrize("arch", PRESETS)
def test_published_sizes_are_those_of_torchaudios_bundles(arch: str) -> None:
    options = expand_preset({"arch": arch})
    config = CONFIGS[options.pop("arch")](**options)
    bundle = getattr(torchaudio.pipelines, arch.replace("-", "_").upper())
    theirs = bundle._params
    assert (
        list(zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True))
        == (theirs["extractor_conv_layer_config"])
    )
    sizes = ("embed_dim", "num_layers", "num_heads", "ff_interm_features", "pos_conv_kernel", "pos_conv_groups")
    ours = (
        config.dim,
        config.layers,
        config.heads,
        config.feed_forward,
        config.position_kernel,
        config.position_groups,
    )
    assert ours == tuple(theirs[f"encoder_{name}"] for name in sizes)
    kinds = (config.conv_norm, config.conv_bias, config.norm_first, config.normalize)
    names = ("extractor_mode", "extractor_conv_bias", "encoder_layer_norm_first")
    assert kinds == (*(theirs[name] for name in names), bundle._normalize_waveform)
    with without_numbers():
        model = make_am(config, 29)
    n_quantizable = sum(math.prod(shape) for shape in quantizable(model).values())
    assert n_quantizable > 0.998 * sum(parameter.numel() for parameter in model.parameters())


def test_options_beside_a_preset_come_first() -> None:
    assert expand_preset({"arch": "hubert-large", "layers": 3}) | {"dim": 0} == (
        expand_preset({"arch": "hubert-large"}) | {"layers": 3, "dim": 0}
    )
    assert expand_preset({"arch": "tdnn", "hidden": 3}) == {"arch": "tdnn", "hidden": 3}


def test_training_masks_frames_and_channels() -> None:
    model = make(mask_prob=0.5, mask_length=4, mask_channel_prob=0.25, mask_channel_length=3).train()
    hidden = model._hide(torch.full((2000, 30, 16), 9.0))
    channels = (hidden == 0).all(1)
    masked = ((hidden == model.mask_embedding) | channels[:, None]).all(-1)
    # a place is not masked if none of the places does that could begin its stretch: four (three), fewer at the start
    for found, prob, length in ((masked, 0.5, 4), (channels, 0.25, 3)):
        places = range(found.shape[1])
        expected = [1 - (1 - prob / length) ** min(length, place + 1) for place in places]
        assert found.float().mean(0).tolist() == pytest.approx(expected, abs=0.05)
    assert torch.equal(hidden[~masked], torch.where(channels[:, None], 0.0, 9.0).expand_as(hidden)[~masked])
    hidden.sum().backward()
    assert model.mask_embedding.grad is not None and model.mask_embedding.grad.abs().sum() > 0


def test_a_frozen_extractor_has_no_gradients() -> None:
    model = make(freeze_extractor=True)
    model(torch.randn(1, 20, 160), torch.tensor([20]))[0].sum().backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"feature_extractor.{name}" for name, _ in model.feature_extractor.named_parameters()}
    assert model.encoder.feature_projection.projection.weight.grad is not None


def test_lhuc_scales_each_layers_output() -> None:
    model, lengths = make(), torch.tensor([40])
    wave, logits = torch.randn(1, 40, 160), torch.zeros(1, 2, 16)
    plain, _ = model.hidden(wave, lengths)
    same, _ = model.hidden(wave, lengths, None, logits)
    logits[0, 1] = 40.0  # amplitude 2 behind the last layer
    doubled, _ = model.hidden(wave, lengths, None, logits)
    assert torch.allclose(same, plain, atol=1e-6) and torch.allclose(doubled, 2 * plain, atol=1e-5)


def test_a_filterbank_hears_tones_in_the_order_of_their_pitch() -> None:
    model = make(filterbank=True, conv_channels=(40, 12, 12), conv_kernels=(400, 2, 1), conv_strides=(160, 2, 1))
    conv = model.feature_extractor.conv_layers[0].conv
    time = torch.arange(8000) / 16000
    loudest = [
        conv(torch.sin(2 * torch.pi * hertz * time)[None, None]).square().mean(-1).reshape(4, 10).sum(0).argmax().item()
        for hertz in (100, 400, 1000, 2000, 4000, 7000)
    ]
    assert loudest == sorted(loudest) and len(set(loudest)) == 6


@pytest.mark.parametrize("kind", [Wav2Vec2Config, HubertConfig])
def test_files_hold_architecture_and_numbers(kind: type[Wav2Vec2Config], tmp_path: Path) -> None:
    model = make_am(kind(**SMALL), 3).eval()
    save_am(tmp_path / "model.mpq", model, ["a", "b"])
    loaded = load_am(tmp_path / "model.mpq", ["a", "b"])
    wave, lengths = torch.randn(1, 30, 160), torch.tensor([30])
    assert type(loaded.config) is kind and loaded.config == model.config
    assert torch.equal(model(wave, lengths)[0], loaded(wave, lengths)[0])


def test_every_large_weight_can_be_quantized() -> None:
    model = make()
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    assert set(quantizable(model)) == matrices
    assert "encoder.transformer.pos_conv_embed.conv.weight" in matrices


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"conv_strides": (5, 8, 7)}, "product of conv_strides: 280 must be a multiple of 160"),
        ({"conv_kernels": (5, 8)}, r"conv_channels, conv_kernels, conv_strides: \(3, 2, 3\) numbers"),
        ({"dim": 15}, "dim: 15 must be a multiple of 2"),
        ({"position_groups": 3}, "dim: 16 must be a multiple of 3"),
        ({"conv_norm": "batch_norm"}, "conv_norm: 'batch_norm' is not one of group_norm, layer_norm"),
        ({"filterbank": True, "conv_channels": (6, 12, 12)}, "conv_channels: 6 must be a multiple of 4"),
        ({"layers": 0}, "layers: 0 must be at least 1"),
        ({"mask_prob": 1.0}, "mask_prob: 1.0"),
    ],
)
def test_bad_sizes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Wav2Vec2Config(**{**SMALL, **options})


def test_log_mel_features_are_refused(tmp_path: Path) -> None:
    write_manifests(tmp_path, make_spoken(tmp_path, [0.7]), 16000)
    extract(tmp_path / "cuts.jsonl.gz", tmp_path / "f", FeatureConfig())
    with pytest.raises(BadInput, match="features of 80 bins, but a wav2vec2 model reads waveforms"):
        check_features(make(), FeatureSet(tmp_path / "f" / "cuts.jsonl.gz"))


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("a_bits", [8, 32])
def test_what_training_saw_is_what_is_served(kind: str, a_bits: int, tmp_path: Path) -> None:
    model, wave, lengths = make(kind), torch.randn(2, 30, 160), torch.tensor([30, 21])
    exact = model(wave, lengths)[0]
    plan = uniform_plan(model, 8, a_bits=a_bits)
    quantize_model(model, plan)
    trained = model(wave, lengths)[0]
    trained.sum().backward()
    assert 0 < (trained - exact).abs().max() < 0.2
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name != "mask_embedding")
    save_am(tmp_path / "model.mpq", model, list("abcdef"), plan=plan)
    served = load_am(tmp_path / "model.mpq")
    assert torch.equal(served(wave, lengths)[0], trained.detach())
