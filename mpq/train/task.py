"""What the training loop asks of what is trained, and what may change a training from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn


class Task(Protocol):
    """What is trained: a model, its data and its loss."""

    model: nn.Module
    name: str  # shown beside the progress bar

    def steps_per_epoch(self) -> float:
        """Batches of an epoch in each process (see `world`); where epochs differ a little, the mean."""

    def batches(self, epoch: int) -> Iterator[Any]:
        """This process's training batches of epoch `epoch` (from 0), in an order that depends on nothing but it.

        All processes must have the same number of them.
        """

    def loss(self, model: nn.Module, batch: Any, done: float) -> Tensor:
        """Mean loss (a scalar) of one batch.

        `model` is `self.model` as the loop runs it (wrapped for several processes): call it, not `self.model`.
        `done` is the part of the whole training that lies behind, 0 to 1.
        """

    def validate(self) -> dict[str, float]:
        """Held-out metrics; `loss` decides which epoch is kept; without it the last one is."""


class Plugin:
    """Changes training from outside the loop; every method is optional."""

    def before_step(self, model: nn.Module, again: Callable[[], None]) -> None:
        """After the backward pass and before clipping: may change the gradients.

        `again` replaces them by those of the same batch at the weights as they stand when it is called.
        """

    def after_step(self, model: nn.Module) -> None:
        """After the optimizer has changed the weights."""

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """After the last step of an epoch, before validation."""

    def evaluation(self, model: nn.Module) -> AbstractContextManager[None]:
        """Entered around validation and around keeping the best weights."""
        return nullcontext()

    def kept(self) -> None:
        """Within `evaluation`: the weights that were just validated are the best so far and have been kept."""

    def metrics(self) -> dict[str, float]:
        """What the epoch's line in `metrics.jsonl` shows besides the task's own metrics."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a kill."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
