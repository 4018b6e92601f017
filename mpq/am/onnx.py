"""Acoustic models as ONNX files with low-bit weights, for onnxruntime.

Inputs: ``features`` (batch, time, bins) float32, as `mpq features` makes them (of waveforms 160 samples a frame), which
the file normalizes where the model was trained on features normalized by utterance; ``lengths`` (batch,) int64, real
frames; ``ivectors`` (batch, periods, dimension) float32 where the model has them. Outputs: ``log_probs`` (batch,
out_time, units), natural logarithms, unit 0 the blank, and ``out_lengths`` (batch,) int64. What stands behind an
utterance's end does not change its outputs. Metadata: architecture, configuration, bit plan, units, normalization.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from mpq.am.base import AcousticModel, frame_mask
from mpq.am.model import make_stored
from mpq.am.onnx_graphs import classify
from mpq.data.batches import FLOOR, IVECTOR_PERIOD
from mpq.io import PathLike
from mpq.quant import ModelFile
from mpq.quant.onnx import OnnxExport, run_onnx, write_onnx
from mpq.quant.onnx_layers import LayerGraph

_INFO = helper.make_tensor_value_info
_FRAMES = (83, 60)  # of the utterances that the file is checked with


def export_am(stored: ModelFile, path: PathLike, activations: int | None = None, min_width: int = 2) -> OnnxExport:
    """Writes an acoustic model as an ONNX file.

    Before anything is written, onnxruntime computes two utterances of noise with it.

    Args:
        stored: float or quantized, as `read_model_file` returns it.
        path: file to write.
        activations: bits of what goes into low-bit products, 8 or 32; by default as the model's plan says.
        min_width: narrowest codes to write, 2, 4 or 8.

    Raises:
        BadInput: the installed onnxruntime has no kernel for these codes or computes something else, the groups of
            scales do not fit, or the file would be too large.
    """
    model = make_stored(stored)
    graph = build_onnx(model, stored, activations or stored.plan.a_bits, min_width)
    return write_onnx(path, graph, lambda data: output_difference(model, data), "log-probabilities")


def build_onnx(model: AcousticModel, stored: ModelFile, activations: int, min_width: int) -> onnx.ModelProto:
    """The ONNX form of an acoustic model; see `export_am`."""
    graph = LayerGraph(model, stored.plan, activations, min_width)
    logits, lengths = classify(graph, model)
    graph.nodes.append(helper.make_node("LogSoftmax", [logits], ["log_probs"], axis=-1))
    graph.nodes.append(helper.make_node("Identity", [lengths], ["out_lengths"]))
    inputs = [
        _INFO("features", TensorProto.FLOAT, ["batch", "time", model.feature_dim]),
        _INFO("lengths", TensorProto.INT64, ["batch"]),
    ]
    if model.ivector_dim:
        inputs.append(_INFO("ivectors", TensorProto.FLOAT, ["batch", "periods", model.ivector_dim]))
    outputs = [
        _INFO("log_probs", TensorProto.FLOAT, ["batch", "out_time", model.n_outputs]),
        _INFO("out_lengths", TensorProto.INT64, ["batch"]),
    ]
    metadata = {
        "architecture": stored.arch,
        "config": json.dumps(stored.config["model"]),
        "bit_plan": json.dumps(stored.plan.to_dict()),
        "units": json.dumps(stored.config["phones"]),
        "normalization": model.normalization,
    }
    return graph.to_model(inputs, outputs, metadata)


@torch.no_grad()
def output_difference(model: AcousticModel, data: bytes) -> float:
    """Relative difference (of Euclidean norms) of two utterances' log-probabilities in onnxruntime and in ours."""
    rng = np.random.default_rng(0)
    lengths = torch.tensor(_FRAMES)
    shapes = {"features": (int(lengths.max()), model.feature_dim)}
    if model.ivector_dim:
        shapes["ivectors"] = (-(-int(lengths.max()) // IVECTOR_PERIOD), model.ivector_dim)
    noise = {name: torch.from_numpy(rng.normal(size=(2, *size)).astype(np.float32)) for name, size in shapes.items()}
    theirs, their_lengths = run_onnx(data, {name: x.numpy() for name, x in [*noise.items(), ("lengths", lengths)]})
    features = normalize(noise["features"], lengths, model)
    ours, our_lengths = model(features, lengths, noise.get("ivectors"))
    if their_lengths.tolist() != our_lengths.tolist():
        return float("inf")
    real = frame_mask(our_lengths, ours.shape[1])[:, :, None]
    return float(((torch.from_numpy(theirs) - ours) * real).norm() / (ours * real).norm())


def normalize(features: Tensor, lengths: Tensor, model: AcousticModel) -> Tensor:
    """Features `(N, T, F)` as `FeatureSet` gives them to the model, where it normalizes by utterance."""
    if model.normalization != "utterance":
        return features
    parts = [row[:length] for row, length in zip(features, lengths.tolist(), strict=True)]
    parts = [(part - part.mean(0)) / part.std(0, correction=0).clamp(min=FLOOR) for part in parts]
    return nn.utils.rnn.pad_sequence(parts, batch_first=True)
