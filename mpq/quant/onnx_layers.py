"""Layers of torch as nodes of an ONNX graph, by their names in the model, channels last.

Quantized convolutions become one product of patches (im2col) by ``MatMulNBits``, as `mpq.quant.conv` computes them;
those of channel groups, depthwise ones above all, a float32 ``Conv`` whose weights are stored low-bit and unpacked by
``GatherBlockQuantized``, since onnxruntime has no low-bit convolution. Batch normalization becomes a factor and a term.
"""

from __future__ import annotations

from itertools import product
from math import prod

import torch
from onnx import TensorProto
from torch import nn

from mpq.quant.onnx import OnnxGraph
from mpq.quant.plan import BitPlan

_END = 2**31 - 1  # of a slice: all that follows


class LayerGraph(OnnxGraph):
    """An `OnnxGraph` that knows the layers of its model; values are (N, T, C), or (N, T, F, C) with frequencies.

    Args:
        model, plan, activations, min_width: as of `OnnxGraph`.
    """

    def __init__(self, model: nn.Module, plan: BitPlan, activations: int = 8, min_width: int = 2) -> None:
        super().__init__(model, plan, activations, min_width)
        self.model = model

    def layer(self, name: str, x: str) -> str:
        """What a linear layer, a convolution, a norm, an activation or a chain of them makes of x."""
        module = self.model.get_submodule(name)
        if isinstance(module, nn.Sequential):
            for child, _ in module.named_children():
                x = self.layer(f"{name}.{child}", x)
            return x
        if isinstance(module, nn.Linear):
            return self.linear(x, f"{name}.weight", module.bias)
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            return self._conv(x, name, module)
        if isinstance(module, nn.LayerNorm):
            scale, shift = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
            return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=module.eps)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return self._batch_norm(x, name, module)
        if isinstance(module, nn.SiLU):
            return self.op("Mul", x, self.op("Sigmoid", x))
        if isinstance(module, nn.Dropout):
            return x
        raise ValueError(f"{name}: {type(module).__name__} has no ONNX form")

    def split_heads(self, x: str, heads: int) -> str:
        """(N, T, heads * width) to (N, heads, T, width)."""
        return self.op("Transpose", self.op("Reshape", x, self.constant([0, 0, heads, -1])), perm=[0, 2, 1, 3])

    def attend(self, q: str, k: str, v: str, bias: str) -> str:
        """Attention of heads (N, heads, T, width) with scores to which `bias` is added; (N, T, heads * width)."""
        width = self.op("Cast", self.op("Shape", q, start=3), to=TensorProto.FLOAT)
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Add", self.op("Div", scores, self.op("Sqrt", width)), bias)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        return self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.constant([0, 0, -1]))

    def n_frames(self, x: str) -> str:
        """T of x (N, T, ...), a number."""
        return self.op("Squeeze", self.op("Shape", x, start=1, end=2))

    def frame_mask(self, lengths: str, x: str) -> str:
        """Which frames of x (N, T, ...) are real, (N, T) bool, for lengths (N,)."""
        frames = self.op("Range", self.constant(0), self.n_frames(x), self.constant(1))
        return self.op("Less", self.op("Unsqueeze", frames, self.constant([0])), self.column(lengths, 1))

    def hide_bias(self, mask: str) -> str:
        """What is added to scores (N, heads, T, T) so that nothing is attended to where `mask` (N, T) is false."""
        seen = self.op("Unsqueeze", mask, self.constant([1, 2]))
        return self.op("Where", seen, self.constant(0.0), self.constant(float("-inf")))

    def keep(self, x: str, mask: str, rank: int = 3) -> str:
        """x (N, T, ...) of so many dimensions with zeros where `mask` (N, T) is false."""
        real = self.op("Cast", mask, to=TensorProto.FLOAT)
        return self.op("Mul", x, self.column(real, rank - 2))

    def column(self, x: str, count: int) -> str:
        """x with so many more dimensions of size 1 at its end."""
        return self.op("Unsqueeze", x, self.constant([-1 - i for i in range(count)]))

    def flatten(self, x: str) -> str:
        """(N, T, F, C) to (N, T, C * F), as torch's (N, C, T, F) is flattened."""
        return self.op("Reshape", self.op("Transpose", x, perm=[0, 1, 3, 2]), self.constant([0, 0, -1]))

    def pad(self, x: str, before: int, after: int) -> str:
        """(N, T, C) with zeros before and after."""
        return self.op("Pad", x, self.constant([0, before, 0, 0, after, 0]))

    def cut(self, x: str, end: str) -> str:
        """The frames of x (N, T, ...) before `end` (1,)."""
        return self.op("Slice", x, self.constant([0]), end, self.constant([1]))

    def standardize(self, x: str, mask: str, count: str) -> tuple[str, str]:
        """x (N, T, C) minus its mean over the real frames, zero elsewhere, and its variance (N, 1, C).

        Args:
            mask: (N, T) bool.
            count: (N, 1, 1) float, real frames.
        """
        axes = self.constant([1])
        mean = self.op("Div", self.op("ReduceSum", self.keep(x, mask), axes), count)
        centred = self.keep(self.op("Sub", x, mean), mask)
        squares = self.op("ReduceSum", self.op("Mul", centred, centred), axes)
        return centred, self.op("Div", squares, count)

    def _batch_norm(self, x: str, name: str, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> str:
        """By the running statistics."""
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean * scale
        shift = shift if norm.bias is None else shift + norm.bias
        scaled = self.op("Mul", x, self.constant(scale, f"{name}.scale"))
        return self.op("Add", scaled, self.constant(shift, f"{name}.shift"))

    def _conv(self, x: str, name: str, conv: nn.Conv1d | nn.Conv2d) -> str:
        """A convolution with zero padding, (N, ..., in) to (N, ..., out)."""
        padding = [int(size) for size in conv.padding]
        if f"{name}.weight" not in self.quantized or conv.groups > 1:
            return self._float_conv(x, name, conv, padding)
        if any(padding):
            x = self.op("Pad", x, self.constant([0, *padding, 0] * 2))
        if prod(conv.kernel_size) * prod(conv.stride) > 1:
            x = self._patches(x, conv)
        return self.linear(x, f"{name}.weight", conv.bias)

    def _patches(self, x: str, conv: nn.Conv1d | nn.Conv2d) -> str:
        """What each output frame sees, (N, ..., in) to (N, ..., in * taps), as the weight's columns are ordered."""
        reaches = [(size - 1) * spread for size, spread in zip(conv.kernel_size, conv.dilation, strict=True)]
        axes, steps = self.constant(list(range(1, 1 + len(reaches)))), self.constant(list(conv.stride))
        taps = []
        for tap in product(*map(range, conv.kernel_size)):
            starts = [place * spread for place, spread in zip(tap, conv.dilation, strict=True)]
            ends = [start - reach or _END for start, reach in zip(starts, reaches, strict=True)]
            seen = self.op("Slice", x, self.constant(starts), self.constant(ends), axes, steps)
            taps.append(self.column(seen, 1))
        joined = self.op("Concat", *taps, axis=-1)
        return self.op("Reshape", joined, self.constant([0] * (1 + len(reaches)) + [-1]))

    def _float_conv(self, x: str, name: str, conv: nn.Conv1d | nn.Conv2d, padding: list[int]) -> str:
        """A convolution in float32, whose weight may be stored in low-bit codes."""
        weight, dims = f"{name}.weight", len(padding)
        if weight in self.quantized:
            table = self.embedding(self.constant(list(range(conv.out_channels))), weight)
            shape = [conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size]
            filters = self.op("Reshape", table, self.constant(shape))
        else:
            filters = self.parameter(weight)
        bias = [] if conv.bias is None else [self.parameter(f"{name}.bias")]
        first = self.op("Transpose", x, perm=[0, 1 + dims, *range(1, 1 + dims)])
        out = self.op(
            "Conv", first, filters, *bias, kernel_shape=list(conv.kernel_size), strides=list(conv.stride),
            dilations=list(conv.dilation), group=conv.groups, pads=padding * 2,
        )  # fmt: skip
        return self.op("Transpose", out, perm=[0, *range(2, 2 + dims), 1])
