"""Phone n-gram models for the denominator of lattice-free MMI, as deterministic acceptors without epsilons.

Every history has its own explicit distribution, so that a phone sequence has exactly one path and its
weight is exactly the model's probability (a back-off arc would count paths twice in the log semiring).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpq.fst.fsa import Floats, Fsa, Ints
from mpq.io import check_ranges

History = tuple[int, ...]
_BEGIN, _END = -1, 0  # the end of the sentence takes the place of the blank, which is no phone


@dataclass(kw_only=True)
class PhoneLmConfig:
    """The phone n-gram model of LF-MMI's denominator; what follows the training has that of the training.

    Attributes:
        phone_order: order of the denominator's phone n-gram model, which is estimated from the training transcripts.
        phone_histories: at most so many histories of two or more phones in it, the most frequent ones; 0: all.
        phone_smooth: it is smooth: every phone may follow every history. False: only what was seen, as in Kaldi, which
            leaves a 4-gram a third of the arcs; what else is scored then needs a model that has seen it too, since it
            may have no path in the first one: held-out transcripts, what a first pass recognized.
    """

    phone_order: int = 2
    phone_histories: int = 3500
    phone_smooth: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, phone_order="[1, 6]", phone_histories="[0, inf)")


@dataclass(frozen=True, eq=False)
class PhoneNgram:
    """N-gram model over phone classes 1..P.

    Attributes:
        log_prob: natural-log probability of each phone after each history, ``(H, P + 1)``; column 0 is the
            end of the sentence; ``-inf`` where the model has no such event.
        next_history: history that follows, ``(H, P + 1)``; column 0 is not used.
        start: history at the beginning of a sentence.
    """

    log_prob: Floats
    next_history: Ints
    start: int

    @cached_property
    def fsa(self) -> Fsa:
        """The model as an acceptor: one state for each history that a sentence can reach."""
        src, phone = np.nonzero(self.log_prob > -np.inf)
        src, phone = src[phone != _END], phone[phone != _END]
        return Fsa(
            src,
            self.next_history[src, phone],
            phone,
            self.log_prob[src, phone],
            self.log_prob[:, _END].copy(),
            self.start,
        ).trimmed()


def estimate_phone_ngram(
    sentences: Iterable[Sequence[int]], n_phones: int, order: int = 2, max_histories: int = 0, smooth: bool = True
) -> PhoneNgram:
    """Estimate a phone n-gram model from transcripts.

    Kaldi's chain models (`chain-est-phone-lm --num-extra-lm-states=2000`) have a 4-gram that is not smooth, all
    histories of up to two phones and 2,000 of three; which, they choose one after the other by what each adds to the
    transcripts' likelihood. Here the most frequent ones are kept.

    Args:
        sentences: phone classes (1..n_phones) of each training utterance.
        n_phones: number of phones P.
        order: 1, 2, 3, ...; the acceptor has one state for each history of up to ``order - 1`` phones.
        max_histories: at most so many histories of two or more phones, the most frequent ones; others are replaced by
            their last phones. 0: all.
        smooth: Witten and Bell's interpolation (Chen and Goodman 1998, section 2.6) down to the uniform
            distribution: every phone may follow every history. False: relative frequencies, only what was
            seen (as in Kaldi's chain models), for large orders, where arcs would be histories times phones; a history
            is counted where no longer one is kept, so that the frequencies are the likeliest for these histories.

    Raises:
        ValueError: order below 1, a phone out of range, or no sentences.
    """
    if order < 1:
        raise ValueError(f"order ({order}) must be at least 1")
    counts = _count(sentences, n_phones, order)
    if not counts:
        raise ValueError("no sentences to estimate a phone n-gram model from")
    # What a kept history begins and ends with is as frequent and shorter, so it is kept too.
    long = sorted((h for h in counts if len(h) > 1), key=lambda h: (-counts[h].total(), len(h), h))
    kept = [h for h in counts if len(h) < 2] + long[: max_histories or None]
    histories = {h: i for i, h in enumerate(sorted(kept, key=lambda h: (len(h), h)))}
    prob = (_smooth if smooth else _relative)(counts, histories, n_phones, order)
    next_history = np.array(
        [[_longest((*history, phone), order, histories) for phone in range(n_phones + 1)] for history in histories]
    )
    with np.errstate(divide="ignore"):
        return PhoneNgram(np.log(prob), next_history, histories[(_BEGIN,) if order > 1 else ()])


def _count(sentences: Iterable[Sequence[int]], n_phones: int, order: int) -> dict[History, Counter[int]]:
    """What follows each history of up to `order - 1` phones, and how often."""
    ngrams: Counter[History] = Counter()
    # Copies of other speeds say the same: it is read once.
    for sentence, number in Counter(map(tuple, sentences)).items():
        if not all(1 <= phone <= n_phones for phone in sentence):
            raise ValueError(f"phones must be 1 to {n_phones}: {list(sentence)}")
        padded = (_BEGIN, *sentence, _END)
        here = Counter(padded[max(0, i - order) : i] for i in range(2, len(padded) + 1))
        for ngram, times in here.items():
            ngrams[ngram] += times * number
    counts: dict[History, Counter[int]] = defaultdict(Counter)
    for ngram, number in ngrams.items():
        for begin in range(len(ngram)):
            counts[ngram[begin:-1]][ngram[-1]] += number
    return counts


def _smooth(counts: dict[History, Counter[int]], histories: dict[History, int], n_phones: int, order: int) -> Floats:
    """Probabilities ``(H, P + 1)`` by Witten and Bell's interpolation; shorter histories come first."""
    prob = np.zeros((len(histories), n_phones + 1))
    for history, row in histories.items():
        seen = _row(counts[history], n_phones)
        kinds = np.count_nonzero(seen)
        shorter = prob[histories[history[1:]]] if history else np.full(n_phones + 1, 1 / (n_phones + 1))
        prob[row] = (seen + kinds * shorter) / (seen.sum() + kinds)
    return prob


def _relative(counts: dict[History, Counter[int]], histories: dict[History, int], n_phones: int, order: int) -> Floats:
    """Relative frequencies ``(H, P + 1)``; zero for a history that a sentence always has a longer one in place of."""
    seen = np.zeros((len(histories), n_phones + 1))
    for history, following in counts.items():
        if len(history) == order - 1 or history[:1] == (_BEGIN,):  # all that is known at its places
            seen[_longest(history, order, histories)] += _row(following, n_phones)
    return np.asarray(seen / np.maximum(seen.sum(1, keepdims=True), 1.0))


def _row(following: Counter[int], n_phones: int) -> Floats:
    row = np.zeros(n_phones + 1)
    row[list(following)] = list(following.values())
    return row


def _longest(phones: History, order: int, histories: dict[History, int]) -> int:
    """State of the longest known suffix of ``phones``."""
    for begin in range(max(0, len(phones) - order + 1), len(phones) + 1):
        if phones[begin:] in histories:
            return histories[phones[begin:]]
    raise AssertionError("the empty history is always known")


def apply_phone_ngram(phones: Fsa, model: PhoneNgram) -> Fsa:
    """Intersect an acceptor over phones (a transcript's pronunciations) with a phone n-gram model.

    Numerators made this way are part of the denominator ``ctc_graph(model.fsa)`` path by path, and
    alternative pronunciations compete with the model's weights.

    Returns:
        Acceptor over phones whose states are pairs of a state of ``phones`` and a history; if no path is
        left (unseen phones in a model that is not smooth), no state of it is final.
    """
    order = np.argsort(phones.src, kind="stable")
    begins = np.searchsorted(phones.src[order], np.arange(len(phones.final) + 1))
    first = (phones.start, model.start)
    states, queue = {first: 0}, [first]
    arcs: list[tuple[int, int, int, float]] = []
    final: dict[int, float] = {}
    for state, history in queue:  # grows while it is read
        here = states[state, history]
        ending = phones.final[state] + model.log_prob[history, _END]
        if ending > -np.inf:
            final[here] = float(ending)
        for arc in order[begins[state] : begins[state + 1]]:
            phone = int(phones.label[arc])
            weight = float(phones.weight[arc] + model.log_prob[history, phone])
            if weight == -np.inf:
                continue
            target = (int(phones.dst[arc]), int(model.next_history[history, phone]))
            if target not in states:
                states[target] = len(states)
                queue.append(target)
            arcs.append((here, states[target], phone, weight))
    return Fsa.from_arcs(arcs, final, len(states))
