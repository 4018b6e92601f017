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

History = tuple[int, ...]
_BEGIN, _END = -1, 0  # the end of the sentence takes the place of the blank, which is no phone


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
    sentences: Iterable[Sequence[int]], n_phones: int, order: int = 2, min_count: int = 1, smooth: bool = True
) -> PhoneNgram:
    """Estimate a phone n-gram model from transcripts.

    Args:
        sentences: phone classes (1..n_phones) of each training utterance.
        n_phones: number of phones P.
        order: 1, 2, 3, ...; the acceptor has one state for each history of up to ``order - 1`` phones.
        min_count: a history of two or more phones seen less often is replaced by a shorter one.
        smooth: Witten and Bell's interpolation (Chen and Goodman 1998, section 2.6) down to the uniform
            distribution: every phone may follow every history. False: relative frequencies, only what was
            seen (as in Kaldi's chain models), for large orders, where arcs would be histories times phones.

    Raises:
        ValueError: order below 1, a phone out of range, or no sentences.
    """
    if order < 1:
        raise ValueError(f"order ({order}) must be at least 1")
    counts: dict[History, Counter[int]] = defaultdict(Counter)
    for sentence in sentences:
        if any(not 1 <= phone <= n_phones for phone in sentence):
            raise ValueError(f"phones must be 1 to {n_phones}: {list(sentence)}")
        padded = (_BEGIN, *sentence, _END)
        for i in range(1, len(padded)):
            for length in range(min(order - 1, i) + 1):
                counts[padded[i - length : i]][padded[i]] += 1
    if not counts:
        raise ValueError("no sentences to estimate a phone n-gram model from")
    kept = [h for h in counts if len(h) < 2 or counts[h].total() >= min_count]
    histories = {h: i for i, h in enumerate(sorted(kept, key=lambda h: (len(h), h)))}
    prob = np.zeros((len(histories), n_phones + 1))
    next_history = np.zeros(prob.shape, np.int64)
    for history, row in histories.items():
        seen = np.zeros(n_phones + 1)
        seen[list(counts[history])] = list(counts[history].values())
        kinds = np.count_nonzero(seen) if smooth else 0
        shorter = prob[histories[history[1:]]] if history else np.full(n_phones + 1, 1 / (n_phones + 1))
        prob[row] = (seen + kinds * shorter) / (seen.sum() + kinds)
        next_history[row] = [_longest((*history, phone), order, histories) for phone in range(n_phones + 1)]
    with np.errstate(divide="ignore"):
        return PhoneNgram(np.log(prob), next_history, histories[(_BEGIN,) if order > 1 else ()])


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
