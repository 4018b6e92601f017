"""Exact language-model scores of a forest of prefixes: every node is computed once, in bounded memory.

A Transformer runs over nodes in preorder, with attention to ancestors only and positions by depth. An LSTM runs
breadth first: all nodes of a depth in one step, their states gathered from their parents. Quantized layers act on
each row by itself, so their scores do not depend on what is computed together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpq.io import BadInput
from mpq.lm import LanguageModel, LstmLm, TransformerLm
from mpq.quant import log_sum_exp
from mpq.rescore.attention import QUERIES, transformer_hidden
from mpq.rescore.forest import Forest
from mpq.rescore.steps import ROWS, LstmState, lstm_hidden

BATCH_MB = 64.0
MB = 1 << 20
LOGITS = 1 << 18  # logits at once: more would leave the processor's cache


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory to compute in, in bytes, on top of the model and the forest itself.

    Attributes:
        n_bytes: never exceeded by the tensors of a batch.
        n_processes: that share it evenly.
    """

    n_bytes: int = int(BATCH_MB * MB)
    n_processes: int = 1

    @classmethod
    def of_mb(cls, mb: float) -> Budget:
        """From megabytes."""
        if not (math.isfinite(mb) and mb > 0):
            raise BadInput(f"--batch-mb: {mb} must be a number above 0")
        return cls(round(mb * MB))


@torch.no_grad()
def score_edges(
    model: LanguageModel, forest: Forest, budget: Budget | None = None, initial: LstmState | None = None
) -> npt.NDArray[np.float64]:
    """Natural-log probability of each edge, (E,).

    Args:
        model: float or quantized; it is put into evaluation mode.
        forest: what to score.
        budget: memory to use; a forest that needs more is computed in parts.
        initial: of an LSTM: the state before each tree's root, zero if none.

    Raises:
        BadInput: the longest path alone needs more than the budget, or the model gives NaN.
    """
    model.eval()
    budget = budget or Budget()
    sizes = _fit(model, forest, budget)
    scores = np.empty(len(forest.edge_node))
    last = 0
    while last < len(forest):
        first, last = last, min(len(forest), last + sizes.nodes - int(forest.depth[last]))
        edges = slice(*np.searchsorted(forest.edge_node, (first, last)))
        scores[edges] = _score_part(model, forest.part(first, last), sizes, initial)
    if not np.isfinite(scores).all():
        raise BadInput("the language model gives scores that are not finite numbers; is its file damaged?")
    return scores


def _score_part(
    model: LanguageModel, part: Forest, sizes: _Sizes, initial: LstmState | None
) -> npt.NDArray[np.float64]:
    if isinstance(model, LstmLm):
        hidden, place = lstm_hidden(model, part, initial, sizes.steps)
    elif isinstance(model, TransformerLm):
        hidden, place = transformer_hidden(model, part), np.arange(len(part))
    else:
        raise ValueError(f"{type(model).__name__}: expected an LSTM or a Transformer language model")
    asked, owner = np.unique(part.edge_node, return_inverse=True)
    rows = torch.from_numpy(place[asked]).to(model.device)
    owners, tokens = (torch.from_numpy(array).to(model.device) for array in (owner, part.edge_token))
    starts = range(0, len(asked), sizes.rows)
    bounds = np.searchsorted(owner, [*starts, len(asked)])
    parts = []
    for start, low, high in zip(starts, bounds[:-1], bounds[1:], strict=True):
        logits = model.output(hidden.index_select(0, rows[start : start + sizes.rows])).float()
        parts.append(_log_probs(logits, owners[low:high] - start, tokens[low:high]))
    return torch.cat(parts).double().cpu().numpy() if parts else np.empty(0)


def _log_probs(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Log-softmax of `logits` (M, V) at some places, (E,) and (E,)."""
    asked = logits.view(-1).index_select(0, rows * logits.shape[1] + tokens)
    return asked - log_sum_exp(logits).index_select(0, rows)


class _Sizes(NamedTuple):
    """How much to compute at once.

    Attributes:
        nodes: of a part of the forest.
        steps: nodes in one step of an LSTM.
        rows: of the output layer.
    """

    nodes: int
    steps: int
    rows: int


def _fit(model: LanguageModel, forest: Forest, budget: Budget) -> _Sizes:
    """The largest sizes within the budget, by upper bounds of what the tensors of a node take."""
    config, n_units = model.config, model.output.out_features
    n_bytes, steps = budget.n_bytes // budget.n_processes, 0
    if isinstance(model, LstmLm):
        per_step = 4 * config.dim * 26
        steps = n_bytes // 4 // per_step
        steps = max(1, min(ROWS, steps) if model.device.type == "cpu" else steps)
        per_node = 4 * config.dim * (6 + 4 * config.layers)
        fixed = steps * per_step
    else:
        keys = QUERIES + forest.height
        attention = 2 * config.dim * (9 + 2 * keys // QUERIES) + 2 * (2 * config.heads + 3) * keys
        per_node = 4 * max(attention, 4 * config.dim_ff + 4 * config.dim)
        fixed = QUERIES * per_node
    per_row = 4 * (4 * n_units + 4 * config.dim)
    fixed = max(fixed, per_row)
    needed = (forest.height + 1) * per_node + fixed
    if n_bytes < needed:
        shared = f" for {budget.n_processes} processes" if budget.n_processes > 1 else ""
        raise BadInput(
            f"--batch-mb {budget.n_bytes / MB:.3g}{shared}: too little for a hypothesis of {forest.height} units; "
            f"give at least {math.ceil(100 * needed * budget.n_processes / MB) / 100:g}"
        )
    nodes = (n_bytes - fixed) // per_node
    rows = (n_bytes - nodes * 4 * config.dim) // per_row
    if model.device.type == "cpu":
        rows = min(rows, LOGITS // n_units)
    return _Sizes(nodes, steps, max(1, rows))
