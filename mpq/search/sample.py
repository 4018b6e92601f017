"""Held-out text for the searches: a fixed sample of it, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq.data.lmtext import LmBatch, LmText
from mpq.lm import LanguageModel, max_tokens


def sample(model: LanguageModel, text: LmText, n_tokens: int, batch_tokens: int, seed: int = 0) -> Iterator[LmBatch]:
    """Batches of whole sentences in random order, on the model's device, until `n_tokens` units are predicted.

    The same arguments give the same batches; memory is bounded by one batch. A batch has at most `batch_tokens`
    units, and no more than the output layer's memory allows.
    """
    size = min(batch_tokens, max_tokens(len(text.tokenizer)))
    seen = 0
    for batch in text.batches(size, seed, epoch=0):
        if seen >= n_tokens:
            return
        seen += int(batch.mask.sum())
        yield batch.to(model.device)


def mean_loss(model: LanguageModel, batch: LmBatch) -> Tensor:
    """Cross entropy of a unit of the batch, a scalar."""
    return F.cross_entropy(model(batch.inputs, batch.mask), batch.targets[batch.mask])


def sampled_loss(model: LanguageModel, batch: LmBatch, generator: torch.Generator) -> Tensor:
    """Summed cross entropy of units drawn from the model's own predictions, a scalar."""
    logits: Tensor = model(batch.inputs, batch.mask)
    drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).squeeze(1)
    return F.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
