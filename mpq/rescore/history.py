"""Histories of words, as long as they are told apart: exact prefixes, or the last words only.

Merging histories that agree in their last words is what Kaldi's lattice rescoring does (Xu et al. 2018, "A pruned
RNNLM lattice-rescoring algorithm"): the model's state is that of the history that came first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mpq.io import BadInput
from mpq.rescore.forest import Forest, ForestBuilder, Ids, Paths

Units = tuple[int, ...]


class Histories:
    """Grows a forest word by word; nodes at word ends stand for all histories of the same last words.

    Args:
        encode: units of a word.
        eos: the unit after the last word.
        order: histories of the same last `order` - 1 words share a node; none: only equal ones do. With an order
            above the number of words of every path the result is exact.
    """

    def __init__(self, encode: Callable[[str], list[int]], eos: int, order: int | None) -> None:
        if order is not None and order < 1:
            raise BadInput(f"--merge-order: {order} must be at least 1")
        self._units: dict[str, Units] = {}
        self._encode, self._eos, self._keep = encode, eos, None if order is None else order - 1
        self._builder = ForestBuilder()
        self._edges: dict[tuple[int, int], int] = {}
        self._children: dict[tuple[int, int], int] = {}
        self._merged: dict[tuple[Units, ...], int] = {}
        self._words: dict[int, tuple[Units, ...]] = {}  # at a node that ends a word: the last words, told apart
        self._steps: dict[tuple[int, str], tuple[int, Units]] = {}
        self._edge_nodes: list[int] = []
        self._edge_tokens: list[int] = []

    def start(self, root: Sequence[int]) -> int:
        """Begin an utterance, with the units that come before its words; its first node."""
        for table in (self._edges, self._children, self._merged, self._words, self._steps):
            table.clear()
        node = self._builder.add_root(root)
        self._words[node] = ()
        self._merged[()] = node
        return node

    def step(self, node: int, word: str) -> tuple[int, Units]:
        """The node after one more word, and the edges that its probability is the sum of."""
        key = (node, word)
        if key not in self._steps:
            self._steps[key] = self._step(node, word)
        return self._steps[key]

    def end(self, node: int) -> int:
        """The edge that ends the sentence."""
        return self._edge(node, self._eos)

    def build(self) -> tuple[Forest, Ids]:
        """The forest, and where each edge has gone."""
        return self._builder.build(self._edge_nodes, self._edge_tokens)

    def _step(self, node: int, word: str) -> tuple[int, Units]:
        if word not in self._units:
            self._units[word] = tuple(self._encode(word))
        units = self._units[word]
        if not units:
            return node, ()
        words = (*self._words[node], units)
        if self._keep is not None:
            words = words[len(words) - min(len(words), self._keep) :]
        edges = []
        for unit in units[:-1]:
            edges.append(self._edge(node, unit))
            node = self._child(node, unit)
        edges.append(self._edge(node, units[-1]))
        target = self._merged.get(words)
        if target is None:
            target = self._child(node, units[-1])
            self._merged[words] = target
            self._words.setdefault(target, words)
        return target, tuple(edges)

    def _edge(self, node: int, unit: int) -> int:
        key = (node, unit)
        if key not in self._edges:
            self._edges[key] = len(self._edge_nodes)
            self._edge_nodes.append(node)
            self._edge_tokens.append(unit)
        return self._edges[key]

    def _child(self, node: int, unit: int) -> int:
        key = (node, unit)
        if key not in self._children:
            self._children[key] = self._builder.add_nodes(node, (unit,))[0]
        return self._children[key]


def merged_forest(
    lists: Sequence[Sequence[Sequence[str]]],
    encode: Callable[[str], list[int]],
    eos: int,
    roots: Sequence[Sequence[int]],
    order: int,
) -> tuple[Forest, Paths]:
    """A tree for each list of hypotheses; of histories that are merged the best-ranked hypothesis' one is computed.

    Args:
        lists: for each utterance, the words of each hypothesis, best first.
        encode: units of a word.
        eos: the unit after a whole hypothesis.
        roots: for each utterance, the units that come before every hypothesis: `<s>`, or more.
        order: histories of the same last `order` - 1 words share a node.
    Returns:
        the forest, and the edges of every hypothesis, list after list.
    """
    histories = Histories(encode, eos, order)
    found: list[list[int]] = []
    for hyps, root in zip(lists, roots, strict=True):
        first = histories.start(root)
        for words in hyps:
            node = first
            path: list[int] = []
            for word in words:
                node, edges = histories.step(node, word)
                path.extend(edges)
            path.append(histories.end(node))
            found.append(path)
    forest, moved = histories.build()
    paths = Paths.of(found)
    return forest, Paths(moved[paths.edges], paths.starts)
