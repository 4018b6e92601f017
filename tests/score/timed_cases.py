"""Random references, recognized words and mapping rules, with everything that NIST's formats allow."""

from __future__ import annotations

import random
import re
from pathlib import Path

from mpq.score import StmSegment, TimedSet, TimedWord

WORDS = ["a", "b", "c", "be", "bed", "well-known", "twenty", "won't", "i'll", "uh-huh"]
GLM = """;; a set of rules
* NAME = "test"
* FORMAT = 'NIST1'
* MAX_NRULES = '50'
* CASE_SENSITIVE = "F"
;; a comment
[won't] => [{WON'T / WILL NOT}] / [ ] __ [ ] ;; behind a rule
"I'LL" => [{I'LL / I WILL / I SHALL}] / [ ] __ [ ]
[UH-HUH] => [(%BCACK)] / [ ] __ [ ]
[C BE] => [CB] / [ ] __ [ ]
TWENTY => 20
[BE] => [E] / [ A ] __ [ ]
[ED] => [ID] / [B] __ []
;; INPUT_DEPENDENT_APPLICATION = "hyp"
[UH] => [(%HESITATION)] / [ ] __ [ ]
[MM] => [] / [ ] __ [ ]
;; INPUT_DEPENDENT_APPLICATION = "stm"
[B-] => [(B-)] / [ ] __ [ ]
;; INPUT_DEPENDENT_APPLICATION = "."
[OH] => [O] / [ ] __ [ ]
"""


def write_glm_text(path: Path) -> Path:
    """The rules above, written by hand as NIST writes them."""
    path.write_text(GLM)
    return path


def meeting(seed: int) -> TimedSet:
    """Three meetings in which three speakers talk at once into one microphone, and what was recognized."""
    rng = random.Random(seed)
    segments: list[StmSegment] = []
    words: list[TimedWord] = []
    for recording in ("m_a", "M_b", "m_c"):
        for speaker in "xyz":
            clock = rng.uniform(0, 3)
            for _ in range(12):
                start, said = round(clock, 2), [rng.choice(WORDS) for _ in range(rng.randint(1, 6))]
                clock = round(start + 0.4 * len(said), 2)
                segments.append(StmSegment(recording, "1", speaker, start, clock, " ".join(said)))
                words += _recognize(rng, recording, "1", start, said, 0.15)
                clock += rng.uniform(0.1, 3)
    return TimedSet(segments, words)


def corpus(seed: int, alternatives: bool = True) -> tuple[list[StmSegment], list[TimedWord], list[TimedWord]]:
    """A reference of two recordings with two channels each, and what systems A and B recognized."""
    rng = random.Random(seed)
    segments: list[StmSegment] = []
    heard: tuple[list[TimedWord], list[TimedWord]] = ([], [])
    for recording in ("en_1", "sw_1"):
        for channel in "AB":
            clock = 0.0
            for _ in range(40):
                start = round(clock + rng.choice((0.0, 0.0, 0.37)), 2)
                said = [rng.choice(WORDS) for _ in range(rng.randint(0, 6))]
                end = round(start + 0.2 + 0.25 * len(said), 2)
                ignored = rng.random() < 0.05
                text = "ignore_time_segment_in_scoring" if ignored else _decorate(rng, said, alternatives)
                segments.append(StmSegment(recording, channel, f"{recording}_{channel}", start, end, text))
                for system, chance in zip(heard, (0.15, 0.25), strict=True):
                    system += _recognize(rng, recording, channel, start, said, chance)
                clock = end
    return segments, *heard


def _decorate(rng: random.Random, said: list[str], alternatives: bool) -> str:
    """The words as a reference may have them: alternatives, words that may be left out, fragments."""
    text = []
    for word in said:
        kind = rng.random()
        if alternatives and kind < 0.08:
            text.append("{ " + " / ".join([word, *rng.sample(["@", "b c", "{ be / bed }", "(uh)"], 2)]) + " }")
        elif kind < 0.14 and "'" not in word:  # sclite crashes where a rule puts alternatives into parentheses
            text.append(f"({word})")
        elif kind < 0.18:
            text.append("(a b)")
        elif kind < 0.24:
            text.append(rng.choice(["b-", "-ed", "bed-", "(b-)"]))
        elif kind < 0.28:
            text.append("(%hesitation)")
        else:
            text.append(word)
    return " ".join(text)


def _recognize(
    rng: random.Random, recording: str, channel: str, start: float, said: list[str], chance: float
) -> list[TimedWord]:
    words = []
    clock = start
    for word in said:
        heard = [word]
        if rng.random() < chance:
            heard = rng.choice([[], [rng.choice(WORDS)], [word, rng.choice([*WORDS, "uh", "mm", "b-", "@", "(uh)"])]])
        for one in heard:
            duration = rng.choice((0.1, 0.13, 0.2, 0.25))
            words.append(TimedWord(recording, channel, round(clock, 2), duration, one))
            clock += 0.9 * duration
    return words


def steps(sgml: Path) -> dict[str, str]:
    """sclite's steps (C, S, I, D) of each segment."""
    paths = re.findall(r'<PATH id="\((\S+)\)".*\n(.*?)\n?</PATH>', sgml.read_text(encoding="latin-1"))
    return {name: "".join(step[0] for step in path.split(":") if step.strip()) for name, path in paths}
