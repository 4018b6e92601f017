"""A small Switchboard: two people who talk at the same time on two channels, with all the marks of its transcripts.

Also Hub5'00, RT03 and Fisher's transcripts, each in LDC's own layout. Speech is by espeak. One line of each kind is
odd, as some are in the real corpora: silence and words after the end of the audio, a word of the dictionary without
phones, a test's segment that goes on after its audio and one that overlaps with the next, a line of Fisher without a
speaker and one in Latin-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from local.espeak import EspeakClient
from mpq.lang.lexicon import read_cmudict
from tests.corpora.speech import add_noise, make_sentences, speak, to_int16
from tests.corpora.sphere import sphere

RATE = 8000
CALLS = ("2001", "2005", "2010", "2039", "2121")
CALLERS = {"2001": (1032, 1074), "2005": (1017, 1024), "2010": (1032, 1165), "2039": (1104, 1024), "2121": (1165, 1074)}
_TESTS = {"eval2000": ("sw_4390", "en_4156"), "rt03": ("sw_45097", "fsh_60262")}
_SECONDS, _TEST_SECONDS = 32.0, 16.0
_ANSWERS = ["uh-huh", "yeah", "[laughter-right]", "um-hum", "[laughter]", "oh really", "[noise]"]
_NOISE = {"[laughter]", "[noise]", "[vocalized-noise]"}
# token of the transcript -> what espeak says
_SAYS = {"[weekened/weekend]": "weekend", "{yuppiedom}": "yuppie dom", "them_1": "them", "IBM": "i b m", "TV": "t v"}
_PHONES = {"weekened": "W IY K AX N D", "{yuppiedom}": "Y AH P IY D AX M", "them_1": "EH M", "TV": "T IY V IY"}
_PHONES |= {"IBM": "AY B IY EH M", "[laughter-right]": "R AY T", "uh-huh": "AH HH AH", "um-hum": "AH M HH AH M"}
_PHONES |= {"wo[nder]-": "W AO", "-[be]cause": "K AO Z"}
_EXTRAS = [
    "[laughter]",
    "uh",
    "um",
    "IBM",
    "TV",
    "[weekened/weekend]",
    "{yuppiedom}",
    "them_1",
    "wo[nder]-",
    "-[be]cause",
]
_GLM = """;; a small set of rules in the format of NIST
* NAME = "en20000405_hub5.glm"
* FORMAT = "NIST1"
* MAX_NRULES = "2500"
* CASE_SENSITIVE = "F"
* COPY_NO_HIT = "T"
[UH] => [%HESITATION] / [ ] __ [ ]
[UM] => [%HESITATION] / [ ] __ [ ]
[YEAH] => [YES] / [ ] __ [ ]
"""


@dataclass(frozen=True, slots=True)
class Said:
    """What one side says without a pause: tokens as transcribed, from `start` to `end` seconds."""

    side: str
    start: float
    end: float
    tokens: tuple[str, ...]


def make_swbd(folder: Path, seed: int = 0) -> list[Path]:
    """Makes all parts below `folder`, in folders named as somebody might; returns those to give as --corpus-dir."""
    rng = np.random.default_rng(seed)
    sentences = [sentence.split() for sentence in make_sentences(rng, 330)]
    roots = [folder / name for name in ("swb1", "transcripts", "hub5-audio", "LDC2002T43", "rt03", "fisher")]
    with EspeakClient() as client:
        for number, call in enumerate(CALLS):
            samples, turns = _converse(client, rng, sentences[16 * number :], _SECONDS, CALLERS[call])
            path = roots[0] / f"disc{1 + number // 3}" / "data" / f"sw0{call}.{'SPH' if number == 1 else 'sph'}"
            _write(path, sphere(samples, RATE, "ulaw"))
            _write_ms98(roots[1] / "swb_ms98_transcriptions", call, turns, len(samples) / RATE)
        for name, recordings in _TESTS.items():
            made = {}
            for number, recording in enumerate(recordings):
                samples, made[recording] = _converse(
                    client, rng, sentences[80 + 16 * number :], _TEST_SECONDS, (number + 7, number + 11)
                )
                if recording == "sw_4390":
                    made[recording] = _misplace(made[recording], len(samples) / RATE)
                if name == "eval2000":
                    _write(roots[2] / "hub5e_00" / "english" / f"{recording}.sph", sphere(samples, RATE, "ulaw"))
                else:
                    place = roots[4] / "LDC2007S10" / "data" / "audio" / "eval03" / "english" / "cts"
                    _write(place / f"{recording}.sph", sphere(samples, RATE, "ulaw"))
            (_write_hub5 if name == "eval2000" else _write_rt03)(roots, made)
    _write_dictionary(roots[1] / "swb_ms98_transcriptions", sentences)
    rows = [f'{call},"{side}",{CALLERS[call][side == "B"]},"5","x","N"\n' for call in CALLS for side in "AB"]
    _write(roots[0] / "docs" / "call_con_tab.csv", "".join(rows).encode())
    _write_fisher(roots[5], sentences[120:])
    return roots


def _converse(
    client: EspeakClient,
    rng: np.random.Generator,
    sentences: Sequence[list[str]],
    seconds: float,
    voices: tuple[int, int],
) -> tuple[NDArray[np.int16], list[Said]]:
    """A conversation of about `seconds`: samples (T, 2) and who said what when; answers fall into the other's turns."""
    turns: list[Said] = []
    tracks = [np.zeros(int((seconds + 9) * RATE), np.float32) for _ in range(2)]
    free, clock, speaker, used = [0.3, 0.3], 0.5, 0, 0

    def say(side: int, start: float, tokens: Sequence[str]) -> float:
        start = round(max(start, free[side]), 2)
        sound = _sound(client, rng, tokens, voices[side])
        first = int(start * RATE)
        tracks[side][first : first + len(sound)] += sound
        free[side] = round(start + len(sound) / RATE + 0.12, 2)
        turns.append(Said("AB"[side], start, round(free[side] - 0.06, 2), tuple(tokens)))
        return start

    while clock < seconds:
        words = list(sentences[used % len(sentences)])
        if rng.integers(2):
            words.insert(int(rng.integers(len(words))), _EXTRAS[(used * 3 + speaker) % len(_EXTRAS)])
        begin = say(speaker, clock, words)
        if rng.random() < 0.7:  # the other one answers in the middle of it
            say(1 - speaker, begin + 0.4 * (free[speaker] - begin), _ANSWERS[used % len(_ANSWERS)].split())
        clock = free[speaker] + float(rng.uniform(-0.5, 0.5))  # the next one begins before this one has ended, or after
        used, speaker = used + 1, 1 - speaker if rng.random() < 0.8 else speaker
    length = int((max(free) + 0.2) * RATE)
    mixed = [add_noise(track[:length] + 0.01 * other[:length], rng) for track, other in (tracks, tracks[::-1])]
    return np.stack([to_int16(track) for track in mixed], axis=1), sorted(turns, key=lambda turn: turn.start)


def _misplace(turns: Sequence[Said], seconds: float) -> list[Said]:
    """The first turn but one of a side goes on into the next; the last one of all, to 0.7 s after the audio's end."""
    turns = list(turns)
    mine = [index for index, turn in enumerate(turns) if turn.side == "A"]
    turns[mine[1]] = replace(turns[mine[1]], end=round(turns[mine[2]].start + 0.1, 2))
    turns[-1] = replace(turns[-1], end=round(seconds + 0.7, 2))
    return turns


def _sound(client: EspeakClient, rng: np.random.Generator, tokens: Sequence[str], voice: int) -> NDArray[np.float32]:
    """What a microphone would hear of these tokens; laughter and noises are bursts."""
    words = [_SAYS.get(token, _spoken(token)) for token in tokens if token not in _NOISE]
    parts = [speak(client, " ".join(words), voice, RATE)] if words else []
    if len(words) < len(tokens):
        parts.append(np.asarray(0.05 * rng.standard_normal(RATE // 3), np.float32))
    return np.concatenate(parts)


def _spoken(token: str) -> str:
    """``[laughter-right]`` as right, ``wo[nder]-`` as wo."""
    token = token.removeprefix("[laughter-").removesuffix("]") if token.startswith("[laughter-") else token
    while "[" in token:
        token = token[: token.index("[")] + token[token.index("]") + 1 :]
    return token.strip("-{}")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_ms98(root: Path, call: str, turns: Sequence[Said], seconds: float) -> None:
    """``20/2001/sw2001A-ms98-a-{trans,word}.text``: all the time of a side, silences too."""
    for side in "AB":
        lines, words, clock = [], [], 0.0
        spoken = [(turn.start, turn.end, turn.tokens) for turn in turns if turn.side == side]
        rows: list[tuple[float, float, tuple[str, ...]]] = []
        for start, end, tokens in spoken:
            rows += [(clock, start, ("[silence]",)), (start, end, tokens)]
            clock = end
        rows.append((clock, seconds + 2.0 * (call == "2005"), ("[silence]",)))
        if (call, side) == ("2010", "A"):
            rows.append((seconds - 0.1, seconds + 1.2, ("oh", "really")))
        for number, (start, end, tokens) in enumerate(rows, start=1):
            name, step = f"sw{call}{side}-ms98-a-{number:04d}", (end - start) / len(tokens)
            asides = ("<b_aside>", *tokens, "<e_aside>") if number == 4 else tokens
            lines.append(f"{name} {start:.6f} {end:.6f} {' '.join(asides)}\n")
            for place, token in enumerate(tokens):
                words.append(f"{name} {start + place * step:.6f} {start + (place + 1) * step:.6f} {token}\n")
        stem = root / call[:2] / call / f"sw{call}{side}-ms98-a"
        _write(Path(f"{stem}-trans.text"), "".join(lines).encode())
        _write(Path(f"{stem}-word.text"), "".join(words).encode())


def _write_dictionary(root: Path, sentences: Sequence[list[str]]) -> None:
    known, names = (
        read_cmudict(),
        {word for words in sentences for word in words} | {"yeah", "right", "oh", "really", "uh", "um"},
    )
    rows = {word: " ".join(known[word][0]).lower() for word in names} | {w: p.lower() for w, p in _PHONES.items()}
    lines = [f"{word} {phones}\n" for word, phones in sorted(rows.items())]
    _write(
        root / "sw-ms98-dict.text", ("# dictionary\n[silence] sil\n[noise] sil\n\nzyzzyva\n" + "".join(lines)).encode()
    )


def _reference(tokens: Sequence[str]) -> str:
    """Tokens as NIST's references have them."""
    words = []
    for token in tokens:
        if token in ("uh", "um"):
            words.append("(%HESITATION)")
        elif token.endswith("]-") or token.startswith("-["):
            words.append(f"({_spoken(token).upper()}-)")
        elif token not in _NOISE:
            words.append(
                {"IBM": "I._B._M.", "TV": "{ T._V. / TELEVISION }"}.get(token, _spoken(token.partition("_")[0]))
            )
    return " ".join(words).upper().replace("WEEKENED/WEEKEND", "WEEKEND")


def _write_hub5(roots: Sequence[Path], made: dict[str, list[Said]]) -> None:
    stm = [
        ';; CATEGORY "0" "" ""\n',
        ';; LABEL "O" "Overall" "Overall"\n',
        ';; LABEL "en" "CallHome" "x"\n',
        ';; LABEL "sw" "SwitchBoard" "x"\n',
    ]
    pem = [";; conversation channel speaker start end\n"]
    reference = roots[3] / "2000_hub5_eng_eval_tr" / "reference"
    for recording, turns in made.items():
        for number, turn in enumerate(turns):
            text = "IGNORE_TIME_SEGMENT_IN_SCORING" if number == 0 else _reference(turn.tokens)
            text = f"<B_ASIDE> {text} <E_ASIDE>" if number == 3 else text
            kind = recording[:2]
            times = f"{turn.start:.2f} {turn.end:.2f}"
            stm.append(f"{recording} {turn.side} {recording}_{turn.side} {times} <O,{kind},F,{kind}-F> {text}\n")
            pem.append(f"{recording} {turn.side} unknown_speaker {times}\n")
        lines = [f"{turn.start:.2f} {turn.end:.2f} {turn.side}: {' '.join(turn.tokens)}\n" for turn in turns]
        _write(reference / "english" / f"{recording}.txt", "".join(lines).encode())
    _write(reference / "hub5e00.english.000405.stm", "".join(stm).encode())
    _write(reference / "en20000405_hub5.glm", _GLM.encode())
    _write(roots[2] / "hub5e_00" / "english" / "hub5e_00.pem", "".join(pem).encode())


def _write_rt03(roots: Sequence[Path], made: dict[str, list[Said]]) -> None:
    data = roots[4] / "LDC2007S10" / "data"
    for recording, turns in made.items():
        lines = [';; LABEL "O" "Overall" "Overall"\n']
        for channel, side in (("1", "A"), ("2", "B")):
            clock = 0.0
            for turn in (turn for turn in turns if turn.side == side):
                lines.append(f"{recording} {channel} inter_segment_gap {clock:.3f} {turn.start:.3f} <O,sw>\n")
                times = f"{turn.start:.3f} {turn.end:.3f}"
                lines.append(f"{recording} {channel} {recording}_{side} {times} <O,sw> {_reference(turn.tokens)}\n")
                clock = turn.end
        _write(data / "references" / "eval03" / "english" / "cts" / f"{recording}.stm", "".join(lines).encode())
    _write(data / "trans_rules" / "en20030506.glm", _GLM.encode())


def _write_fisher(root: Path, sentences: Sequence[list[str]]) -> None:
    """Two releases with one folder of conversations each."""
    for catalog, numbers in (("LDC2004T19", (1, 2)), ("LDC2005T19", (5851, 5852))):
        rows = "CALL_ID,DATE_TIME,TOPICID,SIG_GRADE,CNV_GRADE\n"
        for place, number in enumerate(numbers):
            name, lines = f"fe_03_{number:05d}", []
            for index, words in enumerate(sentences[60 * place : 60 * place + 60]):
                marks = ["[laughter]", "(( um ))", "i._b._m.", "he- he", "mhm"][index % 5]
                lines.append(f"{2.5 * index:.2f} {2.5 * index + 2:.2f} {'AB'[index % 2]}: {' '.join(words)} {marks}\n")
            if number == 2:
                lines.insert(5, "12.10 12.40 hello\n")
            if number == 5851:
                lines.insert(5, "12.10 12.40 B: caf\xe9\n")
            head = f"# {name}.sph\n# Transcribed at the LDC\n\n"
            _write(
                root / catalog / "data" / "trans" / f"{number // 100:03d}" / f"{name}.txt",
                (head + "".join(lines)).encode("latin-1"),
            )
            rows += f"{number:05d},20021212_15:26:33,ENG01,1.0,1.0\n"
        _write(root / catalog / "doc" / f"fe_03_p{1 if numbers[0] == 1 else 2}_calldata.tbl", rows.encode())
