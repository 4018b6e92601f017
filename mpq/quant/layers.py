"""Quantized layers; here Linear, Embedding and LSTM: latent float weights in training, codes and scales in serving.

A quantized layer keeps its original's parameter names, so a float ``state_dict`` loads as it is, and shares
the original's Parameter objects, so tied weights stay tied. `freeze` replaces the float weights by their
codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from mpq.quant.fit import project
from mpq.quant.floats import float_linear
from mpq.quant.integer import int_linear, straight_through
from mpq.quant.lstm import recurrence
from mpq.quant.pack import Held, PackedRows
from mpq.quant.table import (
    SCALE_DTYPE,
    SCALE_MAX,
    SCALE_MIN,
    Precision,
    Quantized,
    matrix_shape,
    reach,
    round_to,
    scale_shape,
)

LOG_SCALE = "_log_scale"  # after a weight's name: the scales of its codes while they are learned
SHIFT = "_shift"  # and the offsets of an asymmetric table, in scales
LEARNED = (LOG_SCALE, SHIFT)


def weight_names(layer: nn.Module) -> list[str]:
    """The names that a layer's own quantizable matrices have in it."""
    if isinstance(layer, QuantModule):
        return list(layer.weight_shapes)
    if isinstance(layer, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d):
        return ["weight"] if "weight" in layer._parameters else []  # a parametrized one is made from others
    if isinstance(layer, nn.MultiheadAttention):
        return ["in_proj_weight"] if layer.in_proj_weight is not None else []
    if isinstance(layer, nn.LSTM):
        return [name for name, _ in layer.named_parameters(recurse=False) if name.startswith("weight_")]
    return []


class Projector:
    """Rounds a latent weight to its table, once for each value that the optimizer gives it.

    The scales start where `project` fits them and are then learned by gradient (learned step size quantization, Esser
    et al. 2020), as logarithms, so that a step of the optimizer changes each by the same part.  Fitting them anew at
    every step instead makes weights of 2 bits jump between levels: on the mini LSTM, after half a pass of training,
    dev perplexity 130 against 113 (1 bit: 127 against 123; 4 bits: 103.0 against 101.4; float 99.1).

    A new value is noticed by the version counters that in-place operations raise and by the steps of any
    optimizer (fused ones leave the counters alone). Writing through ``.data`` is not noticed.

    Attributes:
        log_scale: (scales,) what is learned; layers register it as a parameter.
        shift: (scales,) of an asymmetric table, likewise; else None.
    """

    optimizer_steps: ClassVar[int] = 0  # of all optimizers

    def __init__(self, precision: Precision, weight: Tensor) -> None:
        self.precision = precision
        self.scale_shape = scale_shape(precision, *matrix_shape(weight))
        n_scales = prod(self.scale_shape)
        if weight.is_meta:  # has no numbers: codes and scales will come from a file
            log_scale = torch.empty(n_scales, device="meta")  # computing with it would import 120 MB of torch
            shift = torch.empty(n_scales, device="meta") if precision.kind == "asym" else None
        else:
            _, scale, offset = project(weight, precision)
            log_scale = scale.log().flatten()
            shift = None if offset is None else (offset / scale).flatten()
        self.log_scale = nn.Parameter(log_scale)
        self.shift = None if shift is None else nn.Parameter(shift)
        self._key: tuple[int, ...] = ()
        self._quantized: Quantized | None = None

    def __call__(self, weight: Tensor) -> Quantized:
        versions = [tensor._version for tensor in (weight, self.log_scale, self.shift) if tensor is not None]
        key = (weight.data_ptr(), *versions, Projector.optimizer_steps)
        if self._quantized is None or key != self._key:
            with torch.inference_mode(False):
                scale = self.log_scale.detach().exp().clamp(SCALE_MIN, SCALE_MAX).to(SCALE_DTYPE).to(torch.float32)
                offset = None
                if self.shift is not None:
                    offset = (self.shift.detach() * scale).clamp(-SCALE_MAX, SCALE_MAX).to(SCALE_DTYPE)
                    offset = offset.to(torch.float32).reshape(self.scale_shape)
                self._quantized = round_to(weight, scale.reshape(self.scale_shape), self.precision, offset)
                self._key = key
        return self._quantized

    def surrogate(self, weight: Tensor, quantized: Quantized) -> Tensor:
        """The dequantized weight (rows, columns), whose gradient goes to `weight` and to the scales."""
        return straight_through(weight, quantized, self.log_scale, reach(self.precision), self.shift)

    def learned(self) -> dict[str, nn.Parameter]:
        """What is learned besides the weight, by what its name ends in."""
        return {LOG_SCALE: self.log_scale, **({} if self.shift is None else {SHIFT: self.shift})}


def _count_step(*_: Any) -> None:
    Projector.optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


class QuantModule(nn.Module):
    """What the quantized layers share: a weight is float (no projector), latent, or frozen to its codes.

    Args:
        original: the float layer, whose settings and Parameter objects are taken over.
        projectors: of the weights to quantize, by their name in the layer.
        a_bits: bits of the activations: 4 or 8, or 32 for weight-only quantization.
    """

    __constants__: ClassVar[list[str]]  # as torch has it: the names of a layer's settings

    def __init__(self, original: nn.Module, projectors: Mapping[str, Projector], a_bits: int = 8) -> None:
        nn.Module.__init__(self)
        for name in self.__constants__:
            setattr(self, name, getattr(original, name))
        for name, parameter in original._parameters.items():
            if not name.endswith(LEARNED):  # of an earlier plan
                self.register_parameter(name, parameter)
        for name, projector in projectors.items():
            for ending, learned in projector.learned().items():
                self.register_parameter(f"{name}{ending}", learned)
        # (rows, columns) of all matrices, float ones included
        self.weight_shapes = {name: _shape_in(original, name) for name in weight_names(original)}
        self.projectors = dict(projectors)
        self.a_bits = a_bits
        self.train(original.training)

    def is_frozen(self, name: str) -> bool:
        """Whether that weight is held as codes, with no float weight."""
        return f"{name}_scale" in self._buffers

    def quantized(self, name: str) -> Quantized:
        """Codes and scale of a weight as they stand now."""
        if not self.is_frozen(name):
            return self.projectors[name](self.get_parameter(name))
        return self.held(name).rows(slice(None))

    def held(self, name: str) -> Held:
        """Codes and scale of a frozen weight, still packed if it is."""
        codes, scale = self.get_buffer(f"{name}_codes"), self.get_buffer(f"{name}_scale")
        offset = self._buffers.get(f"{name}_offset")
        if codes.dtype == torch.uint8:
            return Held(PackedRows(codes, self.projectors[name].precision, self.weight_shapes[name][1]), scale, offset)
        return Held(codes, scale, offset)

    def hold_codes(self, name: str, held: Quantized) -> None:
        """Replace a float weight by its codes: int8, or packed ones (uint8), unpacked at each use."""
        for ending in ("", *self.projectors[name].learned()):
            del self._parameters[f"{name}{ending}"]
        self.register_buffer(f"{name}_codes", held.codes)
        self.register_buffer(f"{name}_scale", held.scale)
        if held.offset is not None:
            self.register_buffer(f"{name}_offset", held.offset)

    def _surrogate(self, name: str, quantized: Quantized) -> Tensor | None:
        """The float weight that takes the gradients, if any are asked for."""
        if self.is_frozen(name) or not torch.is_grad_enabled():
            return None
        return self.projectors[name].surrogate(self.get_parameter(name), quantized)

    def _linear(self, x: Tensor, name: str, bias: Tensor | None) -> Tensor:
        """x @ weight.T + bias in the precision of that weight and of the activations."""
        if name not in self.projectors:
            return float_linear(x, self.get_parameter(name), bias)
        if self.a_bits != 32 and self.is_frozen(name):
            return int_linear(x, self.held(name), bias, a_bits=self.a_bits)
        quantized = self.quantized(name)
        surrogate = self._surrogate(name, quantized)
        if self.a_bits == 32:
            return float_linear(x, quantized.dequantize() if surrogate is None else surrogate, bias)
        return int_linear(x, quantized, bias, surrogate, self.a_bits)


def _shape_in(layer: nn.Module, name: str) -> tuple[int, int]:
    """(rows, columns) of a weight of a layer."""
    return layer.weight_shapes[name] if isinstance(layer, QuantModule) else matrix_shape(layer.get_parameter(name))


class QuantLinear(QuantModule, nn.Linear):
    """nn.Linear with a quantized weight (N, K)."""

    def forward(self, input: Tensor) -> Tensor:
        return self._linear(input, "weight", self.bias)


class QuantEmbedding(QuantModule, nn.Embedding):
    """nn.Embedding with a quantized weight (words, K); what it returns is float. Not for max_norm."""

    def __init__(self, original: nn.Module, projectors: Mapping[str, Projector], a_bits: int = 8) -> None:
        super().__init__(original, projectors, a_bits)
        if self.max_norm is not None:
            raise ValueError(f"{original}: an embedding with max_norm has no quantized form")

    def forward(self, input: Tensor) -> Tensor:
        if self.is_frozen("weight"):
            return self._gather(input.reshape(-1)).reshape(*input.shape, -1)
        quantized = self.quantized("weight")
        surrogate = self._surrogate("weight", quantized)
        weight = quantized.dequantize() if surrogate is None else surrogate
        return F.embedding(input, weight, self.padding_idx)

    def _gather(self, words: Tensor) -> Tensor:
        """The rows of some words, (M,) to (M, K), with only these rows unpacked."""
        return self.held("weight").rows(words).dequantize()


class QuantLSTM(QuantModule):
    """nn.LSTM with quantized weights: layers, batch first, states in and out as nn.LSTM's.

    The input's share of the gates is one integer product for all time steps; the recurrence goes step by step
    with the hidden rows in int8. Not for bidirectional or projected LSTMs.
    """

    __constants__ = nn.LSTM.__constants__
    input_size: int
    hidden_size: int
    num_layers: int
    dropout: float
    bias: bool
    batch_first: bool
    bidirectional: bool
    proj_size: int

    def __init__(self, original: nn.Module, projectors: Mapping[str, Projector], a_bits: int = 8) -> None:
        super().__init__(original, projectors, a_bits)
        if self.bidirectional or self.proj_size or not self.batch_first:
            raise ValueError(f"{original}: expected batch_first=True, not bidirectional, proj_size=0")

    def forward(
        self, input: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(N, T, K) and a state (layers, N, H) twice, zero if none, to (N, T, H) and the state after it."""
        if state is None:
            zero = torch.zeros(self.num_layers, input.shape[0], self.hidden_size, device=input.device)
            state = (zero, zero)
        rows = input.transpose(0, 1)
        last = []
        for layer, (h, c) in enumerate(zip(*state, strict=True)):
            if layer and self.dropout:
                rows = F.dropout(rows, self.dropout, self.training)
            rows, h, c = self._layer(layer, rows, h, c)
            last.append((h, c))
        h_last, c_last = (torch.stack(part) for part in zip(*last, strict=True))
        return rows.transpose(0, 1), (h_last, c_last)

    def _layer(self, layer: int, rows: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One layer, time first: (T, N, K) to (T, N, H)."""
        bias = None
        if self.bias:
            bias = self.get_parameter(f"bias_ih_l{layer}") + self.get_parameter(f"bias_hh_l{layer}")
        gates = self._linear(rows, f"weight_ih_l{layer}", bias)
        name = f"weight_hh_l{layer}"
        if name not in self.projectors:
            weight = self.get_parameter(name)
            return recurrence(gates, h, c, weight, weight)
        quantized = self.quantized(name)
        surrogate = self._surrogate(name, quantized)
        if self.a_bits == 32:
            return recurrence(gates, h, c, quantized.dequantize(), surrogate)
        return recurrence(gates, h, c, quantized, surrogate, self.a_bits)
