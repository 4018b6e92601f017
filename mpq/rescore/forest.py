"""Prefix trees of hypotheses: what a language model has to compute, each distinct history once.

A node stands for a history, `<s> u1 ... uk`; an edge (node, unit) for the question how probable that unit is after
that history. The score of a hypothesis is the sum of its edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Trees of `N` nodes in preorder: a node comes right before its descendants, one tree after the other.

    Attributes:
        token: (N,) the last unit of each history.
        parent: (N,) the node of the history without it, -1 for roots.
        depth: (N,) units before it; also its position.
        end: (N,) one past the last descendant: `a` is `b` or an ancestor of it just if `a <= b < end[a]`.
        tree: (N,) number of its tree.
        edge_node: (E,) where an edge starts, ascending.
        edge_token: (E,) its unit.
    """

    token: Ids
    parent: Ids
    depth: Ids
    end: Ids
    tree: Ids
    edge_node: Ids
    edge_token: Ids

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.token)

    @property
    def height(self) -> int:
        """Most nodes on a path."""
        return int(self.depth.max(initial=-1)) + 1

    def part(self, first: int, last: int) -> Forest:
        """Nodes `first` to `last - 1` with their edges, after the ancestors of `first`, which have none."""
        above: list[int] = []
        node = int(self.parent[first])
        while node >= 0:
            above.append(node)
            node = int(self.parent[node])
        nodes = np.concatenate([np.array(above[::-1], np.int64), np.arange(first, last)])
        shift = len(above) - first

        def local(old: Ids) -> Ids:
            # an ancestor of a node in the range that lies before the range is one of `above`, in order of depth
            return np.where(old >= first, old + shift, np.where(old >= 0, self.depth[old], -1))

        edges = slice(*np.searchsorted(self.edge_node, (first, last)))
        return Forest(
            token=self.token[nodes],
            parent=local(self.parent[nodes]),
            depth=self.depth[nodes],
            end=np.minimum(self.end[nodes], last) + shift,
            tree=self.tree[nodes],
            edge_node=self.edge_node[edges] + shift,
            edge_token=self.edge_token[edges],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """Sets of edges whose scores are to be added up: one set for a hypothesis, or for a word.

    Attributes:
        edges: edges of all sets, one set after the other.
        starts: (S + 1,) where each set begins.
    """

    edges: Ids
    starts: Ids

    @classmethod
    def of(cls, sets: Sequence[Sequence[int]]) -> Paths:
        """From a list of edges for each set."""
        starts = np.zeros(len(sets) + 1, np.int64)
        np.cumsum([len(edges) for edges in sets], out=starts[1:])
        return cls(np.fromiter(chain.from_iterable(sets), np.int64, starts[-1]), starts)

    def total(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sum over each set, (S,), of edge scores (E,); to the last bit whatever the other sets are."""
        sums = np.zeros(len(self.starts) - 1)
        filled = np.diff(self.starts) > 0
        if filled.any():
            sums[filled] = np.add.reduceat(scores[self.edges], self.starts[:-1][filled])
        return sums


class ForestBuilder:
    """Gathers nodes, parents before their children, in any order else.

    Attributes:
        token, parent, depth, tree: of the nodes so far.
        n_trees: trees so far.
    """

    def __init__(self) -> None:
        self.token: list[int] = []
        self.parent: list[int] = []
        self.depth: list[int] = []
        self.tree: list[int] = []
        self.n_trees = 0

    def add_root(self, tokens: Sequence[int]) -> int:
        """Start a tree: a chain of `tokens`, what every history of the tree begins with; its last node."""
        first, n_new = len(self.token), len(tokens)
        self.token.extend(tokens)
        self.parent.extend([-1, *range(first, first + n_new - 1)])
        self.depth.extend(range(n_new))
        self.tree.extend([self.n_trees] * n_new)
        self.n_trees += 1
        return first + n_new - 1

    def add_nodes(self, parent: int, tokens: Sequence[int]) -> range:
        """A chain of histories, each with one more unit, after that of `parent`; there may be none."""
        first, n_new = len(self.token), len(tokens)
        level = self.depth[parent] + 1
        self.token.extend(tokens)
        self.parent.extend([parent, *range(first, first + n_new - 1)][:n_new])
        self.depth.extend(range(level, level + n_new))
        self.tree.extend([self.tree[parent]] * n_new)
        return range(first, first + n_new)

    def build(self, edge_node: Sequence[int] | Ids, edge_token: Sequence[int] | Ids) -> tuple[Forest, Ids]:
        """The forest with these edges, (E,) and (E,), and where each of them has gone, (E,)."""
        token, parent, depth, tree, node, unit = (
            np.asarray(column, np.int64)
            for column in (self.token, self.parent, self.depth, self.tree, edge_node, edge_token)
        )
        size, place = _preorder(parent, depth)
        order = np.argsort(place)
        above = parent[order]
        edge_order = np.argsort(place[node], kind="stable")
        forest = Forest(
            token=token[order],
            parent=np.where(above >= 0, place[above], -1),
            depth=depth[order],
            end=np.arange(len(order)) + size[order],
            tree=tree[order],
            edge_node=place[node][edge_order],
            edge_token=unit[edge_order],
        )
        return forest, np.argsort(edge_order)


def levels(depth: Ids) -> list[Ids]:
    """The nodes of depth 0, 1, ..., each ascending."""
    order = np.argsort(depth, kind="stable")
    return np.split(order, np.cumsum(np.bincount(depth))[:-1])


def _preorder(parent: Ids, depth: Ids) -> tuple[Ids, Ids]:
    """Nodes in each node's subtree, itself included, (N,), and its place in preorder, (N,)."""
    size, place = np.ones_like(parent), np.zeros_like(parent)
    by_depth = levels(depth)
    for nodes in by_depth[:0:-1]:
        np.add.at(size, parent[nodes], size[nodes])
    place[by_depth[0]] = np.cumsum(size[by_depth[0]]) - size[by_depth[0]]
    for nodes in by_depth[1:]:
        siblings = nodes[np.argsort(parent[nodes], kind="stable")]
        before = np.cumsum(size[siblings]) - size[siblings]
        _, first, family = np.unique(parent[siblings], return_index=True, return_inverse=True)
        place[siblings] = place[parent[siblings]] + 1 + before - before[first][family]
    return size, place


def prefix_forest(
    lists: Sequence[Sequence[list[int]]], eos: int, roots: Sequence[Sequence[int]]
) -> tuple[Forest, Paths]:
    """A tree for each list of hypotheses, a node for each distinct prefix.

    Args:
        lists: for each utterance, the units of each hypothesis, without boundary marks.
        eos: the unit after a whole hypothesis.
        roots: for each utterance, the units that come before every hypothesis: `<s>`, or more.
    Returns:
        the forest, and the edges of every hypothesis, list after list.
    """
    builder = ForestBuilder()
    paths: list[list[int]] = []  # of each hypothesis: its nodes, the roots left out
    last: list[int] = []  # of each hypothesis: its last node
    roots_of: list[range] = []
    for hyps, root in zip(lists, roots, strict=True):
        path = [builder.add_root(root)]
        roots_of.append(range(path[0] + 1 - len(root), path[0] + 1))
        found: list[list[int]] = [[]] * len(hyps)
        ends = [0] * len(hyps)
        before: list[int] = []
        for h in sorted(range(len(hyps)), key=hyps.__getitem__):
            n_same = _common_prefix(before, hyps[h])
            del path[n_same + 1 :]
            path.extend(builder.add_nodes(path[-1], hyps[h][n_same:]))
            found[h], ends[h], before = path[1:], path[-1], hyps[h]
        paths.extend(found)
        last.extend(ends)
    inner = np.ones(len(builder.token), bool)
    inner[np.fromiter(chain.from_iterable(roots_of), np.int64)] = False
    final, final_of = np.unique(np.array(last, np.int64), return_inverse=True)
    # an edge leads to every inner node; those to eos come after them
    number = np.cumsum(inner) - 1
    n_inner = int(inner.sum())
    for nodes, end in zip(paths, (final_of + len(inner)).tolist(), strict=True):
        nodes.append(end)
    named = Paths.of(paths)
    number = np.concatenate([number, np.arange(len(final)) + n_inner])
    parent, token = np.array(builder.parent, np.int64)[inner], np.array(builder.token, np.int64)[inner]
    forest, moved = builder.build(
        np.concatenate([parent, final]), np.concatenate([token, np.full(len(final), eos, np.int64)])
    )
    return forest, Paths(moved[number[named.edges]], named.starts)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Units that both begin with."""
    n_same = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n_same += 1
    return n_same
