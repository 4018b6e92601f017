"""Packed model files (``*.mpq``): one safetensors file with everything needed to run a model but its tokenizer.

Tensors: ``NAME.codes`` (uint8, tightly packed) and ``NAME.scale`` (float16) for each quantized weight, ``NAME.offset``
(float16) too where its table is asymmetric, and every other parameter and buffer under its own name. Metadata: format
version, architecture, configuration, bit plan, vocabulary hash, and the SHA-256 of the whole file (with the place of
the digest zeroed), so that no altered byte goes unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpq.io import BadInput, PathLike, atomic_write, open_bytes
from mpq.quant.layers import LOG_SCALE, SHIFT
from mpq.quant.model import freeze, quantizable, quantize_model, quantized_weights
from mpq.quant.pack import pack_rows, packed_shape, unpack_rows
from mpq.quant.plan import FLOAT_BITS, BitPlan
from mpq.quant.table import SCALE_DTYPE, Quantized, scale_shape

FORMAT_VERSION = 1
_DIGEST = re.compile(rb'\{\\"sha256\\":\\"([0-9a-f]{64})\\"')  # as it stands in the header: JSON in JSON


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes:
        path: where it was read from, for messages.
        arch: name of the architecture (``lstm``, ``transformer``, ...).
        config: what its builder needs.
        plan: bits of every quantizable weight.
        vocab_hash: sha256 of the tokenizer file that the model was trained with.
        extra: anything else that was given to `save_model` (training figures, ...), JSON.
        shapes: shape of every quantizable weight by full name.
        tensors: as stored.
        n_bytes: size of the file.
    """

    path: str
    arch: str
    config: dict[str, Any]
    plan: BitPlan
    vocab_hash: str
    extra: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    tensors: dict[str, Tensor]
    n_bytes: int

    def quantized(self, name: str) -> Quantized:
        """Codes and scale of a quantized weight."""
        precision = self.plan.precision(name)
        if precision is None:
            raise KeyError(f"{name} is float in {self.path}")
        codes = unpack_rows(self.tensors[f"{name}.codes"], precision, self.shapes[name][1])
        offset = self.tensors.get(f"{name}.offset")
        scale = self.tensors[f"{name}.scale"].to(torch.float32)
        return Quantized(codes, scale, None if offset is None else offset.to(torch.float32))

    def float_tensors(self) -> dict[str, Tensor]:
        """The tensors that are not codes or scales: float weights, biases, normalization."""
        packed = {f"{name}.{part}" for name in self.quantized_names() for part in ("codes", "scale", "offset")}
        return {name: tensor for name, tensor in self.tensors.items() if name not in packed}

    def quantized_names(self) -> list[str]:
        """Names of the weights held as codes."""
        return [name for name in self.shapes if self.plan.precision(name) is not None]

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor in float, codes times scales, a convolution's as its matrix (rows, columns)."""
        return {**self.float_tensors(), **{n: self.quantized(n).dequantize() for n in self.quantized_names()}}


def save_model(
    path: PathLike,
    model: nn.Module,
    arch: str,
    config: Mapping[str, Any],
    plan: BitPlan,
    vocab_hash: str,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model: quantized weights as packed codes, everything else as it is.

    Args:
        model: float (the plan says 32 everywhere), quantized, or frozen.
        plan: the one that `quantize_model` was given.

    Raises:
        ValueError: the plan has bits for a weight that the model does not hold quantized, or the reverse.
        BadInput: a tensor holds NaN or an infinity.
    """
    shapes = quantizable(model)
    plan.check(shapes)
    weights = quantized_weights(model)
    planned = {name for name in shapes if plan.precision(name) is not None}
    if planned != weights.keys():
        names = ", ".join(sorted(planned ^ weights.keys()))
        raise ValueError(f"plan and model disagree on what is quantized ({names}); call quantize_model(model, plan)")
    tensors = {name: tensor.detach() for name, tensor in _float_tensors(model).items()}
    for name, (codes, scale, offset) in weights.items():
        precision = plan.precision(name)
        assert precision is not None
        tensors[f"{name}.codes"] = pack_rows(codes, precision)
        tensors[f"{name}.scale"] = scale.to(SCALE_DTYPE)
        if offset is not None:
            tensors[f"{name}.offset"] = offset.to(SCALE_DTYPE)
    for name, tensor in {**tensors, **dict(model.named_parameters())}.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BadInput(f"{path}: {name} holds NaN or infinity: training diverged; lower the learning rate")
    content = {
        "sha256": "0" * 64,
        "format_version": FORMAT_VERSION,
        "arch": arch,
        "config": dict(config),
        "plan": plan.to_dict(),
        "vocab_hash": vocab_hash,
        "extra": dict(extra or {}),
        "shapes": shapes,
    }
    _write(path, tensors, content)


def _write(path: PathLike, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors and metadata, and put the digest of the whole in its place."""
    metadata = {"mpq": json.dumps(content, separators=(",", ":"), allow_nan=False)}
    data = safetensors.torch.save({n: t.cpu().contiguous() for n, t in tensors.items()}, metadata)
    start, end = _digest_place(data)
    with atomic_write(path, "wb") as file:
        file.write(data[:start] + _digest(data, start, end) + data[end:])


def _float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that are not quantized weights; of tied ones, the first."""
    saved = model.state_dict().keys()
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors.update((name, buffer) for name, buffer in model.named_buffers() if name in saved)
    quantized = quantized_weights(model)
    held = {f"{name}{part}" for name in quantized for part in ("", "_codes", "_scale", "_offset", LOG_SCALE, SHIFT)}
    return {name: tensor for name, tensor in tensors.items() if name not in held}


def _digest_place(data: bytes) -> tuple[int, int]:
    """Where the digest stands in the file; (0, 0): nowhere."""
    header_end = 8 + int.from_bytes(data[:8], "little")
    match = _DIGEST.search(data[: min(header_end, len(data))])
    return match.span(1) if match else (0, 0)


def _digest(data: bytes, start: int, end: int) -> bytes:
    """SHA-256 of the file, in hexadecimal, with zeros where the digest stands."""
    sha = hashlib.sha256(memoryview(data)[:start])
    sha.update(b"0" * (end - start))
    sha.update(memoryview(data)[end:])
    return sha.hexdigest().encode()


def model_path(path: PathLike) -> Path:
    """The model file: ``path`` itself, or ``model.mpq`` in the folder ``path``."""
    return Path(path) / "model.mpq" if Path(path).is_dir() else Path(path)


def read_model_file(path: PathLike) -> ModelFile:
    """Read and check a model file.

    Args:
        path: the file, or a folder that holds it as ``model.mpq``.

    Raises:
        BadInput: not a model file, cut short, altered, or of another format version.
    """
    path = model_path(path)
    with open_bytes(path) as file:
        data = file.read()
    start, end = _digest_place(data)
    if not start:
        writers = "`mpq train-lm`, `train-am`, `import-am` or `quantize`"
        raise BadInput(f"{path}: not an mpq model file, or damaged; expected what {writers} wrote")
    if _digest(data, start, end) != data[start:end]:
        raise BadInput(f"{path}: cut short or altered ({len(data)} bytes do not match their checksum); copy it again")
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        content = json.loads(header["__metadata__"]["mpq"])
        if content["format_version"] != FORMAT_VERSION:
            version = content["format_version"]
            raise BadInput(f"{path}: format version {version}; this program reads version {FORMAT_VERSION}")
        model_file = ModelFile(
            path=str(path),
            arch=content["arch"],
            config=content["config"],
            plan=BitPlan.from_dict(content["plan"], f"{path}: plan"),
            vocab_hash=content["vocab_hash"],
            extra=content["extra"],
            shapes={name: tuple(shape) for name, shape in content["shapes"].items()},
            tensors=dict(sorted(safetensors.torch.load(data).items())),  # it gives them in any order
            n_bytes=len(data),
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, SafetensorError) as error:
        raise BadInput(f"{path}: not a complete mpq model file ({type(error).__name__}: {error})") from None
    _check_tensors(model_file)
    return model_file


def _check_tensors(model_file: ModelFile) -> None:
    """See that the stored codes and scales are what plan and shapes ask for."""
    model_file.plan.check(model_file.shapes, f"{model_file.path}: plan")
    for name in model_file.quantized_names():
        precision = model_file.plan.precision(name)
        assert precision is not None
        rows, columns = model_file.shapes[name]
        wanted = {
            f"{name}.codes": (packed_shape(precision, rows, columns), torch.uint8),
            f"{name}.scale": (scale_shape(precision, rows, columns), SCALE_DTYPE),
        }
        if precision.kind == "asym":
            wanted[f"{name}.offset"] = wanted[f"{name}.scale"]
        for key, (shape, dtype) in wanted.items():
            tensor = model_file.tensors.get(key)
            if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
                found = "none" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
                raise BadInput(f"{model_file.path}: {key}: expected {shape} {dtype}, found {found}")


class _NoInitialization(TorchFunctionMode):
    """Leaves out what `torch.nn.init` would do."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


@contextmanager
def without_numbers() -> Iterator[None]:
    """What is built inside has shapes but no memory and no numbers, for `load_weights_into`.

    Random numbers on torch's device ``meta`` would import sympy: 120 MB and a second.
    """
    with torch.device("meta"), _NoInitialization():
        yield


def load_weights_into(model: nn.Module, model_file: ModelFile, packed: bool = False) -> nn.Module:
    """Turn a float model, as its builder made it from arch and config, into the stored one, ready to serve.

    Args:
        model: built `without_numbers` it never takes the memory of a float model; all its tensors must then be in the
            file.
        packed: as in `freeze`.
    Returns:
        the model: same object, in eval mode.
    Raises:
        BadInput: the stored tensors are not those of this model.
    """
    shapes = quantizable(model)
    # what could not be quantized when a file was written is float in it, without a word in its plan
    float_bits = {n: FLOAT_BITS for n in shapes if n not in model_file.plan.bits and n in model_file.tensors}
    plan = replace(model_file.plan, bits={**model_file.plan.bits, **float_bits})
    plan.check(shapes, model_file.path)
    for name, shape in shapes.items():
        stored_shape = model_file.shapes.get(name, shape)
        if shape != stored_shape:
            raise BadInput(f"{model_file.path}: {name} is {stored_shape}, the model has {shape}")
    quantize_model(model, plan)
    freeze(model, model_file.quantized, packed)
    targets, stored = _float_tensors(model), model_file.float_tensors()
    if targets.keys() != stored.keys():
        names = ", ".join(sorted(targets.keys() ^ stored.keys()))
        raise BadInput(f"{model_file.path}: tensors differ from those of a {model_file.arch}: {names}")
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != stored[name].shape:
                found = f"{tuple(stored[name].shape)}, the model has {tuple(target.shape)}"
                raise BadInput(f"{model_file.path}: {name} is {found}")
            if target.is_meta:
                _replace(model, target, stored[name])
            else:
                target.copy_(stored[name])
    return model.eval()


def _replace(model: nn.Module, old: Tensor, new: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, everywhere it is used."""
    parameter = nn.Parameter(new.clone())
    for layer in model.modules():
        for name in [name for name, held in layer._parameters.items() if held is old]:
            layer._parameters[name] = parameter
        for name in [name for name, held in layer._buffers.items() if held is old]:
            layer._buffers[name] = parameter.data
