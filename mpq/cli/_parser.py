"""The parser of every subcommand: errors in options and configurations are one line that names the option."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from shutil import get_terminal_size
from typing import Any, NoReturn

import jsonargparse

from mpq.io.errors import BadInput

_WIDTH, _HELP_COLUMN = 120, 34
_METAVARS = {"int": "INT", "float": "FLOAT", "str": "TEXT"}
# What begins with a dash and is a number nevertheless; argparse takes -5e-1 and -inf for options.
_NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*(e[-+]?\d+)?|\.\d+(e[-+]?\d+)?|\.?inf|\.?nan)$", re.IGNORECASE)
_GROUP_FILE = "Path to a configuration file."  # what jsonargparse says of --fit CONFIG, which --config does as well


class BadOption(BadInput):
    """A wrong value of an option, or of a key of a configuration file.

    Attributes:
        key: the option's name in the parser, such as ``fit.lr``.
        text: its value and what was expected.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}")
        self.key, self.text = key, text


class Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that is short: types as names of values, defaults where there are any; the description's own line breaks.

    It is as wide as the terminal, or as our lines where there is none.
    """

    def __init__(self, prog: str) -> None:
        width = get_terminal_size((_WIDTH, 24)).columns
        super().__init__(prog, max_help_position=_HELP_COLUMN, width=width)  # type: ignore[no-untyped-call]

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        text = text if text.endswith("...") else text.removesuffix(".")
        if action.required and action.option_strings:
            return f"{text} (required)"
        nothing = any(action.default is value for value in (None, False, argparse.SUPPRESS)) or action.default in (
            [],
            "",
        )
        return text if nothing or "default" in text else f"{text} (default: %(default)s)"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _METAVARS.get(self._get_type_str(action) or "") or super()._get_default_metavar_for_optional(action)


class Parser(jsonargparse.ArgumentParser):
    """`jsonargparse.ArgumentParser` whose errors are one line on standard error, exit status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=Formatter, allow_abbrev=False, **options)
        self._negative_number_matcher = _NEGATIVE_NUMBER
        self.words: list[str] = []

    def use_dashes(self) -> None:
        """Options are shown with dashes and understood with dashes or underscores, those of classes too."""
        for action in self._actions:
            action.option_strings = [name.replace("_", "-") for name in action.option_strings]
            for name in action.option_strings:
                self._option_string_actions[name] = action
                self._option_string_actions[f"--{name.lstrip('-').replace('-', '_')}"] = action

    def shorten_help(self) -> None:
        """Leaves out of the help what says little, and of the usage what need not be given."""
        needed = []
        for action in self._actions:
            if action.help == _GROUP_FILE:
                action.help = argparse.SUPPRESS
            elif action.dest == "print_config":
                action.help = "print the configuration that the other options make, and exit"
            if action.required:
                needed.append(" ".join([*action.option_strings[:1], str(action.metavar or "TEXT")]))
        self.usage = " ".join([self.prog, *needed, "[options]"])
        self._fold_groups()

    def _fold_groups(self) -> None:
        """Shows a group of options that repeats another one under a new name as one line: what differs by default."""
        shown: list[dict[str, argparse.Action]] = []
        for group in self._action_groups:
            visible = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
            options = {action.dest.rpartition(".")[2]: action for action in visible if "." in action.dest}
            like = next((first for first in shown if _say_the_same(options, first)), None)
            if like is None:
                shown += [options] if options else []
                continue
            other = [
                f"{name} {action.default}" for name, action in options.items() if action.default != like[name].default
            ]
            names = [next(iter(of.values())).option_strings[0].rpartition(".")[0] for of in (options, like)]
            default = f", but by default {', '.join(other)}" if other else ""
            group.description = f"{names[0]}.*: as {names[1]}.*{default}"
            for action in visible:
                action.help = argparse.SUPPRESS

    def parse(self, words: Sequence[str]) -> jsonargparse.Namespace:
        """Parses the words of a command line; does not return where they are wrong."""
        groups = {action.dest.partition(".")[0] for action in self._actions if "." in action.dest}
        self.words = checked_configs(words, groups)
        return self.parse_args(self.words)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints ``PROG: error: MESSAGE`` and exits with status 2."""
        del ex
        print(f"{self.prog}: error: {self.explain(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def explain(self, message: str) -> str:
        """The parser's message on one line: where the option stands, what was expected, the nearest name."""
        text = " ".join(message.split())
        if unknown := re.match(r"unrecognized arguments?: (\S+)", text):
            name = unknown[1].partition("=")[0]
            if name.startswith("-"):
                return f"no option '{name}'{self.nearest(name)}"
            option = f"; did you mean '--{name}'?" if f"--{name}" in self._option_string_actions else ""
            return f"no argument '{name}'{option}"
        if unknown := re.match(r"Option '([^']+)' is not accepted", text):
            place = self.place(unknown[1]).removesuffix(f"{unknown[1]}: ")
            return f"{place}no key '{unknown[1]}'{self.nearest(unknown[1])}"
        if wrong := re.match(r'Parser key "([^"]+)": ?(.*)', text):
            return f"{self.place(wrong[1])}{plain_types(wrong[2])}"
        if missing := re.match(r"the following arguments are required: (.*)", text):
            return f"{', '.join(map(self.option, missing[1].split(', ')))} must be given"
        return text

    def option(self, key: str) -> str:
        """The option of a key as it is typed: ``--out-dir`` for ``out_dir``; an argument's name is its own."""
        found = next((action for action in self._actions if key in (action.dest, action.dest.replace("-", "_"))), None)
        return found.option_strings[0] if found and found.option_strings else key

    def place(self, key: str) -> str:
        """``FILE: KEY: `` where a key can only come from a configuration file, else ``--OPTION: ``."""
        option = self.option(key)
        names = {option, f"--{key.replace('_', '-')}"}  # of a group without options of its own, such as --model.dim
        typed = any(word.partition("=")[0].replace("_", "-") in names for word in self.words)
        if option == key and typed:
            option = f"--{key}"
        files = [
            word.partition("=")[2] or following
            for word, following in zip(self.words, [*self.words[1:], ""], strict=True)
            if word.partition("=")[0] == "--config"
        ]
        return f"{', '.join(files)}: {key}: " if files and not typed else f"{option}: "

    def nearest(self, name: str) -> str:
        """``; did you mean 'X'?`` for the option that was probably meant."""
        names = [option for action in self._actions for option in action.option_strings]
        if not name.startswith("-"):
            names = [option.lstrip("-").replace("-", "_") for option in names]
        return did_you_mean(name, names)


def _say_the_same(options: Mapping[str, argparse.Action], others: Mapping[str, argparse.Action]) -> bool:
    """Whether two groups have the same options, by name and help."""
    return bool(options) and {name: a.help for name, a in options.items()} == {n: a.help for n, a in others.items()}


def checked_configs(words: Sequence[str], groups: set[str]) -> list[str]:
    """The words of a command line without empty configuration files, which say nothing and which jsonargparse refuses.

    The files are read once before jsonargparse does: its errors name neither the file nor a repeated key, and it
    takes a list for a group of options.

    Raises:
        BadInput: not YAML, or one of ``groups`` is no mapping.
    """
    from mpq.io.files import read_yaml

    result, rest = [], iter(words)
    for word in rest:
        given = [word, *islice(rest, 1)] if word == "--config" else [word]
        file = given[-1].removeprefix("--config=")
        is_config = len(given) == 2 or file != word
        content = read_yaml(file) if is_config else {}
        for key in groups & content.keys():
            if not isinstance(content[key], dict):
                raise BadInput(f"{file}: {key} is {content[key]!r:.60}; expected indented 'key: value' lines under it")
        if content or not is_config:
            result += given
    return result


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``; did you mean 'X'?`` for the nearest known word, or nothing where none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def plain_types(text: str) -> str:
    """An error of the parser with types as people write them."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"\b(?:typing|collections\.abc)\.", "", text)
    text = re.sub(r"Expected an? Literal\[([^\]]*)\]", r"Expected one of \1", text)
    text = re.sub(r"Expected an? (?=int\b)", "Expected an ", text)
    return re.sub(r"\. Got value: (.*)$", r", got '\1'", text)
