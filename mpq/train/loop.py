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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpq.io import BadInput, atomic_write, hash_config, only_one, os_errors, progress, write_jsonl
from mpq.train.config import FitConfig as FitConfig
from mpq.train.task import Plugin as Plugin
from mpq.train.task import Task as Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric


_MOST_LEFT_OUT = 20  # batches in a row whose gradients are not finite numbers


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
            continued. Two trainings at once would write over each other's.
        plugins: changes to the training, called in this order.
        key: what else the run depends on (model size, data); a checkpoint of another key is not continued.

    Raises:
        BadInput: the loss, or the gradients of many batches in a row, are not finite numbers. (Batches whose gradients
            are not are left out and counted: a rounding of bfloat16 does not end days of training.) Or another process
            trains in `exp_dir`.
    """
    exp_dir = Path(exp_dir)
    exp_dir.mkdir(parents=True, exist_ok=True)
    # of several processes, which torchrun or lightning-fabric numbers, the first, before it starts or awaits the others
    is_first = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
    with only_one(exp_dir, "trains") if is_first else nullcontext():
        return _fit(task, config, exp_dir, plugins, key)


def _fit(task: Task, config: FitConfig, exp_dir: Path, plugins: Sequence[Plugin], key: Any) -> FitResult:
    fabric = _fabric(config)
    optimizer = torch.optim.AdamW(_groups(task.model, config), lr=config.lr, betas=(0.9, config.beta2))
    model, wrapped = fabric.setup(task.model, optimizer)
    run_key = hash_config({"config": asdict(config), "key": key})
    state = _resume(exp_dir / "checkpoint.pt", run_key, task, optimizer, plugins)
    writer = _writer(exp_dir, state.step, fabric)
    total, left = (round(n * task.steps_per_epoch()) for n in (config.epochs, config.epochs - state.epoch))
    steps = _steps(task, config, state)
    steps = progress(steps, total=left, what=task.name) if fabric.is_global_zero else steps
    losses: list[Tensor] = []
    taken: list[bool] = []
    for epoch, batch, last in steps:
        loss, finite = _step(task, fabric, model, wrapped, batch, state.step, total, config, plugins)
        losses.append(loss)
        taken.append(finite)
        state.step += 1
        if taken[-_MOST_LEFT_OUT:] == [False] * _MOST_LEFT_OUT:
            raise BadInput(
                f"{task.name}: the gradients of {_MOST_LEFT_OUT} batches in a row up to step {state.step} are not "
                f"finite numbers: lower lr (now {config.lr}), or give --fit.precision 32-true (now {config.precision})"
            )
        if not last:
            continue
        mean = torch.stack([*compress(losses, taken)] or losses).mean()
        train_loss = fabric.all_reduce(mean, reduce_op="mean")
        assert isinstance(train_loss, Tensor)
        _finish_epoch(task, config, state, epoch, train_loss.item(), plugins)
        _tell_left_out(task, state, taken, fabric)
        losses.clear()
        taken.clear()
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


def sum_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """Of all that train together, each of which must ask; `device` is where the model is."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.tolist()


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
) -> tuple[Tensor, bool]:
    """One optimizer step; returns the loss, detached, and whether the gradient was finite: else nothing was changed."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, total)

    def backward() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = task.loss(model, batch, step / total)
        fabric.backward(loss)
        return loss.detach()

    def again() -> None:
        backward()

    buffers = [(buffer, buffer.clone()) for buffer in task.model.buffers()]  # batch norms' statistics
    loss = backward()
    for plugin in plugins:
        plugin.before_step(task.model, again)
    norm = fabric.clip_gradients(model, optimizer, max_norm=config.grad_clip, error_if_nonfinite=False)
    assert norm is not None
    finite = bool(norm.isfinite())  # of all processes, whose gradients are the same by now
    if finite or config.precision == "16-mixed":  # whose scaler leaves it out by itself, and learns from it
        optimizer.step()
    if not finite:
        for buffer, before in buffers:
            buffer.copy_(before)
    for plugin in plugins:
        plugin.after_step(task.model)
    return loss, finite


def _tell_left_out(task: Task, state: _State, taken: Sequence[bool], fabric: Fabric) -> None:
    """Says how many batches of the epoch were left out, in its metrics too, if any was."""
    n_left_out = taken.count(False)
    if n_left_out:
        state.history[-1]["left_out"] = float(n_left_out)
        if fabric.is_global_zero:
            where = f"{task.name}: epoch {state.epoch}"
            print(f"{where}: {n_left_out} of {len(taken)} batches left out: gradients not finite", file=sys.stderr)


def _finish_epoch(
    task: Task, config: FitConfig, state: _State, epoch: int, train_loss: float, plugins: Sequence[Plugin]
) -> None:
    """Validates, and keeps the weights if they are the best so far."""
    if not math.isfinite(train_loss):
        raise BadInput(
            f"{task.name}: the training loss became {train_loss} in epoch {epoch + 1}; "
            f"expected a finite number: lower lr (now {config.lr})"
        )
    if world()[1] > 1:  # of batch norms, whose last batch was another one in each process
        for buffer in task.model.buffers():
            dist.broadcast(buffer, 0)
    for plugin in plugins:
        plugin.after_epoch(task.model, epoch)
    last = _average(task.model, config, state, epoch)
    task.model.eval()
    with torch.no_grad(), ExitStack() as stack:
        for plugin in plugins:
            stack.enter_context(plugin.evaluation(task.model))
        metrics = task.validate()
        loss = metrics.get("loss")
        if loss is not None and not math.isfinite(loss):  # before a checkpoint that nothing can go on from
            raise BadInput(
                f"{task.name}: the held-out loss became {loss} in epoch {epoch + 1}; "
                f"expected a finite number: lower lr (now {config.lr}), or look for odd held-out data"
            )
        state.epoch = epoch + 1
        for plugin in plugins:
            metrics.update(plugin.metrics())
        state.history.append(
            {"epoch": float(epoch + 1), "step": float(state.step), "train_loss": train_loss, **metrics}
        )
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
    path: Path, run_key: str, task: Task, optimizer: torch.optim.Optimizer, plugins: Sequence[Plugin]
) -> _State:
    """The state in the checkpoint at `path`, or a fresh one if there is none of this run.

    Steps of another number of processes, which took others a pass, are counted anew: schedules follow the epochs.
    """
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
    task.model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for plugin, plugin_state in zip(plugins, saved["plugins"], strict=True):
        plugin.load_state_dict(plugin_state)
    state, before, now = _State(**saved["state"]), saved.get("processes"), world()[1]
    if before not in (now, None):  # None: of an earlier version
        state.step = round(state.epoch * task.steps_per_epoch())
        print(f"{path}: written by {before} processes, continued by {now}: the batch is another one", file=sys.stderr)
    return state


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
                "processes": world()[1],
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
