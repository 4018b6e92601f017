"""Language-model files: a packed or float model, and its tokenizer beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpq.data.lmtext import Tokenizer, load_tokenizer
from mpq.io import BadInput, PathLike
from mpq.io.files import atomic_path
from mpq.lm.model import ARCHITECTURES, LanguageModel, LmConfig, build_lm
from mpq.quant import BitPlan, load_weights_into, model_path, read_model_file, save_model, uniform_plan, without_numbers
from mpq.quant.plan import FLOAT_BITS


@dataclass(frozen=True)
class LoadedLm:
    """A language model ready to serve, with its tokenizer.

    Attributes:
        plan: bits of its weights.
        extra: figures of its training.
        n_bytes: size of its file.
        n_parameters: weights and biases, however stored.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    plan: BitPlan
    extra: dict[str, Any]
    n_bytes: int
    n_parameters: int

    @property
    def ratio(self) -> float:
        """Size in float32 over the size of the file."""
        return 4 * self.n_parameters / self.n_bytes


def save_lm(
    path: PathLike,
    model: LanguageModel,
    tokenizer: Tokenizer,
    plan: BitPlan | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model and a copy of its tokenizer (`tokenizer.model` or `words.txt`) beside it.

    Args:
        path: the `*.mpq` file.
        model: float, or what `quantize_model(model, plan)` gave.
        tokenizer: its units.
        plan: the plan of a quantized model.
        extra: figures of its training, for `mpq inspect`.
    """
    copy_tokenizer(tokenizer, path)
    plan = plan or uniform_plan(model, 32)
    save_model(path, model, model.config.arch, asdict(model.config), plan, tokenizer.hash, extra)


def load_float_lm(path: PathLike, tokenizer: PathLike | None = None) -> LoadedLm:
    """`load_lm` of a model that is to be compressed.

    Raises:
        BadInput: it is quantized already, or as `load_lm`.
    """
    lm = load_lm(path, tokenizer)
    if set(lm.plan.bits.values()) != {FLOAT_BITS}:
        raise BadInput(f"{path}: is quantized already; give the float model that mpq train-lm wrote")
    return lm


def copy_tokenizer(tokenizer: Tokenizer, path: PathLike) -> None:
    """Copies a tokenizer to where `load_tokenizer` finds it: into the folder of the model `path`."""
    copy = Path(path).parent / ("tokenizer.model" if tokenizer.kind == "sentencepiece" else "words.txt")
    if copy.resolve() != tokenizer.path.resolve():
        with atomic_path(copy) as temporary:
            shutil.copyfile(tokenizer.path, temporary)


def load_lm(path: PathLike, tokenizer: PathLike | None = None, packed: bool = False) -> LoadedLm:
    """Reads a language model, ready to serve.

    Args:
        path: a file that `save_lm` wrote, or the folder that holds it as `model.mpq`.
        tokenizer: its unit file; by default the one beside the model.
        packed: keep quantized weights packed in memory, a byte or less each, and unpack them at each use.

    Raises:
        BadInput: not a language model, damaged, or trained with another tokenizer.
    """
    path = model_path(path)
    stored = read_model_file(path)
    if stored.arch not in ARCHITECTURES:
        raise BadInput(f"{path}: holds a {stored.arch} model; expected a language model from mpq train-lm")
    units = load_tokenizer(tokenizer or path.parent)
    if units.hash != stored.vocab_hash:
        raise BadInput(
            f"{units.path}: not the units that {path} was trained with (sha256 {units.hash[:12]}, expected "
            f"{stored.vocab_hash[:12]}); name the right file by --tokenizer"
        )
    with without_numbers():
        model = build_lm(LmConfig(**stored.config), len(units))
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    load_weights_into(model, stored, packed)
    return LoadedLm(model, units, stored.plan, stored.extra, stored.n_bytes, n_parameters)
