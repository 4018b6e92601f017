"""Acoustic model files: the size and weights of a model and the units it tells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn

from mpq.am.base import AcousticModel
from mpq.am.conformer import ConformerConfig, ConformerModel
from mpq.am.ssl import PRESETS, HubertConfig, SslModel, Wav2Vec2Config
from mpq.am.tdnn import Tdnn, TdnnConfig
from mpq.am.tdnnf import Tdnnf, TdnnfConfig
from mpq.data.batches import Batch, FeatureSet
from mpq.io import BadInput, PathLike, hash_config
from mpq.quant import (
    BitPlan,
    ModelFile,
    load_weights_into,
    model_path,
    quantized_weights,
    read_model_file,
    save_model,
    uniform_plan,
)

ModelConfig = TdnnConfig | TdnnfConfig | ConformerConfig | Wav2Vec2Config
CONFIGS: dict[str, type[ModelConfig]] = {
    "tdnn": TdnnConfig,
    "cnn-tdnnf": TdnnfConfig,
    "conformer": ConformerConfig,
    "wav2vec2": Wav2Vec2Config,
    "hubert": HubertConfig,
}


def arch_of(config: ModelConfig) -> str:
    """Name of the architecture that a configuration is of."""
    return next(arch for arch, kind in CONFIGS.items() if type(config) is kind)


def expand_preset(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model, with the name of a published size (`arch: hubert-large`) replaced by what it stands for."""
    arch, sizes = PRESETS.get(str(options.get("arch")), (None, {}))
    return {**sizes, **options, **({"arch": arch} if arch else {})}


def make_am(config: ModelConfig, n_outputs: int) -> AcousticModel:
    """A freshly initialized model.

    Args:
        config: its architecture and size.
        n_outputs: units plus the blank, which is unit 0.
    """
    if isinstance(config, TdnnConfig):
        return Tdnn(config, n_outputs)
    if isinstance(config, Wav2Vec2Config):
        return SslModel(config, n_outputs)
    return Tdnnf(config, n_outputs) if isinstance(config, TdnnfConfig) else ConformerModel(config, n_outputs)


def check_features(model: AcousticModel, features: FeatureSet) -> None:
    """See, before long work, that features are those that a model expects.

    Raises:
        BadInput: another number of bins, i-vectors of another dimension, another normalization, or speech of another
            sampling rate.
    """
    if isinstance(model, SslModel) and not features.is_waveform:
        raise BadInput(
            f"{features.path}: features of {features.n_features} bins, but a {arch_of(model.config)} model reads "
            "waveforms: give it a manifest of mpq features --type waveform"
        )
    if features.n_features != model.feature_dim:
        raise BadInput(
            f"{features.path}: {features.n_features} bins a frame, the model expects {model.feature_dim}: "
            "give the features it was trained on, or set feature_dim"
        )
    if model.sampling_rate not in (0, features.sampling_rate):
        raise BadInput(
            f"{features.path}: speech sampled at {features.sampling_rate} Hz, the model was trained on "
            f"{model.sampling_rate} Hz: convert the audio, such as by sox IN -r {model.sampling_rate} OUT"
        )
    if features.normalization != model.normalization:
        raise BadInput(
            f"{features.path}: normalized by {features.normalization}, the model expects {model.normalization}: "
            "give FeatureSet the normalization of the model"
        )
    if model.ivector_dim and features.ivector_dim != model.ivector_dim:
        raise BadInput(
            f"{features.path}: i-vectors of dimension {features.ivector_dim} (0: none), the model expects "
            f"{model.ivector_dim}: give the manifest that mpq ivector extract wrote, or set ivector_dim"
        )


def run_batch(model: nn.Module, batch: Batch, lhuc: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(N, T', C)` and lengths `(N,)` of a batch, on the model's device.

    Args:
        model: an acoustic model.
        batch: what it reads.
        lhuc: LHUC logits `(layers, units)` by speaker; None: not adapted.
    """
    device = next(model.parameters()).device
    inputs = {}
    if batch.ivectors is not None:
        inputs["ivectors"] = batch.ivectors.to(device)
    if lhuc is not None:
        inputs["lhuc"] = torch.stack([lhuc[speaker] for speaker in batch.speakers]).to(device)
    log_probs, lengths = model(batch.features.to(device), batch.lengths.to(device), **inputs)
    return log_probs, lengths


def units_hash(units: Sequence[str]) -> str:
    """Identifies the units of a model: its outputs 1, 2, ... are `units` in this order (0 is the blank)."""
    return hash_config(list(units))


def save_am(
    path: PathLike,
    model: AcousticModel,
    units: Sequence[str],
    extra: Mapping[str, Any] | None = None,
    plan: BitPlan | None = None,
) -> None:
    """Writes an acoustic model as a `*.mpq` file.

    Args:
        path: the file.
        model: trained model; float, or what `quantize_model(model, plan)` gave.
        units: symbols of outputs 1, 2, ...
        extra: figures of its training, for `mpq inspect`.
        plan: the plan of a quantized model.

    Raises:
        BadInput: a weight is not a finite number.
    """
    config = {
        "model": asdict(model.config),
        "phones": list(units),
        "normalization": model.normalization,
        "sampling_rate": model.sampling_rate,
    }
    plan = plan or uniform_plan(model, 32)
    save_model(path, model, arch_of(model.config), config, plan, units_hash(units), extra)


def load_float_am(path: PathLike, units: Sequence[str] | None = None) -> AcousticModel:
    """`load_am` of a model that is to be compressed.

    Raises:
        BadInput: it is quantized already, or as `load_am`.
    """
    model = load_am(path, units)
    if quantized_weights(model):
        raise BadInput(f"{path}: is quantized already; give the float model that mpq train-am wrote")
    return model


def load_am(path: PathLike, units: Sequence[str] | None = None, packed: bool = False) -> AcousticModel:
    """Reads an acoustic model, ready to serve.

    Args:
        path: a file written by `save_am`, or the folder that holds it as `model.mpq`.
        units: the units that a decoding graph was made for, to be checked.
        packed: keep quantized weights packed in memory, and unpack them at each use.

    Raises:
        BadInput: not an acoustic model, damaged, or trained for other units.
    """
    path = model_path(path)
    stored = read_model_file(path)
    if stored.arch not in CONFIGS:
        archs = ", ".join(CONFIGS)
        raise BadInput(f"{path}: holds a {stored.arch} model, expected an acoustic model ({archs}) from mpq train-am")
    if units is not None and units_hash(units) != stored.vocab_hash:
        raise BadInput(
            f"{path}: trained for {len(stored.config['phones'])} units that are not the {len(units)} of the "
            "decoding graph; decode with the lang folder it was trained with, or train it again"
        )
    return make_stored(stored, packed)


def make_stored(stored: ModelFile, packed: bool = False) -> AcousticModel:
    """The model that a file of `save_am` holds, ready to serve; `packed` as of `load_am`."""
    kind, size = CONFIGS[stored.arch], dict(stored.config["model"])
    # JSON has no tuples
    pairs = {f.name for f in fields(kind) if isinstance(getattr(kind, f.name, None), tuple)}
    size.update((name, tuple(size[name])) for name in pairs)
    model = make_am(kind(**size), len(stored.config["phones"]) + 1)
    model.normalization = stored.config.get("normalization", model.normalization)
    model.sampling_rate = stored.config.get("sampling_rate", 0)
    load_weights_into(model, stored, packed)
    return model
