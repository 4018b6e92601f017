"""Language models as ONNX files with low-bit weights, for onnxruntime.

One input, ``units`` (batch, time) int64: ``<s> u1 ... un``, padded on the right with any unit. One output,
``log_probs`` (batch, time, V): the natural-log probability of every unit after each position. Metadata: architecture,
configuration, bit plan, vocabulary hash, and the ids of ``<s>``, ``</s>`` and ``<unk>``.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from mpq.io import PathLike
from mpq.lm.files import LoadedLm, check_units_copy, copy_tokenizer
from mpq.lm.model import LanguageModel, TransformerLm
from mpq.quant.onnx import OnnxExport, run_onnx, write_onnx
from mpq.quant.onnx_layers import LayerGraph

_INFO = helper.make_tensor_value_info


def export_lm(lm: LoadedLm, path: PathLike, activations: int | None = None, min_width: int = 2) -> OnnxExport:
    """Writes a language model as an ONNX file, and a copy of its units beside it.

    Before anything is written, onnxruntime scores a few sentences with it.

    Args:
        lm: float or quantized, as `load_lm` returns it.
        path: file to write.
        activations: bits of what goes into low-bit products, 8 or 32; by default as the model's plan says.
        min_width: narrowest codes to write, 2, 4 or 8.

    Raises:
        BadInput: the installed onnxruntime has no kernel for these codes or gives other scores than `lm`, the groups of
            scales do not fit, the file would be too large, or the folder holds other units (`check_units_copy`).
    """
    check_units_copy(lm.tokenizer, path)
    model = build_onnx(lm, activations or lm.plan.a_bits, min_width)
    done = write_onnx(path, model, lambda data: score_difference(lm, data), "scores of sentences")
    copy_tokenizer(lm.tokenizer, path)
    return done


def build_onnx(lm: LoadedLm, activations: int, min_width: int) -> onnx.ModelProto:
    """The ONNX form of a language model; see `export_lm`."""
    graph = LayerGraph(lm.model, lm.plan, activations, min_width)
    hidden = _transformer if isinstance(lm.model, TransformerLm) else _lstm
    logits = graph.linear(hidden(graph, lm.model), "output.weight", lm.model.output.bias)
    graph.nodes.append(helper.make_node("LogSoftmax", [logits], ["log_probs"], axis=-1))
    metadata = {
        "architecture": lm.model.config.arch,
        "config": json.dumps(asdict(lm.model.config)),
        "bit_plan": json.dumps(lm.plan.to_dict()),
        "vocab_hash": lm.tokenizer.hash,
        **{name: str(getattr(lm.tokenizer, name)) for name in ("bos", "eos", "unk")},
    }
    units = _INFO("units", TensorProto.INT64, ["batch", "time"])
    log_probs = _INFO("log_probs", TensorProto.FLOAT, ["batch", "time", len(lm.tokenizer)])
    return graph.to_model([units], [log_probs], metadata)


@torch.no_grad()
def score_difference(lm: LoadedLm, data: bytes) -> float:
    """The largest relative difference between scores of a few random sentences in onnxruntime and in ours."""
    rows = np.random.default_rng(0).integers(0, len(lm.tokenizer), (4, 17))
    rows[:, 0], rows[:, -1] = lm.tokenizer.bos, lm.tokenizer.eos
    inputs, targets = rows[:, :-1], rows[:, 1:, None]
    (theirs,) = run_onnx(data, {"units": inputs})
    logits = lm.model(torch.from_numpy(inputs), torch.ones(inputs.shape, dtype=torch.bool))
    ours = logits.float().log_softmax(-1).view(*inputs.shape, -1).numpy()
    scores, expected = (np.take_along_axis(values, targets, 2).sum((1, 2)) for values in (theirs, ours))
    return float(np.abs(scores / expected - 1).max())


def _lstm(graph: LayerGraph, model: LanguageModel) -> str:
    """Hidden rows (batch, time, C) after ``units``."""
    rows = graph.op("Transpose", graph.embedding("units", "embedding.weight"), perm=[1, 0, 2])
    dim = model.config.dim
    shape = graph.op("Concat", graph.op("Shape", "units", start=0, end=1), graph.constant([dim]), axis=0)
    zero = graph.op("Expand", graph.constant(0.0), shape)
    for layer in range(model.config.layers):
        rows = _lstm_layer(graph, rows, zero, layer, dim)
    return graph.op("Transpose", rows, perm=[1, 0, 2])


def _lstm_layer(graph: LayerGraph, rows: str, zero: str, layer: int, dim: int) -> str:
    """One layer over time, (T, N, C) to (T, N, C): the input's share at once, the recurrence step by step in a Scan."""
    bias = graph.parameters[f"lstm.bias_ih_l{layer}"] + graph.parameters[f"lstm.bias_hh_l{layer}"]
    gates = graph.linear(rows, f"lstm.weight_ih_l{layer}", bias)
    h, c, step = (f"{name}_l{layer}" for name in ("h", "c", "gates"))
    with graph.body() as nodes:
        active = graph.op("Add", step, graph.linear(h, f"lstm.weight_hh_l{layer}"))
        i, f, g, o = graph.ops("Split", active, count=4, axis=-1, num_outputs=4)
        i, f, o = (graph.op("Sigmoid", gate) for gate in (i, f, o))
        kept, added = graph.op("Mul", f, c), graph.op("Mul", i, graph.op("Tanh", g))
        c_next = graph.op("Add", kept, added)
        h_next = graph.op("Mul", o, graph.op("Tanh", c_next))
        seen = graph.op("Identity", h_next)
    inputs = [_INFO(h, TensorProto.FLOAT, [None, dim]), _INFO(c, TensorProto.FLOAT, [None, dim])]
    inputs.append(_INFO(step, TensorProto.FLOAT, [None, 4 * dim]))
    outputs = [_INFO(name, TensorProto.FLOAT, [None, dim]) for name in (h_next, c_next, seen)]
    body = helper.make_graph(nodes, f"lstm_l{layer}", inputs, outputs)
    return graph.ops("Scan", zero, zero, gates, count=3, body=body, num_scan_inputs=1)[2]


def _transformer(graph: LayerGraph, model: LanguageModel) -> str:
    """Hidden rows (batch, time, C) after ``units``."""
    turns, mask = _positions(graph, model)
    x = graph.embedding("units", "embedding.weight")
    for block in range(model.config.layers):
        x = _block(graph, model, f"blocks.{block}", x, turns, mask)
    return graph.layer("norm", x)


def _positions(graph: LayerGraph, model: LanguageModel) -> tuple[tuple[str, str], str]:
    """Cosines and sines of the rotary angles, (T, C / heads / 2) each, and what is added to the scores, (T, T)."""
    width = model.config.dim // model.config.heads
    rates = 10000.0 ** (-torch.arange(0, width, 2) / width)
    length = graph.op("Squeeze", graph.op("Shape", "units", start=1, end=2))
    positions = graph.op("Range", graph.constant(0), length, graph.constant(1))
    down, across = (graph.op("Unsqueeze", positions, graph.constant([axis])) for axis in (1, 0))
    angles = graph.op("Mul", graph.op("Cast", down, to=TensorProto.FLOAT), graph.constant(rates, "rotary_rates"))
    later = graph.op("Less", down, across)
    mask = graph.op("Where", later, graph.constant(float("-inf")), graph.constant(0.0))
    return (graph.op("Cos", angles), graph.op("Sin", angles)), mask


def _block(graph: LayerGraph, model: LanguageModel, name: str, x: str, turns: tuple[str, str], mask: str) -> str:
    """Pre-norm attention and feed-forward, each with a residual connection."""

    def layer(part: str, rows: str) -> str:
        return graph.layer(f"{name}.{part}", rows)

    normed = layer("norm1", x)
    parts = (layer(f"attention.{part}", normed) for part in ("query", "key", "value"))
    q, k, v = (graph.split_heads(part, model.config.heads) for part in parts)
    attended = graph.attend(_rotate(graph, q, turns), _rotate(graph, k, turns), v, mask)
    x = graph.op("Add", x, layer("attention.out", attended))
    expanded = graph.op("Gelu", layer("expand", layer("norm2", x)), approximate="tanh")
    return graph.op("Add", x, layer("contract", expanded))


def _rotate(graph: LayerGraph, x: str, turns: tuple[str, str]) -> str:
    """Turns the pairs (x[i], x[i + C/2]) of ``x`` (..., T, C)."""
    cos, sin = turns
    a, b = graph.ops("Split", x, count=2, axis=-1, num_outputs=2)
    first = graph.op("Sub", graph.op("Mul", a, cos), graph.op("Mul", b, sin))
    second = graph.op("Add", graph.op("Mul", a, sin), graph.op("Mul", b, cos))
    return graph.op("Concat", first, second, axis=-1)
