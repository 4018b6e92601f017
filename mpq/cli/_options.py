"""Options as objects of dataclasses, and `{kind: NAME, option: value, ...}` by kind."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_type_hints

from jsonargparse import Namespace

from mpq.cli._parser import BadOption, Parser, did_you_mean
from mpq.io import BadInput, hash_config

if TYPE_CHECKING:
    from mpq.am import AcousticModel, ModelConfig
    from mpq.am.checkpoint import Checkpoint
    from mpq.train.quant_am import AmData

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


def make_config(kind: type[Config], args: Namespace, group: str = "", **given: Any) -> Config:
    """An object of a dataclass, dataclasses in it included, of the options that it was the source of.

    Args:
        kind: the dataclass.
        args: all options of the command; there may be others.
        group: where its options are, such as ``nas``; empty for those without a group.
        given: fields that have a value already.

    Raises:
        BadOption: what the dataclass refuses.
    """
    prefix, types = f"{group}." if group else "", get_type_hints(kind)
    values = dict(given)
    for name in (field.name for field in fields(kind) if field.name not in given):  # type: ignore[arg-type]
        nested = is_dataclass(types[name])
        values[name] = make_config(types[name], args, prefix + name) if nested else args[prefix + name]
    with naming(values, prefix):
        return kind(**values)


@contextmanager
def naming(keys: Collection[str], prefix: str = "") -> Iterator[None]:
    """Errors in here that begin with one of `keys` are told by the option, or the place in a file, that gave it.

    Args:
        keys: names of options in the parser, or of fields.
        prefix: of those names, such as ``nas.``.
    """
    try:
        yield
    except BadInput as problem:
        key, _, text = str(problem).partition(": ")
        if isinstance(problem, BadOption) or key.partition(".")[0] not in keys:
            raise
        raise BadOption(prefix + key, text) from None


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
    with naming(values, f"{name}."):
        return kinds[chosen](**values.as_dict())


def am_config(given: Mapping[str, Any], checkpoint: Checkpoint | None = None) -> ModelConfig:
    """Architecture and size of an acoustic model: those of a checkpoint, and what is given besides.

    Raises:
        BadInput: no such architecture or option, or another architecture than the checkpoint's.
    """
    from mpq.am import CONFIGS, PRESETS, expand_preset

    arch, known = str(given.get("arch", "")), [*CONFIGS, *PRESETS]
    if arch and arch not in known:
        raise BadInput(f"model: arch: '{arch}' is not one of {', '.join(known)}{did_you_mean(arch, known)}")
    given = expand_preset(given)
    if checkpoint is not None:
        found = checkpoint.options.get("arch", given.get("arch"))
        if found is None:
            raise BadInput(f"{checkpoint.path}: does not tell its size; give it, such as --model.arch wav2vec2-base")
        if given.setdefault("arch", found) != found:
            raise BadInput(f"{checkpoint.path}: a {found} model, but model: arch is {given['arch']}; leave arch out")
        given = {**checkpoint.options, **given}
    return make_options("model", given, CONFIGS, "arch")


def am_data(args: Namespace, model: AcousticModel, names: Sequence[str]) -> AmData:
    """What --features (--dev without), --dev and --lang name: what an acoustic model, --model, is trained on.

    Args:
        model: features are normalized as it wants them.
        names: of its units.

    Raises:
        BadInput: the units of --lang are others.
    """
    from pathlib import Path

    from mpq.data.batches import FeatureSet
    from mpq.fst.units import read_units
    from mpq.io import sha256_file
    from mpq.lang.lexicon import read_lexicon
    from mpq.train.quant_am import AmData

    lexicon, train = read_lexicon(Path(args.lang)), args.features or args.dev
    units = read_units(args.lang, lexicon.phones)
    if list(units.names) != list(names):
        raise BadInput(f"--lang {args.lang}: its {len(units)} units are not those that {args.model} was trained for")
    prons = {word: lexicon.pronunciations(word) for word in lexicon.words}
    key = {
        "manifests": [sha256_file(train), sha256_file(args.dev)],
        "units": units.names,
        "lexicon": hash_config(prons),
    }
    first, second = (FeatureSet(path, model.normalization) for path in (train, args.dev))
    return AmData(first, second, lexicon, units, key)
