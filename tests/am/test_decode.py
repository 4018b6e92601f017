"""Decoding a set: the same files for any number of processes, after a kill, and with what another run left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq.am import decode
from mpq.am.decode import SPEED, decode_set
from mpq.data.batches import Batch
from mpq.fst.decoder import Decoded, Decoder, DecoderConfig
from mpq.fst.graph import build_graph
from mpq.io import read_lattices, read_nbest, read_symbols, read_text, read_yaml
from mpq.lang.arpa import read_arpa
from mpq.lang.lexicon import Lexicon
from mpq.lang.ngram import train_ngram

LEXICON = Lexicon({"yes": [["a", "b"]], "no": [["c"], ["c", "a"]], "go": [["b", "c"]]})
TEXTS = ["yes", "no go", "go go yes", "no", "yes no yes", "go", ""]


class Spelled(nn.Module):
    """An acoustic model whose features are already the log-probabilities of its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return (features + self.unused).log_softmax(-1), lengths


class Features:
    """What `decode_set` uses of a `FeatureSet`: noisy frames of phone after phone, with blanks between."""

    has_texts = True

    def __init__(self, n_utts: int) -> None:
        rng = np.random.default_rng(0)
        self.texts = [TEXTS[i % len(TEXTS)] for i in range(n_utts)]
        self.utts = [f"utt-{i:03d}" for i in range(n_utts)]
        self._frames = []
        for text in self.texts:
            phones = [p for word in text.split() for p in LEXICON.pronunciations(word)[0]]
            labels = [0, *(label for phone in phones for label in (phone, phone, 0))]
            frames = rng.normal(size=(len(labels), 4)).astype(np.float32)
            frames[np.arange(len(labels)), labels] += 6
            self._frames.append(torch.from_numpy(frames))
        self.lengths = np.array([len(frames) for frames in self._frames])

    def __len__(self) -> int:
        return len(self.utts)

    def batch(self, indexes: list[int]) -> Batch:
        padded = nn.utils.rnn.pad_sequence([self._frames[i] for i in indexes], batch_first=True)
        lengths = torch.from_numpy(self.lengths[indexes])
        return Batch(padded, lengths, [self.texts[i] for i in indexes], [self.utts[i] for i in indexes], [])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("lang")
    LEXICON.write(folder)
    train_ngram([text.split() for text in TEXTS if text], folder / "lm.arpa", 2)
    graph = build_graph(LEXICON, folder, folder / "lm.arpa")
    return Decoder(graph, read_arpa(folder / "lm.arpa"), read_symbols(folder / "words.txt"), DecoderConfig())


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PART", 5)


def contents(folder: Path) -> dict[str, bytes]:
    """Its files, but for the one that no two runs have alike."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != SPEED}


def test_files_hold_the_words_and_their_scores(decoder: Decoder, tmp_path: Path) -> None:
    features = Features(13)
    summary = decode_set(Spelled(), features, decoder, tmp_path, "key", 1)  # type: ignore[arg-type]
    assert set(contents(tmp_path)) == {"nbest.jsonl.gz", "lat.gz", "hyp.txt", "warnings.jsonl"}
    assert read_text(tmp_path / "hyp.txt") == dict(zip(features.utts, map(str.split, features.texts), strict=True))
    assert (summary.utts, summary.errors, summary.warnings) == (13, 0, 0)
    audio = float(features.lengths.sum()) / 100
    assert read_yaml(tmp_path / SPEED) == {"am_seconds": round(summary.am_seconds, 3), "audio_seconds": round(audio, 2)}
    assert summary.am_rtf == summary.am_seconds / audio > 0
    nbests = list(read_nbest(tmp_path / "nbest.jsonl.gz"))
    assert [nbest.utt for nbest in nbests] == features.utts
    assert sum(len(nbest.hyps) for nbest in nbests) == summary.hyps > 26
    assert [lattice.utt for lattice in read_lattices(tmp_path / "lat.gz")] == features.utts


def test_a_space_that_is_part_of_a_word_in_the_reference(decoder: Decoder, tmp_path: Path) -> None:
    """It is one word there for `mpq score` too."""
    features = Features(7)
    n_words = sum(len(text.split()) for text in features.texts)
    features.texts = [text.replace("go", "go\u3000on") for text in features.texts]
    summary = decode_set(Spelled(), features, decoder, tmp_path, "key", 1)  # type: ignore[arg-type]
    assert (summary.errors, summary.words) == (4, n_words)


def test_number_of_processes_changes_nothing(decoder: Decoder, tmp_path: Path) -> None:
    for nj in (1, 2, 3):
        decode_set(Spelled(), Features(13), decoder, tmp_path / str(nj), "key", nj)  # type: ignore[arg-type]
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


@pytest.mark.parametrize(("held", "portions"), [(1 << 30, [8, 1]), (0, [2, 2, 2, 2, 1])])
def test_a_gpu_scores_some_parts_at_a_time(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, portions: list[int]
) -> None:
    """Scored in this process, searched by two others; as many as memory is given for, at least one for each."""
    features = Features(9)
    monkeypatch.setattr(decode, "PART", 1)
    decode_set(Spelled(), features, decoder, tmp_path / "cpu", "key", 2)  # type: ignore[arg-type]
    monkeypatch.setattr(decode._Job, "on_gpu", True)
    monkeypatch.setattr(decode, "_HELD", held)
    sizes, run = [], decode.map_processes

    def watched(function: Callable[[int], None], parts: list[int], nj: int) -> Iterator[None]:
        sizes.append(len(parts))
        return run(function, parts, nj)

    monkeypatch.setattr(decode, "map_processes", watched)
    decode_set(Spelled(), features, decoder, tmp_path / "gpu", "key", 2)  # type: ignore[arg-type]
    assert sizes == portions
    assert contents(tmp_path / "gpu") == contents(tmp_path / "cpu")


def test_killed_run_continues_and_other_settings_begin_anew(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Features(13)
    decode_set(Spelled(), features, decoder, tmp_path / "whole", "key", 1)  # type: ignore[arg-type]
    asked: list[str] = []

    class Killed(Decoder):
        def __init__(self) -> None:
            self.__dict__ = dict(decoder.__dict__)

        def decode(self, utt: str, log_probs: object) -> Decoded:
            asked.append(utt)
            if limit and len(asked) > limit:
                raise KeyboardInterrupt
            return super().decode(utt, log_probs)  # type: ignore[arg-type]

    limit, out = 8, tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        decode_set(Spelled(), features, Killed(), out, "key", 1)  # type: ignore[arg-type]
    assert not (out / "nbest.jsonl.gz").exists()
    limit = 0
    asked.clear()
    decode_set(Spelled(), features, Killed(), out, "key", 1)  # type: ignore[arg-type]
    assert sorted(asked) == features.utts[5:]  # the first part was kept
    assert contents(out) == contents(tmp_path / "whole")

    limit = 8
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        decode_set(Spelled(), features, Killed(), out, "key", 1)  # type: ignore[arg-type]
    limit = 0
    asked.clear()
    decode_set(Spelled(), features, Killed(), out, "another key", 1)  # type: ignore[arg-type]
    assert sorted(asked) == features.utts  # parts of other settings are not used
    assert contents(out) == contents(tmp_path / "whole")


def test_utterance_without_a_path_is_told_and_has_no_words(
    decoder: Decoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = Features(6)
    features._frames[3] = features._frames[3][:0]
    features.lengths[3] = 0
    summary = decode_set(Spelled(), features, decoder, tmp_path, "key", 1)  # type: ignore[arg-type]
    assert summary.warnings == 1 and summary.errors == len(features.texts[3].split())
    assert "warning: utterance utt-003: no path survived" in capsys.readouterr().err
    assert read_text(tmp_path / "hyp.txt")["utt-003"] == []
    assert "utt-003" not in [lattice.utt for lattice in read_lattices(tmp_path / "lat.gz")]
    features.has_texts = False
    said = str(decode_set(Spelled(), features, decoder, tmp_path, "key", 1))  # type: ignore[arg-type]
    assert "no transcripts, 1 warnings" in said and "WER" not in said
