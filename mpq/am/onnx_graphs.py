"""What acoustic models compute, as nodes of an ONNX graph: the `encode` of each, (N, T, C) all the way."""

from __future__ import annotations

from onnx import TensorProto
from torch import nn

from mpq.am.base import AcousticModel
from mpq.am.conformer import ConformerModel
from mpq.am.ssl import SslModel
from mpq.am.tdnn import Tdnn
from mpq.am.tdnnf import IVECTOR_CHANNELS, IVECTOR_SCALE, FactorizedLayer, Tdnnf
from mpq.data.batches import FLOOR, IVECTOR_PERIOD
from mpq.data.waveform import SAMPLES
from mpq.quant.onnx_layers import LayerGraph


def classify(graph: LayerGraph, model: AcousticModel) -> tuple[str, str]:
    """Logits (N, T', C) of the graph's ``features``, ``lengths`` and ``ivectors``, and the lengths (N,) of them."""
    if isinstance(model, SslModel):
        hidden, lengths = _ssl(graph, model)
        return graph.layer("output", hidden), lengths
    x, lengths = _normalized(graph, model), _divided(graph, "lengths", model.subsampling)
    if isinstance(model, Tdnn):
        return graph.layer("output", _tdnn(graph, model, x, lengths)), lengths
    if isinstance(model, ConformerModel):
        return graph.layer("output", _conformer(graph, model, x, lengths)), lengths
    assert isinstance(model, Tdnnf)
    x = _tdnnf(graph, model, x, lengths)
    x = graph.layer("output.norm1", graph.op("Relu", graph.layer("output.widen", x)))
    x = graph.layer("output.norm2", graph.layer("output.reduce", x))
    return graph.layer("output.classify", x), lengths


def _normalized(graph: LayerGraph, model: AcousticModel) -> str:
    """Features as the model was trained on them."""
    if model.normalization != "utterance":
        return "features"
    count = graph.column(graph.op("Cast", "lengths", to=TensorProto.FLOAT), 2)
    centred, variance = graph.standardize("features", graph.frame_mask("lengths", "features"), count)
    return graph.op("Div", centred, graph.op("Max", graph.op("Sqrt", variance), graph.constant(FLOOR)))


def _divided(graph: LayerGraph, lengths: str, divisor: int) -> str:
    """Numbers over a divisor, rounded up."""
    return graph.op("Div", graph.op("Add", lengths, graph.constant(divisor - 1)), graph.constant(divisor))


def _spread(graph: LayerGraph, ivectors: str, x: str, step: int) -> str:
    """The i-vector of each frame of x (N, T, ...), of which there is one every `step` frames of features."""
    frames = graph.op("Range", graph.constant(0), graph.n_frames(x), graph.constant(1))
    periods = graph.op("Div", graph.op("Mul", frames, graph.constant(step)), graph.constant(IVECTOR_PERIOD))
    last = graph.op("Sub", graph.n_frames(ivectors), graph.constant(1))
    return graph.op("Gather", ivectors, graph.op("Min", periods, last), axis=1)


def _front(graph: LayerGraph, x: str, lengths: str) -> str:
    """Features (N, T, F) as one channel (N, T, F, 1), zero past the end."""
    return graph.column(graph.keep(x, graph.frame_mask(lengths, x)), 1)


def _tdnn(graph: LayerGraph, model: Tdnn, x: str, out_lengths: str) -> str:
    """`Tdnn.encode`."""
    x = graph.op("Relu", graph.layer("conv1", _front(graph, x, "lengths")))
    mask = graph.frame_mask(out_lengths, x)
    x = graph.op("Relu", graph.layer("norm2", graph.layer("conv2", graph.keep(x, mask, 4))))
    x = graph.layer("join", graph.flatten(x))
    if model.ivector_dim:
        x = graph.op("Add", x, _spread(graph, graph.layer("ivector", "ivectors"), x, model.subsampling))
    x = graph.keep(graph.op("Relu", graph.layer("norm", x)), mask)
    for number in range(len(model.blocks)):
        block = f"blocks.{number}"
        seen = graph.op("Relu", graph.layer(f"{block}.norm", graph.layer(f"{block}.conv", x)))
        x = graph.op("Add", x, graph.keep(seen, mask))
    return x


def _tdnnf(graph: LayerGraph, model: Tdnnf, x: str, out_lengths: str) -> str:
    """`Tdnnf.encode`."""
    mask = graph.frame_mask("lengths", x)
    channels = _front(graph, x, "lengths")
    if model.ivector_dim:
        normal = graph.layer("ivector_norm", graph.layer("ivector_linear", "ivectors"))
        spread = graph.op("Mul", _spread(graph, normal, x, 1), graph.constant(IVECTOR_SCALE))
        shape = graph.constant([0, 0, IVECTOR_CHANNELS, model.feature_dim])
        more = graph.op("Transpose", graph.op("Reshape", spread, shape), perm=[0, 1, 3, 2])
        channels = graph.op("Concat", channels, graph.keep(more, mask, 4), axis=-1)
    for number in range(len(model.convs)):
        conv = f"convs.{number}"
        channels = graph.layer(f"{conv}.norm", graph.op("Relu", graph.layer(f"{conv}.conv", channels)))
        if number + 1 == len(model.convs):
            mask = graph.frame_mask(out_lengths, channels)
        channels = graph.keep(channels, mask, 4)
    x = _factorized(graph, model.first, "first", graph.flatten(channels), mask)
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, FactorizedLayer)
        x = _factorized(graph, layer, f"layers.{number}", x, mask)
    return graph.layer("prefinal", x)


def _factorized(graph: LayerGraph, layer: FactorizedLayer, name: str, x: str, mask: str) -> str:
    """`FactorizedLayer`."""
    bottleneck = graph.keep(graph.layer(f"{name}.reduce", graph.pad(x, layer.stride, 0)), mask)
    seen = graph.layer(f"{name}.expand", graph.pad(bottleneck, 0, layer.stride))
    y = graph.keep(graph.layer(f"{name}.norm", graph.op("Relu", seen)), mask)
    return graph.op("Add", y, graph.op("Mul", x, graph.constant(layer.bypass))) if layer.bypass else y


def _conformer(graph: LayerGraph, model: ConformerModel, x: str, out_lengths: str) -> str:
    """`ConformerModel.encode`."""
    x = graph.op("Relu", graph.layer("conv1", _front(graph, x, "lengths")))
    x = graph.keep(x, graph.frame_mask(_divided(graph, "lengths", 2), x), 4)
    x = graph.layer("join", graph.flatten(graph.op("Relu", graph.layer("conv2", x))))
    if model.ivector_dim:
        x = graph.op("Add", x, _spread(graph, graph.layer("ivector", "ivectors"), x, model.subsampling))
    mask = graph.frame_mask(out_lengths, x)
    bias = graph.hide_bias(mask)
    for number in range(len(model.layers)):
        x = _conformer_layer(graph, model.config.heads, f"layers.{number}", x, mask, bias)
    return x


def _conformer_layer(graph: LayerGraph, heads: int, name: str, x: str, mask: str, bias: str) -> str:
    """torchaudio's `ConformerLayer`, with padding kept out of the depthwise convolution."""

    def layer(part: str, x: str) -> str:
        return graph.layer(f"{name}.{part}", x)

    def halved(x: str) -> str:
        return graph.op("Mul", x, graph.constant(0.5))

    x = graph.op("Add", x, halved(layer("ffn1.sequential", x)))
    packed_bias = graph.parameters[f"{name}.self_attn.in_proj_bias"]
    packed = graph.linear(layer("self_attn_layer_norm", x), f"{name}.self_attn.in_proj_weight", packed_bias)
    parts = graph.ops("Split", packed, count=3, axis=-1, num_outputs=3)
    q, k, v = (graph.split_heads(part, heads) for part in parts)
    x = graph.op("Add", x, layer("self_attn.out_proj", graph.attend(q, k, v, bias)))
    conv = "conv_module.sequential"
    a, b = graph.ops("Split", layer(f"{conv}.0", layer("conv_module.layer_norm", x)), count=2, axis=-1, num_outputs=2)
    gated = graph.keep(graph.op("Mul", a, graph.op("Sigmoid", b)), mask)
    for part in (2, 3, 4, 5):
        gated = layer(f"{conv}.{part}", gated)
    x = graph.op("Add", x, gated)
    x = graph.op("Add", x, halved(layer("ffn2.sequential", x)))
    return layer("final_layer_norm", x)


def _ssl(graph: LayerGraph, model: SslModel) -> tuple[str, str]:
    """`SslModel.encode`, and the lengths of its frames."""
    x, lengths = _extract(graph, model)
    x = graph.layer("encoder.feature_projection.projection", graph.layer("encoder.feature_projection.layer_norm", x))
    mask = graph.frame_mask(lengths, x)
    x = graph.keep(x, mask)
    transformer, norm = "encoder.transformer", "encoder.transformer.layer_norm"
    position = graph.layer(f"{transformer}.pos_conv_embed.conv", x)
    if model.config.position_kernel % 2 == 0:
        position = graph.cut(position, graph.constant([-1]))
    x = graph.op("Add", x, graph.op("Gelu", position))
    x = x if model.config.norm_first else graph.layer(norm, x)
    bias = graph.hide_bias(mask)
    for number in range(len(model.encoder.transformer.layers)):
        x = _ssl_layer(graph, model, f"{transformer}.layers.{number}", x, bias)
    return (graph.layer(norm, x) if model.config.norm_first else x), lengths


def _extract(graph: LayerGraph, model: SslModel) -> tuple[str, str]:
    """`SslModel._extract` of all utterances at once, its norms over real frames, and the lengths of what it gives."""
    lengths = graph.op("Mul", "lengths", graph.constant(SAMPLES))
    x = graph.op("Reshape", "features", graph.constant([0, -1, 1]))  # samples
    mask = graph.frame_mask(lengths, x)
    if model.config.normalize:
        x = _normalized_by(graph, x, lengths, nn.LayerNorm(1).eps)
    x = graph.pad(graph.keep(x, mask), 0, model.shortest)
    held = graph.op(
        "Max", lengths, graph.constant(model.shortest)
    )  # samples, with those that a short one is filled up by
    strides = zip(model.config.conv_kernels, model.config.conv_strides, strict=True)
    for number, (kernel, stride) in enumerate(strides):
        layer = f"feature_extractor.conv_layers.{number}"
        x, norm = graph.layer(f"{layer}.conv", x), model.get_submodule(layer).layer_norm
        lengths, held = (_convolved(graph, frames, kernel, stride) for frames in (lengths, held))
        if isinstance(norm, nn.GroupNorm):
            scale, shift = (graph.parameter(f"{layer}.layer_norm.{name}") for name in ("weight", "bias"))
            x = graph.op("Add", graph.op("Mul", _normalized_by(graph, x, held, norm.eps), scale), shift)
        elif norm is not None:
            x = graph.layer(f"{layer}.layer_norm", x)
        x = graph.op("Gelu", x)
    return graph.cut(x, graph.op("Unsqueeze", graph.op("ReduceMax", lengths, keepdims=0), graph.constant([0]))), lengths


def _normalized_by(graph: LayerGraph, x: str, lengths: str, eps: float) -> str:
    """x (N, T, C) with mean 0 and variance 1 over the first `lengths` (N,) frames, each channel by itself."""
    count = graph.column(graph.op("Cast", lengths, to=TensorProto.FLOAT), 2)
    centred, variance = graph.standardize(x, graph.frame_mask(lengths, x), count)
    return graph.op("Div", centred, graph.op("Sqrt", graph.op("Add", variance, graph.constant(eps))))


def _convolved(graph: LayerGraph, frames: str, kernel: int, stride: int) -> str:
    """Frames that a convolution without padding makes of `frames` (N,); at least one."""
    steps = graph.op("Div", graph.op("Sub", frames, graph.constant(kernel)), graph.constant(stride))
    return graph.op("Max", graph.op("Add", steps, graph.constant(1)), graph.constant(1))


def _ssl_layer(graph: LayerGraph, model: SslModel, name: str, x: str, bias: str) -> str:
    """torchaudio's `EncoderLayer`."""

    def layer(part: str, x: str) -> str:
        return graph.layer(f"{name}.{part}", x)

    def attention(x: str) -> str:
        q, k, v = (graph.split_heads(layer(f"attention.{part}_proj", x), model.config.heads) for part in "qkv")
        return layer("attention.out_proj", graph.attend(q, k, v, bias))

    def feed_forward(x: str) -> str:
        inner = graph.op("Gelu", layer("feed_forward.intermediate_dense", x))
        return layer("feed_forward.output_dense", inner)

    if model.config.norm_first:
        x = graph.op("Add", x, attention(layer("layer_norm", x)))
        return graph.op("Add", x, feed_forward(layer("final_layer_norm", x)))
    x = layer("layer_norm", graph.op("Add", x, attention(x)))
    return layer("final_layer_norm", graph.op("Add", x, feed_forward(x)))
