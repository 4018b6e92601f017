"""The options of the training loop, apart from it: they are shown and checked where nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

from mpq.io import SEEDS, BadInput, check_ranges

SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true")


@dataclass
class FitConfig:
    """How to train.

    Attributes:
        epochs: passes over the training data, or over the parts of it that an `epoch_part` says; a killed run goes on
            after the last one that it finished.
        lr: peak learning rate of AdamW.
        warmup: part of all steps (0 to 1) in which the learning rate grows linearly from 0 to `lr`.
        schedule: what follows the warm-up: `linear` or `cosine` decay to 0, or `constant`.
        weight_decay: AdamW's decoupled weight decay; applied to matrices, not to vectors (biases, norms).
        beta2: AdamW's second-moment decay.
        grad_clip: largest global L2 norm of the gradient.
        patience: stop after this many epochs without a better validation loss; 0 never stops early.
        average: the result is the mean of the weights after each of the last so many epochs (statistics of batch norms
            included), instead of the best epoch's weights; 0: it is not. It counts epochs as `epochs` does: of quarters
            of a pass, 20 are the last five passes.
        seed: seeds dropout and data order.
        devices: processes (GPUs where there are any) on this machine; torchrun's numbers of processes and machines
            come first. Each process takes its share of the batches, and gradients are averaged over processes: n
            processes train as one does with n times the batch.
        precision: lightning-fabric's name of the number format, such as `32-true` or `bf16-mixed`; `auto` is
            `bf16-mixed` where the processor multiplies bfloat16 in hardware, else `32-true`.
    """

    epochs: int = 10
    lr: float = 1e-3
    warmup: float = 0.05
    schedule: str = "linear"
    weight_decay: float = 0.01
    beta2: float = 0.98
    grad_clip: float = 1.0
    patience: int = 0
    average: int = 0
    seed: int = 1
    devices: int = 1
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise BadInput(f"schedule: '{self.schedule}' is not one of {', '.join(SCHEDULES)}")
        check_ranges(self, epochs="[1, inf)", warmup="[0, 1)", lr="(0, inf)", grad_clip="(0, inf)", beta2="[0, 1)")
        check_ranges(self, weight_decay="[0, inf)", patience="[0, inf)", seed=SEEDS, devices="[1, inf)")
        check_ranges(self, average=f"[0, {self.epochs}]")
        if self.average and self.patience:
            raise BadInput(
                f"average: {self.average} with patience {self.patience}; the last epochs are those of a training that "
                "does not stop early: expected 0 for one of them"
            )
        if self.precision not in PRECISIONS:
            raise BadInput(f"precision: '{self.precision}' is not one of {', '.join(PRECISIONS)}")
