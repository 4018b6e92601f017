"""mini: the World English Bible spoken by espeak in noise, made from pip packages (synthetic speech).

Training verses come from all books but those of dev and test, by voices of their own; dev and test are whole
held-out books by voices that training never hears. More hours only add files.
The LM text is every training book; dev.txt and test.txt hold all verses of the held-out books, spoken or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from local.synth import NOISES, RATE, Chunk, Utterance, synthesize_chunk
from local.verses import Split, Verse, read_verses, split_verses
from mpq.data.parallel import map_processes
from mpq.io import BadInput, progress

HOURS = 2.5
SHORTEST, LONGEST = 4, 18  # words of a spoken verse
_PARTS = ("train", "dev", "test")
_BABBLE_TRACKS, _TALKERS, _BABBLE_WORDS = 8, 6, 75
_CHUNK = 20
_SMOKE_HOURS, _SMOKE_SIZES, _SMOKE_TEXT = 6 / 60, {"dev": 20, "test": 40}, 24

_ACCENTS = {"us": "en-us", "rp": "en-gb-x-rp", "gb": "en", "sc": "en-gb-scotland", "ny": "en-us-nyc"}
# Accent and espeak variant. No variant of dev or test is in training, in whatever accent. Of espeak's 104
# variants those that clip, whisper, croak or are robots are left out; British female voices, the hardest to
# recognize unseen, get several training voices.
VOICES = {
    "train": (
        "us-m1 us-m3 us-m5 us-klatt2 us-klatt3 us-klatt us-adam us-Alex us-david us-Michael us-Reed us-max "
        "us-travis "
        "us-f1 us-f3 us-f5 us-Alicia us-belinda us-steph us-grandma "
        "rp-m3 rp-m5 rp-klatt rp-f1 rp-f3 rp-f5 rp-Alicia rp-steph rp-belinda "
        "gb-m1 gb-f3 sc-m3 sc-f1 ny-m5 ny-f5 ny-Andy"
    ),
    "dev": "us-m7 us-benjamin us-anika us-shelby rp-m8 rp-aunty",
    "test": "us-m2 us-m6 us-boris us-Annie us-f2 us-linda rp-m4 rp-f4",
}  # fmt: skip


def espeak_voice(speaker: str) -> str:
    """The espeak voice of a speaker id, e.g. ``en-gb-x-rp+f4`` of ``rp-f4``."""
    accent, _, variant = speaker.partition("-")
    return f"{_ACCENTS[accent]}+{variant}"


def _seconds(verse: Verse, rate: int) -> float:
    """About how long a verse takes at `rate` words a minute, edges included; a fit to espeak's own timing."""
    pauses = sum(verse.spoken.count(mark) for mark in ",;:.?!")
    return 0.25 + (42.3 * pauses + 8.0 * len(verse.spoken)) / rate


def _row(verse: Verse, speaker: str, part: str, seed: int) -> Utterance:
    """Draws the recording conditions of one verse; they depend on the verse, its part and `seed` only."""
    entropy = (seed, _PARTS.index(part), verse.verse_id)
    rng = np.random.default_rng(entropy)
    lead, tail = rng.uniform(0.05, 0.2, 2)
    return Utterance(
        utt=f"{speaker}-{verse.verse_id:08d}",
        texts=(verse.spoken,),
        voices=(espeak_voice(speaker),),
        rate=int(rng.integers(145, 201)),
        pitch=int(rng.integers(38, 63)),
        level=round(float(rng.uniform(-32, -20)), 2),
        noise=NOISES[rng.integers(len(NOISES))],
        snr=round(float(rng.uniform(10, 20)), 2),
        lead=round(float(lead), 3),
        tail=round(float(tail), 3),
        seed=(*entropy, 1),
    )


def _speakers(part: str, seed: int) -> Iterator[str]:
    """The voices of a part for ever, in a new random order each round: all are heard equally often."""
    names = VOICES[part].split()
    rng = np.random.default_rng((seed, _PARTS.index(part)))
    while True:
        yield from (names[index] for index in rng.permutation(len(names)))


def plan_train(verses: Sequence[Verse], hours: float, seed: int) -> list[tuple[Verse, Utterance]]:
    """Chooses verses at random until they last about `hours`; more hours only append to the list.

    Raises:
        BadInput: more hours than there are verses for.
    """
    order = np.random.default_rng((seed, 99)).permutation(len(verses))
    speakers = _speakers("train", seed)
    plan: list[tuple[Verse, Utterance]] = []
    seconds = 0.0
    for index in order:
        if seconds >= 3600 * hours:
            return plan
        row = _row(verses[index], next(speakers), "train", seed)
        seconds += _seconds(verses[index], row.rate)
        plan.append((verses[index], row))
    if seconds < 3600 * hours:
        raise BadInput(f"--hours {hours:g}: the training books give {seconds / 3600:.1f}; ask for fewer")
    return plan


def plan_held_out(split: Split, part: str, size: int | None, seed: int) -> list[tuple[Verse, Utterance]]:
    """All verses of a held-out part that are fit for audio, or `size` of them, evenly spread."""
    verses = split.spoken
    if size is not None:
        verses = [verses[index] for index in np.linspace(0, len(verses) - 1, size).astype(int)]
    speakers = _speakers(part, seed)
    return [(verse, _row(verse, next(speakers), part, seed)) for verse in verses]


def plan_babble(verses: Sequence[Verse], seed: int) -> list[Utterance]:
    """Tracks of several training voices that speak training verses at once."""
    names = VOICES["train"].split()
    rows = []
    for track in range(_BABBLE_TRACKS):
        rng = np.random.default_rng((seed, 77, track))
        texts = []
        for _ in range(_TALKERS):
            start, text = int(rng.integers(len(verses) - _BABBLE_WORDS)), ""
            while len(text.split()) < _BABBLE_WORDS:
                text, start = f"{text} {verses[start].spoken}", start + 1
            texts.append(text.strip())
        voices = [espeak_voice(names[index]) for index in rng.choice(len(names), _TALKERS, replace=False)]
        rows.append(Utterance(f"babble-{track}", tuple(texts), tuple(voices), 170, 50, -26.0))
    return rows


def _synthesize(directory: Path, rows: Sequence[Utterance], tracks: Sequence[Path], nj: int, what: str) -> None:
    """Makes the files of `rows` that are missing and removes others, left by a run with other options."""
    directory.mkdir(parents=True, exist_ok=True)
    expected = {f"{row.utt}.flac" for row in rows}
    for path in directory.iterdir():
        if path.name not in expected:
            path.unlink()
    size = 1 if len(rows) <= _BABBLE_TRACKS else _CHUNK
    chunks = [Chunk(directory, tuple(rows[start : start + size]), tuple(tracks)) for start in range(0, len(rows), size)]
    for _ in progress(map_processes(synthesize_chunk, chunks, nj), len(chunks), f"{what} (chunks of {size})"):
        pass


Plan = dict[str, list[tuple[Verse, Utterance]]]


def _plan(corpus_dir: Path | None, smoke: bool, seed: int, hours: float | None) -> tuple[Plan, dict[str, Split]]:
    """What is to be spoken in each part, and all verses of the parts."""
    if corpus_dir is not None:
        raise BadInput(f"--corpus-dir {corpus_dir}: mini makes its own corpus; leave the option out")
    if hours is None:
        hours = _SMOKE_HOURS if smoke else HOURS
    if not hours > 0:
        raise BadInput(f"--hours {hours:g}: expected a number above 0")
    splits = split_verses(read_verses(), SHORTEST, LONGEST)
    plans = {"train": plan_train(splits["train"].spoken, hours, seed)}
    for part in ("dev", "test"):
        plans[part] = plan_held_out(splits[part], part, _SMOKE_SIZES[part] if smoke else None, seed)
    return plans, splits


def check(*, corpus_dir: Path | None = None, smoke: bool = False, seed: int = 0, hours: float | None = None) -> str:
    """Reads the text and plans what is to be spoken, without speaking it; returns a summary.

    Raises:
        BadInput: a corpus folder, or hours that the text cannot give.
    """
    plans, _ = _plan(corpus_dir, smoke, seed, hours)
    said = (
        f"{part} {len(plan)} utterances, {sum(len(verse.words) for verse, _ in plan)} words"
        for part, plan in plans.items()
    )
    return "synthetic speech, to be made: " + "; ".join(said)


def prepare(
    out: Path,
    *,
    corpus_dir: Path | None = None,
    smoke: bool = False,
    nj: int = 1,
    seed: int = 0,
    hours: float | None = None,
) -> str:
    """Makes the corpus in `out`; a killed call is simply repeated. The files are the same whatever `nj`.

    Args:
        out: folder of the data.
        corpus_dir: must be None, nothing is read from outside.
        smoke: a tiny version: 6 minutes of training audio, 20 + 40 utterances, every 24th line of the LM text.
        nj: processes.
        seed: seeds verse order, voices, rates, levels and noise.
        hours: hours of training audio, by default 2.5 (0.1 with `smoke`).

    Returns:
        A one-line summary.
    """
    plans, splits = _plan(corpus_dir, smoke, seed, hours)
    audio = out / "audio"
    babble = plan_babble(splits["train"].spoken, seed)
    _synthesize(audio / "babble", babble, [], nj, "babble")
    tracks = [audio / "babble" / f"{row.utt}.flac" for row in babble]
    for part, plan in plans.items():
        _synthesize(audio / part, [row for _, row in plan], tracks, nj, f"{part} audio")
    return _write_manifests(out, plans, splits, _SMOKE_TEXT if smoke else 1)


def _write_manifests(out: Path, plans: Plan, splits: dict[str, Split], every: int) -> str:
    """Writes manifests and LM text (each `every`-th verse) and returns the summary."""
    from mpq.data.manifests import (
        Spoken,
        write_lines,
        write_manifests,
    )

    said = []
    for part, plan in plans.items():
        write_lines(out / "lm" / f"{part}.txt", [verse.words for verse in splits[part].text[::every]])
        utterances = [
            Spoken(
                row.utt,
                row.utt.rpartition("-")[0],
                out / "audio" / part / f"{row.utt}.flac",
                " ".join(verse.words),
            )
            for verse, row in plan
        ]
        cuts = write_manifests(out / part, utterances, RATE)
        hours = sum(cut.duration for cut in cuts) / 3600
        words = sum(len(verse.words) for verse, _ in plan)
        said.append(f"{part} {len(cuts)} utterances, {hours:.2f} h, {words} words")
    return "synthetic speech: " + "; ".join(said)
