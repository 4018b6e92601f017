"""Options of one of several kinds: `{kind: NAME, option: value, ...}` as an object of that kind's dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from mpq.cli._parser import Parser, did_you_mean
from mpq.io import BadInput

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
