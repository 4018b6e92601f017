"""wav2vec 2.0 and HuBERT as acoustic models: torchaudio's layers over waveforms of 16 kHz, for CTC and LF-MMI.

The one place that imports torchaudio's models of waveforms. Baevski et al. 2020, "wav2vec 2.0: a framework for
self-supervised learning of speech representations"; Hsu et al. 2021, "HuBERT: self-supervised speech representation
learning by masked prediction of hidden units", which trains the same architecture otherwise. A convolutional extractor
turns samples into frames, a Transformer encodes them. Unlike torchaudio's whole models, an utterance's outputs do not
depend on what it is padded with: the extractor reads each utterance by itself. The weight norm of the
positional convolution is folded into a plain weight, which can be quantized like any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.am.base import AcousticModel, frame_mask
from mpq.data.waveform import RATE, SAMPLES
from mpq.io import BadInput, check_ranges

NORMS = ("group_norm", "layer_norm")


@dataclass
class Wav2Vec2Config:
    """Size of a wav2vec 2.0 model and how it is trained; by default the published base model's, with the masks of its
    fine-tuning on 960 hours.

    Attributes:
        conv_channels: of the layers of the extractor.
        conv_kernels: samples or frames that each of them sees.
        conv_strides: their steps; the product is a multiple of 160 samples.
        conv_bias: whether they have biases.
        conv_norm: group_norm (in the first layer only, each channel over time), or layer_norm (in all).
        normalize: give each waveform mean 0 and variance 1.
        dim: width of the Transformer; a multiple of `heads` and of `position_groups`.
        layers: its layers.
        heads: of its attention.
        feed_forward: inner width of its feed-forward modules.
        norm_first: layer norms before the modules (the large models trained on 60,000 hours), not behind.
        position_kernel: frames that the convolution sees which tells places apart.
        position_groups: of this convolution.
        dropout: behind the modules of the Transformer.
        attention_dropout: of attention weights.
        activation_dropout: inside the feed-forward modules.
        projection_dropout: of the frames that the Transformer reads.
        layer_drop: probability of leaving a layer out in training.
        mask_prob: part of the frames that training masks, would masks not overlap.
        mask_length: frames of a mask.
        mask_channel_prob: part of the channels that training masks, likewise.
        mask_channel_length: neighbouring channels of a mask.
        freeze_extractor: train all but the extractor.
        filterbank: initialize the first convolution as a filterbank on the mel scale, for training from scratch.
    """

    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: str = "group_norm"
    normalize: bool = False
    dim: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 3072
    norm_first: bool = False
    position_kernel: int = 128
    position_groups: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    projection_dropout: float = 0.1
    layer_drop: float = 0.1
    mask_prob: float = 0.5
    mask_length: int = 10
    mask_channel_prob: float = 0.1
    mask_channel_length: int = 64
    freeze_extractor: bool = True
    filterbank: bool = False

    def __post_init__(self) -> None:
        sizes = ("conv_channels", "conv_kernels", "conv_strides", "dim", "layers", "heads", "feed_forward")
        lengths = ("position_kernel", "position_groups", "mask_length", "mask_channel_length")
        parts = ("dropout", "attention_dropout", "activation_dropout", "projection_dropout", "layer_drop")
        check_ranges(self, **dict.fromkeys((*sizes, *lengths), "[1, 1e6]"))
        check_ranges(self, **dict.fromkeys((*parts, "mask_prob", "mask_channel_prob"), "[0, 1)"))
        if self.conv_norm not in NORMS:
            raise BadInput(f"conv_norm: '{self.conv_norm}' is not one of {', '.join(NORMS)}")
        counts = len(self.conv_channels), len(self.conv_kernels), len(self.conv_strides)
        if len(set(counts)) > 1 or not counts[0]:
            raise BadInput(f"conv_channels, conv_kernels, conv_strides: {counts} numbers, expected one for each layer")
        step = math.prod(self.conv_strides)
        divisors = [("product of conv_strides", step, SAMPLES), ("dim", self.dim, self.heads)]
        divisors.append(("dim", self.dim, self.position_groups))
        if self.filterbank:
            divisors.append(("conv_channels", self.conv_channels[0], 4))
        for name, value, divisor in divisors:
            if value % divisor:
                raise BadInput(f"{name}: {value} must be a multiple of {divisor}")


@dataclass
class HubertConfig(Wav2Vec2Config):
    """Size of a HuBERT model and how it is trained, as of wav2vec 2.0."""


_BASE: dict[str, Any] = {
    "dim": 768, "layers": 12, "heads": 12, "feed_forward": 3072, "conv_norm": "group_norm", "conv_bias": False,
    "normalize": False, "norm_first": False,
}  # fmt: skip
_LARGE: dict[str, Any] = {**_BASE, "dim": 1024, "layers": 24, "heads": 16, "feed_forward": 4096}
_LONG: dict[str, Any] = {"conv_norm": "layer_norm", "normalize": True, "norm_first": True, "attention_dropout": 0.0}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2-base": ("wav2vec2", _BASE),
    "wav2vec2-large": ("wav2vec2", _LARGE),
    "wav2vec2-large-lv60k": ("wav2vec2", {**_LARGE, **_LONG, "conv_bias": True}),
    "hubert-base": ("hubert", _BASE),
    "hubert-large": ("hubert", {**_LARGE, **_LONG}),
    "hubert-xlarge": ("hubert", {**_LARGE, **_LONG, "dim": 1280, "layers": 48, "feed_forward": 5120}),
}
"""Published sizes by name: architecture, and sizes."""


class SslModel(AcousticModel):
    """wav2vec 2.0 or HuBERT over waveforms; an output frame is 20 ms in the published sizes.

    The names of its tensors are torchaudio's, but for the output and for the positional convolution's weight.

    Args:
        config: the size.
        n_outputs: units plus the blank, which is unit 0.
    """

    normalization = "none"  # of waveforms the layers take care

    def __init__(self, config: Wav2Vec2Config, n_outputs: int) -> None:
        super().__init__(SAMPLES, 0, n_outputs, (config.layers, config.dim))
        self.config = config
        self.subsampling = math.prod(config.conv_strides) // SAMPLES
        self.shortest = _shortest(config)
        self.feature_extractor, self.encoder = _torchaudio_layers(config)
        self.mask_embedding = nn.Parameter(torch.empty(config.dim))
        self._initialize()
        self.feature_extractor.requires_grad_(not config.freeze_extractor)
        self.output = self.make_output()

    def _initialize(self) -> None:
        """Random weights as fairseq draws them: torch's own would let the signal die away in the extractor."""
        nn.init.uniform_(self.mask_embedding)
        for layer in self.feature_extractor.conv_layers:
            nn.init.kaiming_normal_(layer.conv.weight)
        if self.config.filterbank:
            _set_filterbank(self.feature_extractor.conv_layers[0].conv.weight)
        position = self.encoder.transformer.pos_conv_embed.conv
        nn.init.normal_(position.weight, std=math.sqrt(4 / (self.config.position_kernel * self.config.dim)))
        nn.init.zeros_(position.bias)

    def make_output(self) -> nn.Module:
        """One linear layer."""
        return nn.Linear(self.config.dim, self.n_outputs)

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Output frames of utterances of so many frames of 10 ms: those whose samples all lie inside; at least one."""
        frames = lengths * SAMPLES
        for kernel, stride in zip(self.config.conv_kernels, self.config.conv_strides, strict=True):
            frames = (torch.div(frames - kernel, stride, rounding_mode="floor") + 1).clamp(min=1)
        return frames

    def encode(self, features: Tensor, lengths: Tensor, ivectors: Tensor | None, scales: Tensor | None) -> Tensor:
        """Hidden frames `(N, T', dim)`."""
        x = self.encoder.feature_projection(self._extract(features, lengths))
        mask = frame_mask(self.out_lengths(lengths), x.shape[1])
        if self.training:
            x = self._hide(x)
        x = x * mask[:, :, None]
        transformer = self.encoder.transformer
        x = x + transformer.pos_conv_embed(x)
        x = transformer.dropout(x if self.config.norm_first else transformer.layer_norm(x))
        seen = (mask > 0)[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        for number, layer in enumerate(transformer.layers):
            if self.training and torch.rand(()).item() < self.config.layer_drop:
                continue
            x, _ = layer(x, seen)
            x = x if scales is None else x * scales[:, number, None]
        hidden: Tensor = transformer.layer_norm(x) if self.config.norm_first else x
        return hidden

    def _extract(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Frames `(N, T', C)` of the extractor, whose long inner sequences are held for one utterance at a time."""
        frames = []
        for wave, length in zip(features.flatten(1), (lengths * SAMPLES).tolist(), strict=True):
            wave = wave[None, :length]
            if self.config.normalize:
                wave = F.layer_norm(wave, wave.shape)
            wave = F.pad(wave, (0, max(0, self.shortest - length)))
            frames.append(self.feature_extractor(wave, None)[0][0])
        return nn.utils.rnn.pad_sequence(frames, batch_first=True)

    def _hide(self, x: Tensor) -> Tensor:
        """Masks of training: stretches of frames become the mask embedding, stretches of channels zero."""
        config = self.config
        frames = _draw_spans(x.shape[:2], config.mask_prob, config.mask_length, x.device)
        channels = _draw_spans((len(x), config.dim), config.mask_channel_prob, config.mask_channel_length, x.device)
        x = torch.where(frames[:, :, None], self.mask_embedding.to(x.dtype), x)
        return x * ~channels[:, None, :]


def _torchaudio_layers(config: Wav2Vec2Config) -> tuple[Any, Any]:
    """Extractor and encoder of torchaudio's model of this size."""
    from torch.nn.utils.parametrize import remove_parametrizations
    from torchaudio.models import wav2vec2_model

    model = wav2vec2_model(
        extractor_mode=config.conv_norm,
        extractor_conv_layer_config=list(
            zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True)
        ),
        extractor_conv_bias=config.conv_bias,
        encoder_embed_dim=config.dim,
        encoder_projection_dropout=config.projection_dropout,
        encoder_pos_conv_kernel=config.position_kernel,
        encoder_pos_conv_groups=config.position_groups,
        encoder_num_layers=config.layers,
        encoder_num_heads=config.heads,
        encoder_attention_dropout=config.attention_dropout,
        encoder_ff_interm_features=config.feed_forward,
        encoder_ff_interm_dropout=config.activation_dropout,
        encoder_dropout=config.dropout,
        encoder_layer_norm_first=config.norm_first,
        encoder_layer_drop=config.layer_drop,
        aux_num_out=None,
    )
    remove_parametrizations(model.encoder.transformer.pos_conv_embed.conv, "weight")
    return model.feature_extractor, model.encoder


def _shortest(config: Wav2Vec2Config) -> int:
    """Samples that one output frame sees, and at least those of two frames of the first layer, for its norm."""
    reach, step = 1, 1
    for kernel, stride in zip(config.conv_kernels, config.conv_strides, strict=True):
        reach, step = reach + (kernel - 1) * step, step * stride
    return max(reach, config.conv_kernels[0] + config.conv_strides[0])


def _draw_spans(shape: Any, prob: float, length: int, device: torch.device) -> Tensor:
    """Masks `(N, T)`: any place begins a stretch of `length` with probability `prob / length` (Baevski et al. 2020,
    section 3.1), stretches may overlap."""
    begins = (torch.rand(shape, device=device) < prob / length).float()
    return F.max_pool1d(F.pad(begins, (length - 1, 0)), length, stride=1) > 0


def _set_filterbank(weight: Tensor) -> None:
    """Fills the kernels `(C, 1, K)` of the first convolution with band-pass filters at equal steps of the mel scale.

    A quarter of them are cosines under a Gaussian, the others the same a quarter period on each (Zeghidour et al. 2018,
    "Learning filterbanks from raw speech"): after rectification their sum follows the energy of the band.
    """
    n_bands, kernel = len(weight) // 4, weight.shape[2]
    edges = torch.linspace(_mel(60.0), _mel(RATE / 2), n_bands + 2, dtype=torch.float64)
    hertz = 700.0 * (torch.exp(edges / 1127.0) - 1.0)
    width = (hertz[2:] - hertz[:-2]) / 2  # at half the height
    time = (torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2) / RATE
    deviation = (math.sqrt(2 * math.log(2)) / (math.pi * width)).clamp(max=kernel / RATE / 6)
    window = torch.exp(-0.5 * (time[None] / deviation[:, None]) ** 2)
    phase = 2 * math.pi * hertz[1:-1, None] * time
    quarters = [torch.cos(phase - quarter * math.pi / 2) * window for quarter in range(4)]
    filters = torch.cat([one / one.norm(dim=1, keepdim=True) for one in quarters])
    with torch.no_grad():
        weight.copy_(filters[:, None].to(weight.dtype))


def _mel(hertz: float) -> float:
    return 1127.0 * math.log1p(hertz / 700.0)
