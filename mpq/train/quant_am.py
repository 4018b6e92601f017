"""Training of quantized acoustic models: the model's own loss, and the predictions of the float model.

The forward pass is the integer arithmetic of serving ("native" quantization-aware training, arXiv 2203.15952);
gradients pass the rounding unchanged and move latent float weights and the scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.am.base import AcousticModel, frame_mask
from mpq.am.model import make_am, run_batch
from mpq.data.batches import Batch, FeatureSet
from mpq.fst.backend import Backend
from mpq.fst.phone_lm import PhoneLmConfig
from mpq.fst.units import Units
from mpq.io import BadInput, check_ranges
from mpq.lang.lexicon import Lexicon
from mpq.quant import BitPlan, quantizable
from mpq.train.admm import AdmmConfig
from mpq.train.am import AmConfig, AmTask
from mpq.train.cotrain import CoTrained, cotraining_loss
from mpq.train.loop import FitConfig, FitResult, Plugin
from mpq.train.quantized import fit_quantized, load_start


@dataclass
class QuantAmConfig(PhoneLmConfig):
    """How to train a quantized acoustic model.

    Attributes:
        fit: epochs, learning rate, seed and so on.
        distill: weight (0 to 1) of the divergence from the float model's predictions; its own loss has the rest.
        scratch: start from random weights instead of the float model's.
        admm: how ADMM is run, where it is what trains.
        ctc_part: part of the training (0 to 1) by CTC alone before LF-MMI begins.
        den_scale: weight of the denominator in LF-MMI.
        max_frames: frames (10 ms) of a batch, padding included.
        epoch_part: part (above 0, up to 1) of the training utterances that an epoch takes, each the next part of them.
        augment: SpecAugment.
        norms_part: part of the training (0 to 1) after which the statistics of batch normalization stand, so that the
            rest sees exactly what will be served.
        cotrain_bits: bits of a second, higher precision of the same weights that is trained along; 0: none.
        fst: what computes LF-MMI: native or k2.
    """

    fit: FitConfig = field(default_factory=FitConfig)
    distill: float = 0.5
    scratch: bool = False
    admm: AdmmConfig = field(default_factory=AdmmConfig)
    ctc_part: float = 0.0
    den_scale: float = 1.0
    max_frames: int = 10000
    epoch_part: float = 1.0
    augment: bool = True
    norms_part: float = 0.5
    cotrain_bits: int = 0
    fst: Backend = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, distill="[0, 1]", norms_part="[0, 1]", cotrain_bits="[0, 8]", ctc_part="[0, 1]")
        check_ranges(self, max_frames="[1, inf)", epoch_part="(0, 1]", den_scale="[0, inf)")

    def am_config(self, acoustic: AcousticModel) -> AmConfig:
        """The same for the task of a float model."""
        names = {f.name for f in fields(AmConfig)} & {f.name for f in fields(self)}
        return AmConfig(model=acoustic.config, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class AmData:
    """What an acoustic model is trained on.

    Attributes:
        train: training features.
        dev: held-out features.
        lexicon: pronunciations.
        units: what the model tells apart.
        key: identifies all of it.
    """

    train: FeatureSet
    dev: FeatureSet
    lexicon: Lexicon
    units: Units
    key: Any = None


class QuantAmTask(AmTask):
    """The task of a quantized model, with its float model as the teacher.

    Args:
        config: how to train.
        data: what to train on.
        acoustic: the model; quantized, or float where ADMM quantizes it.
        teacher: a float model; it is not trained.
    """

    def __init__(
        self, config: QuantAmConfig, data: AmData, acoustic: AcousticModel, teacher: AcousticModel | None = None
    ) -> None:
        super().__init__(config.am_config(acoustic), data.train, data.dev, data.lexicon, data.units, acoustic)
        self.name = "train quantized acoustic model"
        self.model = CoTrained(acoustic, config.cotrain_bits) if config.cotrain_bits else acoustic
        self.teacher = teacher.eval() if teacher is not None and config.distill else None
        self._distill, self._norms_part = config.distill, config.norms_part

    @property
    def plugins(self) -> list[Plugin]:
        """None: rounded weights cannot be kept semi-orthogonal."""
        return []

    def loss(self, model: nn.Module, batch: Batch, done: float) -> Tensor:
        """Loss per output frame."""
        if done >= self._norms_part:
            for module in self.acoustic.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        log_probs, lengths = run_batch(model, batch)
        log_probs = log_probs.view_as(log_probs)  # the loop forbids gradients of the model's own output
        target = None
        if self.teacher is not None:
            with torch.no_grad():
                target = run_batch(self.teacher.to(log_probs.device), batch)[0]

        def total(found: Tensor) -> Tensor:
            loss = self.criterion(found, lengths, batch.texts, done)
            if target is None:
                return loss
            return (1.0 - self._distill) * loss + self._distill * divergence(found, target, lengths)

        if log_probs.dim() == 3:
            return total(log_probs)
        return cotraining_loss(log_probs, total, lambda found, high: divergence(found, high, lengths))


def dev_loss(model: AcousticModel, config: QuantAmConfig, data: AmData) -> float:
    """Loss per frame of a model, float or quantized, on the held-out features, as of `AmTask.validate`."""
    task = QuantAmTask(replace(config, cotrain_bits=0), data, model.eval())
    with torch.no_grad():
        return task.validate()["loss"]


def divergence(log_probs: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """Kullback-Leibler divergence of log-probabilities `(N, T', C)` from target ones, mean over real frames."""
    by_frame = F.kl_div(log_probs, target, reduction="none", log_target=True).sum(-1)
    mean: Tensor = (by_frame * frame_mask(lengths, by_frame.shape[1])).sum() / lengths.sum()
    return mean


def train_quantized_am(
    teacher: AcousticModel,
    plan: BitPlan,
    config: QuantAmConfig,
    data: AmData,
    exp_dir: str | Path,
    key: Any,
    method: str = "ste",
    init: Mapping[str, Tensor] | None = None,
) -> tuple[AcousticModel, FitResult]:
    """Trains a quantized acoustic model, by straight-through estimation (`ste`) or by ADMM (`admm`).

    As `mpq.train.lm.train_quantized_lm`, and without dropout as there.

    Args:
        teacher: the float model; it is left as it is.
        plan: bits of its weights.
        config: how to train.
        data: what to train on.
        exp_dir: takes checkpoints and logs; a killed run continues from there.
        key: identifies the float model, and `init`.
        method: `ste` or `admm`.
        init: weights to start from, by name, instead of the float model's, and perhaps learned scales.

    Raises:
        BadInput: the plan is of another model, or ADMM is to train two precisions.
    """
    plan.check(quantizable(teacher))
    if method == "admm" and config.cotrain_bits:
        raise BadInput("cotrain_bits: two precisions are trained by --train ste, not by admm")
    torch.manual_seed(config.fit.seed)
    model = without_dropout(teacher)
    if not config.scratch:
        load_start(model, init or teacher.state_dict())
    run_key = {"config": asdict(config), "plan": plan.to_dict(), "data": data.key, "float": key, "method": method}

    def task() -> QuantAmTask:
        return QuantAmTask(config, data, model, teacher)

    return model, fit_quantized(model, task, plan, method, config.fit, config.admm, exp_dir, run_key, init)


def without_dropout(model: AcousticModel) -> AcousticModel:
    """A freshly initialized model of the same size, with every kind of dropout off: rounding regularizes enough."""
    off = {f.name: 0.0 for f in fields(model.config) if "dropout" in f.name}
    fresh = make_am(replace(model.config, **off), model.n_outputs)
    fresh.normalization, fresh.sampling_rate = model.normalization, model.sampling_rate
    return fresh
