"""A small LibriSpeech with the layout of OpenSLR 12, and the language model files of OpenSLR 11 beside it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from local.espeak import EspeakClient
from local.librispeech import UTTERANCES
from mpq.data.audio import write_flac
from mpq.io import atomic_write
from mpq.lang.lexicon import read_cmudict
from mpq.lang.ngram import train_ngram
from tests.corpora.speech import RATE, add_noise, make_sentences, speak, to_int16, words_of

# Chapters of each speaker and utterances of each chapter
_SIZES = {"train-clean-100": (2, 6), "train-clean-360": (1, 4), "train-other-500": (1, 4)}
_SPEAKERS = {part: 3 if part == "train-clean-100" else 2 for part in UTTERANCES}
_SPEAKER_LINE = ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
_CHAPTER_LINE = ";ID    |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE\n"


def make_librispeech(folder: Path, seed: int = 0) -> Path:
    """Makes ``folder/LibriSpeech`` with all seven parts and ``folder/lm``; returns ``folder/LibriSpeech``.

    Args:
        folder: where to.
        seed: of what is said.
    """
    root, rng = folder / "LibriSpeech", np.random.default_rng(seed)
    sizes = {part: _SIZES.get(part, (1, 4)) for part in UTTERANCES}
    total = sum(_SPEAKERS[part] * chapters * count for part, (chapters, count) in sizes.items())
    sentences = make_sentences(rng, total + 400)
    said = iter(sentences[:total])
    speaker, chapter = 14, 120
    speakers, chapters_text = [_SPEAKER_LINE], [_CHAPTER_LINE]
    with EspeakClient() as client:
        for part, (chapters, count) in sizes.items():
            for _ in range(_SPEAKERS[part]):
                speaker += 5
                speakers.append(f"{speaker:<4} | F | {part:<16} | 0.30  | Reader {speaker}\n")
                for _ in range(chapters):
                    chapter += 7
                    chapters_text.append(f"{chapter:<6} | {speaker} | 0.15 | {part:<16} | 54 | 600 | One | A Book\n")
                    texts = [next(said) for _ in range(count)]
                    _make_chapter(root / part, speaker, chapter, texts, client, rng)
    (root / "SPEAKERS.TXT").write_text("".join(speakers))
    (root / "CHAPTERS.TXT").write_text("".join(chapters_text))
    make_language_files(folder / "lm", sentences[total:])
    return root


def _make_chapter(
    folder: Path, speaker: int, chapter: int, texts: list[str], client: EspeakClient, rng: np.random.Generator
) -> None:
    """``SPK/CHAPTER/{SPK-CHAPTER-NNNN.flac,SPK-CHAPTER.trans.txt}``."""
    name = f"{speaker}-{chapter}"
    for number, text in enumerate(texts):
        samples = add_noise(speak(client, text, speaker), rng)
        write_flac(folder / str(speaker) / str(chapter) / f"{name}-{number:04d}.flac", to_int16(samples), RATE)
    lines = [f"{name}-{number:04d} {text.upper()}\n" for number, text in enumerate(texts)]
    (folder / str(speaker) / str(chapter) / f"{name}.trans.txt").write_text("".join(lines))


def make_language_files(folder: Path, sentences: list[str]) -> None:
    """The files of OpenSLR 11 in upper case, made of `sentences`; n-gram models hold ``<UNK>`` as there."""
    upper = [sentence.upper().split() for sentence in sentences]
    for name, order, prune in (
        ("3-gram.pruned.1e-7.arpa.gz", 3, 0.0),
        ("3-gram.pruned.3e-7.arpa.gz", 3, 3e-4),
        ("4-gram.arpa.gz", 4, 0.0),
    ):
        plain = folder / name.removesuffix(".gz")
        train_ngram(upper, plain, order, prune)
        text = plain.read_text()
        plain.unlink()
        (unigrams,) = (line for line in text.splitlines() if line.startswith("ngram 1="))
        text = text.replace(unigrams, f"ngram 1={int(unigrams[8:]) + 1}", 1)
        text = text.replace("\\1-grams:\n", "\\1-grams:\n-5.0\t<UNK>\n", 1)
        with gzip.open(folder / name, "wt") as file:
            file.write(text)
    words = words_of(sentences)
    (folder / "librispeech-vocab.txt").write_text("".join(f"{word.upper()}\n" for word in words))
    pronunciations = read_cmudict()
    with atomic_write(folder / "librispeech-lexicon.txt") as lexicon:
        for word in words:
            for phones in pronunciations[word]:
                lexicon.write(f"{word.upper()}\t{' '.join(phones)}\n")
    with gzip.open(folder / "librispeech-lm-norm.txt.gz", "wt") as text_file:
        text_file.writelines(" ".join(words) + "\n" for words in upper)
