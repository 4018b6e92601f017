"""Training of quantized models of every kind, by straight-through estimation or by ADMM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mpq.io import write_jsonl
from mpq.quant import BitPlan, freeze, quantize_model
from mpq.quant.layers import LEARNED
from mpq.train.admm import Admm, AdmmConfig
from mpq.train.loop import FitConfig, FitResult, Task, fit


def load_start(model: nn.Module, weights: Mapping[str, Tensor], scales: bool = False) -> None:
    """Loads the weights that training starts from into a float model; or, once it is quantized, the learned scales that
    a one-stage search has left beside them, if any: without them scales are fitted."""
    model.load_state_dict({n: w for n, w in weights.items() if n.endswith(LEARNED) is scales}, strict=not scales)


def quantize_start(model: nn.Module, plan: BitPlan, init: Mapping[str, Tensor] | None) -> nn.Module:
    """Quantizes a float model in place, with the scales learned for this plan that `init` has, or fitted ones."""
    quantized = quantize_model(model, plan)
    load_start(quantized, init or {}, scales=True)
    return quantized


def fit_quantized(
    model: nn.Module,
    task: Callable[[], Task],
    plan: BitPlan,
    method: str,
    config: FitConfig,
    admm_config: AdmmConfig,
    exp_dir: str | Path,
    key: Any,
    init: Mapping[str, Tensor] | None = None,
) -> FitResult:
    """Trains a model in place and leaves it quantized.

    Args:
        model: float, with the weights to start from.
        task: makes the task of the model, which for `ste` is quantized then.
        plan: bits of its weights.
        method: `ste` or `admm`; the record of ADMM's convergence goes to `admm.jsonl`.
        config: how to train.
        admm_config: how ADMM is run.
        exp_dir: takes checkpoints and logs; a killed run continues from there.
        key: everything that changes the numbers.
        init: learned scales that `ste` starts from, as `load_start` finds them.
    """
    if method != "admm":
        quantize_start(model, plan, init)
        return fit(task(), config, exp_dir, key=key)
    admm = Admm(plan, admm_config)
    result = fit(task(), config, exp_dir, [admm], key=key)
    write_jsonl(Path(exp_dir) / "admm.jsonl", admm.record)
    device = next(model.parameters()).device
    freeze(quantize_model(model, plan), admm.best).to(device)  # codes from a checkpoint are on the CPU
    return result
