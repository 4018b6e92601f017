"""What a search needs of a model and its data, for language models and acoustic models alike.

A *unit* is what a model predicts: a token of a text, or an output frame of an utterance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.am.base import AcousticModel, frame_mask
from mpq.am.model import check_features, run_batch
from mpq.data.batches import Batch, FeatureSet, batches
from mpq.data.lmtext import LmBatch, LmText
from mpq.fst.lfmmi import lfmmi_loss, total_score
from mpq.io import BadInput
from mpq.lm import LanguageModel, build_lm, max_tokens
from mpq.train.am import AmTask, run_key
from mpq.train.lm import LmTexts
from mpq.train.quant_am import without_dropout


class SearchData(Protocol):
    """A float model, held-out data, and for searches that train also training data.

    The same arguments give the same batches; memory is bounded by one of them.

    Attributes:
        model: float; it stays as it is.
    """

    model: nn.Module

    @property
    def key(self) -> Mapping[str, Any]:
        """What identifies the data of a search that trains."""

    def held_out(self, batch_units: int, seed: int, epoch: int = 0) -> Iterator[Any]:
        """Batches of the held-out data, of at most so many units each, in random order."""

    def training(self, batch_units: int, seed: int, epoch: int) -> Iterator[Any]:
        """The same of the training data."""

    def n_batches(self, batch_units: int) -> int:
        """Batches of a pass over the training data; where passes differ a little, of a typical one."""

    def n_units(self, batch: Any) -> int:
        """Units that are predicted in a batch."""

    def run(self, model: nn.Module, batch: Any) -> Any:
        """What `model`, or a module that takes its place, makes of a batch."""

    def scores(self, outputs: Any) -> Tensor:
        """Natural logarithms of the predictions, (units, classes), up to a constant for each unit."""

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """Mean loss of a unit, a scalar."""

    def trainee(self) -> nn.Module:
        """A copy of the model without dropout, to be trained with rounded weights, which regularizes enough.

        What the model's own training left alone takes no gradients: bits and scales of it are learned, no weights.
        """


class LmSearchData:
    """A language model and its texts; the loss is cross entropy.

    Args:
        model: float.
        dev: held out.
        train: for searches that train.
    """

    def __init__(self, model: LanguageModel, dev: LmText, train: LmText | None = None) -> None:
        self.model: nn.Module = model
        self._lm, self._dev, self._train = model, dev, train

    @property
    def key(self) -> Mapping[str, Any]:
        """What identifies the texts."""
        return LmTexts(self._text(), self._dev).key

    def _text(self) -> LmText:
        if self._train is None:
            raise BadInput("this search trains the model: it needs the training text (--text)")
        return self._train

    def held_out(self, batch_units: int, seed: int, epoch: int = 0) -> Iterator[LmBatch]:
        """Batches of sentences; no larger than the output layer's memory allows."""
        return self._dev.batches(min(batch_units, max_tokens(len(self._dev.tokenizer))), seed, epoch)

    def training(self, batch_units: int, seed: int, epoch: int) -> Iterator[LmBatch]:
        """Batches of sentences."""
        return self._text().batches(batch_units, seed, epoch)

    def n_batches(self, batch_units: int) -> int:
        """Batches of a pass over the training text."""
        return self._text().n_batches(batch_units)

    def n_units(self, batch: LmBatch) -> int:
        """Tokens to predict."""
        return int(batch.mask.sum())

    def run(self, model: nn.Module, batch: LmBatch) -> Tensor:
        """Logits (M, V)."""
        batch = batch.to(next(model.parameters()).device)
        logits: Tensor = model(batch.inputs, batch.mask)
        return logits

    def scores(self, outputs: Tensor) -> Tensor:
        """The logits."""
        return outputs

    def loss(self, outputs: Tensor, batch: LmBatch) -> Tensor:
        """Mean cross entropy of a token."""
        return F.cross_entropy(outputs, batch.targets[batch.mask].to(outputs.device))

    def trainee(self) -> LanguageModel:
        """A copy without dropout."""
        model = build_lm(replace(self._lm.config, dropout=0.0), self._lm.output.out_features)
        model.load_state_dict(self._lm.state_dict())
        return model


class AmSearchData:
    """An acoustic model and its features; the loss is that of LF-MMI, or of CTC alone.

    Held-out utterances that have no loss, for a word outside the lexicon or too few frames, are left out.

    Args:
        model: float.
        dev: held out.
        task: training features, transcripts as graphs, and the denominator, for searches that look at the loss.
        ctc: without the denominator.

    Raises:
        BadInput: features that are not those of the model.
    """

    def __init__(self, model: AcousticModel, dev: FeatureSet, task: AmTask | None = None, ctc: bool = False) -> None:
        check_features(model, dev)
        model.requires_grad_(True)  # what its own training left alone is quantized too, and measured
        self.model: nn.Module = model
        self._am, self._dev, self._given, self._ctc = model, dev, task, ctc
        self._dev_utts = set(dev.utts)

    @property
    def _task(self) -> AmTask:
        if self._given is None:
            raise BadInput("this search looks at the loss: it needs the training features (--features) and --lang")
        return self._given

    @property
    def key(self) -> Mapping[str, Any]:
        """What identifies features, lexicon and loss."""
        task = self._task
        manifests = [Path(task.train.path), Path(self._dev.path)]
        return {**run_key(task.config, manifests, task.lexicon, task.units), "ctc": self._ctc}

    def held_out(self, batch_units: int, seed: int, epoch: int = 0) -> Iterator[Batch]:
        """Batches of utterances of similar length."""
        for indexes in self._dev.plan(batch_units * self._am.subsampling, np.random.default_rng((seed, epoch))):
            usable = [index for index in indexes if self._given is None or self._has_loss(self._given, index)]
            if usable:
                yield self._dev.batch(usable)

    def _has_loss(self, task: AmTask, index: int) -> bool:
        return task.fits(self._dev.texts[index], int(self._am.out_lengths(torch.tensor(self._dev.lengths[index]))))

    def training(self, batch_units: int, seed: int, epoch: int) -> Iterator[Batch]:
        """Batches of one speed copy of each utterance, augmented as in the model's own training."""
        task, max_frames = self._task, batch_units * self._am.subsampling
        masks = task.config.augment and task.config.masks
        return batches(task.train, seed, epoch, max_frames=max_frames, augment=masks, shuffle=True, one_copy=True)

    def n_batches(self, batch_units: int) -> int:
        """Batches of a typical pass over the training features."""
        return len(self._task.train.plan(batch_units * self._am.subsampling, np.random.default_rng(0), one_copy=True))

    def n_units(self, batch: Batch) -> int:
        """Output frames."""
        return int(self._am.out_lengths(batch.lengths).sum())

    def run(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N, T, C) and lengths (N,)."""
        return run_batch(model, batch)

    def scores(self, outputs: tuple[Tensor, Tensor]) -> Tensor:
        """Log-probabilities of the frames that are no padding."""
        log_probs, lengths = outputs
        return log_probs[frame_mask(lengths, log_probs.shape[1]) > 0]

    def loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """Mean over the frames."""
        log_probs, lengths = outputs
        log_probs = log_probs.view_as(log_probs)  # the training loop forbids gradients of the model's own output
        # what is held out may have no path in the training transcripts' model
        graphs = self._task.held_out if self._dev_utts.issuperset(batch.utts) else self._task.graphs
        numerators = [graphs.numerator(text) for text in batch.texts]
        if self._ctc:
            losses = -total_score(log_probs, lengths, numerators)
        else:
            losses = lfmmi_loss(log_probs, lengths, numerators, graphs.denominator)
        mean: Tensor = losses.sum() / lengths.sum()
        return mean

    def trainee(self) -> AcousticModel:
        """A copy without dropout."""
        model = without_dropout(self._am)
        model.load_state_dict(self._am.state_dict())
        return model


def sample(data: SearchData, n_units: int, batch_units: int, seed: int = 0) -> Iterator[Any]:
    """Held-out batches of at most `batch_units` units until `n_units` units are predicted."""
    seen = 0
    for batch in data.held_out(batch_units, seed):
        if seen >= n_units:
            return
        seen += data.n_units(batch)
        yield batch


def mean_loss(data: SearchData, batch: Any) -> Tensor:
    """Loss of a unit of the batch, a scalar."""
    return data.loss(data.run(data.model, batch), batch)


def log_probs(data: SearchData, batch: Any) -> Tensor:
    """(units, classes) natural logarithms, float64: divergences at 8 bits are below float32's rounding."""
    return data.scores(data.run(data.model, batch)).double().log_softmax(-1)


def sampled_loss(data: SearchData, batch: Any, generator: torch.Generator) -> Tensor:
    """Summed cross entropy of classes drawn from the model's own predictions, a scalar."""
    scores = data.scores(data.run(data.model, batch))
    drawn = torch.multinomial(scores.detach().softmax(-1).cpu(), 1, generator=generator).squeeze(1)
    return F.cross_entropy(scores, drawn.to(scores.device), reduction="sum")
