"""Language models as ONNX files: onnxruntime's scores against ours, the weights in them, their operators and size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

import mpq.lm.onnx
import mpq.quant.onnx
from mpq.data.lmtext import LmBatch, Tokenizer, pad_sentences
from mpq.io import BadInput
from mpq.lm import LanguageModel, LmConfig, LoadedLm, build_lm, load_lm, save_lm
from mpq.lm.onnx import export_lm
from mpq.quant import BitPlan, quantizable, quantize_model, read_model_file, uniform_plan
from mpq.quant.onnx import low_bit_operators

# onnxruntime 1.23, the last one for Python 3.10, runs codes of 4 and 8 bits
NARROWEST = 2 if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 31) else 4
CONFIGS = {
    "lstm": LmConfig("lstm", dim=48, layers=2, dropout=0.0),
    "transformer": LmConfig("transformer", dim=32, layers=2, heads=2, dim_ff=80, dropout=0.0),
    "odd": LmConfig("lstm", dim=19, layers=1, dropout=0.0),
}
PLANS = ["1", "2", "3", "4", "8", "32", "layers", "rows", "pow2", "matrix", "asym"]
SENTENCES = [[3, 4, 5], [], [6], [7, 8, 9, 10, 11, 12, 3, 4, 5, 6, 7], [12, 12], [0, 5, 9, 3, 4, 4, 4]]


def plan_of(model: LanguageModel, bits: str) -> BitPlan:
    """A plan by name: one number, `layers` or `rows` with bits of their own, `pow2`, `matrix` or `groups` of scales."""
    shapes = quantizable(model)
    if bits.isdecimal():
        return uniform_plan(model, int(bits))
    if bits == "layers":
        return BitPlan({name: (1, 2, 3, 4, 6, 8, 32)[i % 7] for i, name in enumerate(shapes)})
    if bits == "rows":
        return BitPlan({name: tuple((5 * row) % 8 + 1 for row in range(shape[0])) for name, shape in shapes.items()})
    settings: dict[str, Any] = {
        "pow2": {"table": "pow2"},
        "asym": {"table": "asym"},
        "matrix": {"scale": "matrix"},
        "groups": {"scale": 16},
        "asym groups": {"scale": 16, "table": "asym"},
    }[bits]
    return uniform_plan(model, 4, **settings)


def saved(folder: Path, words: Tokenizer, arch: str, bits: str) -> LoadedLm:
    """A quantized model with random weights, written and read again."""
    torch.manual_seed(1)
    model = build_lm(CONFIGS[arch], len(words))
    plan = plan_of(model, bits)
    save_lm(folder / "model.mpq", quantize_model(model, plan), words, plan)
    return load_lm(folder)


def dequantized(folder: Path, words: Tokenizer) -> LanguageModel:
    """The same weights in a float model."""
    stored = read_model_file(folder / "model.mpq")
    model = build_lm(LmConfig(**stored.config), len(words))
    model.load_state_dict(stored.state_dict())
    return model.eval()


def onnx_scores(path: Path, batch: LmBatch) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the user computes: the log probabilities of the targets, summed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    (log_probs,) = onnxruntime.InferenceSession(path, options).run(None, {"units": batch.inputs.numpy()})
    assert log_probs.shape[:2] == batch.inputs.shape
    found = np.take_along_axis(log_probs, batch.targets.numpy()[..., None], 2)[..., 0].astype(np.float64)
    total: np.ndarray[Any, np.dtype[np.float64]] = (found * batch.mask.numpy()).sum(1)
    return total


@pytest.mark.parametrize(
    ("arch", "bits"), [*product(CONFIGS, PLANS), *product(["lstm", "transformer"], ["groups", "asym groups"])]
)
@torch.no_grad()
def test_scores_are_ours(arch: str, bits: str, words: Tokenizer, tmp_path: Path) -> None:
    lm = saved(tmp_path, words, arch, bits)
    exact, rounded = tmp_path / "a32.onnx", tmp_path / "a8.onnx"
    export_lm(lm, exact, 32, NARROWEST)
    export_lm(lm, rounded, None, NARROWEST)
    reference = dequantized(tmp_path, words)
    for sentences in (SENTENCES, SENTENCES[:1], SENTENCES[1:2], SENTENCES[3:5]):
        batch = pad_sentences(sentences, words.bos, words.eos)
        np.testing.assert_allclose(onnx_scores(exact, batch), reference.score(batch).numpy(), rtol=1e-5)
        np.testing.assert_allclose(onnx_scores(rounded, batch), lm.model.score(batch).numpy(), rtol=0.02)


@torch.no_grad()
def test_int8_activations_are_those_of_one_block(words: Tokenizer, tmp_path: Path) -> None:
    """Where a block holds a whole row, onnxruntime rounds activations as we do; float activations differ clearly."""
    lm = saved(tmp_path, words, "lstm", "4")  # 48 columns, in a block of 64
    batch = pad_sentences(SENTENCES, words.bos, words.eos)
    ours = lm.model.score(batch).numpy()
    error = {}
    for activations in (8, 32):
        export_lm(lm, tmp_path / "lm.onnx", activations)
        error[activations] = np.abs(onnx_scores(tmp_path / "lm.onnx", batch) / ours - 1).max()
    assert error[8] < 2e-5 < error[32]


def low_bit_nodes(graph: onnx.GraphProto) -> Iterator[dict[str, Any]]:
    """Attributes, and names of codes and scales, of every low-bit operator, in bodies of loops too."""
    for node in graph.node:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            yield {**attributes, "codes": node.input[1], "scale": node.input[2], "kind": node.op_type}
        if node.op_type == "GatherBlockQuantized":
            yield {**attributes, "codes": node.input[0], "scale": node.input[2], "kind": node.op_type}
        if "body" in attributes:
            yield from low_bit_nodes(attributes["body"])


def unpack(node: dict[str, Any], held: dict[str, Any], columns: int) -> Any:
    """The float matrix that an operator's codes and scales stand for, as its specification says."""
    packed, scale, bits = held[node["codes"]], held[node["scale"]], node["bits"]
    assert packed.dtype == np.uint8
    places = np.unpackbits(packed.reshape(len(packed), -1), axis=1, bitorder="little").reshape(len(packed), -1, bits)
    codes = places @ (1 << np.arange(bits)) - 2 ** (bits - 1)
    scales = np.repeat(scale, node["block_size"], 1)[:, : codes.shape[1]]
    return (codes * scales)[:, :columns].astype(np.float32)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets files be written that an old onnxruntime cannot run."""
    monkeypatch.setattr(mpq.lm.onnx, "score_difference", lambda lm, data: 0.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("bits", "width"), [("1", 2), ("2", 2), ("3", 4), ("4", 4), ("6", 8), ("8", 8)])
@pytest.mark.parametrize("arch", ["lstm", "transformer", "odd"])
def test_operators_hold_our_weights_exactly(arch: str, bits: str, width: int, words: Tokenizer, tmp_path: Path) -> None:
    lm = saved(tmp_path, words, arch, bits)
    export = export_lm(lm, tmp_path / "lm.onnx")
    model = onnx.load(tmp_path / "lm.onnx")
    onnx.checker.check_model(model, full_check=True)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    reference = read_model_file(tmp_path / "model.mpq").state_dict()
    nodes = {node["codes"].partition(".codes")[0]: node for node in low_bit_nodes(model.graph)}
    shapes = quantizable(lm.model)
    assert nodes.keys() == shapes.keys()
    for name, node in nodes.items():
        assert node["bits"] == width
        np.testing.assert_array_equal(unpack(node, held, shapes[name][1]), reference[name].numpy())
    assert export.operators == {"GatherBlockQuantized": 1, "MatMulNBits": len(shapes) - 1}
    assert export.operators == dict(low_bit_operators(model.graph))
    others = {node.op_type for node in model.graph.node}
    assert "Gather" not in others and ("Scan" in others) == (arch != "transformer")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bits", ["2", "4", "8", "rows"])
@pytest.mark.parametrize("arch", ["lstm", "transformer"])
def test_file_is_as_small_as_its_bits(arch: str, bits: str, words: Tokenizer, tmp_path: Path) -> None:
    """Codes, 4 bytes for the scale of every block, the float parameters, and 160 bytes for each node and tensor."""
    torch.manual_seed(1)
    model = build_lm(LmConfig(arch, dim=256, layers=1, dim_ff=512), len(words))
    plan = plan_of(model, bits)
    floats = {name: p.numel() for name, p in model.named_parameters() if p.dim() == 1}
    n_bytes = 4 * sum(n for name, n in floats.items() if "bias_hh" not in name)  # of two biases, their sum
    save_lm(tmp_path / "model.mpq", quantize_model(model, plan), words, plan)
    export = export_lm(load_lm(tmp_path), tmp_path / "lm.onnx")
    for name, (rows, columns) in quantizable(model).items():
        row_bits = plan.bits[name]
        for n_bits in [row_bits] * rows if isinstance(row_bits, int) else row_bits:
            width = next(w for w in (2, 4, 8) if n_bits <= w)
            n_bytes += columns * width // 8 + 4 * columns // (128 if width == 2 else 256)
            n_bytes += 8 if bits == "rows" else 0  # its place
    file = onnx.load(tmp_path / "lm.onnx")
    metadata = sum(len(entry.value) for entry in file.metadata_props)
    overhead = metadata + 160 * (len(file.graph.node) + len(file.graph.initializer))
    assert n_bytes < export.n_bytes < n_bytes + overhead


def test_metadata_units_and_a_float_model(words: Tokenizer, tmp_path: Path) -> None:
    lm = saved(tmp_path, words, "lstm", "32")
    export = export_lm(lm, tmp_path / "out" / "lm.onnx")
    assert export.operators == {} and export.difference < 1e-5
    assert (tmp_path / "out" / "words.txt").read_bytes() == words.path.read_bytes()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "lm.onnx")
    meta = session.get_modelmeta().custom_metadata_map
    assert (meta["architecture"], meta["vocab_hash"]) == ("lstm", words.hash)
    assert json.loads(meta["config"])["dim"] == 48
    assert BitPlan.from_dict(json.loads(meta["bit_plan"])) == lm.plan
    assert [int(meta[name]) for name in ("bos", "eos", "unk")] == [1, 2, 0]


def test_what_onnxruntime_cannot_do_is_one_line(
    words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "lm.onnx"
    torch.manual_seed(1)
    model = build_lm(LmConfig("lstm", dim=48, layers=1), len(words))
    plan = uniform_plan(model, 4, scale=24)
    save_lm(tmp_path / "g" / "model.mpq", quantize_model(model, plan), words, plan)
    with pytest.raises(BadInput, match="a scale for every 24 columns"):
        export_lm(load_lm(tmp_path / "g"), out)

    lm = saved(tmp_path, words, "lstm", "4")
    monkeypatch.setattr(mpq.quant.onnx, "TOLERANCE", -1.0)
    with pytest.raises(BadInput, match="off mpq's"):
        export_lm(lm, out)
    monkeypatch.setattr(mpq.quant.onnx, "product_block", lambda *_: 8)  # that no onnxruntime has
    with pytest.raises(BadInput, match="give --min-bits 4"):
        export_lm(lm, out)
    monkeypatch.setattr(mpq.quant.onnx, "_LARGEST", 1000)
    with pytest.raises(BadInput, match="holds 2 GiB"):
        export_lm(lm, out)
    assert not out.exists()
