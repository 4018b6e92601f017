"""librispeech: LibriSpeech, 960 h of read books (OpenSLR 12), with the language models of OpenSLR 11.

--corpus-dir is the folder that holds train-clean-100, dev-clean and so on; the language model files lie in it, in
a folder below it, or in a second --corpus-dir. Everything is lower-cased here, as in all other recipes.

lhotse's own recipe is not used: it leaves out an utterance whose FLAC file is missing (with a warning in a log) and
knows neither lists of speakers and chapters nor language models. Here all that is missing is told, once.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from local.check import Checks, need_folders, shorten
from mpq.data.manifests import Spoken, describe_part, measure_audio, write_lines, write_manifests
from mpq.io import BadInput, atomic_path, atomic_write, open_text, progress, read_lines

RATE = 16000
TRAIN = {
    "100": ("train-clean-100",),
    "460": ("train-clean-100", "train-clean-360"),
    "960": ("train-clean-100", "train-clean-360", "train-other-500"),
}
SETS = ("dev-clean", "dev-other", "test-clean", "test-other")
# Of the distributed corpus: utterances of each part, and words where other recipes state them too.
UTTERANCES = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
WORDS = {"dev-clean": 54402, "dev-other": 50948, "test-clean": 52576, "test-other": 52343}
ARPA, WHOLE_ARPA = "3-gram.pruned.3e-7.arpa", "4-gram.arpa"
LEXICON, VOCABULARY, LM_TEXT = "librispeech-lexicon.txt", "librispeech-vocab.txt", "librispeech-lm-norm.txt.gz"
_HELD_OUT_WORDS = 6  # a held-out sentence this long is taken out of the training text; shorter ones anybody says
_SMOKE_TRAIN, _SMOKE_SET, _SMOKE_TEXT = 120, 16, 20_000
_WHAT = "the folder that holds train-clean-100, dev-clean, test-clean, ..."


@dataclass(frozen=True, slots=True)
class Corpus:
    """What was found and is right.

    Attributes:
        parts: utterances of "train" and of each of `SETS`.
        frames: samples of each file.
        files: the language model files by name.
    """

    parts: dict[str, list[Spoken]]
    frames: dict[Path, int]
    files: dict[str, Path]


def find_root(folders: Sequence[Path]) -> Path:
    """The folder of the parts: one of `folders`, or LibriSpeech in it."""
    need_folders("librispeech", folders, _WHAT)
    for folder in folders:
        for root in (folder, folder / "LibriSpeech"):
            if any((root / part).is_dir() for part in UTTERANCES):
                return root
    raise BadInput(f"--corpus-dir {folders[0]}: holds none of {', '.join(UTTERANCES)}; give {_WHAT}")


def find_files(folders: Sequence[Path], checks: Checks) -> dict[str, Path]:
    """The language model files, in `folders` or one folder further down, packed or not; the 4-gram may be missing."""
    found, missing = {}, []
    for name in (ARPA, WHOLE_ARPA, LEXICON, VOCABULARY, LM_TEXT):
        names = (name, name.removesuffix(".gz")) if name.endswith(".gz") else (name, f"{name}.gz")
        places = (
            path for folder in folders for place in names for path in (folder / place, *folder.glob(f"*/{place}"))
        )
        path = next((place for place in places if place.is_file()), None)
        if path is not None:
            found[name] = path
        elif name == WHOLE_ARPA:
            checks.warn(f"no {names[-1]} (OpenSLR 11): lists are not rescored with it")
        else:
            missing.append(names[-1] if name == ARPA else name)
    checks.missing("language model files (OpenSLR 11)", missing, needed=True)
    return found


def read_index(path: Path, field: int, checks: Checks) -> dict[str, list[str]]:
    """Ids that SPEAKERS.TXT or CHAPTERS.TXT gives for each part; `field` is that of the part."""
    index: dict[str, list[str]] = {}
    if not path.is_file():
        checks.lacking(f"{path}: no such file")
        return index
    # titles and names are in whatever coding; what is read here is ASCII
    for number, line in enumerate(path.read_text(encoding="latin-1").split("\n"), start=1):
        if line.startswith(";") or not line.strip():
            continue
        fields = [value.strip() for value in line.split("|")]
        if len(fields) <= field or not fields[0].isdigit():
            checks.problem(f"{path}:{number}: expected 'ID | ... | PART | ...', found {line[:40]!r}")
            return index
        index.setdefault(fields[field], []).append(fields[0])
    return index


def read_part(root: Path, part: str, checks: Checks) -> list[Spoken]:
    """All utterances of a part, sorted; missing FLAC files and transcripts go to `checks`."""
    items: list[Spoken] = []
    missing: list[str] = []
    unnamed: list[str] = []
    for chapter in sorted((root / part).glob("*/*/")):
        name = f"{chapter.parent.name}-{chapter.name}"
        audio = {path.stem: path for path in sorted(chapter.glob("*.flac"))}
        transcript = chapter / f"{name}.trans.txt"
        if not transcript.is_file():
            missing.append(str(transcript.relative_to(root)))
            continue
        for number, line in read_lines(transcript):
            utt, _, text = line.strip().partition(" ")
            if not utt.startswith(f"{name}-") or not text.strip():
                checks.problem(f"{transcript}:{number}: expected '{name}-NNNN WORDS', found {line[:40]!r}")
            elif utt not in audio:
                missing.append(f"{chapter.relative_to(root)}/{utt}.flac")
            else:
                items.append(Spoken(utt, chapter.parent.name, audio.pop(utt), " ".join(text.lower().split())))
        unnamed += [str(path.relative_to(root)) for path in audio.values()]
    checks.missing(f"files of {part}", missing, len(items) + len(missing), needed=True)
    if unnamed:
        checks.problem(f"{part}: {len(unnamed)} FLAC files have no transcript, the first is {unnamed[0]}")
    return items


def _check_part(root: Path, part: str, items: list[Spoken], checks: Checks) -> None:
    """Counts of a part against what is distributed; where they differ, the lists say which speakers and chapters."""
    if part in WORDS:
        checks.count(f"{part}: words", sum(len(item.text.split()) for item in items), WORDS[part])
    checks.count(f"{part}: utterances", len(items), UTTERANCES[part])
    if len(items) == UTTERANCES[part]:
        return
    chapters = {path.name: path.parent.name for path in (root / part).glob("*/*/")}
    for what, name, field, found in (
        ("speakers", "SPEAKERS.TXT", 2, set(chapters.values())),
        ("chapters", "CHAPTERS.TXT", 3, set(chapters)),
    ):
        listed = read_index(root / name, field, checks).get(part, [])
        missing = [number for number in listed if number not in found]
        checks.missing(f"{what} of {part} that {name} lists", missing, len(listed))
        if listed and (strange := sorted(found - set(listed))):
            checks.problem(f"{part}: holds {what} that {name} does not give to it: {shorten(strange)}")


def check_words(files: dict[str, Path], checks: Checks) -> None:
    """Every word of the vocabulary and of the n-gram model must have a pronunciation."""
    if not {ARPA, LEXICON, VOCABULARY} <= set(files):
        return
    known = {line.split()[0] for _, line in read_lines(files[LEXICON]) if line.strip()}
    vocabulary = [line.strip() for _, line in read_lines(files[VOCABULARY]) if line.strip()]
    for path, words in ((files[VOCABULARY], vocabulary), (files[ARPA], list(_unigrams(files[ARPA])))):
        if not words:
            checks.problem(f"{path}: holds no word")
        lacking = [word for word in words if word not in known]
        checks.missing(f"pronunciations of words of {path} in {files[LEXICON].name}", lacking)


def _unigrams(path: Path) -> Iterator[str]:
    """Words of the first section of an ARPA file; what follows is not read."""
    lines = (line for _, line in read_lines(path))
    for line in itertools.takewhile(lambda line: not line.startswith("\\2-grams"), lines):
        fields = line.split()
        if len(fields) > 1 and fields[0] != "ngram" and fields[1] not in ("<s>", "</s>", "<UNK>", "<unk>"):
            yield fields[1]


def load(folders: Sequence[Path], *, train: str, partial: bool, smoke: bool, nj: int) -> Corpus:
    """Reads and checks everything; raises one `BadInput` for all that is wrong."""
    if train not in TRAIN:
        raise BadInput(f"--train {train}: expected {', '.join(TRAIN)}")
    root = find_root(folders)
    checks = Checks(partial or smoke)
    checks.missing("parts", [part for part in (*TRAIN[train], *SETS) if not (root / part).is_dir()], needed=True)
    files = find_files([root, root.parent, *folders], checks)
    check_words(files, checks)
    parts: dict[str, list[Spoken]] = {"train": []}
    for part in (*TRAIN[train], *SETS):
        if (root / part).is_dir():
            items = read_part(root, part, checks)
            _check_part(root, part, items, checks)
            parts["train" if part in TRAIN[train] else part] = parts["train"] + items if part in TRAIN[train] else items
    if smoke:
        sizes = {part: _SMOKE_TRAIN if part == "train" else _SMOKE_SET for part in parts}
        parts = {part: items[:: -(-len(items) // sizes[part]) or 1] for part, items in parts.items()}
    everything = progress([item for items in parts.values() for item in items], what="audio files")
    frames, problems = measure_audio(everything, RATE, nj)
    checks.extend(problems)
    checks.finish(str(root), "fetch the archives again that hold what is missing or broken")
    return Corpus(parts, frames, files)


def check(
    *, corpus_dirs: Sequence[Path], train: str = "960", partial: bool = False, smoke: bool = False, nj: int = 1
) -> str:
    """Checks the corpus, audio files included, without writing anything; returns a summary.

    Raises:
        BadInput: all that is missing or broken, in one message.
    """
    return _summary(load(corpus_dirs, train=train, partial=partial, smoke=smoke, nj=nj))


def prepare(
    out: Path,
    *,
    corpus_dirs: Sequence[Path],
    train: str = "960",
    partial: bool = False,
    smoke: bool = False,
    nj: int = 1,
) -> str:
    """Writes manifests, n-gram models, lexicon and texts of LibriSpeech to `out`.

    Args:
        out: folder of the data: `train`, the four sets, `lm`. The LM text holds librispeech-lm-norm and the
            training transcripts, without the sentences of dev and test.
        corpus_dirs: the corpus, and where its language model files lie.
        train: hours of training speech: 100, 460 or 960.
        partial: warn of what is missing in a part of the corpus instead of refusing it.
        smoke: some 200 utterances and the beginning of the text; counts are not checked.
        nj: audio files that are looked at at once.

    Returns:
        A one-line summary.

    Raises:
        BadInput: all that is missing or broken, in one message.
    """
    corpus = load(corpus_dirs, train=train, partial=partial, smoke=smoke, nj=nj)
    for part, items in corpus.parts.items():
        write_manifests(out / part, items, RATE, corpus.frames)
    write_arpa(corpus.files[ARPA], out / "lm" / "3-gram.arpa")
    if WHOLE_ARPA in corpus.files:
        write_arpa(corpus.files[WHOLE_ARPA], out / "lm" / "4-gram.arpa.gz")
    with atomic_path(out / "lm" / "lexicon.txt") as temporary:
        shutil.copyfile(corpus.files[LEXICON], temporary)
    removed = _write_texts(corpus, out / "lm", _SMOKE_TEXT if smoke else None)
    return f"{_summary(corpus)}; {removed} held-out sentences taken out of the language model text"


def _summary(corpus: Corpus) -> str:
    return "; ".join(
        describe_part(part, items, sum(corpus.frames[item.audio] for item in items) / RATE)
        for part, items in corpus.parts.items()
    )


def _write_texts(corpus: Corpus, out: Path, limit: int | None) -> int:
    """Writes LM text of train, dev and test, and of the training transcripts alone.

    Args:
        corpus: the corpus.
        out: folder.
        limit: lines of librispeech-lm-norm to take; None for all.

    Returns:
        How many lines of the training text were left out because dev or test has them.
    """
    texts = {part: [item.text for item in items] for part, items in corpus.parts.items()}
    for part in ("dev", "test"):
        write_lines(
            out / f"{part}.txt", [text.split() for name in SETS if name.startswith(part) for text in texts[name]]
        )
    write_lines(out / "transcripts.txt", [text.split() for text in texts["train"]])
    held_out = {text for part in SETS for text in texts[part] if len(text.split()) >= _HELD_OUT_WORDS}
    removed = 0
    with atomic_write(out / "train.txt") as file, open_text(corpus.files[LM_TEXT]) as packed:
        packed.readline()  # a file that is no text or gzip is told before the long way through it
        lines = (line for _, line in itertools.islice(read_lines(corpus.files[LM_TEXT]), limit))
        for line in progress(itertools.chain(texts["train"], lines), what="lines of LM text"):
            text = " ".join(line.lower().split())
            if text in held_out:
                removed += 1
            elif text:
                file.write(text + "\n")
    return removed


def write_arpa(source: Path, target: Path) -> None:
    """Copies an ARPA file in lower case and without n-grams of ``<UNK>``, which is no word that can be said.

    Raises:
        BadInput: the file breaks off, or is no ARPA file.
    """
    counts: dict[str, int] = {}
    section, ended = "", False
    for _, line in read_lines(source):
        if line.startswith("\\"):
            section, ended = line.strip(), line.startswith("\\end\\")
        elif section.endswith("-grams:") and line.strip() and not _is_unknown(line):
            order = section.removeprefix("\\").removesuffix("-grams:")
            counts[order] = counts.get(order, 0) + 1
    if not counts or not ended:
        problem = "breaks off, it has no line \\end\\" if counts else "holds no n-grams"
        raise BadInput(f"{source}: {problem}; fetch it again")
    with atomic_write(target) as file:
        for _, line in read_lines(source):
            if line.startswith("ngram "):
                order = line[6:].partition("=")[0].strip()
                line = f"ngram {order}={counts.get(order, 0)}"
            if not _is_unknown(line):
                file.write(line.lower() + "\n")


def _is_unknown(line: str) -> bool:
    return "<unk>" in line.lower()
