"""A Transformer over a forest in preorder: every node attends to its ancestors and itself.

Preorder makes the mask narrow. Of a run of consecutive nodes, every ancestor outside the run is an ancestor of its
first node, so a run of `QUERIES` nodes needs itself and one path as keys, however large the tree is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpq.lm import TransformerLm
from mpq.lm.model import Attention, Block, rotary_turns
from mpq.quant import attend_exactly, rotate
from mpq.rescore.forest import Forest, Ids

QUERIES = 32  # nodes of a run


class Runs(NamedTuple):
    """What the nodes of `R` runs attend to.

    Attributes:
        keys: (R, K) nodes; a node that stands for none is masked.
        mask: (R, Q, K) what is added to attention scores: 0 or minus infinity.
    """

    keys: Tensor
    mask: Tensor


def make_runs(forest: Forest, n_queries: int) -> Runs:
    """Keys and mask of runs of `n_queries` nodes; the last one may reach beyond the forest."""
    starts = np.arange(0, len(forest), n_queries)
    path: list[Ids] = []  # the ancestors of every start, bottom up
    node = forest.parent[starts]
    while (node >= 0).any():
        path.append(node)
        node = np.where(node >= 0, forest.parent[node], -1)
    queries = starts[:, None] + np.arange(n_queries)
    keys = np.concatenate([np.stack(path[::-1], 1), queries], 1) if path else queries
    keys = np.where(keys < len(forest), keys, -1)
    reach = np.where(keys >= 0, forest.end[keys], -1)
    seen = (keys[:, None] <= queries[:, :, None]) & (queries[:, :, None] < reach[:, None])
    mask = np.where(seen, np.float32(0), np.float32(-math.inf))
    return Runs(torch.from_numpy(keys).clamp_(min=0), torch.from_numpy(mask))


def transformer_hidden(model: TransformerLm, forest: Forest) -> Tensor:
    """What the output layer sees at every node, (N, C)."""
    device = model.device
    runs = Runs(*(tensor.to(device) for tensor in make_runs(forest, QUERIES)))
    depth = torch.from_numpy(forest.depth).to(device)
    turns = rotary_turns(forest.height, model.config.dim // model.config.heads, device)[:, depth]
    x = model.embedding(torch.from_numpy(forest.token).to(device))
    for block in model.blocks:
        if not isinstance(block, Block):
            raise TypeError(f"{type(block).__name__}: expected a Block of mpq.lm")
        x = _block(block, x, turns, runs)
    normed: Tensor = model.norm(x)
    return normed


def _block(block: Block, x: Tensor, turns: Tensor, runs: Runs) -> Tensor:
    """`Block` on the nodes of a forest, (N, C) -> (N, C)."""
    x = x + _attend(block.attention, block.norm1(x), turns, runs)
    return x + block.feed_forward(block.norm2(x))


def _attend(attention: Attention, x: Tensor, turns: Tensor, runs: Runs) -> Tensor:
    """`Attention` among ancestors, (N, C) -> (N, C); `turns` (2, N, C / heads / 2)."""
    n, c = x.shape
    n_runs, n_queries, _ = runs.mask.shape
    by_heads = (n, attention.heads, c // attention.heads)
    layers = (attention.query, attention.key, attention.value)
    q, k, v = (layer(x).view(by_heads) for layer in layers)  # (N, H, C / H)
    q, k, v = (part.transpose(0, 1) for part in (rotate(q, turns), rotate(k, turns), v))  # (H, N, C / H)
    q = F.pad(q, (0, 0, 0, n_runs * n_queries - n)).view(attention.heads, n_runs, n_queries, -1)
    keys = runs.keys.view(-1)  # indexing by two dimensions takes seven times as long
    k, v = (x.index_select(1, keys).view(*q.shape[:2], -1, q.shape[3]) for x in (k, v))  # (H, R, K, C / H)
    if attention.before_integers:
        attended = attend_exactly(q, k, v, runs.mask)
    else:
        attended = F.scaled_dot_product_attention(q, k, v, runs.mask[None].to(q.dtype))
    out: Tensor = attention.out(attended.flatten(1, 2)[:, :n].transpose(0, 1).reshape(n, c).to(x.dtype))
    return out
