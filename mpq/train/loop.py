"""The one training loop: language models, acoustic models and their quantized versions all go through `fit`.

A *task* owns the model and the data and says how a batch becomes a loss; a *plug-in* changes how it is
trained (quantization-aware training, ADMM).  The loop owns everything else: device and processes
(lightning-fabric), optimizer and learning-rate schedule, validation, early stopping, TensorBoard, progress
and checkpoints.

A run that is killed and started again continues at the last finished epoch and gives the same numbers as one
that was never killed: every epoch re-seeds torch from ``(seed, epoch)``, and tasks order their batches by
the epoch alone.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpq.io import BadInput, atomic_write, hash_config, os_errors, progress, write_jsonl
from mpq.train.config import FitConfig as FitConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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


@dataclass
class FitResult:
    """What `fit` did; the model holds the weights of `best_epoch`, or their mean up to it, when it returns."""

    best_epoch: int
    best: dict[str, float]
    history: list[dict[str, float]]


@dataclass
class _State:
    """Everything that a checkpoint holds besides the weights."""

    epoch: int  # epochs finished
    step: int  # optimizer steps taken in them
    best_epoch: int
    best_loss: float
    best_weights: dict[str, Tensor]
    mean: dict[str, Tensor]  # of the epochs that are averaged, as far as they have come
    history: list[dict[str, float]]


def learning_rate(config: FitConfig, step: int, total: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total`."""
    warmup = max(1, round(config.warmup * total))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    left = max(0, total - step) / max(1, total - warmup)  # 1 at the end of the warm-up, towards 0 at the last step
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1.0 - math.cos(math.pi * left))
    return config.lr * left


def fast_precision() -> str:
    """`bf16-mixed` where this machine's GPU or processor multiplies bfloat16 in hardware, else `32-true`."""
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        fast = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return "bf16-mixed" if fast else "32-true"


def fit(
    task: Task, config: FitConfig, exp_dir: str | Path, plugins: Sequence[Plugin] = (), key: Any = None
) -> FitResult:
    """Trains `task.model` in place and leaves the weights of the best epoch in it, or the mean of the last ones.

    Args:
        task: model, data and loss.
        config: how to train.
        exp_dir: where `checkpoint.pt`, `metrics.jsonl` and TensorBoard logs go; a checkpoint found there is
            continued.
        plugins: changes to the training, called in this order.
        key: what else the run depends on (model size, data); a checkpoint of another key is not continued.

    Raises:
        BadInput: if the loss is not a finite number.
    """
    exp_dir = Path(exp_dir)
    exp_dir.mkdir(parents=True, exist_ok=True)
    fabric = _fabric(config)
    optimizer = torch.optim.AdamW(_groups(task.model, config), lr=config.lr, betas=(0.9, config.beta2))
    model, wrapped = fabric.setup(task.model, optimizer)
    run_key = hash_config({"config": asdict(config), "key": key})
    state = _resume(exp_dir / "checkpoint.pt", run_key, task.model, optimizer, plugins)
    writer = _writer(exp_dir, state.step, fabric)
    total, left = (round(n * task.steps_per_epoch()) for n in (config.epochs, config.epochs - state.epoch))
    steps = _steps(task, config, state)
    steps = progress(steps, total=left, what=task.name) if fabric.is_global_zero else steps
    losses: list[Tensor] = []
    for epoch, batch, last in steps:
        losses.append(_step(task, fabric, model, wrapped, batch, state.step, total, config, plugins))
        state.step += 1
        if not last:
            continue
        train_loss = fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean")
        assert isinstance(train_loss, Tensor)
        _finish_epoch(task, config, state, epoch, train_loss.item(), plugins)
        losses.clear()
        if fabric.is_global_zero:
            _log(writer, state.history[-1], state.step)
            _save(exp_dir, run_key, state, task.model, optimizer, plugins)
        fabric.barrier()
    if writer is not None:
        writer.close()
    task.model.load_state_dict(state.best_weights)
    task.model.eval()
    return FitResult(state.best_epoch, state.history[state.best_epoch - 1], state.history)


def _fabric(config: FitConfig) -> Fabric:
    # takes as long as torch: only when training
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    precision = fast_precision() if config.precision == "auto" else config.precision
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))  # as torchrun tells its processes
    nodes = int(os.environ.get("WORLD_SIZE", devices)) // devices
    # a batch may leave parameters out, such as those of speakers that are not in it
    strategy = DDPStrategy(find_unused_parameters=True) if devices * nodes > 1 else "auto"
    # not what Fabric makes of SLURM's variables: a job of one task trains as it does anywhere else
    environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
    options: dict[str, Any] = {"strategy": strategy, "precision": precision, "plugins": [environment]}
    fabric = Fabric(devices=devices, num_nodes=nodes, **options)
    fabric.launch()
    return fabric


def world() -> tuple[int, int]:
    """Rank of this process, and the number of processes that train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _groups(model: nn.Module, config: FitConfig) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _steps(task: Task, config: FitConfig, state: _State) -> Iterator[tuple[int, Any, bool]]:
    """Yields (epoch, batch, whether it is the last one of the epoch) for all that is left to do."""
    for epoch in range(state.epoch, config.epochs):
        if config.patience and state.epoch - state.best_epoch >= config.patience:
            print(f"{task.name}: no better epoch in {config.patience}, stopped after {state.epoch}", file=sys.stderr)
            return
        torch.manual_seed(config.seed * 1_000_003 + epoch + (world()[0] << 32))  # processes drop other units out
        task.model.train()
        batches = iter(task.batches(epoch))
        batch = next(batches)
        for following in batches:
            yield epoch, batch, False
            batch = following
        yield epoch, batch, True


def _step(
    task: Task,
    fabric: Fabric,
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: int,
    total: int,
    config: FitConfig,
    plugins: Sequence[Plugin],
) -> Tensor:
    """One optimizer step; returns the loss, detached."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, total)

    def backward() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = task.loss(model, batch, step / total)
        fabric.backward(loss)
        return loss.detach()

    def again() -> None:
        backward()

    loss = backward()
    for plugin in plugins:
        plugin.before_step(task.model, again)
    fabric.clip_gradients(model, optimizer, max_norm=config.grad_clip, error_if_nonfinite=False)
    optimizer.step()
    for plugin in plugins:
        plugin.after_step(task.model)
    return loss


def _finish_epoch(
    task: Task, config: FitConfig, state: _State, epoch: int, train_loss: float, plugins: Sequence[Plugin]
) -> None:
    """Validates, and keeps the weights if they are the best so far."""
    if not math.isfinite(train_loss):
        raise BadInput(
            f"{task.name}: the training loss became {train_loss} in epoch {epoch + 1}; "
            f"expected a finite number: lower lr (now {config.lr})"
        )
    for plugin in plugins:
        plugin.after_epoch(task.model, epoch)
    last = _average(task.model, config, state, epoch)
    task.model.eval()
    with torch.no_grad(), ExitStack() as stack:
        for plugin in plugins:
            stack.enter_context(plugin.evaluation(task.model))
        metrics = task.validate()
        state.epoch = epoch + 1
        for plugin in plugins:
            metrics.update(plugin.metrics())
        state.history.append(
            {"epoch": float(epoch + 1), "step": float(state.step), "train_loss": train_loss, **metrics}
        )
        loss = metrics.get("loss")
        if loss is None or last or loss < state.best_loss or not state.best_weights:
            state.best_loss, state.best_epoch = math.inf if loss is None else loss, epoch + 1
            state.best_weights = {k: v.detach().cpu().clone() for k, v in task.model.state_dict().items()}
            for plugin in plugins:
                plugin.kept()


def _average(model: nn.Module, config: FitConfig, state: _State, epoch: int) -> bool:
    """Adds the weights of one of the last epochs to the mean; after the last one the model takes it over: True then."""
    if epoch < config.epochs - config.average:
        return False
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            part = value.detach().cpu() / config.average
            state.mean[name] = state.mean[name] + part if name in state.mean else part
    if epoch < config.epochs - 1:
        return False
    model.load_state_dict(state.mean, strict=False)  # counters are no means
    return True


def _resume(
    path: Path, run_key: str, model: nn.Module, optimizer: torch.optim.Optimizer, plugins: Sequence[Plugin]
) -> _State:
    """The state in the checkpoint at `path`, or a fresh one if there is none of this run."""
    fresh = _State(0, 0, 0, math.inf, {}, {}, [])
    if not path.exists():
        return fresh
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a checkpoint is written whole or not at all: this one was damaged later
        print(f"{path}: cannot be read ({type(error).__name__}); training starts anew", file=sys.stderr)
        return fresh
    if saved.get("run_key") != run_key:
        print(f"{path}: made with other options or data; training starts anew", file=sys.stderr)
        return fresh
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for plugin, plugin_state in zip(plugins, saved["plugins"], strict=True):
        plugin.load_state_dict(plugin_state)
    return _State(**saved["state"])


def _save(
    exp_dir: Path,
    run_key: str,
    state: _State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plugins: Sequence[Plugin],
) -> None:
    with atomic_write(exp_dir / "checkpoint.pt", "wb") as file, os_errors():
        torch.save(
            {
                "run_key": run_key,
                "state": vars(state),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "plugins": [plugin.state_dict() for plugin in plugins],
            },
            file,
        )
    write_jsonl(exp_dir / "metrics.jsonl", state.history)


def _writer(exp_dir: Path, step: int, fabric: Fabric) -> Any:
    if not fabric.is_global_zero:
        return None
    from torch.utils.tensorboard import SummaryWriter  # half a second: only when training

    return SummaryWriter(str(exp_dir / "tensorboard"), purge_step=step)


def _log(writer: Any, metrics: dict[str, float], step: int) -> None:
    for name, value in metrics.items():
        if name not in ("epoch", "step"):
            writer.add_scalar(name, value, step)
    writer.flush()
