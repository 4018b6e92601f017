"""Language models as ONNX files with low-bit weights, for onnxruntime.

One input, ``units`` (batch, time) int64: ``<s> u1 ... un``, padded on the right with any unit. One output,
``log_probs`` (batch, time, V): the natural-log probability of every unit after each position. Metadata: architecture,
configuration, bit plan, vocabulary hash, and the ids of ``<s>``, ``</s>`` and ``<unk>``.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import nn

from mpq.io import BadInput, PathLike, atomic_write
from mpq.lm.files import LoadedLm, copy_tokenizer
from mpq.lm.model import LanguageModel, TransformerLm
from mpq.quant.onnx import MICROSOFT, OnnxGraph

TOLERANCE = 0.05  # of a sentence's score; int8 activations that are rounded otherwise than ours stay far below
_INFO = helper.make_tensor_value_info


@dataclass(frozen=True)
class OnnxExport:
    """What `export_lm` wrote.

    Attributes:
        n_bytes: size of the file.
        operators: how many there are of each low-bit operator.
        difference: the largest relative difference of a sentence's score in onnxruntime to ours.
    """

    n_bytes: int
    operators: dict[str, int]
    difference: float


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
            scales do not fit, or the file would be too large.
    """
    model = build_onnx(lm, activations or lm.plan.a_bits, min_width)
    data = model.SerializeToString()
    difference = score_difference(lm, data)
    if not difference <= TOLERANCE:
        raise BadInput(
            f"{path}: onnxruntime {onnxruntime.__version__} scores sentences {difference:.1%} off mpq's on this "
            "machine; export with --activations 32"
        )
    with atomic_write(path, "wb") as file:
        file.write(data)
    copy_tokenizer(lm.tokenizer, path)
    return OnnxExport(len(data), dict(low_bit_operators(model.graph)), difference)


def build_onnx(lm: LoadedLm, activations: int, min_width: int) -> onnx.ModelProto:
    """The ONNX form of a language model; see `export_lm`."""
    graph = OnnxGraph(lm.model, lm.plan, activations, min_width)
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


def low_bit_operators(graph: onnx.GraphProto) -> Counter[str]:
    """How many there are of each operator of the domain ``com.microsoft``, in bodies of loops too."""
    found = Counter(node.op_type for node in graph.node if node.domain == MICROSOFT)
    for node in graph.node:
        for attribute in node.attribute:
            found += low_bit_operators(attribute.g)
    return found


@torch.no_grad()
def score_difference(lm: LoadedLm, data: bytes) -> float:
    """The largest relative difference between scores of a few random sentences in onnxruntime and in ours."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said below
    options.intra_op_num_threads = 1  # a pool takes longer to start than the sentences
    rows = np.random.default_rng(0).integers(0, len(lm.tokenizer), (4, 17))
    rows[:, 0], rows[:, -1] = lm.tokenizer.bos, lm.tokenizer.eos
    inputs, targets = rows[:, :-1], rows[:, 1:, None]
    try:  # some versions refuse a model when it is loaded, some when it runs
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (theirs,) = session.run(None, {"units": inputs})
    except Exception as error:  # its exceptions have no common class of their own
        reason = " ".join(str(error).split())[-120:]
        raise BadInput(
            f"onnxruntime {onnxruntime.__version__} cannot run this model ({reason}); if it has no kernel for codes of "
            "2 bits, give --min-bits 4"
        ) from None
    logits = lm.model(torch.from_numpy(inputs), torch.ones(inputs.shape, dtype=torch.bool))
    ours = logits.float().log_softmax(-1).view(*inputs.shape, -1).numpy()
    scores, expected = (np.take_along_axis(values, targets, 2).sum((1, 2)) for values in (theirs, ours))
    return float(np.abs(scores / expected - 1).max())


def _lstm(graph: OnnxGraph, model: LanguageModel) -> str:
    """Hidden rows (batch, time, C) after ``units``."""
    rows = graph.op("Transpose", graph.embedding("units", "embedding.weight"), perm=[1, 0, 2])
    dim = model.config.dim
    shape = graph.op("Concat", graph.op("Shape", "units", start=0, end=1), graph.constant([dim]), axis=0)
    zero = graph.op("Expand", graph.constant(0.0), shape)
    for layer in range(model.config.layers):
        rows = _lstm_layer(graph, rows, zero, layer, dim)
    return graph.op("Transpose", rows, perm=[1, 0, 2])


def _lstm_layer(graph: OnnxGraph, rows: str, zero: str, layer: int, dim: int) -> str:
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


def _transformer(graph: OnnxGraph, model: LanguageModel) -> str:
    """Hidden rows (batch, time, C) after ``units``."""
    turns, mask = _positions(graph, model)
    x = graph.embedding("units", "embedding.weight")
    for block in range(model.config.layers):
        x = _block(graph, model, f"blocks.{block}", x, turns, mask)
    return _norm(graph, model.get_submodule("norm"), "norm", x)


def _positions(graph: OnnxGraph, model: LanguageModel) -> tuple[tuple[str, str], str]:
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


def _block(graph: OnnxGraph, model: LanguageModel, name: str, x: str, turns: tuple[str, str], mask: str) -> str:
    """Pre-norm attention and feed-forward, each with a residual connection."""

    def linear(layer: str, rows: str) -> str:
        return graph.linear(rows, f"{name}.{layer}.weight", graph.parameters[f"{name}.{layer}.bias"])

    def norm(layer: str) -> str:
        return _norm(graph, model.get_submodule(f"{name}.{layer}"), f"{name}.{layer}", x)

    dim, heads = model.config.dim, model.config.heads
    split = graph.constant([0, 0, heads, dim // heads])
    normed = norm("norm1")
    q, k, v = (
        graph.op("Transpose", graph.op("Reshape", linear(f"attention.{part}", normed), split), perm=[0, 2, 1, 3])
        for part in ("query", "key", "value")
    )
    q, k = _rotate(graph, q, turns), graph.op("Transpose", _rotate(graph, k, turns), perm=[0, 1, 3, 2])
    scores = graph.op("Mul", graph.op("MatMul", q, k), graph.constant((dim // heads) ** -0.5))
    weights = graph.op("Softmax", graph.op("Add", scores, mask), axis=-1)
    attended = graph.op("Transpose", graph.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    joined = graph.op("Reshape", attended, graph.constant([0, 0, dim]))
    x = graph.op("Add", x, linear("attention.out", joined))
    expanded = graph.op("Gelu", linear("expand", norm("norm2")), approximate="tanh")
    return graph.op("Add", x, linear("contract", expanded))


def _rotate(graph: OnnxGraph, x: str, turns: tuple[str, str]) -> str:
    """Turns the pairs (x[i], x[i + C/2]) of ``x`` (..., T, C)."""
    cos, sin = turns
    a, b = graph.ops("Split", x, count=2, axis=-1, num_outputs=2)
    first = graph.op("Sub", graph.op("Mul", a, cos), graph.op("Mul", b, sin))
    second = graph.op("Add", graph.op("Mul", a, sin), graph.op("Mul", b, cos))
    return graph.op("Concat", first, second, axis=-1)


def _norm(graph: OnnxGraph, layer: nn.Module, name: str, x: str) -> str:
    """Layer normalization."""
    assert isinstance(layer, nn.LayerNorm)
    scale, shift = graph.parameter(f"{name}.weight"), graph.parameter(f"{name}.bias")
    return graph.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=layer.eps)
