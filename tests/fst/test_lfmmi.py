"""LF-MMI against brute-force path sums in float64, and its behaviour at the extremes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mpq.fst.fsa import Fsa, ctc_graph, pronunciation_graph
from mpq.fst.lfmmi import lfmmi_loss, total_score
from mpq.fst.phone_lm import PhoneNgram, apply_phone_ngram, estimate_phone_ngram
from mpq.io import BadInput

SENTENCES = [[1, 2, 3], [2, 2, 1], [3, 1], [1, 3, 3, 2], [2]]


def paths(graph: Fsa, n_frames: int) -> Iterator[tuple[list[int], float]]:
    """Every path of a graph: its labels and its weight."""

    def walk(state: int, labels: list[int], weight: float) -> Iterator[tuple[list[int], float]]:
        if len(labels) == n_frames:
            if graph.final[state] > -np.inf:
                yield labels, weight + graph.final[state]
            return
        for arc in np.flatnonzero(graph.src == state):
            yield from walk(int(graph.dst[arc]), [*labels, int(graph.label[arc])], weight + graph.weight[arc])

    yield from walk(graph.start, [], 0.0)


def brute_force(log_probs: Tensor, graph: Fsa) -> Tensor:
    """Path sum of one utterance ``(T, C)`` by enumeration, differentiable by autograd."""
    frames = range(len(log_probs))
    scores = [log_probs[frames, labels].sum() + weight for labels, weight in paths(graph, len(log_probs))]
    return torch.logsumexp(torch.stack(scores), 0)


def random_graph(seed: int) -> Fsa:
    """Any acceptor: parallel arcs, several labels into a state, a start state that is entered again."""
    rng = np.random.default_rng(seed)
    arcs = [(*map(int, (*rng.integers(0, 4, 2), rng.integers(0, 3))), float(rng.normal())) for _ in range(14)]
    arcs += [(s, (s + 1) % 4, 0, 0.0) for s in range(4)]
    return Fsa.from_arcs(arcs, {1: -0.5, 2: 0.25, 3: -1.0})


@pytest.mark.parametrize("seed", range(8))
def test_score_and_gradient_equal_enumeration(seed: int) -> None:
    graph = random_graph(seed)
    torch.manual_seed(seed)
    log_probs = torch.randn(3, 5, 3, dtype=torch.float64, requires_grad=True)
    lengths = [5, 3, 4]
    expected = torch.stack([brute_force(x[:n], graph) for x, n in zip(log_probs, lengths, strict=True)])
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (expected_grad,) = torch.autograd.grad(expected @ weights, log_probs)
    for graphs in (graph, [graph] * 3):  # scaled probabilities, then the log semiring
        score = total_score(log_probs, torch.tensor(lengths), graphs)
        (grad,) = torch.autograd.grad(score @ weights, log_probs)
        torch.testing.assert_close(score, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)


def test_second_derivative_equals_that_of_the_enumeration() -> None:
    graph = random_graph(3)
    torch.manual_seed(3)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)  # of a layer that makes the log-probabilities
    inputs, direction = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    lengths = torch.tensor([5, 3])

    def product(enumerate_paths: bool, graphs: Fsa | list[Fsa]) -> Tensor:
        log_probs = (inputs @ weight).log_softmax(-1)
        if enumerate_paths:
            loss = torch.stack([brute_force(x[:n], graph) for x, n in zip(log_probs, lengths.tolist(), strict=True)])
        else:
            loss = total_score(log_probs, lengths, graphs)
        (grad,) = torch.autograd.grad(loss.square().sum(), weight, create_graph=True)
        return torch.autograd.grad(grad, weight, direction)[0]

    expected = product(True, graph)
    for graphs in (graph, [graph] * 2):
        torch.testing.assert_close(product(False, graphs), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_loss_equals_enumeration_with_variants_and_silence(order: int) -> None:
    model = estimate_phone_ngram(SENTENCES, 3, order)
    words = [[[1, 2], [3]], [[2]]]
    phones = [pronunciation_graph(words), pronunciation_graph(words, silence=3, silence_prob=0.3)]
    numerators = [ctc_graph(apply_phone_ngram(p, model)) for p in phones]
    denominator = ctc_graph(model.fsa)
    torch.manual_seed(order)
    logits = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([6, 5])
    loss = lfmmi_loss(logits.log_softmax(-1), lengths, numerators, denominator, den_scale=0.9)
    log_probs = logits.log_softmax(-1)
    expected = torch.stack(
        [
            0.9 * brute_force(x[:n], denominator) - brute_force(x[:n], numerator)
            for x, n, numerator in zip(log_probs, lengths, numerators, strict=True)
        ]
    )
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(*(torch.autograd.grad(v.sum(), logits) for v in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_gradcheck() -> None:
    model = estimate_phone_ngram(SENTENCES, 3, 2)
    numerators = [ctc_graph(apply_phone_ngram(pronunciation_graph([[[1, 2], [3]], [[2]]]), model))] * 2
    denominator = ctc_graph(model.fsa)
    torch.manual_seed(0)
    log_probs = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 6])
    assert torch.autograd.gradcheck(lambda x: lfmmi_loss(x, lengths, numerators, denominator), (log_probs,))


def test_single_pronunciation_equals_torch_ctc() -> None:
    torch.manual_seed(1)
    targets = [[1, 2, 2, 3], [4, 4], [3, 1, 2]]
    log_probs = torch.randn(3, 20, 5, dtype=torch.float64).log_softmax(-1).requires_grad_()
    lengths = torch.tensor([20, 7, 13])
    graphs = [ctc_graph(pronunciation_graph([[[p]] for p in target])) for target in targets]
    score = total_score(log_probs, lengths, graphs)
    flat = torch.tensor([phone for target in targets for phone in target])
    loss = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), flat, lengths, torch.tensor([len(t) for t in targets]), reduction="none"
    )
    torch.testing.assert_close(-score, loss)
    a, b = (torch.autograd.grad(v.sum(), log_probs)[0] for v in (-score, loss))
    # torch's CTC returns the gradient with respect to the logits of a softmax.
    torch.testing.assert_close(a + log_probs.exp() * (torch.arange(20)[:, None] < lengths[:, None, None]), b)


def test_posteriors_of_each_frame_sum_to_one_and_padding_gets_none() -> None:
    denominator = ctc_graph(estimate_phone_ngram(SENTENCES, 3).fsa)
    log_probs = torch.randn(2, 70, 4).log_softmax(-1).requires_grad_()
    log_probs.data[1, 10:] = float("nan")  # whatever stands in the padding
    total_score(log_probs, torch.tensor([70, 10]), denominator).sum().backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad[0].sum(-1), torch.ones(70))
    torch.testing.assert_close(log_probs.grad[1, :10].sum(-1), torch.ones(10))
    assert (log_probs.grad[1, 10:] == 0).all()


@pytest.mark.parametrize("sharpness", [1.0, 30.0, 1000.0, 1e6])
def test_long_utterances_and_sharp_outputs_stay_exact(sharpness: float) -> None:
    """float32 input, 1,000 frames, a model that is sure of the wrong classes."""
    model = estimate_phone_ngram(SENTENCES, 3)
    numerator = ctc_graph(apply_phone_ngram(pronunciation_graph([[[1, 2], [3]]] * 30), model))
    denominator = ctc_graph(model.fsa)
    torch.manual_seed(0)
    log_probs = (sharpness * torch.randn(2, 1000, 4)).log_softmax(-1).requires_grad_()
    lengths = torch.tensor([1000, 200])
    loss = lfmmi_loss(log_probs, lengths, [numerator] * 2, denominator)
    (grad,) = torch.autograd.grad(loss.sum(), log_probs)
    assert loss.isfinite().all() and grad.isfinite().all() and (loss >= -1e-3).all()
    shared = total_score(log_probs.double(), lengths, denominator)
    each = total_score(log_probs.double(), lengths, [denominator] * 2)
    torch.testing.assert_close(shared, each, rtol=1e-11, atol=1e-7)


def test_mass_lost_in_scaled_probabilities_is_found_and_recomputed() -> None:
    """The one path that can end is 1e-870 times as likely as the dead end for most of the time."""
    graph = Fsa.from_arcs([(0, 1, 0, 0.0), (1, 1, 0, 0.0), (0, 2, 1, 0.0), (2, 2, 1, 0.0)], {2: 0.0, 1: -1e5})
    log_probs = torch.zeros(1, 200, 2, dtype=torch.float64)
    log_probs[..., 1] = -10.0
    log_probs.requires_grad_()
    score = total_score(log_probs, torch.tensor([200]), graph)
    score.backward()
    assert score.item() == pytest.approx(-2000.0, rel=1e-12)
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad[0, :, 1], torch.ones(200, dtype=torch.float64))


def test_loss_is_never_negative_and_zero_for_the_only_sentence() -> None:
    model = estimate_phone_ngram([[1, 2]], 2, 3, smooth=False)
    numerator = ctc_graph(apply_phone_ngram(pronunciation_graph([[[1], [2]], [[2]]]), model))
    log_probs = torch.randn(1, 9, 3).log_softmax(-1)
    loss = lfmmi_loss(log_probs, torch.tensor([9]), [numerator], ctc_graph(model.fsa))
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def score(model: PhoneNgram, phones: list[int]) -> float:
    """Natural-log probability of a phone sequence."""
    state, total = model.start, 0.0
    for phone in phones:
        total += float(model.log_prob[state, phone])
        state = int(model.next_history[state, phone])
    return total + float(model.log_prob[state, 0])


@pytest.mark.parametrize("max_histories", [0, 1, 2, 4, 7, 12])
def test_frequent_histories_are_states_and_what_was_said_keeps_its_path(max_histories: int) -> None:
    rng = np.random.default_rng(max_histories)
    said = [rng.choice(4, rng.integers(1, 8), p=[0.5, 0.3, 0.15, 0.05]).tolist() for _ in range(60)]
    said = [[phone + 1 for phone in sentence] for sentence in said]
    model = estimate_phone_ngram(said, 4, 4, max_histories, smooth=False)
    assert len(model.fsa.final) <= len(model.log_prob) <= (6 + max_histories if max_histories else 200)
    total = np.bincount(model.fsa.src, np.exp(model.fsa.weight), len(model.fsa.final)) + np.exp(model.fsa.final)
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)
    likelihood = sum(score(model, sentence) for sentence in said)
    assert np.isfinite(likelihood) and likelihood > sum(score(estimate_phone_ngram(said, 4, 2), s) for s in said)
    # the likeliest for these states: any other weights of the same arcs are worse
    seen = np.zeros_like(model.log_prob)
    for sentence in said:
        state = model.start
        for phone in [*sentence, 0]:
            seen[state, phone] += 1
            state = int(model.next_history[state, phone])
    used = seen.sum(1) > 0
    np.testing.assert_allclose(np.exp(model.log_prob[used]), seen[used] / seen[used].sum(1, keepdims=True))
    graph = ctc_graph(model.fsa)
    log_probs = torch.randn(len(said), 20, 5).log_softmax(-1)
    numerators = [ctc_graph(apply_phone_ngram(pronunciation_graph([[s]]), model)) for s in said]
    assert (lfmmi_loss(log_probs, torch.full((len(said),), 20), numerators, graph) > -1e-4).all()


def test_a_smooth_model_of_few_histories_knows_every_sequence() -> None:
    whole, few = (estimate_phone_ngram(SENTENCES, 3, 4, n) for n in (0, 3))
    assert len(few.log_prob) == 5 + 3 < len(whole.log_prob)
    assert all(np.isfinite(score(few, phones)) for phones in ([1, 1, 1, 1], [3, 2, 1], []))
    assert len(few.fsa.src) == 3 * len(few.fsa.final)


def test_utterance_shorter_than_its_transcript_is_named() -> None:
    graphs = [ctc_graph(pronunciation_graph([[[1, 1, 2]]]))] * 2  # needs a blank between 1 and 1
    with pytest.raises(BadInput, match=r"utterance 1 of the batch has 3 frames .* needs at least 4"):
        total_score(torch.zeros(2, 5, 3), torch.tensor([4, 3]), graphs)


def test_nan_is_refused() -> None:
    for graphs in (ctc_graph(pronunciation_graph([[[1]]])), [ctc_graph(pronunciation_graph([[[1]]]))]):
        with pytest.raises(BadInput, match="utterance 0 of the batch: path sum is nan"):
            total_score(torch.full((1, 4, 2), float("nan")), torch.tensor([4]), graphs)


@pytest.mark.parametrize("lengths", [[0, 3], [3, 6]])
def test_lengths_out_of_range_are_refused(lengths: list[int]) -> None:
    with pytest.raises(BadInput, match="expected 1 to 5"):
        total_score(torch.zeros(2, 5, 3), torch.tensor(lengths), ctc_graph(pronunciation_graph([[[1]]])))


def test_work_is_linear_in_arcs_and_frames() -> None:
    """Sizes of what the recursions walk over: states and arcs grow with the transcript, not its square."""
    sizes = []
    for n_words in (10, 20, 40):
        form = ctc_graph(pronunciation_graph([[[1, 2], [3, 1]]] * n_words)).state_form
        sizes.append((len(form.label), len(form.src)))
    (a, b), (c, d), (e, f) = sizes
    assert e - c == 2 * (c - a) and f - d == 2 * (d - b)
    bigram = estimate_phone_ngram([list(range(1, 40))], 39)
    form = ctc_graph(bigram.fsa).state_form
    assert len(form.label) == 39 + 40  # a state for each phone, a blank for each history
    assert len(form.src) == 40 * 39 + 40 + 39 * 39 + 39  # blank to phones and itself; phone to phones and blank
