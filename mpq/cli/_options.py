"""Options as objects of dataclasses: those of quantized training, and `{kind: NAME, option: value, ...}` by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from jsonargparse import Namespace

from mpq.cli._parser import Parser, did_you_mean
from mpq.io import BadInput

if TYPE_CHECKING:
    from mpq.train.lm import QuantTrainConfig

Config = TypeVar("Config")


class _Options(Parser):
    """A parser of mappings, whose errors are raised."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises BadInput."""
        del ex
        raise BadInput(f"{self.prog}: {self.explain(message)}")

    def place(self, key: str) -> str:
        """``KEY: ``."""
        return f"{key}: "


def make_options(name: str, given: Mapping[str, Any], kinds: Mapping[str, type[Config]], kind: str) -> Config:
    """An object of the dataclass that a mapping names, its values checked as those of the command line are.

    Args:
        name: what people call the mapping, for messages.
        given: fields of the dataclass, and under `kind` which of `kinds` it is (by default the first).
        kinds: dataclasses by name.
        kind: key of the name.

    Raises:
        BadInput: no such kind or field, or a value of another type.
    """
    chosen = str(given.get(kind, next(iter(kinds))))
    if chosen not in kinds:
        known = ", ".join(kinds)
        raise BadInput(f"{name}: {kind}: '{chosen}' is not one of {known}{did_you_mean(chosen, list(kinds))}")
    parser = _Options(prog=f"{name} ({chosen})")
    parser.add_class_arguments(kinds[chosen])
    values = parser.parse_object({key: value for key, value in given.items() if key != kind})
    return kinds[chosen](**values.as_dict())


def quant_train_config(args: Namespace) -> QuantTrainConfig:
    """The options of quantized training; `args` may hold others besides."""
    from mpq.train.admm import AdmmConfig
    from mpq.train.lm import QuantTrainConfig
    from mpq.train.loop import FitConfig

    options = {name: args[name] for name in QuantTrainConfig.__dataclass_fields__}
    parts = {"fit": FitConfig(**args.fit.as_dict()), "admm": AdmmConfig(**args.admm.as_dict())}
    return QuantTrainConfig(**{**options, **parts})
