"""A small AMI with the layout of the real one: headsets, an array, and annotations in NXT's XML.

Speakers take turns, begin before the other has ended, agree in the middle of it (mm-hmm), hesitate, laugh and break
off words; one of dev begins before her own last words have ended. Every headset hears its own speaker loudly and the
others faintly; the array hears all of them, with noise.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import soundfile
from numpy.typing import NDArray

from local.ami import FIVE_HEADSETS
from local.espeak import EspeakClient
from tests.corpora.speech import RATE, add_noise, make_sentences, speak, to_int16

# Meetings of train (one of them with five headsets), dev and eval, with the people in them
MEETINGS = {
    "ES2002a": ("MEE006", "FEE005", "MEE007", "MEE008"),
    "EN2001a": ("MEE068", "FEO065", "MEE067", "FEO066", "MEO069"),
    "ES2011a": ("FEE041", "FEE042", "MEE043", "FEE044"),
    "ES2004a": ("MEE013", "FEE014", "MEE015", "FEE016"),
}
TURNS = {"ES2002a": 12, "EN2001a": 12, "ES2011a": 8, "ES2004a": 8}
OVERLAPS = "ES2011a"  # its first speaker overlaps with herself by 0.2 s, as one of the real dev set does
_CROSSTALK, _FAR, _ARRAY = 0.05, 0.4, 8
_HEADER = '<?xml version="1.0" encoding="ISO-8859-1" standalone="yes"?>\n'
_NITE = 'xmlns:nite="http://nite.sourceforge.net/"'


@dataclass
class Meeting:
    """One meeting as it is made.

    Attributes:
        name: its id.
        speakers: global names by agent (A, B, ...).
        words: lines of each agent's words file.
        segments: lines of each agent's segments file.
        tracks: what each agent says, (T,) samples.
    """

    name: str
    speakers: dict[str, str]
    words: dict[str, list[str]] = field(default_factory=dict)
    segments: dict[str, list[str]] = field(default_factory=dict)
    tracks: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def make_ami(folder: Path, seed: int = 0, zipped: bool = False) -> Path:
    """Makes ``folder/amicorpus`` with audio and annotations and returns it.

    Args:
        folder: where to.
        seed: of what is said.
        zipped: annotations as ``ami_public_manual_1.6.2.zip``.
    """
    root = folder / "amicorpus"
    rng = np.random.default_rng(seed)
    sentences = iter(make_sentences(rng, sum(TURNS.values())))
    meetings = []
    with EspeakClient() as client:
        for name, people in MEETINGS.items():
            meeting = Meeting(name, dict(zip("ABCDE", people, strict=False)))
            hold_meeting(meeting, [next(sentences) for _ in range(TURNS[name])], client, rng)
            write_audio(root / name / "audio", meeting, rng)
            meetings.append(meeting)
    write_annotations(root / "ami_public_manual_1.6.2", meetings)
    if zipped:
        zip_annotations(root / "ami_public_manual_1.6.2")
    return root


def hold_meeting(meeting: Meeting, sentences: Sequence[str], client: EspeakClient, rng: np.random.Generator) -> None:
    """Lets the speakers say the sentences one after the other, with overlaps, and notes words and segments."""
    length = 6 * len(sentences) * RATE
    agents = list(meeting.speakers)
    for agent in agents:
        meeting.words[agent], meeting.segments[agent] = [], []
        meeting.tracks[agent] = np.zeros(length, np.float32)
    clock = 0.5
    for turn, sentence in enumerate(sentences):
        agent = agents[turn % len(agents)]
        start, end = _say(meeting, agent, _disturb(sentence, turn), clock, client)
        if turn % 3 == 1:  # another agrees meanwhile
            _say(meeting, agents[(turn + 1) % len(agents)], ["Mm-hmm", "."], (start + end) / 2, client)
        if turn == 0 and meeting.name == OVERLAPS:
            _, end = _say(meeting, agent, ["I", "am", "sure", "."], end - 0.2, client)
        clock = end + (-0.4 if turn % 2 else 0.3)  # every second turn begins before the last has ended
    for agent in agents:
        meeting.tracks[agent] = meeting.tracks[agent][: int((clock + 1.5) * RATE)]


def _disturb(sentence: str, turn: int) -> list[str]:
    """The sentence as spoken: marks as single items, ``~`` for a broken-off word, ``<laugh>`` for laughter."""
    words = sentence.capitalize().split()
    middle = len(words) // 2
    if turn % 4 == 0:
        words[middle:middle] = ["um", ","]
    elif turn % 4 == 1:
        words[middle:middle] = [words[middle][:3] + "~"]
    elif turn % 4 == 2:
        words[middle:middle] = ["on", "the", "T_V_", "."]
    else:
        words.insert(0, "<laugh>")
    return [*words, "."]


def _say(meeting: Meeting, agent: str, items: list[str], start: float, client: EspeakClient) -> tuple[float, float]:
    """Speaks into the agent's track and writes words and one segment; returns when it began and ended."""
    spoken = [item.strip("~").replace("_", " ") for item in items if item not in (".", ",", "<laugh>")]
    speaker = "ABCDE".index(agent) + 5 * list(MEETINGS).index(meeting.name)
    sound = speak(client, " ".join(spoken), speaker)
    begin = int(start * RATE)
    track = meeting.tracks[agent][begin : begin + len(sound)]
    track += sound[: len(track)]
    end = start + len(sound) / RATE
    first, clock = len(meeting.words[agent]), start
    seconds = (end - start) / sum(map(len, spoken))
    for item in items:
        name = f'nite:id="{meeting.name}.{agent}.words{len(meeting.words[agent])}"'
        later = clock + seconds * len(item.strip("~")) if item not in (".", ",", "<laugh>") else clock
        times = f'starttime="{clock:.2f}" endtime="{min(later, end):.2f}"'
        if item == "<laugh>":
            line = f'<vocalsound {name} {times} type="laugh"/>'
        elif item in (".", ","):
            line = f'<w {name} {times} punc="true">{item}</w>'
        else:
            mark = ' trunc="true"' if item.endswith("~") else ""
            line = f"<w {name} {times}{mark}>{escape(item.strip('~'))}</w>"
        meeting.words[agent].append(line)
        if item.endswith("~"):
            meeting.words[agent].append(f'<disfmarker nite:id="{meeting.name}.{agent}.words{first}d"/>')
        clock = min(later, end)
    _add_segment(meeting, agent, first, start, end)
    return start, end


def _add_segment(meeting: Meeting, agent: str, first: int, start: float, end: float) -> None:
    ids = [line.split('"')[1] for line in meeting.words[agent][first:]]
    number = len(meeting.segments[agent])
    meeting.segments[agent].append(
        f'<segment nite:id="{meeting.name}.sync.{agent}{number}" channel="{"ABCDE".index(agent)}" '
        f'transcriber_start="{start:.3f}" transcriber_end="{end:.3f}">'
        f'<nite:child href="{meeting.name}.{agent}.words.xml#id({ids[0]})..id({ids[-1]})"/></segment>'
    )


def write_audio(folder: Path, meeting: Meeting, rng: np.random.Generator) -> None:
    """``MEETING.{Headset-N,Array1-0N,Mix-Headset}.wav``; in meetings of five headsets all are worn."""
    folder.mkdir(parents=True)
    tracks = list(meeting.tracks.values())
    everybody = np.sum(tracks, axis=0, dtype=np.float32)
    assert len(tracks) == (5 if meeting.name in FIVE_HEADSETS else 4)
    sounds = {
        f"Headset-{number}": add_noise(track + _CROSSTALK * (everybody - track), rng, 0.001)
        for number, track in enumerate(tracks)
    }
    for number in range(1, _ARRAY + 1):
        sounds[f"Array1-{number:02d}"] = add_noise(_FAR * np.roll(everybody, 3 * number), rng, 0.005)
    sounds["Mix-Headset"] = everybody / 2
    for kind, samples in sounds.items():
        soundfile.write(folder / f"{meeting.name}.{kind}.wav", to_int16(samples), RATE)


def write_annotations(folder: Path, meetings: Sequence[Meeting]) -> None:
    """``corpusResources/meetings.xml``, ``words/`` and ``segments/``."""
    lines = []
    for meeting in meetings:
        lines.append(f'<meeting nite:id="m_{meeting.name}" observation="{meeting.name}" type="scenario">')
        for number, (agent, name) in enumerate(meeting.speakers.items()):
            given = f'nxt_agent="{agent}" global_name="{name}" role="PM" channel="{number}" camera="Closeup1"'
            lines.append(f'<speaker nite:id="s_{meeting.name}_{agent}" {given}/>')
        lines.append("</meeting>")
        for kind, files in (("words", meeting.words), ("segments", meeting.segments)):
            for agent, rows in files.items():
                path = folder / kind / f"{meeting.name}.{agent}.{kind}.xml"
                _write_xml(path, f'nite:root nite:id="{meeting.name}.{agent}.{kind}"', rows)
    _write_xml(folder / "corpusResources" / "meetings.xml", 'meetings nite:id="meetings"', lines)


def _write_xml(path: Path, root: str, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(f"   {line}\n" for line in lines)
    path.write_text(f"{_HEADER}<{root} {_NITE}>\n{body}</{root.split()[0]}>\n", encoding="latin-1")


def zip_annotations(folder: Path) -> Path:
    """Packs a folder of annotations beside it, as it is distributed, and removes the folder."""
    path = folder.with_name(f"{folder.name}.zip")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in files:
            packed.write(file, file.relative_to(folder))
            file.unlink()
    for inner in sorted(folder.rglob("*"), reverse=True):
        inner.rmdir()
    folder.rmdir()
    return path
