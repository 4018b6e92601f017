"""LSTM states of a forest, breadth first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mpq.lm import LstmLm
from mpq.quant import Quantized, QuantLSTM, float_linear, int_linear
from mpq.quant.integer import ready
from mpq.quant.lstm import recurrence
from mpq.quant.panels import Matrix
from mpq.rescore.forest import Forest, Ids, levels

ROWS = 256  # most nodes in one step: enough for fast products, few enough for the processor's cache


class LstmState(NamedTuple):
    """Hidden and cell rows of all layers, (layers, N, C) each."""

    h: Tensor
    c: Tensor

    def rows(self, index: Tensor) -> LstmState:
        """Some of the N."""
        return LstmState(self.h.index_select(1, index), self.c.index_select(1, index))


class Layer(NamedTuple):
    """One LSTM layer taken apart: the input's share of the gates, and the recurrent weight."""

    gates: Callable[[Tensor], Tensor]
    weight: Quantized | Matrix | Tensor
    a_bits: int


def take_apart(lstm: nn.LSTM | QuantLSTM) -> list[Layer]:
    """The layers of a float or quantized LSTM; packed weights are unpacked once."""
    result = []
    a_bits = lstm.a_bits if isinstance(lstm, QuantLSTM) else 32
    for layer in range(lstm.num_layers):
        bias = None
        if lstm.bias:
            bias = lstm.get_parameter(f"bias_ih_l{layer}") + lstm.get_parameter(f"bias_hh_l{layer}")
        into = _weight(lstm, f"weight_ih_l{layer}")
        if isinstance(into, Quantized):
            gates = partial(int_linear, weight=into, bias=bias, a_bits=a_bits)
        else:
            gates = partial(float_linear, weight=into, bias=bias)
        weight = _weight(lstm, f"weight_hh_l{layer}")
        if isinstance(weight, Quantized) and not torch.is_grad_enabled():
            result.append(Layer(gates, ready(weight), a_bits))
        else:
            result.append(Layer(gates, weight, a_bits))
    return result


def _weight(lstm: nn.LSTM | QuantLSTM, name: str) -> Quantized | Tensor:
    if isinstance(lstm, nn.LSTM) or name not in lstm.projectors:
        return lstm.get_parameter(name)
    quantized = lstm.quantized(name)
    return quantized.dequantize() if lstm.a_bits == 32 else quantized


def zero_state(model: LstmLm, n: int) -> LstmState:
    """What a sentence starts from."""
    zero = torch.zeros(model.config.layers, n, model.config.dim, device=model.device)
    return LstmState(zero, zero)


def lstm_hidden(model: LstmLm, forest: Forest, initial: LstmState | None, n_rows: int) -> tuple[Tensor, Ids]:
    """What the output layer sees at every node, (N, C), in the order of depth, and the row of each node, (N,).

    At most `n_rows` nodes are computed in one step.
    """
    layers = take_apart(model.lstm)
    units, unit_of = np.unique(forest.token, return_inverse=True)
    table = _input_gates(model, layers[0], torch.from_numpy(units), n_rows)
    by_depth = levels(forest.depth)
    order = np.concatenate(by_depth)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    hidden = table.new_empty(len(order), model.config.dim)
    state, before, done = initial or zero_state(model, int(forest.tree.max()) + 1), 0, 0
    for depth, nodes in enumerate(by_depth):
        origin = place[forest.parent[nodes]] - before if depth else forest.tree[nodes]
        after = LstmState(*(table.new_empty(len(layers), len(nodes), model.config.dim) for _ in range(2)))
        for first in range(0, len(nodes), n_rows):
            some = slice(first, first + n_rows)
            gates = table.index_select(0, torch.from_numpy(unit_of[nodes[some]]).to(table.device))
            rows = state.rows(torch.from_numpy(origin[some]).to(table.device))
            _step(layers, gates, rows, LstmState(after.h[:, some], after.c[:, some]))
        hidden[done : done + len(nodes)] = after.h[-1]
        state, before, done = after, done, done + len(nodes)
    return hidden, place


def _input_gates(model: LstmLm, layer: Layer, units: Tensor, n_rows: int = ROWS) -> Tensor:
    """The first layer's gates as far as they depend on the unit alone, (U, 4C)."""
    table = torch.empty(len(units), 4 * model.config.dim, device=model.device)
    for first in range(0, len(units), n_rows):
        some = slice(first, first + n_rows)
        table[some] = layer.gates(model.embedding(units[some].to(model.device)))
    return table


def _step(layers: list[Layer], gates: Tensor, state: LstmState, out: LstmState) -> None:
    """One unit further: the state (layers, M, C) after it goes to `out`; `gates` (M, 4C) are the first layer's."""
    for number, layer in enumerate(layers):
        if number:
            gates = layer.gates(out.h[number - 1])
        _, out.h[number], out.c[number] = recurrence(
            gates[None], state.h[number], state.c[number], layer.weight, None, layer.a_bits
        )


@torch.no_grad()
def advance(model: LstmLm, state: LstmState, tokens: list[list[int]]) -> LstmState:
    """The states (layers, N, C) after each row's own `tokens`, which may differ in number but are at least one."""
    chains = [np.array(row, np.int64) for row in tokens]
    layers, ends = take_apart(model.lstm), LstmState(torch.empty_like(state.h), torch.empty_like(state.c))
    for i, chain in enumerate(chains):
        rows = state.rows(torch.tensor([i], device=model.device))
        table = _input_gates(model, layers[0], torch.from_numpy(chain))
        for gates in table:
            after = LstmState(torch.empty_like(rows.h), torch.empty_like(rows.c))
            _step(layers, gates[None], rows, after)
            rows = after
        ends.h[:, i : i + 1], ends.c[:, i : i + 1] = rows
    return ends
