"""Where the parts of Switchboard, Hub5'00, RT03 and Fisher lie in the folders that were given."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from local.check import Checks
from local.fisher import is_transcript
from local.hub5 import EvalSet
from mpq.io import open_text

_AUDIO = re.compile(r"^(sw0\d{4})\.sph$", re.IGNORECASE)
_TRANSCRIPT = re.compile(r"^sw(\d{4})([AB])-ms98-a-trans\.text$")
_CALLERS = ("call_con_tab.csv", "call_con_tab", "conv.tab", "conv_tab.csv")
_PEM, _STM, _GLM = "hub5e_00.pem", "hub5e00.english.000405.stm", "en20000405_hub5.glm"
_RT03, _RT03_GLM = "eval03/english/cts", "en20030506.glm"


@dataclass(frozen=True, slots=True)
class Parts:
    """Files by what they are.

    Attributes:
        audio: two-channel files by conversation (``sw02001``).
        transcripts: ``-trans.text`` files by conversation and side.
        dictionary: ``sw-ms98-dict.text``.
        callers: the table of callers, if there is one.
        tests: ``eval2000`` and, if it is there, ``rt03``.
        fisher: transcripts.
    """

    audio: Mapping[str, Path]
    transcripts: Mapping[tuple[str, str], Path]
    dictionary: Path | None
    callers: Path | None
    tests: Mapping[str, EvalSet]
    fisher: Sequence[Path]

    def restrict(self, calls: set[str], tests: Mapping[str, set[str]], n_fisher: int) -> Parts:
        """The same with some of the conversations only."""
        return replace(
            self,
            audio={name: path for name, path in self.audio.items() if name in calls},
            transcripts={key: path for key, path in self.transcripts.items() if key[0] in calls},
            tests={
                name: replace(test, audio={key: path for key, path in test.audio.items() if key in tests[name]})
                for name, test in self.tests.items()
            },
            fisher=self.fisher[:n_fisher],
        )


def walk(folders: Iterable[Path]) -> Iterator[Path]:
    """All files below folders, sorted, each once even if the folders overlap."""
    seen: set[str] = set()  # links may lead in a circle
    for folder in folders:
        for place, names, files in os.walk(folder.resolve(), followlinks=True):
            if (real := os.path.realpath(place)) in seen:
                names.clear()
                continue
            seen.add(real)
            names.sort()
            yield from (Path(place, name) for name in sorted(files))


def find_parts(folders: Sequence[Path], checks: Checks) -> Parts:
    """Sorts all files below `folders`; what is not there at all is told to `checks`."""
    audio: dict[str, Path] = {}
    transcripts: dict[tuple[str, str], Path] = {}
    fisher: dict[str, Path] = {}
    named: dict[str, Path] = {}
    spheres: list[Path] = []
    references: list[Path] = []
    for path in walk(folders):
        if match := _AUDIO.match(path.name):
            audio.setdefault(match[1].lower(), path)
        elif path.suffix.lower() == ".sph":
            spheres.append(path)
        elif match := _TRANSCRIPT.match(path.name):
            transcripts.setdefault((f"sw0{match[1]}", match[2]), path)
        elif is_transcript(path):
            fisher.setdefault(path.name, path)
        elif path.suffix == ".stm" and _RT03 in path.parent.as_posix():
            references.append(path)
        elif path.name in (_PEM, _STM, _GLM, _RT03_GLM, "sw-ms98-dict.text", *_CALLERS):
            named.setdefault(path.name, path)
    tests = {}
    if (test := _eval2000(spheres, named, checks)) is not None:
        tests["eval2000"] = test
    if (test := _rt03(spheres, references, named, checks)) is not None:
        tests["rt03"] = test
    dictionary, callers = named.get("sw-ms98-dict.text"), [named[name] for name in _CALLERS if name in named]
    checks.missing("parts (LDC97S62)", [] if audio else ["sw0NNNN.sph"], needed=True)
    checks.missing("parts (swb_ms98_transcriptions)", [] if dictionary else ["sw-ms98-dict.text"], needed=True)
    checks.missing(
        "parts (swb_ms98_transcriptions)", [] if transcripts else ["NN/NNNN/*-ms98-a-trans.text"], needed=True
    )
    checks.missing("parts (Fisher: LDC2004T19, LDC2005T19)", [] if fisher else ["data/trans/NNN/fe_03_NNNNN.txt"])
    if not callers:
        checks.warn(
            "no table of callers (call_con_tab.csv, conv_tab.csv or conv.tab): each side of a conversation is a speaker"
        )
    by_name = [fisher[name] for name in sorted(fisher)]
    ordered = {key: transcripts[key] for key in sorted(transcripts)}
    return Parts(audio, ordered, dictionary, callers[0] if callers else None, tests, by_name)


def _eval2000(spheres: Iterable[Path], named: Mapping[str, Path], checks: Checks) -> EvalSet | None:
    missing = [name for name in (_PEM, _STM, _GLM) if name not in named]
    checks.missing("files of Hub5'00 (LDC2002S09, LDC2002T43)", missing, 3, needed=True)
    if missing:
        return None
    folder = named[_PEM].parent
    audio = {path.stem: path for path in spheres if path.parent == folder}
    checks.missing("files of Hub5'00 (LDC2002S09)", [] if audio else [f"{folder}/*.sph"], needed=True)
    return EvalSet("eval2000", audio, [named[_STM]], named[_GLM], named[_PEM], 80, 4459, 42989) if audio else None


def _rt03(spheres: Iterable[Path], stms: Sequence[Path], named: Mapping[str, Path], checks: Checks) -> EvalSet | None:
    audio = {path.stem: path for path in spheres if _RT03 in path.parent.as_posix()}
    missing = [f"audio/{_RT03}/*.sph"] * (not audio) + [f"references/{_RT03}/*.stm"] * (not stms)
    missing += [f"trans_rules/{_RT03_GLM}"] * (_RT03_GLM not in named)
    checks.missing("files of RT03 (LDC2007S10)", missing, 3)
    return None if missing else EvalSet("rt03", audio, stms, named[_RT03_GLM], None, None, 8420, 76157)


def read_speakers(path: Path, checks: Checks) -> dict[str, str]:
    """Callers by side, of either table of LDC97S62's documentation.

    ``call_con_tab.csv`` has a line for each side: conversation, "A" or "B", caller, telephone, length, topic, remarks,
    active (so read by coquery's installer). ``conv_tab.csv``, which Kaldi's recipe wants renamed to ``conv.tab``, has
    one for each conversation: its number, active, caller of A, caller of B, topic, ... (Kaldi's egs/swbd/s5c,
    `swbd1_fix_speakerid.pl`, takes the same two).

    Returns:
        Speakers such as ``swbd1032`` by side such as ``sw02001-A``.
    """
    speakers = {}
    with open_text(path) as file:
        for row in csv.reader(file, skipinitialspace=True):
            fields = [field.strip().strip('"') for field in row]
            if len(fields) < 3 or not re.fullmatch(r"\d{4}", fields[0]):
                continue
            one_side = fields[1] in ("A", "B")
            pairs = [(fields[1], fields[2])] if one_side else list(zip("AB", fields[2:4], strict=False))
            speakers.update({f"sw0{fields[0]}-{side}": f"swbd{caller}" for side, caller in pairs if caller.isdigit()})
    if not speakers:
        checks.problem(
            f"{path}: no callers; expected 'conversation,side,caller,...' or 'conversation,active,caller,caller,...'"
        )
    return speakers
