"""Language-model scores of hypotheses: each distinct text once, in batches of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from mpq.data.lmtext import Tokenizer, cut_by_tokens, pad_sentences
from mpq.io import BadInput, NBest, progress, split_words
from mpq.lm import LanguageModel, max_tokens


@torch.no_grad()
def score_texts(model: LanguageModel, tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, float]:
    """Natural-log probability of each distinct text, `</s>` included; unknown words score as `<unk>`.

    Texts of similar length are scored together, as many as keep the logits within a fixed size, so memory
    depends neither on the number of texts nor on their lengths.

    Raises:
        BadInput: if the model gives something that is not a finite number.
    """
    model.eval()
    distinct = list(dict.fromkeys(texts))
    encoded = [tokenizer.encode(text) for text in distinct]
    lengths = np.array([len(ids) + 1 for ids in encoded])
    order = np.argsort(-lengths, kind="stable")
    scores: dict[str, float] = {}
    for first, last in progress(cut_by_tokens(lengths[order], max_tokens(len(tokenizer))), what="score"):
        rows = order[first:last]
        batch = pad_sentences([encoded[i] for i in rows], tokenizer.bos, tokenizer.eos).to(model.device)
        for i, score in zip(rows, model.score(batch).tolist(), strict=True):
            if not math.isfinite(score):
                raise BadInput(f"the language model scores '{distinct[i]:.60}' as {score}; is its file damaged?")
            scores[distinct[i]] = score
    return scores


def add_lm_scores(model: LanguageModel, tokenizer: Tokenizer, nbests: Sequence[NBest]) -> Iterator[NBest]:
    """The lists with `nnlm` filled in.

    Raises:
        BadInput: if most words of the lists are unknown to the model: it was made for other words.
    """
    texts = dict.fromkeys(hyp.text for nbest in nbests for hyp in nbest.hyps)
    _check_vocabulary(tokenizer, texts)
    scores = score_texts(model, tokenizer, texts)
    for nbest in nbests:
        yield NBest(nbest.utt, [replace(hyp, nnlm=scores[hyp.text]) for hyp in nbest.hyps])


def _check_vocabulary(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    words = {word for text in texts for word in split_words(text)}
    unknown = sorted(word for word in words if tokenizer.unk in tokenizer.encode(word))
    if len(unknown) > len(words) / 2:
        raise BadInput(
            f"{len(unknown)} of the n-best lists' {len(words)} words are unknown to {tokenizer.path}, e.g. "
            f"'{unknown[0]}'; expected the words that the language model was trained on (upper or lower case?)"
        )
