"""Perplexity per word, so that models over different units compare."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mpq.data.lmtext import LmText
from mpq.lm.model import LanguageModel

LOGITS_AT_ONCE = 1 << 24  # floats: 64 MiB, and about three times that with what the softmax keeps


@dataclass(frozen=True, slots=True)
class Perplexity:
    """A text's probability as SRILM counts it: `</s>` is predicted, out-of-vocabulary words are left out.

    An unknown word has no probability of its own (`<unk>` stands for all of them), so it counts neither in
    `logprob` nor in the words; how many there were is `oov`.  Of a word with an unknown sentencepiece unit only
    that unit is left out of `logprob`.

    Attributes:
        logprob: natural logarithm.
        units: predicted units, `</s>` included.
    """

    logprob: float
    units: int
    words: int
    oov: int
    sentences: int

    @property
    def value(self) -> float:
        """Perplexity per word, `</s>` counted as one."""
        return math.exp(-self.logprob / (self.words - self.oov + self.sentences))

    def __str__(self) -> str:
        return f"perplexity {self.value:.2f} ({self.sentences} sentences, {self.words} words, {self.oov} OOV)"


def max_tokens(n_units: int) -> int:
    """Tokens to score at once with an output layer of `n_units`, so that memory stays bounded."""
    return max(64, LOGITS_AT_ONCE // n_units)


@torch.no_grad()
def perplexity(model: LanguageModel, text: LmText) -> Perplexity:
    """Perplexity of `model`, in the mode it is in, over `text`."""
    logprob, units = 0.0, 0
    for batch in text.batches(max_tokens(len(text.tokenizer)), seed=0, epoch=0):
        batch = batch.to(model.device)
        known = batch.targets[batch.mask] != text.tokenizer.unk
        logprob += model.log_probs(batch)[known].double().sum().item()
        units += int(known.sum())
    return Perplexity(logprob, units, text.n_words, text.n_oov, text.n_sentences)
