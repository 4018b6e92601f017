"""ami: the AMI meeting corpus, 100 hours of meetings, headsets or distant microphones (--mic ihm, sdm, mdm).

--corpus-dir is the folder that holds the meetings (ES2002a/audio/..., or wav_db or amicorpus with them) and the
annotations ``ami_public_manual_1.6.2``, a folder or a zip file; they may also lie in several folders. Folders of Fisher
transcripts (LDC2004T19, LDC2005T19) add to the language model text.

The lists of meetings are lhotse's ``full-corpus-asr``, which are Kaldi's. The rest of lhotse's recipe is not used: it
numbers headsets by the files that are there, so that a missing one shifts the speakers of the others; it drops words
that cross the edge of a segment and whole segments that end after the audio, unpacks the zip into the folder it lies
in, and ends with a bare exception where XML breaks off.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import soundfile

from local.check import Checks, need_folders, shorten
from local.fisher import check_fisher, check_lines, find_fisher, read_fisher
from local.nxt import Annotations, Speaker, split_sentences
from local.swbd_text import fisher_words
from mpq.data.manifests import Spoken, describe_part, measure_audio, write_lines, write_manifests
from mpq.io import BadInput, progress
from mpq.score.stm import StmSegment, write_stm

RATE = 16000
MICS = ("ihm", "sdm", "mdm")
PARTS = {"train": "train", "dev": "dev", "eval": "test"}  # ours: lhotse's
FIVE_HEADSETS = ("EN2001a", "EN2001d", "EN2001e")
DISTANT_MISSING = 2  # distant recordings that the distributed corpus lacks (169 of 171, Kaldi)
WORDS = {"dev": 94_500, "eval": 90_000}  # of Kaldi's recipe on annotations 1.6.1, rounded
# Words that keep their hyphen, as in Kaldi's recipe
_HYPHENATED = {"mm hmm": "mm-hmm", "mm hm": "mm-hmm", "uh huh": "uh-huh"}
# Fisher's and Switchboard's spellings of what AMI's references call mm-hmm
_HESITATIONS = {"mhm": "mm-hmm", "mm-hm": "mm-hmm", "um-hum": "mm-hmm", "uh-hum": "mm-hmm"}
_LETTER = re.compile(r"([b-hj-z])('s|'d|'ll)?")  # a and i are words too
_SHORTEST = 0.05  # seconds of an utterance
_LATE = 5.0  # seconds of transcript after the end of the audio that are worth a warning
_SMOKE = {"train": 150, "dev": 20, "eval": 20}
_SMOKE_FISHER = 20  # conversations
_WHAT = "the folder of AMI that holds the meetings (ES2002a, ...) and ami_public_manual_1.6.2"


@dataclass
class Corpus:
    """What was found and is right.

    Attributes:
        parts: utterances of train, dev and eval.
        frames: samples of each file.
        notes: what was changed, for the summary.
    """

    parts: dict[str, list[Spoken]]
    frames: dict[Path, int]
    notes: Counter[str] = field(default_factory=Counter)


def normalize(text: str) -> str:
    """One word as Kaldi's recipe writes it, in lower case: hyphens part words, initials get full stops.

    Example:
        >>> [normalize(word) for word in ("Mm-hmm", "T_V_", "X_M_L's", "M_P_three", "remote-control")]
        ['mm-hmm', 't. v.', "x. m. l.'s", 'm. p. three', 'remote control']
    """
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words: list[str] = []
    for token in re.sub(r"[^A-Za-z0-9'_]+", " ", text).split():
        words += _spell_initials(token) if "_" in token else [token.lower()]
    text = " ".join(word for word in words if word.strip("'"))
    return "ok" if text == "o. k." else _HYPHENATED.get(text, text)


def _spell_initials(token: str) -> list[str]:
    """``X_M_L's`` as ``x. m. l.'s``: single letters between underscores get full stops, longer pieces are words.

    Kaldi's recipe writes a full stop for every underscore, so that the last letter has none where an ending follows.
    Here it has one too and keeps its ending (``D_V_D_s`` is ``d. v. d.s``): a letter is one word, as in CMUdict.
    """
    words: list[str] = []
    for piece in (piece.rstrip("'") for piece in token.split("_")):
        if words and words[-1].endswith(".") and (piece == "s" or piece.startswith("'")):
            words[-1] += piece
        elif piece:
            words.append(re.sub(r"^([A-Za-z](?=$|')|[A-Z](?=s$))", r"\1.", piece))
    return [word.lower() for word in words]


def find_annotations(folders: Sequence[Path]) -> Annotations:
    """The annotations: one of `folders` itself, or ``ami_public_manual_*`` in one, unpacked or as a zip file."""
    for folder in folders:
        if (folder / "corpusResources").is_dir():
            return Annotations(folder)
    for folder in folders:
        found = sorted(folder.glob("ami_public_manual_*"), key=lambda path: (path.is_file(), path.name), reverse=True)
        if found:
            return Annotations(found[-1])
    raise BadInput(
        f"--corpus-dir {folders[0]}: has no ami_public_manual_1.6.2 (folder or .zip), the annotations of AMI; "
        "put it there or give its folder by a second --corpus-dir"
    )


def find_audio(folders: Sequence[Path], name: str, meeting: str) -> Path | None:
    """The file `name` of a meeting, wherever the usual downloads and beamforming put it."""
    for folder in folders:
        for base in (folder, folder / "wav_db", folder / "amicorpus", folder / "beamformed"):
            for path in (base / meeting / "audio" / name, base / meeting / name):
                if path.is_file():
                    return path
    return None


def audio_names(meeting: str, mic: str) -> dict[int, str]:
    """File names by headset; a distant microphone is there once, for all speakers (-1)."""
    if mic == "ihm":
        return {i: f"{meeting}.Headset-{i}.wav" for i in range(5 if meeting in FIVE_HEADSETS else 4)}
    return {-1: f"{meeting}.Array1-01.wav" if mic == "sdm" else f"{meeting}_MDM8.wav"}


def find_all_audio(folders: Sequence[Path], meetings: Sequence[str], mic: str, checks: Checks) -> dict[str, Path]:
    """The audio files of all meetings by name; what is missing goes to `checks`."""
    names = {name: meeting for meeting in meetings for name in audio_names(meeting, mic).values()}
    found = {name: path for name, meeting in names.items() if (path := find_audio(folders, name, meeting))}
    missing = [name for name in names if name not in found]
    if not found and mic == "mdm":
        checks.problem("no beamformed files (MEETING_MDM8.wav): make them by BeamformIt from Array1, or use --mic sdm")
    elif not found:
        checks.problem(f"no audio: no {next(iter(names))} or any other of {len(names)} files for --mic {mic}")
    elif mic != "ihm" and 0 < len(missing) <= DISTANT_MISSING:
        checks.warn(f"no distant recording of {shorten(missing)}: left out")
    else:
        checks.missing("headset files" if mic == "ihm" else f"{mic} files", missing, len(names))
    return found


def read_meeting(
    annotations: Annotations, meeting: str, speakers: dict[str, Speaker], mic: str, found: dict[str, Path]
) -> Iterator[Spoken]:
    """All utterances of a meeting whose audio was found, with Kaldi's ids; ends may lie after the audio's."""
    names = audio_names(meeting, mic)
    for agent, speaker in sorted(speakers.items()):
        name = names.get(speaker.channel if mic == "ihm" else -1, "")
        if name not in found:
            continue
        channels = _channels(found[name])
        label = f"H{speaker.channel:02d}" if mic == "ihm" else mic.upper()
        for segment in annotations.segments(meeting, agent):
            for sentence in split_sentences(segment):
                text = " ".join(word for token in sentence if (word := normalize(token.text)))
                times = [time for token in sentence for time in (token.start, token.end) if time is not None]
                if text and times:
                    start, end = (round(100 * time) for time in (min(times), max(times)))
                    utt = f"AMI_{meeting}_{label}_{speaker.name}_{start:07d}_{end:07d}"
                    recording = f"AMI_{meeting}_{label}"
                    yield Spoken(utt, speaker.name, found[name], text, recording, start / 100, end / 100, 0, channels)


def _channels(path: Path) -> int:
    """How many channels a file has: of the few with two the first is taken; broken files are told later."""
    try:
        return int(soundfile.info(path).channels)
    except (OSError, RuntimeError):
        return 1


def _read_parts(
    annotations: Annotations, lists: dict[str, list[str]], mic: str, found: dict[str, Path], checks: Checks
) -> dict[str, list[Spoken]]:
    """Utterances of each part, each id once; what is wrong with the annotations goes to `checks`."""
    speakers = annotations.speakers()
    checks.missing("meetings of meetings.xml", [m for ms in lists.values() for m in ms if m not in speakers])
    broken: list[str] = []
    missing: list[str] = []
    parts: dict[str, list[Spoken]] = {}
    for part, meetings in lists.items():
        items: dict[str, Spoken] = {}
        for meeting in progress(meetings, what=f"meetings of {part}"):
            agents = speakers.get(meeting, {})
            if not any(name in found for name in audio_names(meeting, mic).values()):
                continue
            files = [f"{kind}/{meeting}.{agent}.{kind}.xml" for agent in agents for kind in ("words", "segments")]
            missing += [name for name in files if name not in annotations]
            whole = {a: s for a, s in agents.items() if all(n in annotations for n in files if f".{a}." in n)}
            try:
                # a few sentences stand twice in the annotations
                items.update((item.utt, item) for item in read_meeting(annotations, meeting, whole, mic, found))
            except BadInput as problem:
                broken.append(str(problem))
        parts[part] = sorted(items.values(), key=lambda item: item.utt)
    checks.missing("annotation files", missing)
    if annotations.dangling:
        checks.warn(f"{annotations.dangling} segments point at words that are not there: words in their time are taken")
    checks.extend(broken)
    return parts


def _fit(items: list[Spoken], frames: dict[Path, int], notes: Counter[str], checks: Checks) -> list[Spoken]:
    """Utterances cut at the end of their audio; those after it, or too short for features, are left out."""
    kept = []
    late: dict[str, float] = {}
    for item in items:
        length, end = frames.get(item.audio, 0) / RATE, item.end or 0.0
        if end - length > _LATE and length:
            late[item.recording] = max(late.get(item.recording, 0.0), end - length)
        if min(end, length) - item.start < _SHORTEST:
            notes[
                "left out, after the end of the audio" if item.start > length - _SHORTEST else "left out, too short"
            ] += 1
        elif end > length:
            notes["cut at the end of the audio"] += 1
            kept.append(replace(item, end=length))
        else:
            kept.append(item)
    if late:
        longest = max(late.values())
        checks.warn(f"the audio ends before the transcript, by up to {longest:.0f} s: {shorten(sorted(late))}")
    return kept


def _separate(part: str, items: list[Spoken], notes: Counter[str], checks: Checks) -> list[Spoken]:
    """Utterances of which none begins before its speaker's last one has ended, as asclite needs them.

    As in Kaldi's `ami_sdm_scoring_data_prep.sh` the start is moved to that end; what becomes too short is left out.
    """
    kept, places = [], []
    latest: dict[tuple[str, str], float] = {}
    for item in sorted(items, key=lambda item: (item.start, item.end or 0.0)):
        start, end = max(item.start, latest.get((item.recording, item.speaker), 0.0)), item.end or 0.0
        if start > item.start:
            short = end - start < _SHORTEST
            notes["left out, within another of the speaker" if short else "moved to the end of the speaker's last"] += 1
            if start - item.start > _SHORTEST:
                places.append(f"{item.utt}, by {start - item.start:.2f} s" + (", left out" if short else ""))
            if short:
                continue
        kept.append(replace(item, start=start))
        latest[item.recording, item.speaker] = end
    checks.odd(f"utterances of {part} that begin before their speaker's last one has ended", places, len(items),
               "the start is moved to its end")  # fmt: skip
    return sorted(kept, key=lambda item: item.utt)


def load(folders: Sequence[Path], *, mic: str, partial: bool, smoke: bool, nj: int) -> Corpus:
    """Reads and checks everything; raises one `BadInput` for all that is wrong."""
    from lhotse.recipes.ami import PARTITIONS

    if mic not in MICS:
        raise BadInput(f"--mic {mic}: expected {', '.join(MICS)}")
    need_folders("ami", folders, _WHAT)
    lists = {ours: list(PARTITIONS["full-corpus-asr"][theirs]) for ours, theirs in PARTS.items()}
    checks = Checks(partial or smoke)
    annotations = find_annotations(folders)
    if "1.6.2" not in annotations.path.name:
        checks.warn(f"annotations {annotations.path.name}: expected version 1.6.2")
    if fisher := find_fisher(folders):
        check_fisher(fisher, checks)
        check_lines(fisher[: _SMOKE_FISHER if smoke else None], checks)
    found = find_all_audio(folders, [meeting for meetings in lists.values() for meeting in meetings], mic, checks)
    parts = _read_parts(annotations, lists, mic, found, checks)
    for part, items in parts.items():
        if found and not items:
            checks.problem(f"{part}: not one of its {len(lists[part])} meetings is there, such as {lists[part][0]}")
    if smoke:
        parts = {part: items[:: -(-len(items) // _SMOKE[part]) or 1] for part, items in parts.items()}
    else:
        _check_words(parts, checks)
    everything = [item for items in parts.values() for item in items]
    frames, problems = measure_audio(progress(everything, what="utterances"), RATE, nj)
    checks.extend(problems)
    corpus = Corpus(parts, frames)
    corpus.parts = {part: _fit(items, frames, corpus.notes, checks) for part, items in parts.items()}
    for part in WORDS:
        corpus.parts[part] = _separate(part, corpus.parts[part], corpus.notes, checks)
    checks.finish(str(folders[0]), "fetch again what is missing or broken")
    return corpus


def _check_words(parts: dict[str, list[Spoken]], checks: Checks) -> None:
    """Warns of dev and eval sets that are far from the size of Kaldi's (which has other annotations)."""
    for part, expected in WORDS.items():
        words = sum(len(item.text.split()) for item in parts[part])
        if abs(words - expected) > 0.05 * expected:
            checks.warn(f"{part}: {words} words, Kaldi's recipe has about {expected}")


def check(
    *, corpus_dirs: Sequence[Path], mic: str = "ihm", partial: bool = False, smoke: bool = False, nj: int = 1
) -> str:
    """Checks the corpus, audio files included, without writing anything; returns a summary.

    Raises:
        BadInput: all that is missing or broken, in one message.
    """
    return _summary(load(corpus_dirs, mic=mic, partial=partial, smoke=smoke, nj=nj))


def prepare(
    out: Path,
    *,
    corpus_dirs: Sequence[Path],
    mic: str = "ihm",
    partial: bool = False,
    smoke: bool = False,
    nj: int = 1,
) -> str:
    """Writes manifests, language model text and STM files of AMI to `out`.

    Args:
        out: folder of the data: `train`, `dev`, `eval` (the last two with `stm`), `lm` (the text of AMI and of
            Fisher, if given, apart and together).
        corpus_dirs: where audio and annotations lie, and Fisher transcripts if there are any.
        mic: ihm (headsets), sdm (first microphone of the first array) or mdm (beamformed by the user).
        partial: warn of what is missing in a part of the corpus instead of refusing it.
        smoke: some 200 utterances only; counts are not checked.
        nj: audio files that are looked at at once.

    Returns:
        A one-line summary.

    Raises:
        BadInput: all that is missing or broken, in one message.
    """
    corpus = load(corpus_dirs, mic=mic, partial=partial, smoke=smoke, nj=nj)
    for part, items in corpus.parts.items():
        write_manifests(out / part, items, RATE, corpus.frames)
        if part != "train":
            write_stm(out / part / "stm", [_stm_segment(item) for item in items])
    sentences = {part: [item.text.split() for item in items] for part, items in corpus.parts.items()}
    fisher = _read_fisher(corpus_dirs, _SMOKE_FISHER if smoke else None)
    texts = {"ami": sentences["train"], "fisher": fisher, "train": sentences["train"] + fisher}
    for name, text in {**texts, "dev": sentences["dev"], "eval": sentences["eval"]}.items():
        write_lines(out / "lm" / f"{name}.txt", text)
    return _summary(corpus) + (f"; {len(fisher)} sentences of Fisher" if fisher else "")


def _read_fisher(folders: Sequence[Path], limit: int | None) -> list[list[str]]:
    """Fisher's sentences, if there are any, in AMI's spelling; `limit` conversations."""
    return list(read_fisher(find_fisher(folders)[:limit], _words_of_fisher))


def _words_of_fisher(text: str) -> list[str]:
    """Words of a line of Fisher as AMI's references spell them: initials, hesitations, hyphens."""
    words: list[str] = []
    for word in fisher_words(text, _HESITATIONS, stop="."):
        if letter := _LETTER.fullmatch(word):
            words.append(f"{letter[1]}.{letter[2] or ''}")
        else:
            words += [word] if "." in word else normalize(word).split()
    return words


def _stm_segment(item: Spoken) -> StmSegment:
    return StmSegment(item.recording, "A", item.speaker, item.start, item.end or 0.0, item.text)


def _summary(corpus: Corpus) -> str:
    said = [
        describe_part(part, items, sum((item.end or 0.0) - item.start for item in items))
        for part, items in corpus.parts.items()
    ]
    notes = [f"{count} {what}" for what, count in sorted(corpus.notes.items())]
    return "; ".join(said + notes)
