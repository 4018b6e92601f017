"""Acoustic model files: the size and weights of a model and the phones it tells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mpq.am.tdnn import Tdnn, TdnnConfig
from mpq.io import BadInput, PathLike, hash_config
from mpq.quant import load_weights_into, read_model_file, save_model, uniform_plan

_ARCH = "tdnn"


def phones_hash(phones: Sequence[str]) -> str:
    """Identifies the units of a model: its outputs 1, 2, ... are `phones` in this order (0 is the blank)."""
    return hash_config(list(phones))


def save_am(path: PathLike, model: Tdnn, phones: Sequence[str], extra: Mapping[str, Any] | None = None) -> None:
    """Writes an acoustic model as a float `*.mpq` file.

    Args:
        path: the file.
        model: trained model.
        phones: symbols of outputs 1, 2, ...
        extra: figures of its training, for `mpq inspect`.

    Raises:
        BadInput: a weight is not a finite number.
    """
    config = {"model": asdict(model.config), "phones": list(phones)}
    save_model(path, model, _ARCH, config, uniform_plan(model, 32), phones_hash(phones), extra)


def load_am(path: PathLike, phones: Sequence[str] | None = None) -> Tdnn:
    """Reads an acoustic model, ready to serve.

    Args:
        path: a file written by `save_am`.
        phones: the phones that a decoding graph was made for, to be checked.

    Raises:
        BadInput: not an acoustic model, damaged, or trained for other phones.
    """
    stored = read_model_file(path)
    if stored.arch != _ARCH:
        raise BadInput(f"{path}: holds a {stored.arch} model, expected an acoustic model ({_ARCH}) from mpq train-am")
    if phones is not None and phones_hash(phones) != stored.vocab_hash:
        raise BadInput(
            f"{path}: trained for {len(stored.config['phones'])} phones that are not the {len(phones)} of the "
            "decoding graph; decode with the lang folder it was trained with, or train it again"
        )
    size = dict(stored.config["model"])
    size["channels"] = tuple(size["channels"])
    model = Tdnn(TdnnConfig(**size), len(stored.config["phones"]) + 1)
    load_weights_into(model, stored)
    return model
