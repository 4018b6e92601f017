"""swbd: Switchboard-1 (LDC97S62), tests Hub5'00 and RT03, and Fisher's transcripts; several --corpus-dir, any names.

What lies in the folders is found by content, however they are named and nested: LDC97S62 (``sw0NNNN.sph``),
swb_ms98_transcriptions (``sw-ms98-dict.text`` and ``*-ms98-a-trans.text``), its documentation with the callers
(``call_con_tab.csv`` or ``conv_tab.csv``), LDC2002S09 and LDC2002T43 (Hub5'00), LDC2007S10 (RT03), LDC2004T19 and
LDC2005T19 (Fisher).

Every SPHERE file becomes a FLAC file of two channels. The split is Kaldi's: the first 4,000 utterances are dev, no
sentence is in the training set more than 300 times. The text of the language models has none of dev's conversations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from local.check import FEW, Checks, need_folders, shorten
from local.fisher import check_fisher, check_lines, read_fisher
from local.hub5 import SHORTEST, SLACK, check_times, read_segments, spoken, write_references
from local.swbd_parts import Parts, find_parts, read_speakers
from local.swbd_text import Speller, read_ms98_dictionary, reference_words
from mpq.data.audio import inspect_audio, raise_problems, write_flac
from mpq.data.manifests import Spoken, describe_part, write_lines, write_manifests
from mpq.data.parallel import map_processes
from mpq.data.sphere import inspect_sphere, read_sphere_channels
from mpq.io import BadInput, atomic_write, progress, read_lines
from mpq.lang.lexicon import Pronunciations
from mpq.score.stm import StmSegment

RATE = 8000
FILES = (2435, 2438)  # of LDC97S62, in its two releases
DEV, DEV_PART = 4000, 10  # utterances of dev; of a small corpus this part
MOST_COPIES = 300  # of one sentence in the training set
COPIES = 3  # of Switchboard's text beside Fisher's
_WHAT = "the folders of LDC97S62, swb_ms98_transcriptions, LDC2002S09, LDC2002T43, LDC2007S10, LDC2004T19, LDC2005T19"
_ADVICE = "mend or fetch what is named, then run this again"
_MOST_LACKING = 0.05  # part of the transcripts' words that their own dictionary may lack
_SMOKE_CALLS, _SMOKE_FISHER = 12, 20


@dataclass(frozen=True, slots=True)
class Turn:
    """One line of a transcript.

    Attributes:
        side: ``sw02001-A``.
        start, end: in seconds.
        said: words for the acoustic model.
        meant: words for the language model.
    """

    side: str
    start: float
    end: float
    said: tuple[str, ...]
    meant: tuple[str, ...]

    @property
    def utt(self) -> str:
        """Kaldi's id, ``sw02001-A_000098-001156``."""
        return f"{self.side}_{int(100 * self.start + 0.5):06d}-{int(100 * self.end + 0.5):06d}"

    @property
    def call(self) -> str:
        """The conversation."""
        return self.side.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Corpus:
    """What was found and is right.

    Attributes:
        parts: files by what they are.
        turns: of Switchboard, by id.
        speakers: by side.
        segments: of each test.
        lengths: seconds of the tests' audio by recording.
        dictionary: of the transcripts' words.
    """

    parts: Parts
    turns: list[Turn]
    speakers: dict[str, str]
    segments: dict[str, list[StmSegment]]
    lengths: dict[str, float]
    dictionary: Pronunciations


def read_turns(path: Path, side: str, length: float, speller: Speller, odd: list[str]) -> list[Turn]:
    """Lines of a ``-trans.text`` file that hold words, none of them longer than the audio.

    What has no words is not looked at: the silence at the end of a side may go on for longer than its audio.

    Args:
        path: the file, ``sw2001A-ms98-a-0001 start end words ...``.
        side: id of the recording.
        length: of its audio, in seconds.
        speller: spells the words.
        odd: lines that were left out, with their place, are added here: without times, or said after the audio's end.
    """
    turns = []
    for number, line in read_lines(path):
        fields = line.split()
        said, meant = speller.transcript(fields[3:])
        if not fields or (len(fields) > 3 and not said):
            continue
        try:
            start, end, _ = float(fields[1]), float(fields[2]), fields[3]
        except (ValueError, IndexError):
            odd.append(f"{path}:{number}: expected 'utterance start end words', found {line[:40]!r}")
            continue
        if 0 <= start < end <= length + SLACK and start <= length - SHORTEST:
            turns.append(Turn(side, start, min(end, length), tuple(said), tuple(meant)))
        else:
            odd.append(f"{path}:{number}: from {start:g} to {end:g} s, but its audio lasts {length:.2f} s")
    return turns


def _read_transcripts(parts: Parts, lengths: Mapping[str, float], speller: Speller, checks: Checks) -> list[Turn]:
    """All turns of the conversations whose audio is there."""
    turns: list[Turn] = []
    odd: list[str] = []
    for (call, side), path in progress(parts.transcripts.items(), what="transcripts"):
        if call in lengths:
            turns += read_turns(path, f"{call}-{side}", lengths[call], speller, odd)
    checks.odd("lines of transcripts without times or after their audio", odd, len(turns) + len(odd), "left out")
    return turns


def _measure(files: Mapping[str, Path], checks: Checks) -> dict[str, float]:
    """Seconds of each good two-channel file; the others are told."""
    lengths = {}
    for name, path in progress(files.items(), what="SPHERE headers"):
        try:
            lengths[name] = inspect_sphere(path, RATE, 2) / RATE
        except BadInput as problem:
            checks.problem(f"{path}: {problem}")
    return lengths


def _check_pairs(parts: Parts, checks: Checks) -> None:
    """Nearly every transcript needs its audio, and nearly every conversation its transcripts."""
    transcribed = {call for call, _ in parts.transcripts}
    missing = [f"{call}.sph" for call in sorted(transcribed - set(parts.audio))]
    some_lack = 0 < len(missing) <= FEW * len(transcribed)  # copies of LDC97S62 differ by some files
    checks.count("LDC97S62: .sph files", len(parts.audio), FILES, FEW if some_lack else 0.0)
    if some_lack:
        checks.warn(f"transcripts whose audio is not there, left out: {', '.join(missing)}")
    else:
        checks.missing("files of LDC97S62 that have a transcript", missing)
    silent = sorted(
        f"sw{call[3:]}{side}-ms98-a-trans.text"
        for call in parts.audio
        for side in "AB"
        if (call, side) not in parts.transcripts
    )
    single = [name for name in silent if f"sw0{name[2:6]}" in transcribed]
    checks.missing("transcripts of LDC97S62, whose other side has one", single)
    rest = sorted({name[:6] for name in silent} - {name[:6] for name in single})
    if len(rest) > FILES[1] - FILES[0]:
        checks.missing("conversations' transcripts", rest, len(parts.audio))
    elif rest:
        checks.warn(f"no transcripts of {', '.join(rest)}, which are left out")


def _check_dictionary(path: Path, dictionary: Pronunciations, turns: Iterable[Turn], checks: Checks) -> None:
    """The dictionary was made for these transcripts: one that lacks many of their words is cut off."""
    words = Counter(word for turn in turns for word in turn.meant)
    lacking = {word: count for word, count in words.items() if word not in dictionary}
    if sum(lacking.values()) > _MOST_LACKING * words.total():
        part = 100 * sum(lacking.values()) / words.total()
        common = sorted(lacking, key=lambda word: -lacking[word])
        checks.lacking(f"{path}: lacks {part:.0f} % of the transcripts' words, is it cut off? {shorten(common)}")


def load(folders: Sequence[Path], *, partial: bool, smoke: bool) -> Corpus:
    """Reads and checks everything but the samples; raises one `BadInput` for all that is wrong."""
    need_folders("swbd", folders, _WHAT)
    checks = Checks(partial or smoke)
    parts = find_parts(folders, checks)
    source = parts.dictionary
    if source is None or not parts.audio or not parts.transcripts or "eval2000" not in parts.tests:
        checks.finish(", ".join(map(str, folders)), f"give {_WHAT}")
        raise BadInput(f"{folders[0]}: not enough of the corpus is there; give {_WHAT}")
    _check_pairs(parts, checks)
    segments = {name: read_segments(test, checks) for name, test in parts.tests.items()}
    check_fisher(parts.fisher, checks)
    if smoke:
        parts, segments = _shrink(parts, segments)
    check_lines(parts.fisher, checks)
    lengths = _measure(parts.audio, checks)
    test_lengths: dict[str, float] = {}
    for name, test in parts.tests.items():
        test_lengths |= _measure(test.audio, checks)
        segments[name] = check_times(test, segments[name], test_lengths, checks)
    by_case, dictionary = read_ms98_dictionary(source, checks)
    turns = _read_transcripts(parts, lengths, Speller(by_case), checks)
    _check_dictionary(source, dictionary, turns, checks)
    speakers = read_speakers(parts.callers, checks) if parts.callers else {}
    without = sorted({turn.side for turn in turns if turn.side not in speakers})
    if speakers and without:
        checks.warn(f"{len(without)} sides have no caller in {parts.callers}, each is a speaker: {shorten(without)}")
    checks.finish(", ".join(map(str, folders)), _ADVICE)
    return Corpus(parts, sorted(turns, key=lambda turn: turn.utt), speakers, segments, test_lengths, dictionary)


def _shrink(parts: Parts, segments: dict[str, list[StmSegment]]) -> tuple[Parts, dict[str, list[StmSegment]]]:
    """The first few conversations of each part; two of each test."""
    calls = set(sorted({call for call, _ in parts.transcripts if call in parts.audio})[:_SMOKE_CALLS])
    few = {}
    for name, some in segments.items():
        recordings = sorted({item.recording for item in some})
        few[name] = {*recordings[:1], *recordings[-1:]}  # one of each kind: the kind is how the name begins
    return parts.restrict(calls, few, _SMOKE_FISHER), {
        name: [item for item in some if item.recording in few[name]] for name, some in segments.items()
    }


def split(turns: Sequence[Turn]) -> tuple[list[Turn], list[Turn]]:
    """Kaldi's split: the first utterances by id are dev, of the rest at most `MOST_COPIES` have the same words.

    Returns:
        Training utterances and dev utterances.
    """
    size = min(DEV, len(turns) // DEV_PART)
    dev = [turn for turn in turns[:size] if turn.meant]
    copies: Counter[tuple[str, ...]] = Counter()
    train = []
    for turn in turns[size:]:
        copies[turn.said] += 1
        if copies[turn.said] <= MOST_COPIES:
            train.append(turn)
    if not dev or not train:
        raise BadInput(f"swbd: {len(turns)} utterances are too few for a training set and a held-out set")
    return train, dev


def language_text(turns: Iterable[Turn], held_out: Iterable[Turn] = ()) -> list[tuple[str, ...]]:
    """Sentences in the order in which they were spoken, none of a conversation that ``held_out`` is from."""
    calls = {turn.call for turn in held_out}
    ordered = sorted(turns, key=lambda turn: (turn.call, turn.start, turn.side))
    return [turn.meant for turn in ordered if turn.meant and turn.call not in calls]


def check(*, corpus_dirs: Sequence[Path], partial: bool = False, smoke: bool = False) -> str:
    """Checks the corpus, headers of the audio files included, without writing anything; returns a summary.

    Raises:
        BadInput: all that is missing or broken, in one message.
    """
    corpus = load(corpus_dirs, partial=partial, smoke=smoke)
    tests = "".join(f", {name} {len(some)} segments" for name, some in corpus.segments.items())
    hours = sum(turn.end - turn.start for turn in corpus.turns) / 3600
    fisher = len(corpus.parts.fisher)
    return f"{len(corpus.turns)} utterances, {hours:.2f} h of speech{tests}, {fisher} Fisher conversations"


def prepare(out: Path, *, corpus_dirs: Sequence[Path], partial: bool = False, smoke: bool = False, nj: int = 1) -> str:
    """Writes manifests, references, dictionary and texts to `out`; a killed call is simply repeated.

    Args:
        out: folder of the data: `train`, `dev`, `eval2000`, `rt03` (both with `stm` and `glm`), `lm`, `audio` and
            `dictionary.txt`.
        corpus_dirs: what holds the parts of the corpus.
        partial: warn of what is missing instead of refusing it.
        smoke: the first few conversations of each part; counts are not checked.
        nj: audio files that are read at once.

    Returns:
        A one-line summary.

    Raises:
        BadInput: all that is missing or broken, in one message.
    """
    corpus = load(corpus_dirs, partial=partial, smoke=smoke)
    train, dev = split(corpus.turns)
    files = _write_audio(corpus, out / "audio", nj)
    said = []
    for name, turns in (("train", train), ("dev", dev)):
        items = [_spoken(turn, corpus.speakers, files, turn.said if name == "train" else turn.meant) for turn in turns]
        said.append(_write_part(out / name, items))
    for name, segments in corpus.segments.items():
        said.append(_write_part(out / name, spoken(segments, files, corpus.lengths)))
        write_references(corpus.parts.tests[name], {item.recording for item in segments}, out / name)
    with atomic_write(out / "dictionary.txt") as file:
        for word in sorted(corpus.dictionary):
            file.writelines(f"{word} {' '.join(phones)}\n" for phones in corpus.dictionary[word])
    said.append(_write_texts(corpus, train, dev, out / "lm"))
    return "; ".join(said)


def _spoken(turn: Turn, speakers: Mapping[str, str], files: Mapping[str, Path], words: Sequence[str]) -> Spoken:
    where = (turn.call, turn.start, turn.end, "AB".index(turn.side[-1]), 2)
    return Spoken(turn.utt, speakers.get(turn.side, turn.side), files[turn.call], " ".join(words), *where)


def _write_part(folder: Path, items: Sequence[Spoken]) -> str:
    cuts = write_manifests(folder, items, RATE)
    return describe_part(folder.name, items, sum(cut.duration for cut in cuts))


def _write_texts(corpus: Corpus, train: Sequence[Turn], dev: Sequence[Turn], out: Path) -> str:
    """Writes ``swbd.txt`` and ``fisher.txt`` for n-gram models, ``train.txt`` of both, ``dev.txt`` and ``test.txt``.

    Fisher's sentences with a word that neither the dictionary nor Switchboard's text has are left out: the vocabulary
    is some 30,000 words, as in other recipes.
    """
    swbd = language_text(train, dev)
    vocabulary = set(corpus.dictionary).union(*swbd)
    fisher, left_out = [], 0
    for words in read_fisher(corpus.parts.fisher):
        if vocabulary.issuperset(words):
            fisher.append(words)
        else:
            left_out += 1
    write_lines(out / "swbd.txt", swbd)
    write_lines(out / "fisher.txt", fisher)
    write_lines(out / "train.txt", [*swbd * COPIES, *fisher])
    write_lines(out / "dev.txt", language_text(dev))
    tests = [reference_words(item.text) for item in corpus.segments["eval2000"]]
    write_lines(out / "test.txt", [words for words in tests if words])
    return (
        f"text of Switchboard {len(swbd)} and Fisher {len(fisher)} sentences ({left_out} with unknown words left out), "
        f"{len(vocabulary)} words"
    )


def _write_audio(corpus: Corpus, folder: Path, nj: int) -> dict[str, Path]:
    """Makes the FLAC files that are used and lacking; returns them by recording."""
    used = {turn.call for turn in corpus.turns}
    used |= {item.recording for some in corpus.segments.values() for item in some}
    sources = {**corpus.parts.audio, **{n: p for test in corpus.parts.tests.values() for n, p in test.audio.items()}}
    files = [(path, folder / f"{name}.flac") for name, path in sources.items() if name in used]
    made = map_processes(_transcode, files, nj)
    problems = [problem for problem in progress(made, len(files), "audio files") if problem]
    raise_problems(problems, str(folder), _ADVICE)
    return {target.stem: target for _, target in files}


def _transcode(file: tuple[Path, Path]) -> str:
    """Writes a SPHERE file as FLAC unless it is there; returns what is wrong with it, or nothing."""
    path, target = file
    try:
        length = inspect_sphere(path, RATE, 2)
        with suppress(BadInput):  # there is none, or it was cut off
            if inspect_audio(target, RATE, 2) == length:
                return ""
        samples, rate = read_sphere_channels(path)
    except BadInput as problem:
        return f"{path}: {problem}"
    write_flac(target, samples, rate)
    return ""
