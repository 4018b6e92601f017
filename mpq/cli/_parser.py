"""The parser of every subcommand: errors in options and configurations are one line that names the option."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jsonargparse


class Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with defaults, and with the description's own line breaks."""


class Parser(jsonargparse.ArgumentParser):
    """`jsonargparse.ArgumentParser` whose errors are one line on standard error, exit status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=Formatter, allow_abbrev=False, **options)
        self.words: Sequence[str] = ()

    def parse(self, words: Sequence[str]) -> jsonargparse.Namespace:
        """Parses the words of a command line; does not return where they are wrong."""
        self.words = words
        return self.parse_args(list(words))

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
            kind = "option" if name.startswith("-") else "argument"
            return f"no {kind} '{name}'{self.nearest(name)}"
        if unknown := re.match(r"Option '([^']+)' is not accepted", text):
            return f"{self.place(unknown[1])}no key '{unknown[1]}'{self.nearest(unknown[1])}"
        if wrong := re.match(r'Parser key "([^"]+)": ?(.*)', text):
            return f"{self.place(wrong[1])}{wrong[1]}: {plain_types(wrong[2])}"
        return text

    def place(self, key: str) -> str:
        """``FILE: `` where a key can only come from a configuration file."""
        option = f"--{key}"
        if any(word == option or word.startswith(f"{option}=") for word in self.words):
            return ""
        files = [
            word.partition("=")[2] if word.startswith("--config=") else following
            for word, following in zip(self.words, [*self.words[1:], ""], strict=True)
            if word == "--config" or word.startswith("--config=")
        ]
        return f"{', '.join(files)}: " if files else ""

    def nearest(self, name: str) -> str:
        """``; did you mean 'X'?`` for the option that was probably meant."""
        names = [option for action in self._actions for option in action.option_strings]
        if not name.startswith("-"):
            names = [option.lstrip("-") for option in names]
        return did_you_mean(name, names)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``; did you mean 'X'?`` for the nearest known word, or nothing where none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def plain_types(text: str) -> str:
    """An error of the parser with types as people write them."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"\b(?:typing|collections\.abc)\.", "", text)
    text = re.sub(r"Expected an? Literal\[([^\]]*)\]", r"Expected one of \1", text)
    return re.sub(r"\. Got value: (.*)$", r", got '\1'", text)
