"""Acoustic models as ONNX files: outputs against a float model of the same weights, operators, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

import mpq.quant.onnx
from mpq.am import (
    AcousticModel,
    ConformerConfig,
    HubertConfig,
    ModelConfig,
    TdnnConfig,
    TdnnfConfig,
    Wav2Vec2Config,
    make_am,
    save_am,
)
from mpq.am.onnx import export_am, normalize
from mpq.io import BadInput
from mpq.quant import BitPlan, ModelFile, quantizable, quantize_model, read_model_file, uniform_plan
from mpq.quant.onnx import run_onnx

from .settle import settled

# onnxruntime 1.23, the last one for Python 3.10, runs codes of 4 and 8 bits
NARROWEST = 2 if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 31) else 4
SSL: dict[str, Any] = {
    "conv_channels": (16, 16), "conv_kernels": (20, 3), "conv_strides": (16, 10), "dim": 32, "layers": 1, "heads": 4,
    "feed_forward": 48, "position_kernel": 8, "position_groups": 2,
}  # fmt: skip
CONFIGS: dict[str, ModelConfig] = {
    "tdnn": TdnnConfig(feature_dim=8, channels=(2, 4), hidden=32, dilations=[1, 3]),
    "tdnn-ivectors": TdnnConfig(feature_dim=8, channels=(2, 4), hidden=32, dilations=[2], ivector_dim=5),
    "tdnnf": TdnnfConfig(
        feature_dim=8, channels=[4, 6], height_strides=[2, 1], hidden=32, bottleneck=8, first_bottleneck=12,
        strides=[1, 2], prefinal=16,
    ),
    "tdnnf-ivectors": TdnnfConfig(
        feature_dim=8, channels=[4], height_strides=[2], hidden=32, bottleneck=8, first_bottleneck=12, strides=[1],
        prefinal=16, ivector_dim=5,
    ),
    "conformer": ConformerConfig(feature_dim=8, dim=32, heads=4, feed_forward=48, layers=1, kernel=7, channels=4),
    "wav2vec2": Wav2Vec2Config(**SSL),
    "hubert": HubertConfig(**SSL, conv_norm="layer_norm", conv_bias=True, normalize=True, norm_first=True),
}  # fmt: skip
UNITS = ["A", "B", "C", "D"]


def stored(path: Path, arch: str, plan_name: str) -> tuple[AcousticModel, ModelFile]:
    """A float model with the weights of a quantized one, and the latter's file."""
    torch.manual_seed(1)
    model = settled(make_am(CONFIGS[arch], 1 + len(UNITS)))
    plan = plan_of(model, plan_name)
    save_am(path, quantize_model(model, plan), UNITS, plan=plan)
    file = read_model_file(path)
    reference = make_am(CONFIGS[arch], 1 + len(UNITS)).eval()
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    reference.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in file.state_dict().items()})
    return reference, file


def plan_of(model: AcousticModel, name: str) -> BitPlan:
    """The same bits everywhere, asymmetric ones, bits by layer, or by row."""
    shapes = quantizable(model)
    if name == "layers":
        return BitPlan({weight: (4, 3, 32, 8, 2)[i % 5] for i, weight in enumerate(shapes)})
    if name == "rows":
        return BitPlan({weight: tuple(row * 3 % 8 + 1 for row in range(size[0])) for weight, size in shapes.items()})
    return uniform_plan(model, 2, table="asym") if name == "asym" else uniform_plan(model, int(name))


def inputs_of(model: AcousticModel, lengths: list[int]) -> dict[str, Tensor]:
    """Features that are neither normalized nor zero behind an utterance's end."""
    torch.manual_seed(2)
    inputs = {"features": 3 * torch.randn(len(lengths), max(lengths), model.feature_dim) + 1}
    inputs["lengths"] = torch.tensor(lengths)
    if model.ivector_dim:
        inputs["ivectors"] = torch.randn(len(lengths), -(-max(lengths) // 10), model.ivector_dim)
    return inputs


@torch.no_grad()
def largest_difference(model: AcousticModel, path: Path, lengths: list[int]) -> float:
    """Of a log-probability, and lengths must be equal."""
    inputs = inputs_of(model, lengths)
    theirs, out_lengths = run_onnx(path.read_bytes(), {name: x.numpy() for name, x in inputs.items()})
    features = normalize(inputs["features"], inputs["lengths"], model)
    ours, expected = model(features, inputs["lengths"], inputs.get("ivectors"))
    assert out_lengths.tolist() == expected.tolist() and theirs.shape == ours.shape
    pairs = [(torch.from_numpy(theirs[i, :n]), ours[i, :n]) for i, n in enumerate(expected.tolist())]
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("plan", ["32", "asym", "layers", "rows"])
@pytest.mark.parametrize("arch", CONFIGS)
def test_outputs_are_those_of_the_same_weights(arch: str, plan: str, tmp_path: Path) -> None:
    reference, file = stored(tmp_path / "am.mpq", arch, plan)
    done = export_am(file, tmp_path / "am.onnx", 32, NARROWEST)
    assert largest_difference(reference, tmp_path / "am.onnx", [60, 47, 5]) < 1e-4
    if plan == "32":
        assert largest_difference(reference, tmp_path / "am.onnx", [31]) < 1e-4
        assert done.operators == {} and done.difference < 1e-5


@pytest.mark.parametrize("arch", ["tdnn", "conformer", "wav2vec2"])
def test_file_holds_low_bit_operators_only(arch: str, tmp_path: Path) -> None:
    reference, file = stored(tmp_path / "am.mpq", arch, "4")
    done = export_am(file, tmp_path / "am.onnx")
    model = onnx.load(tmp_path / "am.onnx")
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    grouped = [name for name, module in reference.named_modules() if getattr(module, "groups", 1) > 1]
    assert (
        done.operators.get("GatherBlockQuantized", 0)
        == len(grouped)
        == sum(n.op_type == "Conv" for n in model.graph.node)
    )
    assert done.operators["MatMulNBits"] == len(file.shapes) - len(grouped)
    for name, (rows, columns) in file.shapes.items():
        codes = held[f"{name}.codes4"]
        assert codes.dtype == np.uint8 and rows * columns / 2 <= codes.size <= rows * -(-columns // 16) * 8 + rows * 8
    floats = [array for array in held.values() if array.dtype == np.float32 and array.ndim > 1]
    assert all(f"{name}" not in held for name in file.shapes) and all(a.size < 400 for a in floats), "scales only"
    meta = {entry.key: entry.value for entry in model.metadata_props}
    assert (meta["architecture"], json.loads(meta["units"])) == (arch, UNITS)
    assert BitPlan.from_dict(json.loads(meta["bit_plan"])) == file.plan
    assert meta["normalization"] == ("none" if arch == "wav2vec2" else "utterance")


@pytest.mark.parametrize("arch", CONFIGS)
def test_integer_activations_are_close_to_ours(arch: str, tmp_path: Path) -> None:
    _, file = stored(tmp_path / "am.mpq", arch, "8")
    assert export_am(file, tmp_path / "am.onnx").difference < 0.01


def test_features_that_come_normalized_by_speaker(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = settled(make_am(CONFIGS["tdnn"], 1 + len(UNITS)))
    model.normalization = "speaker"
    save_am(tmp_path / "am.mpq", model, UNITS)
    export_am(read_model_file(tmp_path / "am.mpq"), tmp_path / "am.onnx")
    assert largest_difference(model, tmp_path / "am.onnx", [40, 22]) < 1e-4


def test_what_onnxruntime_computes_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = stored(tmp_path / "am.mpq", "tdnn", "8")
    monkeypatch.setattr(mpq.quant.onnx, "TOLERANCE", -1.0)
    with pytest.raises(BadInput, match=r"gives log-probabilities .* off mpq's on this machine; export with --activ"):
        export_am(file, tmp_path / "am.onnx")
    assert not (tmp_path / "am.onnx").exists()
