"""Scores from the tree equal those of every hypothesis alone, at any memory, which is never exceeded."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpq.data.lmtext import Tokenizer
from mpq.io import BadInput, Hyp, NBest
from mpq.lm import LanguageModel
from mpq.quant import freeze, quantize_model, uniform_plan
from mpq.rescore import Budget, Scoring, add_lm_scores
from mpq.rescore.forest import Paths, prefix_forest
from mpq.rescore.scoring import share_out
from mpq.rescore.tree import score_edges

from .conftest import WORDS, alone, made_up_list, make_lm

ODD = [
    NBest("same", [Hyp("w1 w2", 0.0, 0.0), Hyp("w1 w2", -1.0, 0.0)]),
    NBest("prefix", [Hyp("w1 w2 w3", 0.0, 0.0), Hyp("w1 w2", -1.0, 0.0), Hyp("w1 w2 w3 w4", -2.0, 0.0)]),
    NBest("empty", [Hyp("", 0.0, 0.0), Hyp("w5", -1.0, 0.0)]),
    NBest("only-empty", [Hyp("", 0.0, 0.0)]),
    NBest("one", [Hyp("w9 w8 w7 unheard", 0.0, 0.0)]),
    NBest("long", [Hyp(" ".join(WORDS * 3), 0.0, 0.0), Hyp(" ".join(WORDS * 3 + ["w1"]), 0.0, 0.0)]),
]


def scored(model: LanguageModel, units: Tokenizer, nbests: list[NBest], **how: Any) -> list[float]:
    result = list(add_lm_scores(model, units, nbests, Scoring(**how)))
    assert [nbest.utt for nbest in result] == [nbest.utt for nbest in nbests]
    return [hyp.nnlm or 0.0 for nbest in result for hyp in nbest.hyps]


def test_equals_every_hypothesis_alone(any_lm: LanguageModel, units: Tokenizer) -> None:
    nbests = [*ODD, made_up_list("u", 100, 15, seed=0), made_up_list("v", 7, 3, seed=1)]
    expected = [alone(any_lm, units, hyp.text) for nbest in nbests for hyp in nbest.hyps]
    assert scored(any_lm, units, nbests) == pytest.approx(expected, abs=1e-4)


def test_activations_of_4_bits(arch: str, units: Tokenizer) -> None:
    """In the tree as in the model itself, asymmetric weights too."""
    model = make_lm(arch, 32, len(units))
    freeze(quantize_model(model, uniform_plan(model, 2, a_bits=4, table="asym")))
    nbests = [*ODD, made_up_list("u", 20, 8, seed=0)]
    expected = [alone(model, units, hyp.text) for nbest in nbests for hyp in nbest.hyps]
    assert scored(model, units, nbests) == pytest.approx(expected, abs=1e-4)


def test_a_list_of_1000(any_lm: LanguageModel, units: Tokenizer) -> None:
    nbest = made_up_list("u", 1000, 20, seed=2)
    values = scored(any_lm, units, [nbest])
    some = range(0, 1000, 53)
    assert [values[i] for i in some] == pytest.approx(
        [alone(any_lm, units, nbest.hyps[i].text) for i in some], abs=1e-4
    )


def test_each_prefix_is_computed_once(units: Tokenizer) -> None:
    nbests = [*ODD, made_up_list("u", 50, 10, seed=3)]
    lists = [[units.encode(hyp.text) for hyp in nbest.hyps] for nbest in nbests]
    forest, paths = prefix_forest(lists, units.eos, [[units.bos]] * len(lists))
    prefixes = {(u, *ids[:i]) for u, hyps in enumerate(lists) for ids in hyps for i in range(len(ids) + 1)}
    assert len(forest) == len(prefixes)
    complete = {(u, *ids) for u, hyps in enumerate(lists) for ids in hyps}
    assert len(forest.edge_node) == len(prefixes) - len(lists) + len(complete)
    assert (forest.parent[1:] < np.arange(1, len(forest))).all() and (np.diff(forest.edge_node) >= 0).all()
    spelled = [ids for hyps in lists for ids in hyps]
    for ids, first, last in zip(spelled, paths.starts[:-1], paths.starts[1:], strict=True):
        assert forest.edge_token[paths.edges[first:last]].tolist() == [*ids, units.eos]


class Meter(TorchDispatchMode):
    """Bytes of all tensors alive that were made while it was on, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        if tensor.is_mkldnn:  # has no storage that can be looked at
            storage, key, size = tensor, id(tensor), tensor.nbytes
        else:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._seen.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


@pytest.mark.parametrize("mb", [1.5, 2.0, 5.0])
def test_memory_stays_within_the_budget(any_lm: LanguageModel, units: Tokenizer, mb: float) -> None:
    nbests = [made_up_list("huge", 200, 30, seed=4), *ODD, made_up_list("u", 20, 5, seed=5)]
    lists = [[units.encode(hyp.text) for hyp in nbest.hyps] for nbest in nbests]
    forest, _ = prefix_forest(lists, units.eos, [[units.bos]] * len(lists))
    whole = score_edges(any_lm, forest, Budget.of_mb(1000))
    meter = Meter()
    with meter:
        in_parts = score_edges(any_lm, forest, Budget.of_mb(mb))
    assert 0.1 * mb < meter.peak / 2**20 <= mb
    assert in_parts == pytest.approx(whole, abs=1e-4)


def test_too_little_memory_is_told(any_lm: LanguageModel, units: Tokenizer) -> None:
    with pytest.raises(BadInput, match=r"--batch-mb 0.01: too little for a hypothesis of 92 units; give at least \d"):
        scored(any_lm, units, ODD, budget=Budget.of_mb(0.01))
    with pytest.raises(BadInput, match="--batch-mb: nan must be a number above 0"):
        Budget.of_mb(float("nan"))


def test_packed_weights(arch: str, units: Tokenizer) -> None:
    served = make_lm(arch, 2, len(units))
    packed = make_lm(arch, 2, len(units), packed=True)
    assert scored(packed, units, ODD) == scored(served, units, ODD)


def test_what_is_together_does_not_matter_on_integers(arch: str, units: Tokenizer) -> None:
    model = make_lm(arch, 2, len(units))
    nbests = [made_up_list("u", 60, 12, seed=6), *ODD]
    one_by_one = [value for nbest in nbests for value in scored(model, units, [nbest])]
    assert scored(model, units, nbests) == pytest.approx(one_by_one, abs=1e-5)


def test_merging_is_exact_above_the_longest_path(any_lm: LanguageModel, units: Tokenizer) -> None:
    nbests = [*ODD[:5], made_up_list("u", 60, 12, seed=7)]
    longest = max(len(hyp.text.split()) for nbest in nbests for hyp in nbest.hyps)
    assert scored(any_lm, units, nbests, merge_order=longest + 1) == pytest.approx(scored(any_lm, units, nbests))


def test_merging_takes_the_first_history(any_lm: LanguageModel, units: Tokenizer) -> None:
    nbest = NBest("u", [Hyp("w1 w2 w3 w4", 0.0, 0.0), Hyp("w5 w2 w3 w4", 0.0, 0.0), Hyp("w5 w2", 0.0, 0.0)])
    first, second, third = scored(any_lm, units, [nbest], merge_order=2)
    assert first == pytest.approx(alone(any_lm, units, "w1 w2 w3 w4"), abs=1e-4)
    exact = scored(any_lm, units, [nbest])
    # after w2, and after w3, and w4, all goes on as after the first hypothesis
    shared = scored(any_lm, units, [NBest("u", [Hyp("w1 w2", 0.0, 0.0), Hyp("w1", 0.0, 0.0)])])
    assert third - second == pytest.approx(shared[0] - exact[0], abs=1e-4)


def test_a_model_that_gives_nan(arch: str, units: Tokenizer) -> None:
    model = make_lm(arch, 32, len(units))
    torch.nn.init.constant_(model.output.bias, float("nan"))
    with pytest.raises(BadInput, match="not finite numbers; is its file damaged"):
        scored(model, units, ODD)


def test_an_empty_list(any_lm: LanguageModel, units: Tokenizer) -> None:
    with pytest.raises(BadInput, match="utterance 'u': the n-best list is empty"):
        scored(any_lm, units, [NBest("u", [])])


def test_processes_share_the_lists(arch: str, units: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_lm(arch, 2, len(units))
    nbests = [*ODD, *(made_up_list(f"u{i}", 20, 8, seed=i) for i in range(9))]
    expected = scored(model, units, nbests)
    monkeypatch.setattr("mpq.rescore.scoring.PROCESS_WORDS", 100)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    shares = share_out([len(nbest.hyps) * 8 for nbest in nbests], Budget(), model.device)
    assert shares.budget.n_processes == 2 and 4 <= len(shares.spans) < len(nbests)
    assert scored(model, units, nbests) == expected
    with pytest.raises(BadInput, match=r"--batch-mb 32 for 2 processes: too little .* give at least \d+"):
        scored(model, units, [NBest("huge", [Hyp("w1 " * 20_000, 0.0, 0.0)]), *nbests], budget=Budget.of_mb(32))


def test_sums_do_not_depend_on_what_stands_beside() -> None:
    scores = np.random.default_rng(0).normal(size=50)
    sets = [[0, 7, 3], [], [49], [], [*range(40)], []]
    expected = [float(Paths.of([one]).total(scores)[0]) for one in sets]
    assert Paths.of(sets).total(scores).tolist() == expected
    assert expected == pytest.approx([scores[one].sum() for one in sets], abs=1e-12)
    assert Paths.of([]).total(scores).tolist() == []
