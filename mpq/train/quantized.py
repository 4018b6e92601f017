"""Training of quantized models of every kind, by straight-through estimation or by ADMM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from mpq.io import write_jsonl
from mpq.quant import BitPlan, freeze, quantize_model
from mpq.train.admm import Admm, AdmmConfig
from mpq.train.loop import FitConfig, FitResult, Task, fit


def fit_quantized(
    model: nn.Module,
    task: Callable[[], Task],
    plan: BitPlan,
    method: str,
    config: FitConfig,
    admm_config: AdmmConfig,
    exp_dir: str | Path,
    key: Any,
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
    """
    if method != "admm":
        quantize_model(model, plan)
        return fit(task(), config, exp_dir, key=key)
    admm = Admm(plan, admm_config)
    result = fit(task(), config, exp_dir, [admm], key=key)
    write_jsonl(Path(exp_dir) / "admm.jsonl", admm.record)
    freeze(quantize_model(model, plan), admm.best)
    return result
