"""Language-model files: a packed or float model, and its tokenizer beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpq.data.lmtext import Tokenizer, load_tokenizer
from mpq.io import BadInput, PathLike, sha256_file
from mpq.io.files import atomic_path
from mpq.lm.model import ARCHITECTURES, LanguageModel, LmConfig, build_lm
from mpq.quant import BitPlan, load_weights_into, model_path, read_model_file, save_model, uniform_plan, without_numbers
from mpq.quant.plan import FLOAT_BITS

UNIT_FILES = ("tokenizer.model", "words.txt")  # of sentencepiece and of words, in the order of `load_tokenizer`


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

    Raises:
        BadInput: as `check_units_copy`.
    """
    check_units_copy(tokenizer, path)
    plan = plan or uniform_plan(model, 32)
    # The model before its units: killed in between, the same command finds a model of its own there, and goes on.
    save_model(path, model, model.config.arch, asdict(model.config), plan, tokenizer.hash, extra)
    copy_tokenizer(tokenizer, path)


def load_float_lm(path: PathLike, tokenizer: PathLike | None = None) -> LoadedLm:
    """`load_lm` of a model that is to be compressed.

    Raises:
        BadInput: it is quantized already, or as `load_lm`.
    """
    lm = load_lm(path, tokenizer)
    if set(lm.plan.bits.values()) != {FLOAT_BITS}:
        raise BadInput(f"{path}: is quantized already; give the float model that mpq train-lm wrote")
    return lm


def check_units_copy(tokenizer: Tokenizer, path: PathLike) -> None:
    """Refuses a folder in which a copy of the units would harm; call it before long work.

    Other units may be there if the model `path`, which is to be written anew, is alone with them: a recipe makes its
    units and all models anew in the same folders. A word list without a model stays beside a `tokenizer.model`.

    Args:
        tokenizer: units of the model to write.
        path: the `*.mpq` or `*.onnx` file to write.

    Raises:
        BadInput: there are other units, which another model there or a folder of `mpq lang` needs.
    """
    found = _units_beside(path)
    if not found or sha256_file(found[0]) == tokenizer.hash:
        return
    path = Path(path)
    others = [file.name for file in path.parent.glob("[!.]*") if file.suffix in (".mpq", ".onnx") and file != path]
    added = _copy_path(tokenizer, path) not in found and tokenizer.kind == "sentencepiece"
    replaced = path.exists() and not (path.parent / "phones.txt").exists()
    if others or not (added or replaced):
        needed, way_out = (f", needed by {min(others)}", "") if others else ("", ", or remove it if nothing needs it")
        raise BadInput(
            f"{found[0]}: holds other units than {tokenizer.path}{needed}; give --out another folder{way_out}"
        )


def copy_tokenizer(tokenizer: Tokenizer, path: PathLike) -> None:
    """Copies a tokenizer to where `load_tokenizer` finds it: into the folder of the model `path`.

    What is there is replaced; see `check_units_copy`.
    """
    found, copy = _units_beside(path), _copy_path(tokenizer, path)
    if found and sha256_file(found[0]) == tokenizer.hash:
        return
    with atomic_path(copy) as temporary:
        shutil.copyfile(tokenizer.path, temporary)
    if found and tokenizer.kind == "words":  # a tokenizer.model would be taken for its units
        copy.with_name(UNIT_FILES[0]).unlink(missing_ok=True)


def _units_beside(path: PathLike) -> list[Path]:
    """Unit files in the folder of a model, first the one that `load_tokenizer` takes."""
    return [file for name in UNIT_FILES if (file := Path(path).parent / name).exists()]


def _copy_path(tokenizer: Tokenizer, path: PathLike) -> Path:
    return Path(path).parent / UNIT_FILES[0 if tokenizer.kind == "sentencepiece" else 1]


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
