"""Language-model scores of n-best lists: each history of an utterance is computed once.

Where torch has several threads, as many processes of one thread each share the lists: most operations are too small to
be shared by threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain
from typing import NamedTuple

import torch

from mpq.data.lmtext import Tokenizer, warn_misfit
from mpq.data.parallel import map_processes
from mpq.io import BadInput, NBest, progress, split_words
from mpq.lm import LanguageModel
from mpq.rescore.forest import prefix_forest
from mpq.rescore.history import merged_forest
from mpq.rescore.steps import LstmState
from mpq.rescore.tree import MB, Budget, score_edges

GROUP = 1 << 17  # words of the lists that share a forest
PROCESS_WORDS = 1 << 16  # that are worth a process: starting some takes 0.1 to 0.2 s
PROCESS_MB = 16  # memory that a process should have
_PORTIONS = 4  # of each process, so that all end at about the same time
_SAMPLE = 300  # utterances that tell whether the model was made for their words


@dataclass(frozen=True, slots=True)
class Scoring:
    """How to score.

    Attributes:
        budget: memory for the model's activations.
        merge_order: histories of an utterance whose last `merge_order` - 1 words are the same share one state, that
            of the best-ranked hypothesis; none: exact.
    """

    budget: Budget = field(default_factory=Budget)
    merge_order: int | None = None


def add_lm_scores(
    model: LanguageModel, tokenizer: Tokenizer, nbests: Sequence[NBest], scoring: Scoring | None = None
) -> Iterator[NBest]:
    """The lists with `nnlm` filled in: natural-log probability, `</s>` included; unknown words score as `<unk>`.

    Raises:
        BadInput: an empty list, most words of the lists are unknown to the model (it was made for other words), the
            memory is too little for the longest hypothesis, or the model gives NaN.
    """
    check_lists(nbests)
    check_vocabulary(tokenizer, {word for nbest in nbests for hyp in nbest.hyps for word in split_words(hyp.text)})
    scoring = scoring or Scoring()
    n_words = [sum(hyp.text.count(" ") + 1 for hyp in nbest.hyps) for nbest in nbests]
    shares = share_out(n_words, scoring.budget, model.device)
    score = partial(_scores, model, tokenizer, nbests, replace(scoring, budget=shares.budget))
    scores = map_processes(score, shares.spans, shares.budget.n_processes)
    for span, values in zip(shares.spans, progress(scores, len(shares.spans), "score"), strict=True):
        yield from _fill(nbests[span], values)


class Shares(NamedTuple):
    """Lists shared out among processes.

    Attributes:
        spans: lists that share a forest.
        budget: memory, and how many processes there are.
    """

    spans: list[slice]
    budget: Budget


def share_out(n_words: Sequence[int], budget: Budget, device: torch.device) -> Shares:
    """Cuts lists of `n_words` words each so that every forest stays small, however many lists there are."""
    most = min(budget.n_bytes // (PROCESS_MB * MB), sum(n_words) // PROCESS_WORDS, torch.get_num_threads())
    n_processes = max(1, most) if device.type == "cpu" else 1
    size = min(GROUP, sum(n_words) // (_PORTIONS * n_processes)) if n_processes > 1 else GROUP
    spans: list[slice] = []
    first, total = 0, 0
    for i, more in enumerate(n_words):
        total += more
        if total >= size or i + 1 == len(n_words):
            spans.append(slice(first, i + 1))
            first, total = i + 1, 0
    return Shares(spans, replace(budget, n_processes=n_processes))


def _scores(
    model: LanguageModel, tokenizer: Tokenizer, nbests: Sequence[NBest], scoring: Scoring, span: slice
) -> list[float]:
    """Scores of all hypotheses of some lists."""
    some = nbests[span]
    return _score(model, tokenizer, some, scoring, [[tokenizer.bos]] * len(some), None)


def score_lists(
    model: LanguageModel,
    tokenizer: Tokenizer,
    nbests: Sequence[NBest],
    scoring: Scoring,
    roots: Sequence[Sequence[int]],
    initial: LstmState | None = None,
) -> list[NBest]:
    """Scores lists after what each root says and, for an LSTM, from the state `initial` (layers, utterances, C)."""
    return _fill(nbests, _score(model, tokenizer, nbests, scoring, roots, initial))


def _score(
    model: LanguageModel,
    tokenizer: Tokenizer,
    nbests: Sequence[NBest],
    scoring: Scoring,
    roots: Sequence[Sequence[int]],
    initial: LstmState | None,
) -> list[float]:
    """Scores of all hypotheses, list after list."""
    if scoring.merge_order is None:
        encode = _encoder(tokenizer, nbests)
        lists = [[encode(hyp.text) for hyp in nbest.hyps] for nbest in nbests]
        forest, paths = prefix_forest(lists, tokenizer.eos, roots)
    else:
        words = [[split_words(hyp.text) for hyp in nbest.hyps] for nbest in nbests]
        forest, paths = merged_forest(words, cache(tokenizer.encode), tokenizer.eos, roots, scoring.merge_order)
    scores: list[float] = paths.total(score_edges(model, forest, scoring.budget, initial)).tolist()
    return scores


def _fill(nbests: Sequence[NBest], scores: Iterable[float]) -> list[NBest]:
    """The lists with these scores."""
    values = iter(scores)
    return [NBest(nbest.utt, [replace(hyp, nnlm=next(values)) for hyp in nbest.hyps]) for nbest in nbests]


def check_lists(nbests: Iterable[NBest]) -> None:
    """Refuses an utterance without hypotheses."""
    for nbest in nbests:
        if not nbest.hyps:
            raise BadInput(f"utterance '{nbest.utt}': the n-best list is empty; expected at least one hypothesis")


def check_vocabulary(tokenizer: Tokenizer, words: set[str], what: str = "n-best lists") -> None:
    """Refuses words of which most are unknown to the language model."""
    unknown = sorted(word for word in words if tokenizer.unk in tokenizer.encode(word))
    if len(unknown) > len(words) / 2:
        raise BadInput(
            f"{len(unknown)} of the {what}' {len(words)} words are unknown to {tokenizer.path}, e.g. "
            f"'{unknown[0]}'; expected the words that the language model was trained on (upper or lower case?)"
        )


def check_units(tokenizer: Tokenizer, nbests: Sequence[NBest]) -> None:
    """Refuses what `add_lm_scores` does, and warns on standard error where the units do not fit the lists' words."""
    check_lists(nbests)
    check_vocabulary(tokenizer, {word for nbest in nbests for hyp in nbest.hyps for word in split_words(hyp.text)})
    firsts = (split_words(nbest.hyps[0].text) for nbest in nbests[:_SAMPLE])
    warn_misfit(tokenizer, chain.from_iterable(firsts), "n-best lists")


def _encoder(tokenizer: Tokenizer, nbests: Sequence[NBest]) -> Callable[[str], list[int]]:
    """The units of a text: words one by one, each looked up once, which is many times faster.

    A sentencepiece model with pieces across words cannot be used this way; the first text of each list shows it.
    """
    encode_word = cache(tokenizer.encode)

    def by_words(text: str) -> list[int]:
        return [unit for word in split_words(text) for unit in encode_word(word)]

    firsts = [nbest.hyps[0].text for nbest in nbests]
    return by_words if all(by_words(text) == tokenizer.encode(text) for text in firsts) else tokenizer.encode
