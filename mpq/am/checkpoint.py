"""Published checkpoints of wav2vec 2.0 and HuBERT, and this project's own models, as initial weights.

Read are torchaudio's bundles (by name, from torch hub's cache) and files of their format, and folders of the Hugging
Face format (`config.json`, `model.safetensors` or `pytorch_model.bin`). Nothing in them is executed: pickles are read
with `weights_only`. Tensors get the names that `SslModel` gives them, with the weight norm of the positional
convolution, under both names that torch has for its parts, folded into the weight.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mpq.am.base import AcousticModel
from mpq.am.model import CONFIGS, ModelConfig, make_am
from mpq.io import BadInput, PathLike
from mpq.quant import read_model_file
from mpq.quant.plan import FLOAT_BITS

_SIZES = {  # torchaudio's names of sizes, ours, Hugging Face's
    "encoder_embed_dim": ("dim", "hidden_size"),
    "encoder_num_layers": ("layers", "num_hidden_layers"),
    "encoder_num_heads": ("heads", "num_attention_heads"),
    "encoder_ff_interm_features": ("feed_forward", "intermediate_size"),
    "encoder_pos_conv_kernel": ("position_kernel", "num_conv_pos_embeddings"),
    "encoder_pos_conv_groups": ("position_groups", "num_conv_pos_embedding_groups"),
    "encoder_layer_norm_first": ("norm_first", "do_stable_layer_norm"),
    "extractor_conv_bias": ("conv_bias", "conv_bias"),
}
_CONV = {"channels": "dim", "kernels": "kernel", "strides": "stride"}  # after conv_: our names, Hugging Face's
_TORCHAUDIO = [  # patterns of names of tensors, and ours; None: not needed
    (r"^wav2vec2\.", ""),  # of a model in pre-training
    (r"^mask_generator\.", ""),
    (r"^logit_generator\.", None),
    (r"^aux\.", "output."),
]
_HUGGING_FACE = [
    (r"^(wav2vec2|hubert)\.", ""),
    (r"^(quantizer|project_q|project_hid)\.", None),
    (r"^masked_spec_embed$", "mask_embedding"),
    (r"^feature_projection\.", "encoder.feature_projection."),
    (r"^encoder\.(?!feature_projection\.)", "encoder.transformer."),
    (r"^lm_head\.", "output."),
]
_LIKE_TORCHAUDIO = {  # what Hugging Face's configurations may say that torchaudio's model cannot do
    "add_adapter": False, "adapter_attn_dim": None, "conv_pos_batch_norm": False, "feat_proj_layer_norm": True,
    "hidden_act": "gelu", "feat_extract_activation": "gelu",
}  # fmt: skip
_SPECIAL = ("<s>", "</s>", "<unk>")  # units of fairseq's dictionaries that speech recognition does not use
_POSITION = "encoder.transformer.pos_conv_embed.conv"


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a model.

    Attributes:
        path: file of the weights.
        tensors: by the model's names.
        options: architecture and size, as the options of a model; empty where the file does not tell.
        labels: what outputs 1, 2, ... of its classifier stand for; empty: it has none, or does not tell.
    """

    path: Path
    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)


def find_checkpoint(name: PathLike) -> Path:
    """The file of weights that a name stands for: a file, a folder of the Hugging Face format, or a torchaudio bundle.

    Raises:
        BadInput: there is none.
    """
    path, bundle = Path(name), _bundle(name)
    if path.is_dir():
        for weights in ("model.safetensors", "pytorch_model.bin", "model.mpq"):
            if (path / weights).is_file():
                return path / weights
        raise BadInput(f"{path}: holds none of model.safetensors, pytorch_model.bin, model.mpq")
    if path.is_file() or bundle is None:
        if path.is_file():
            return path
        raise BadInput(
            f"--checkpoint {name}: neither a file or folder nor a bundle of torchaudio.pipelines like WAV2VEC2_BASE, "
            "HUBERT_LARGE or HUBERT_ASR_LARGE"
        )
    path = Path(torch.hub.get_dir(), "checkpoints", bundle._path)
    if not path.is_file():
        raise BadInput(
            f"{path}: no such file: run torchaudio.pipelines.{name}.get_model() once where there is a network, and "
            "copy the file here, or name it by --checkpoint"
        )
    return path


def read_checkpoint(name: PathLike) -> Checkpoint:
    """Reads a checkpoint; `name` is as of `find_checkpoint`.

    Raises:
        BadInput: no such checkpoint, a damaged one, or one of a model that is not built like wav2vec 2.0.
    """
    path = find_checkpoint(name)
    if path.suffix == ".mpq":
        stored = read_model_file(path)
        if stored.arch not in CONFIGS:
            raise BadInput(f"{path}: holds a {stored.arch} model; expected an acoustic model ({', '.join(CONFIGS)})")
        if set(stored.plan.bits.values()) - {FLOAT_BITS}:
            raise BadInput(f"{path}: is quantized already; give the float model that mpq train-am wrote")
        options = {**stored.config.get("model", {}), "arch": stored.arch}
        return Checkpoint(path, stored.state_dict(), options, list(stored.config.get("phones", [])))
    tensors = _load(path)
    if (path.parent / "config.json").is_file() and path.suffix in (".safetensors", ".bin"):
        return _hugging_face(path, tensors)
    return _torchaudio(path, tensors)


def is_fine_tuned(name: PathLike) -> bool:
    """Whether a published checkpoint has a classifier of known units; of a bundle its name tells, without its file.

    Raises:
        BadInput: as `read_checkpoint`.
    """
    from torchaudio.pipelines import Wav2Vec2ASRBundle

    if not Path(name).exists() and (bundle := _bundle(name)) is not None:
        return isinstance(bundle, Wav2Vec2ASRBundle)
    return find_checkpoint(name).suffix != ".mpq" and bool(read_checkpoint(name).labels)


def initial_am(config: ModelConfig, units: Sequence[str], checkpoint: Checkpoint) -> AcousticModel:
    """A model with the weights of a checkpoint, its classifier freshly initialized if the checkpoint's has other units.

    Args:
        config: its architecture and size.
        units: what its outputs 1, 2, ... tell apart.
        checkpoint: its weights; a mask embedding may be missing there.

    Raises:
        BadInput: the checkpoint is of another architecture or size, or lacks tensors; the first are named.
    """
    model = make_am(config, len(units) + 1)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("output.")}
    if checkpoint.labels == list(units):
        tensors = checkpoint.tensors
    expected = model.state_dict()
    free = {name for name in expected if name == "mask_embedding" or name.startswith("output.")}
    problems = [f"it lacks {name}" for name in expected if name not in tensors and name not in free]
    problems += [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems += [f"the model has no {name}" for name in tensors if name not in expected]
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise BadInput(f"{checkpoint.path}: {broken[0]} holds NaN or infinity; fetch the file again, or take another")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise BadInput(
            f"{checkpoint.path}: not a checkpoint of this model: {'; '.join(problems[:3])}{more}; set arch and "
            "sizes of the model as it was trained"
        )
    model.load_state_dict(tensors, strict=False)
    return model


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in float32."""
    try:
        if path.suffix == ".safetensors":
            stored = safetensors.torch.load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        if (
            not isinstance(stored, Mapping)
            or not stored
            or not all(isinstance(tensor, Tensor) for tensor in stored.values())
        ):
            raise ValueError("something else is in it")
    except OSError:
        raise
    except Exception as error:  # broken bytes make the unpickler raise nearly anything
        clear = isinstance(error, RuntimeError | ValueError | SafetensorError | pickle.UnpicklingError)
        reason = str(error).strip().partition("\n")[0][:120] if clear else "empty, broken or something else"
        raise BadInput(
            f"{path}: not a file of tensors only ({reason}); expected one of torchaudio's or Hugging Face's format"
        ) from None
    return {name: tensor.float() for name, tensor in stored.items() if tensor.is_floating_point()}


def _torchaudio(path: Path, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """A file of torchaudio's format; the name of a published one tells its size."""
    tensors = _renamed(path, tensors, _TORCHAUDIO)
    bundle = next((bundle for bundle in map(_bundle, _bundle_names()) if bundle._path == path.name), None)
    labels = _letters(tensors, bundle)
    if bundle is None:
        return Checkpoint(path, tensors, labels=labels)
    if bundle._model_type != "Wav2Vec2":
        raise BadInput(f"{path}: a {bundle._model_type} model; expected wav2vec 2.0 or HuBERT")
    options = {ours: bundle._params[theirs] for theirs, (ours, _) in _SIZES.items()}
    layers = zip(*bundle._params["extractor_conv_layer_config"], strict=True)
    options |= dict(zip(("conv_channels", "conv_kernels", "conv_strides"), map(list, layers), strict=True))
    options |= {"conv_norm": bundle._params["extractor_mode"], "normalize": bundle._normalize_waveform}
    options["arch"] = "hubert" if "hubert" in path.name else "wav2vec2"
    return Checkpoint(path, tensors, options, labels)


def _hugging_face(path: Path, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """A folder of the Hugging Face format: sizes in config.json, units in vocab.json."""
    config, place = _read_json(path.parent / "config.json"), path.parent / "config.json"
    if config.get("model_type") not in ("wav2vec2", "hubert"):
        raise BadInput(f"{place}: model_type: {config.get('model_type')!r}; expected wav2vec2 or hubert")
    for key, value in _LIKE_TORCHAUDIO.items():
        if config.get(key, value) != value:
            raise BadInput(f"{place}: {key}: {config[key]!r}; models with this are not supported, expected {value!r}")
    try:
        options = {ours: config[theirs] for ours, theirs in _SIZES.values()}
        options |= {f"conv_{ours}": config[f"conv_{theirs}"] for ours, theirs in _CONV.items()}
        options |= {"arch": config["model_type"], "conv_norm": f"{config['feat_extract_norm']}_norm"}
    except KeyError as error:
        raise BadInput(
            f"{place}: lacks {error}; expected the configuration of a {config['model_type']} model"
        ) from None
    preprocessor, vocabulary = path.parent / "preprocessor_config.json", path.parent / "vocab.json"
    options["normalize"] = not preprocessor.is_file() or _read_json(preprocessor).get("do_normalize", True)
    tensors = _renamed(path, tensors, _HUGGING_FACE)
    if "output.weight" not in tensors or not vocabulary.is_file():
        return Checkpoint(path, tensors, options)
    return _with_labels(path, tensors, options, _read_json(vocabulary), int(config.get("pad_token_id") or 0))


def _with_labels(
    path: Path, tensors: dict[str, Tensor], options: dict[str, Any], vocabulary: Mapping[str, int], blank: int
) -> Checkpoint:
    """The classifier's rows as this project orders them: the blank first, then all units but fairseq's special ones."""
    names = sorted(vocabulary, key=lambda name: vocabulary[name])
    rows = [vocabulary[name] for name in names if vocabulary[name] != blank and name not in _SPECIAL]
    n_outputs, last = len(tensors["output.weight"]), max(rows, default=0)
    if n_outputs <= last:
        raise BadInput(f"{path}: {n_outputs} outputs, but {path.parent / 'vocab.json'} numbers up to {last}")
    for part in ("output.weight", "output.bias"):
        tensors[part] = tensors[part][[blank, *rows]]
    return Checkpoint(path, tensors, options, [name for name in names if vocabulary[name] in rows])


def _letters(tensors: dict[str, Tensor], bundle: Any) -> list[str]:
    """Letters of a classifier fine-tuned by fairseq, its outputs for special units taken out; English is assumed."""
    from torchaudio.pipelines import WAV2VEC2_ASR_BASE_960H, Wav2Vec2ASRBundle

    bundle = bundle if isinstance(bundle, Wav2Vec2ASRBundle) else WAV2VEC2_ASR_BASE_960H
    letters, special = list(bundle.get_labels()[1:]), bundle._remove_aux_axis
    n_outputs = len(tensors.get("output.weight", ()))
    if n_outputs == 1 + len(letters) + len(special):
        rows = [row for row in range(n_outputs) if row not in special]
        for part in ("output.weight", "output.bias"):
            tensors[part] = tensors[part][rows]
    return letters if len(tensors.get("output.weight", ())) == 1 + len(letters) else []


def _renamed(
    path: Path, tensors: Mapping[str, Tensor], patterns: Sequence[tuple[str, str | None]]
) -> dict[str, Tensor]:
    """Tensors by our names, the weight norm folded."""
    renamed = {}
    for name, tensor in tensors.items():
        new: str | None = name
        for pattern, replacement in patterns:
            if new is not None and re.search(pattern, new):
                new = None if replacement is None else re.sub(pattern, replacement, new)
        if new is not None:
            renamed[new] = tensor
    for g, v in (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")):
        names = f"{_POSITION}.{g}", f"{_POSITION}.{v}"
        if all(name in renamed for name in names):
            size, direction = (renamed.pop(name) for name in names)
            if size.numel() != direction.shape[-1]:
                places = direction.shape[-1]
                raise BadInput(
                    f"{path}: {names[0]} is {tuple(size.shape)}, expected a number for each of {places} places"
                )
            # over all but the last dimension: a length for each place of the kernel
            renamed[f"{_POSITION}.weight"] = torch._weight_norm(direction, size.reshape(1, 1, -1), 2)
    return renamed


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a JSON object")
    return content


def _bundle(name: PathLike) -> Any:
    """The torchaudio bundle of that name, or None."""
    from torchaudio import pipelines

    bundle = getattr(pipelines, str(name), None)
    return bundle if isinstance(bundle, pipelines.Wav2Vec2Bundle) else None


def _bundle_names() -> list[str]:
    from torchaudio import pipelines

    return [name for name in dir(pipelines) if _bundle(name) is not None]
