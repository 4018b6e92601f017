"""Scores are products of next-unit probabilities, whatever is batched with a sentence."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mpq.data.lmtext import Tokenizer, pad_sentences
from mpq.io import BadInput
from mpq.lm import LanguageModel, LmConfig, build_lm
from mpq.lm.model import SentenceDropout, rotary_turns
from mpq.quant import rotate

SENTENCES = ["the king went up to the city", "people said", "", "a king said the unheardof and went"]


def unit_by_unit(model: LanguageModel, units: Tokenizer, text: str) -> float:
    """The sentence's log-probability, each unit predicted from its prefix alone."""
    prefix, total = [units.bos], 0.0
    for unit in [*units.encode(text), units.eos]:
        tokens = torch.tensor([prefix])
        last = torch.zeros_like(tokens, dtype=torch.bool)
        last[0, -1] = True
        total += model(tokens, last)[0].double().log_softmax(-1)[unit].item()
        prefix.append(unit)
    return total


@torch.no_grad()
def test_score_is_the_sum_over_units(model: LanguageModel, words: Tokenizer) -> None:
    batch = pad_sentences([words.encode(text) for text in SENTENCES], words.bos, words.eos)
    expected = [unit_by_unit(model, words, text) for text in SENTENCES]
    assert model.score(batch).tolist() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_score_does_not_depend_on_the_batch(model: LanguageModel, words: Tokenizer) -> None:
    ids = [words.encode(text) for text in SENTENCES]
    together = model.score(pad_sentences(ids, words.bos, words.eos)).tolist()
    alone = [model.score(pad_sentences([i], words.bos, words.eos)).item() for i in ids]
    assert together == pytest.approx(alone, rel=1e-6)


@torch.no_grad()
def test_probabilities_of_all_sentences_sum_to_one(words: Tokenizer) -> None:
    """Over a two-unit alphabet, everything of up to 8 units and everything longer."""
    torch.manual_seed(1)
    model = build_lm(LmConfig("lstm", dim=8), 3).eval()  # <unk> is the one word, <s> never follows
    model.output.bias[1] = -1e9
    total = 0.0
    for length in range(9):
        total += model.score(pad_sentences([[0] * length], 1, 2)).exp().item()
    tokens = torch.tensor([[1] + [0] * 9])
    logs = model(tokens, torch.ones_like(tokens, dtype=torch.bool)).double().log_softmax(-1)
    longer = logs[:9, 0].sum().exp().item()
    assert total + longer == pytest.approx(1.0, abs=1e-6)


def test_gradients_reach_every_parameter(model: LanguageModel, words: Tokenizer) -> None:
    batch = pad_sentences([words.encode(text) for text in SENTENCES], words.bos, words.eos)
    (-model.train().log_probs(batch).mean()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]


def test_rotary_scores_depend_on_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8).double()
    turned_q, turned_k = (rotate(x.expand(12, 1, 8), rotary_turns(12, 8, torch.device("cpu")))[:, 0] for x in (q, k))
    scores = turned_q @ turned_k.t()
    for distance in range(-5, 6):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-6)
    assert not torch.isclose(scores[0, 0], scores[0, 3])


def test_sentence_dropout_drops_a_channel_for_the_whole_sentence() -> None:
    torch.manual_seed(0)
    dropout, x = SentenceDropout(0.5), torch.ones(4, 7, 64)
    y = dropout(x)
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "gru"}, "'gru' is not a language model"),
        ({"dim": 0}, "dim: 0 must be at least 1"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"arch": "transformer", "dim": 20, "heads": 4}, "divisible by 2"),
    ],
)
def test_bad_sizes(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        dataclasses.replace(LmConfig(), **change)  # type: ignore[arg-type]
