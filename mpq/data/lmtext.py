"""Text for language models: sentences as unit ids on disk, read back in shuffled batches.

A text is tokenized once into a flat file of ids (`units.bin`) and a file of sentence starts (`starts.bin`).
Training reads it window by window, so memory depends on the window, never on the size of the text.
"""

from __future__ import annotations

import errno
import fcntl
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpq.io import (
    WRITINGS,
    BadInput,
    PathLike,
    atomic_write,
    hash_config,
    is_json,
    progress,
    read_lines,
    sha256_file,
    split_words,
)

WINDOW = 1 << 17  # sentences held in memory and shuffled together
_SAMPLE = 300  # first sentences, which tell whether the units fit a text
MAX_UNITS = 4096  # of one sentence: a whole book on one line is a mistake, and attention is quadratic

Ids = npt.NDArray[np.int64]


class Tokenizer:
    """Turns a sentence into unit ids: sentencepiece (`*.model`) or whole words (any other file).

    A word list is Kaldi's `words.txt` (`word [id]` a line); its own ids, `<eps>` and `#0` are not used.  Ids here
    are `<unk>` 0, `<s>` 1, `</s>` 2, then the words in the order of the file.  Words outside the list
    become `<unk>`.

    Attributes:
        path: the file.
        hash: its sha256; models remember it (`vocab_hash`).
        bos, eos, unk: ids of `<s>`, `</s>`, `<unk>`.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise BadInput(f"{path}: no such file; expected a sentencepiece model or a word list (words.txt)")
        self.hash = sha256_file(self.path)
        if self.path.suffix == ".model":
            self._load_sentencepiece()
        else:
            self._load_words()

    def _load_sentencepiece(self) -> None:
        import sentencepiece

        self.kind = "sentencepiece"
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except Exception as error:
            raise BadInput(f"{self.path}: not a sentencepiece model ({error})") from None
        self.bos, self.eos, self.unk = self._pieces.bos_id(), self._pieces.eos_id(), self._pieces.unk_id()
        if min(self.bos, self.eos, self.unk) < 0:
            raise BadInput(f"{self.path}: has no <s>, </s> or <unk>; train it with bos_id, eos_id and unk_id >= 0")
        self._size = self._pieces.get_piece_size()

    def _load_words(self) -> None:
        self.kind = "words"
        special = {"<eps>", "<s>", "</s>", "<unk>", "<UNK>"}
        self.unk, self.bos, self.eos = 0, 1, 2
        self._ids: dict[str, int] = {}
        for number, line in read_lines(self.path):
            word = next(iter(split_words(line)), "#")
            if word in special or word.startswith("#"):
                continue
            if word in self._ids:
                raise BadInput(f"{self.path}:{number}: '{word}' is there twice; expected distinct words")
            self._ids[word] = len(self._ids) + 3
        if not self._ids:
            raise BadInput(f"{self.path}: holds no word; expected one word a line")
        self._size = len(self._ids) + 3

    def __len__(self) -> int:
        """Number of units, `<unk>`, `<s>` and `</s>` included."""
        return self._size

    def encode(self, text: str) -> list[int]:
        """Unit ids of one sentence, without `<s>` and `</s>`."""
        if self.kind == "words":
            return [self._ids.get(word, self.unk) for word in split_words(text)]
        ids: list[int] = self._pieces.encode(text)
        return ids

    def count_oov(self, text: str) -> int:
        """Words of `text` that are, or for sentencepiece hold, an unknown unit."""
        return sum(self.unk in self.encode(word) for word in split_words(text))


def warn_misfit(tokenizer: Tokenizer, words: Iterable[str], what: str) -> None:
    """Warns on standard error where units were hardly made for the words that they are to cut.

    That is where many words hold unknown units, or where the words would be known, or take fewer units, in another
    case or without punctuation.  Nothing else tells: scores and perplexities are numbers as before.

    Args:
        tokenizer: the units.
        words: of running text, some thousand.
        what: where they come from.
    """
    counts = Counter(words)
    total = max(1, counts.total())

    def cut(change: Callable[[str], str]) -> tuple[float, float]:
        """Part of the words that hold unknown units, and units for each word."""
        units = [(n, tokenizer.encode(change(word))) for word, n in counts.items()]
        unknown = sum(n for n, ids in units if tokenizer.unk in ids)
        return unknown / total, sum(n * len(ids) for n, ids in units) / total

    unknown, n_units = cut(str)
    found = f"{100 * unknown:.0f} % of the words hold what {tokenizer.path} does not know, {n_units:.1f} units a word"
    others = {how: cut(change) for how, change in WRITINGS.items()}
    # rounded: of ways that come to much the same, the simplest
    how = min(others, key=lambda way: (round(others[way][0], 2), round(others[way][1], 1)))
    better, fewer = others[how]
    if better < unknown - 0.05 or (better <= unknown and fewer < 0.7 * n_units):
        word = next(word for word in counts if WRITINGS[how](word) != word)
        advice = f"{how} ('{word}': '{WRITINGS[how](word)}') {100 * better:.0f} % and {fewer:.1f}: convert the text"
        print(f"warning: {what}: {found}; {advice}", file=sys.stderr)
    elif unknown > 0.25:
        print(f"warning: {what}: {found}; is it the text that these units were made for?", file=sys.stderr)


def load_tokenizer(path: PathLike) -> Tokenizer:
    """The tokenizer in `path`, or in a folder's `tokenizer.model` or `words.txt`."""
    path = Path(path)
    if not path.is_dir():
        return Tokenizer(path)
    for name in ("tokenizer.model", "words.txt"):
        if (path / name).exists():
            return Tokenizer(path / name)
    raise BadInput(f"{path}: has neither tokenizer.model nor words.txt; name the LM's unit file by --tokenizer")


@dataclass(slots=True)
class LmBatch:
    """Sentences side by side, padded on the right with `</s>` (causal models never see padding before a word).

    Attributes:
        inputs: `<s> u1 ... un`, (N, T) int64.
        targets: `u1 ... un </s>`, (N, T) int64.
        mask: true where `targets` is not padding, (N, T) bool.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> LmBatch:
        """The same batch on `device`."""
        return LmBatch(self.inputs.to(device), self.targets.to(device), self.mask.to(device))


def pad_sentences(sentences: list[list[int]], bos: int, eos: int) -> LmBatch:
    """One batch of sentences given as unit ids without boundary marks."""
    sizes = np.array([len(ids) for ids in sentences])
    units = np.fromiter(chain.from_iterable(sentences), np.int64, sizes.sum())
    return _pad(units, sizes.cumsum() - sizes, sizes + 1, bos, eos)


def _pad(units: npt.NDArray[np.generic], starts: Ids, lengths: Ids, bos: int, eos: int) -> LmBatch:
    """One batch of the sentences that begin there in `units` and have so many of them, `</s>` included."""
    places = np.arange(lengths.max())
    known = places < lengths[:, None]
    rows = np.full((len(lengths), len(places) + 1), eos)
    rows[:, 0] = bos
    inside = known[:, 1:]
    rows[:, 1:-1][inside] = units[(starts[:, None] + places[:-1])[inside]]
    ids = torch.from_numpy(rows)
    return LmBatch(ids[:, :-1], ids[:, 1:], torch.from_numpy(known))


def cut_by_tokens(lengths: Ids, max_tokens: int) -> list[tuple[int, int]]:
    """Cuts a list that is sorted from long to short into (first, last) runs of at most `max_tokens` padded tokens.

    A sentence longer than `max_tokens` gets a batch of its own.
    """
    cuts: list[tuple[int, int]] = []
    first = 0
    while first < len(lengths):
        last = min(len(lengths), first + max(1, max_tokens // int(lengths[first])))
        cuts.append((first, last))
        first = last
    return cuts


class LmText:
    """A tokenized text on disk.

    Attributes:
        key: identifies text and tokenizer.
        n_sentences, n_units, n_words, n_oov: counts; units without `<s>` and `</s>`.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.key = tokenizer, folder.name
        meta = json.loads((folder / "meta.json").read_text())
        self.n_sentences, self.n_units = int(meta["sentences"]), int(meta["units"])
        self.n_words, self.n_oov = int(meta["words"]), int(meta["oov"])
        self._units, self._starts = folder / "units.bin", folder / "starts.bin"
        self._dtype = _unit_type(tokenizer)

    def _read_window(self, first: int) -> tuple[Ids, npt.NDArray[np.generic]]:
        """Sentence starts, (S + 1,) counted from the window's begin, and units of the window at `first`."""
        count = min(WINDOW, self.n_sentences - first)
        starts: Ids = np.fromfile(self._starts, np.int64, count + 1, offset=first * 8)
        size = int(starts[-1] - starts[0])
        units = np.fromfile(self._units, self._dtype, size, offset=int(starts[0]) * self._dtype.itemsize)
        return starts - starts[0], units

    def n_batches(self, batch_tokens: int) -> int:
        """Batches of an epoch; it does not depend on the shuffling."""
        total = 0
        for first in range(0, self.n_sentences, WINDOW):
            lengths = np.diff(self._read_window(first)[0]) + 1
            total += len(cut_by_tokens(-np.sort(-lengths), batch_tokens))
        return total

    def batches(self, batch_tokens: int, seed: int, epoch: int, skip: int = 0) -> Iterator[LmBatch]:
        """All sentences once, in batches of similar length, in an order that (seed, epoch) fixes.

        Windows of the text come in random order; within a window, sentences of equal length are mixed and
        batches come in random order.

        Args:
            batch_tokens: most tokens of a batch, padding included.
            seed: of the run.
            epoch: from 0.
            skip: leave out the first so many batches; they are not even made.
        """
        rng = np.random.default_rng((seed, epoch))
        for first in rng.permutation(np.arange(0, self.n_sentences, WINDOW)):
            starts, units = self._read_window(int(first))
            lengths = np.diff(starts) + 1
            order = np.lexsort((rng.random(len(lengths)), -lengths))
            cuts = cut_by_tokens(lengths[order], batch_tokens)
            for i in rng.permutation(len(cuts))[skip:]:
                picked = order[slice(*cuts[i])]
                yield _pad(units, starts[picked], lengths[picked], self.tokenizer.bos, self.tokenizer.eos)
            skip = max(0, skip - len(cuts))


def open_lm_text(path: PathLike, tokenizer: Tokenizer, cache_dir: PathLike) -> LmText:
    """The text at `path` (one sentence a line; `.gz` allowed), tokenized into `cache_dir` if not yet there.

    Warns where the text is not one that the units were made for, such as upper case for lower case.

    Raises:
        BadInput: if it holds no sentence, or one of more than 4,096 units, or `cache_dir` cannot be written to.
    """
    if not Path(path).is_file():
        problem = "is a folder" if Path(path).is_dir() else "no such file"
        raise BadInput(f"{path}: {problem}; expected text, one sentence a line")
    lines = list(islice((split_words(line) for _, line in read_lines(path) if not line.isspace()), _SAMPLE))
    if lines and is_json(" ".join(lines[0])):
        raise BadInput(f"{path}: holds JSON; expected text, one sentence a line")
    warn_misfit(tokenizer, chain.from_iterable(lines), str(path))
    key = hash_config({"text": sha256_file(path), "tokenizer": tokenizer.hash, "format": 1})[:16]
    folder = Path(cache_dir) / key
    if not (folder / "meta.json").exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("w") as lock:  # one process tokenizes, others that need the text wait
                with suppress(OSError):  # a file system without locks: each for itself
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if not (folder / "meta.json").exists():
                    _tokenize(Path(path), tokenizer, folder)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            problem = f"{error.strerror}; tokenized text goes there, give a folder to write to by --cache"
            raise BadInput(f"{cache_dir}: {problem}") from None
    return LmText(folder, tokenizer)


def _unit_type(tokenizer: Tokenizer) -> np.dtype[np.generic]:
    return np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)


def _tokenize(path: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `units.bin`, `starts.bin` and, last, `meta.json`."""
    dtype = _unit_type(tokenizer)
    counts = {"sentences": 0, "units": 0, "words": 0, "oov": 0}
    with (
        atomic_write(folder / "units.bin", "wb") as units,
        atomic_write(folder / "starts.bin", "wb") as starts,
    ):
        starts.write(np.int64(0).tobytes())
        for number, line in progress(read_lines(path), what=f"tokenize {path.name}"):
            words = split_words(line)
            if not words:
                continue
            ids = tokenizer.encode(line)
            if len(ids) > MAX_UNITS:
                raise BadInput(f"{path}:{number}: {len(ids)} units; expected one sentence a line, at most {MAX_UNITS}")
            units.write(np.asarray(ids, dtype).tobytes())
            counts["sentences"] += 1
            counts["units"] += len(ids)
            counts["words"] += len(words)
            counts["oov"] += tokenizer.count_oov(line) if tokenizer.unk in ids else 0
            starts.write(np.int64(counts["units"]).tobytes())
        if not counts["sentences"]:
            raise BadInput(f"{path}: holds no sentence; expected text, one sentence a line")
    with atomic_write(folder / "meta.json") as meta:
        json.dump(counts, meta)
