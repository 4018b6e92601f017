"""GLM files: NIST's global mapping rules, by which spellings that count as the same become the same before scoring.

A rule is ``[TEXT] => [OTHER TEXT] / [left] __ [right]``: TEXT, between the left and the right context, becomes OTHER
TEXT; brackets hold blanks together, contexts may be left out.  Rules are applied as NIST's ``rfilter1`` and
``csrfilt.sh -dh`` of sctk 2.4 do it, to the text in upper case and between blanks: once from left to right, at each
place the first rule that fits, contexts being those of the text before any rule.  Then hyphens within words become
blanks, and ``(A B)`` becomes ``(A) (B)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mpq.io import BadInput, PathLike, atomic_write, read_lines, split_words

Kind = Literal["stm", "ctm"]
_PURPOSE: dict[Kind, str] = {"stm": "ref", "ctm": "hyp"}

_REGION = re.compile(r';;\s+INPUT_DEPENDENT_APPLICATION\s*=\s*"([^"]*)"')
_QUOTED = re.compile(r"[\"']([^\"']*)[\"']")
_MOST_RULES = 400  # unless the file says another number: * MAX_NRULES = "2500"
_HYPHEN = re.compile(r"([^( ])-(?=[^) ])")
_TWO_IN_PARENTHESES = re.compile(r"(\(\s+[^()\s]+\s+)([^()\s]+)")
_UPPER = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes what, where.

    Attributes:
        text: what is replaced; never empty.
        becomes: what it is replaced by.
        left: what must stand before it.
        right: what must stand after it.
    """

    text: str
    becomes: str
    left: str = ""
    right: str = ""


@dataclass
class Glm:
    """The rules for one kind of file, in their order.

    Attributes:
        rules: the rules.
        case_sensitive: whether upper and lower case differ where a rule is looked for.
    """

    rules: Sequence[Rule] = ()
    case_sensitive: bool = True
    _by_letter: dict[str, list[Rule]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._by_letter = {}
        for rule in self.rules:
            self._by_letter.setdefault(self._fold(rule.text[0]), []).append(rule)

    def _fold(self, text: str) -> str:
        return text if self.case_sensitive else text.translate(_UPPER)

    def apply(self, text: str) -> str:
        """The words of one segment, or one recognized word, as sclite gets them.

        Raises:
            BadInput: parentheses that do not come in pairs around words.
        """
        spaced = "  " + text.translate(_UPPER).replace("(", "( ").replace(")", " )") + "  "
        if re.search(r"[()]", re.sub(r"\s\([^()]+\)", "", spaced.replace("(", "  ("))):
            raise BadInput(f"{text[:60]!r}: parentheses without a partner, or one within another; expected (WORD)")
        changed = _HYPHEN.sub(r"\1 ", self._replace(spaced))
        while (split := _TWO_IN_PARENTHESES.sub(r"\1) ( \2", changed, count=1)) != changed:
            changed = split
        return " ".join(split_words(re.sub(r"\s+\)", ")", re.sub(r"\(\s+", "(", changed))))

    def _replace(self, text: str) -> str:
        source, done, at = self._fold(text), [], 0
        while at < len(text):
            for rule in self._by_letter.get(source[at], ()):
                end = at + len(rule.text)
                if (
                    source.startswith(self._fold(rule.text), at)
                    and source.endswith(self._fold(rule.left), 0, at)
                    and source.startswith(self._fold(rule.right), end)
                ):
                    done.append(rule.becomes)
                    at = end
                    break
            else:
                done.append(text[at])
                at += 1
        return "".join(done)


def read_glm(path: PathLike, kind: Kind) -> Glm:
    """Read the rules that a GLM file has for references (``stm``) or recognized words (``ctm``).

    Raises:
        BadInput: an empty file, a line without ``=>``, a rule for nothing, one with alternatives but without contexts,
            or more rules than the file's own MAX_NRULES.
    """
    rules: list[Rule] = []
    case_sensitive, most, comment = True, _MOST_RULES, None
    for number, line in _applicable(path, kind):
        if comment is None:  # the first word of the first line is what comments begin with
            comment = line.split(maxsplit=1)[0] if line[:1].strip() else ""
            continue
        line = line.rstrip()
        if not line or (comment and line.startswith(comment)):
            continue
        if line.startswith("*"):
            value = _QUOTED.search(line)
            if value is None:
                raise BadInput(f"{path}:{number}: no value in quotes in {line!r:.60}; expected * NAME = 'value'")
            if "MAX_NRULES" in line.upper():
                most = int(value[1]) if value[1].strip().isdigit() else 0
            elif "CASE_SENSITIVE" in line.upper():
                case_sensitive = value[1].upper() in ("T", "TRUE", "YES")
            continue
        rules.append(_parse_rule(line.partition(comment)[0] if comment else line, f"{path}:{number}"))
        if len(rules) > most:
            raise BadInput(f"{path}:{number}: rule {len(rules)}, but MAX_NRULES is {most}; raise it in the file")
    if comment is None:
        raise BadInput(f"{path}: is empty; expected rules '[TEXT] => [OTHER TEXT] / [left] __ [right]'")
    return Glm(rules, case_sensitive)


def _applicable(path: PathLike, kind: Kind) -> Iterable[tuple[int, str]]:
    """The lines of regions that apply to this kind of file."""
    applies = True
    for number, line in read_lines(path):
        if region := _REGION.match(line):
            try:
                names = re.compile(region[1], re.IGNORECASE)
            except re.error as error:
                raise BadInput(f"{path}:{number}: {region[1]!r} is no regular expression ({error})") from None
            applies = bool(names.search(kind) or names.search(_PURPOSE[kind]))
        if applies:
            yield number, line


def _parse_rule(line: str, where: str) -> Rule:
    """One rule, cut up as rfilter1 does it: the last slash begins the contexts, unless brackets enclose it."""
    left_side, arrow, rest = line.partition("=>")
    if not arrow:
        raise BadInput(f"{where}: no '=>' in {line.strip()!r:.60}; expected '[TEXT] => [OTHER TEXT]'")
    before, slash, contexts = rest.rpartition("/")
    left = right = ""
    if slash and not -1 < contexts.find("]") < contexts.find("["):
        left, slot, right = contexts.partition("_")
        if not slot:
            raise BadInput(f"{where}: a rule with '/' needs its contexts: [A] => [{{B / C}}] / [ ] __ [ ]")
        rest, right = before, right.lstrip("_")
    rule = Rule(*(_unwrap(part) for part in (left_side, rest, left, right)))
    if not rule.text:
        raise BadInput(f"{where}: nothing before '=>'; expected '[TEXT] => [OTHER TEXT]'")
    return rule


def _unwrap(part: str) -> str:
    """Without blanks around it, and without the brackets or quotes that hold it together."""
    part = part.strip()
    return part[1:-1] if len(part) > 1 and part[0] + part[-1] in ("[]", '""') else part


def write_glm(path: PathLike, rules: Iterable[Rule], description: str) -> None:
    """Write rules that apply to references and recognized words alike, as a GLM file."""
    rules = list(rules)
    with atomic_write(path) as file:
        file.write(f';; {description}\n* FORMAT = "NIST1"\n* CASE_SENSITIVE = "F"\n* COPY_NO_HIT = "T"\n')
        file.write(f'* MAX_NRULES = "{max(_MOST_RULES, len(rules) + 1)}"\n')
        for rule in rules:
            file.write(f"[{rule.text}] => [{rule.becomes}] / [{rule.left}] __ [{rule.right}]\n")
