"""AMI: what is made of the corpus, and what is said of one that is not whole."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import load_manifest, validate

from local import ami
from local.nxt import Token, split_sentences
from mpq.data.manifests import Spoken
from mpq.io import BadInput, read_lines, read_text
from mpq.lang.lexicon import build_lexicon, read_cmudict, read_dictionary
from mpq.score import TimedSet, TimedWord, run_hubscr
from mpq.score.glm import read_glm
from mpq.score.stm import read_stm
from tests.corpora.ami import MEETINGS, zip_annotations

MANUAL = "ami_public_manual_1.6.2"
CONF = Path(__file__).parents[2] / "egs" / "ami" / "conf"


@pytest.fixture
def corpus(ami_dir: Path, tmp_path: Path) -> Path:
    """A copy to damage: audio files are links."""

    def copy(source: str, target: str) -> None:
        (os.symlink if source.endswith(".wav") else shutil.copyfile)(source, target)

    shutil.copytree(ami_dir, tmp_path / "amicorpus", copy_function=copy)
    return tmp_path / "amicorpus"


@pytest.fixture(scope="module")
def data(ami_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is prepared of the headsets (read it only)."""
    out = tmp_path_factory.mktemp("data")
    said = ami.prepare(out, corpus_dirs=[ami_dir], partial=True)
    assert said.startswith("train 38 utterances, ") and "9 speakers; dev 14 utterances" in said
    assert said.endswith("; 1 moved to the end of the speaker's last")
    return out


def test_every_headset_has_its_own_speaker(data: Path) -> None:
    for part, meetings in (("train", {"ES2002a", "EN2001a"}), ("dev", {"ES2011a"}), ("eval", {"ES2004a"})):
        cuts = load_manifest(data / part / "cuts.jsonl.gz")
        validate(cuts)
        seen = set()
        for cut in cuts:
            _, meeting, headset, speaker, *times = cut.id.split("_")
            number = int(headset[1:])
            assert cut.supervisions[0].speaker == speaker == MEETINGS[meeting][number]
            assert cut.recording.sources[0].source.endswith(f"/{meeting}.Headset-{number}.wav")
            moved = round(100 * cut.start) - int(times[0])
            assert round(100 * cut.end) == int(times[1]) and moved == (20 if speaker == "FEE041" and moved else 0)
            seen.add((meeting, number))
        assert seen == {(meeting, number) for meeting in meetings for number in range(len(MEETINGS[meeting]))}


def test_speech_lies_where_the_segments_say(data: Path) -> None:
    for cut in list(load_manifest(data / "dev" / "cuts.jsonl.gz"))[:4]:
        whole = cut.recording.load_audio()[0]
        rest = np.delete(whole, slice(int(cut.start * 16000), int(cut.end * 16000)))
        assert np.mean(cut.load_audio() ** 2) > 2 * np.mean(rest**2)


def test_text_is_normalized_as_kaldi_does(data: Path) -> None:
    texts = [" ".join(words) for part in ("train", "dev", "eval") for words in read_text(data / part / "text").values()]
    words = {word for text in texts for word in text.split()}
    assert {"mm-hmm", "um", "t.", "v."} <= words  # hesitations are words, initials have full stops
    assert not [text for text in texts if text != text.lower() or "laugh" in text or "," in text or text.endswith(" .")]
    assert any(text.endswith("on the t. v.") for text in texts)  # sentences are split at full stops
    assert any((len(text.split()) > 6 and " hea heavy " in text) or " gre green " in text for text in texts)
    assert [ami.normalize(word) for word in ("I'm", "L_C_D_", "O_K_", "Uh-huh", "anti-trust", "-", "s\u00e9ance")] == [
        "i'm",
        "l. c. d.",
        "ok",
        "uh-huh",
        "anti trust",
        "",
        "seance",
    ]


@pytest.mark.parametrize(
    ("word", "spelled"),
    [
        ("X_M_L_", "x. m. l."),
        ("X_M_L", "x. m. l."),
        ("X_M_L's", "x. m. l.'s"),
        ("X_M_L_'s", "x. m. l.'s"),
        ("D_V_D_s", "d. v. d.s"),
        ("D_V_Ds'", "d. v. d.s"),
        ("U_S_S_", "u. s. s."),
        ("U_S_S", "u. s. s."),
        ("M_P_three", "m. p. three"),
        ("M_P_3-player", "m. p. 3 player"),
        ("T_V-like", "t. v. like"),
        ("remote_control", "remote control"),
        ("O_K", "ok"),
        ("Mm-hm", "mm-hmm"),
        ("'", ""),
        ("it '", "it"),
        ("'Kay", "'kay"),
    ],
)
def test_words_have_one_spelling(word: str, spelled: str) -> None:
    assert ami.normalize(word) == spelled


def test_hums_and_letters_are_pronounced_by_the_recipes_dictionary() -> None:
    words = ["mm-hmm", "mmm", "tch", "uh-huh", "hmm", "x.", "l.'s", "d.s", "f.s", "v.'ll"]
    dictionaries = [read_dictionary(CONF / "dict.txt"), read_cmudict()]
    lexicon, guessed = build_lexicon(words, dictionaries)
    assert guessed == [] and len(lexicon.phones) == 39, "no phone that CMUdict does not have"

    def said(word: str) -> list[str]:
        return [" ".join(lexicon.phones[p - 1] for p in variant) for variant in lexicon.pronunciations(word)]

    assert said("mm-hmm") == ["M HH M", "AH M HH AH M"] and said("mmm") == ["M"] and said("tch") == ["T"]
    assert said("l.'s") == ["EH L Z"] and said("f.s") == ["EH F S"] and said("v.'ll") == ["V IY AH L"]
    assert "CMUdict" in (CONF / "dict.txt").read_text().splitlines()[0], "comments are no words"
    assert not [word for word in dictionaries[0] if not word[0].isalnum() and word[0] != "'"]


def test_spellings_of_one_word_are_scored_as_one() -> None:
    glm = read_glm(CONF / "ami.glm", "ctm")
    for spelling in ("um-hum", "uh-hum", "mhm", "mm-hm", "mm hm", "mm hmm"):
        assert glm.apply(f"so {spelling} it") == glm.apply("so mm-hmm it")
    assert glm.apply("so mm it") != glm.apply("so mm-hmm it")


def test_reference_and_language_model_text(data: Path) -> None:
    segments = read_stm(data / "dev" / "stm")
    texts = read_text(data / "dev" / "text")
    assert sorted(segment.text for segment in segments) == sorted(" ".join(words) for words in texts.values())
    assert {segment.recording for segment in segments} == {f"AMI_ES2011a_H{number:02d}" for number in range(4)}
    times = sorted((segment.start, segment.end) for segment in segments)
    assert any(first[1] > second[0] for first, second in pairwise(times))  # people overlap
    for part in ("train", "dev", "eval"):
        assert len(list(read_lines(data / "lm" / f"{part}.txt"))) == len(read_text(data / part / "text"))


def test_fisher_adds_to_the_language_model_text(ami_dir: Path, data: Path, tmp_path: Path) -> None:
    assert (data / "lm" / "fisher.txt").read_text() == ""
    assert (data / "lm" / "train.txt").read_bytes() == (data / "lm" / "ami.txt").read_bytes()
    transcript = tmp_path / "LDC2004T19" / "data" / "trans" / "000" / "fe_03_00001.txt"
    transcript.parent.mkdir(parents=True)
    transcript.write_text(
        "# fe_03_00001.sph\n\n1.00 2.00 A: we watched t._v. [laughter]\n\n2.50 3.00 B: i see\n"
        "3.10 3.50 A: mhm mm-hm hmm mm twenty-two c._n._n.'s a b\n"
    )
    folders = [ami_dir, tmp_path / "LDC2004T19"]
    said = ami.prepare(tmp_path / "out", corpus_dirs=folders, partial=True)
    lines = (tmp_path / "out" / "lm" / "train.txt").read_text().splitlines()
    assert said.endswith("; 3 sentences of Fisher") and lines[-3:-1] == ["we watched t. v.", "i see"]
    assert lines[-1] == "mm-hmm mm-hmm hmm mm twenty two c. n. n.'s a b.", "words that AMI's references hold"
    assert lines[:-3] == (data / "lm" / "ami.txt").read_text().splitlines()
    with pytest.raises(BadInput, match="Fisher: transcripts: 1, expected 11699"):
        ami.check(corpus_dirs=folders)


def test_distant_microphone(ami_dir: Path, data: Path, tmp_path: Path) -> None:
    ami.prepare(tmp_path, corpus_dirs=[ami_dir], mic="sdm", partial=True)
    near, far = (load_manifest(folder / "dev" / "cuts.jsonl.gz") for folder in (data, tmp_path))
    assert sorted((cut.start, cut.supervisions[0].speaker) for cut in near) == sorted(
        (cut.start, cut.supervisions[0].speaker) for cut in far
    )
    assert {cut.recording.sources[0].source.rsplit("/", 1)[1] for cut in far} == {"ES2011a.Array1-01.wav"}
    with pytest.raises(BadInput, match=r"no beamformed files \(MEETING_MDM8.wav\): .*BeamformIt.* or use --mic sdm"):
        ami.check(corpus_dirs=[ami_dir], mic="mdm", partial=True)
    with pytest.raises(BadInput, match="--mic far: expected ihm, sdm, mdm"):
        ami.check(corpus_dirs=[ami_dir], mic="far")


def test_beamformed_files_and_a_zip_in_folders_of_their_own(corpus: Path, tmp_path: Path) -> None:
    for meeting in MEETINGS:
        source = (corpus / meeting / "audio" / f"{meeting}.Array1-01.wav").resolve()
        target = tmp_path / "beamformed" / meeting / f"{meeting}_MDM8.wav"
        target.parent.mkdir(parents=True)
        target.symlink_to(source)
    (tmp_path / "manual").mkdir()
    shutil.move(zip_annotations(corpus / MANUAL), tmp_path / "manual")
    said = ami.check(corpus_dirs=[tmp_path / "beamformed", tmp_path / "manual"], mic="mdm", partial=True)
    assert said.startswith("train 38 utterances")
    assert [path.name for path in (tmp_path / "manual").iterdir()] == [f"{MANUAL}.zip"]  # nothing is unpacked beside it
    with pytest.raises(BadInput, match=r"has no ami_public_manual_1.6.2 \(folder or .zip\)"):
        ami.check(corpus_dirs=[corpus])


def test_a_missing_headset_shifts_nobody(corpus: Path, tmp_path: Path) -> None:
    (corpus / "ES2011a" / "audio" / "ES2011a.Headset-1.wav").unlink()
    ami.prepare(tmp_path / "out", corpus_dirs=[corpus], partial=True)
    cuts = load_manifest(tmp_path / "out" / "dev" / "cuts.jsonl.gz")
    pairs = {(cut.recording_id[-3:], cut.supervisions[0].speaker) for cut in cuts}
    people = MEETINGS["ES2011a"]
    assert pairs == {(f"H{number:02d}", people[number]) for number in (0, 2, 3)}


def test_everything_that_is_wrong_in_one_message(corpus: Path) -> None:
    words = corpus / MANUAL / "words"
    broken = words / "ES2002a.A.words.xml"
    lines = broken.read_text().splitlines(True)
    broken.write_text("".join(lines[:7]) + '   <w nite:id="ES20')
    (words / "ES2004a.B.words.xml").unlink()
    wav = corpus / "EN2001a" / "audio" / "EN2001a.Headset-2.wav"
    data = wav.read_bytes()
    wav.unlink()
    wav.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput) as error:
        ami.check(corpus_dirs=[corpus], partial=True)
    message = str(error.value)
    assert "\n" not in message
    for expected in (
        f"{broken}:8: not well-formed XML (unclosed token)",
        f"recording AMI_EN2001a_H02: {wav}: truncated: its header promises",
    ):
        assert expected in message
    with pytest.raises(BadInput, match=r"666 of 683 headset files missing: ES2002b.Headset-0.wav") as error:
        ami.check(corpus_dirs=[corpus])
    assert "1 annotation files missing: words/ES2004a.B.words.xml" in str(error.value)
    assert str(error.value).endswith("fetch again what is missing or broken (--partial: take what is there)")


def test_oddities_of_real_corpora_are_taken_as_they_are(
    corpus: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segments = corpus / MANUAL / "segments" / "ES2011a.C.segments.xml"
    segments.write_text(segments.read_text().replace("words0)", "words999)", 1))
    wav = corpus / "ES2011a" / "audio" / "ES2011a.Headset-1.wav"
    samples, rate = soundfile.read(wav, dtype="int16")
    wav.unlink()
    soundfile.write(wav, np.stack([samples, samples // 2], axis=1), rate)
    ami.prepare(tmp_path / "out", corpus_dirs=[corpus], partial=True)
    assert "1 segments point at words that are not there" in capsys.readouterr().err
    assert (tmp_path / "out" / "dev" / "stm").read_text() == (data / "dev" / "stm").read_text()
    for cut, before in zip(
        *(load_manifest(folder / "dev" / "cuts.jsonl.gz") for folder in (tmp_path / "out", data)), strict=True
    ):
        assert np.array_equal(cut.load_audio(), before.load_audio())


def test_segments_after_the_end_of_the_audio(tmp_path: Path) -> None:
    item = Spoken("u1", "s", tmp_path / "a.wav", "so it is", "a", 9.0, 9.9)
    items = [item, replace(item, utt="u2", end=11.0), replace(item, utt="u3", start=10.5, end=11.0)]
    items += [replace(item, utt="u4", end=9.02), replace(item, utt="u5", start=16.0, end=17.0)]
    corpus, checks = ami.Corpus({}, {}), ami.Checks()
    kept = ami._fit(items, {item.audio: 160000}, corpus.notes, checks)
    assert [(kept_item.utt, kept_item.end) for kept_item in kept] == [("u1", 9.9), ("u2", 10.0)]
    assert corpus.notes == {
        "cut at the end of the audio": 1,
        "left out, after the end of the audio": 2,
        "left out, too short": 1,
    }
    assert checks.warnings == ["the audio ends before the transcript, by up to 7 s: a"]


def test_utterances_of_one_speaker_never_overlap(ami_dir: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """asclite refuses it, and so does our own scorer where it is no headset."""
    ami.check(corpus_dirs=[ami_dir], mic="sdm", partial=True)
    said = capsys.readouterr().err
    assert re.search(
        r"1 of 14 utterances of dev [\w' ]+, the start is moved to its end: AMI_ES2011a_SDM_FEE041_\d+_", said
    )
    segments = read_stm(data / "dev" / "stm")
    for first, second in pairwise(sorted(segments, key=lambda item: (item.recording, item.speaker, item.start))):
        assert first.recording != second.recording or first.end <= second.start
    moved = [
        cut for cut in load_manifest(data / "dev" / "cuts.jsonl.gz") if int(cut.id[-15:-8]) != round(100 * cut.start)
    ]
    assert [cut.supervisions[0].text for cut in moved] == ["i am sure"], "its id has the times of the annotation"


def test_asclite_scores_distant_microphones(sctk_bin: Path, ami_dir: Path, tmp_path: Path) -> None:
    """Everybody speaks on one channel; the reference as recognized words has hardly an error."""
    ami.prepare(tmp_path, corpus_dirs=[ami_dir], mic="sdm", partial=True)
    words = []
    for item in (segments := read_stm(tmp_path / "dev" / "stm")):
        step = (item.end - item.start) / len(item.text.split())
        said = enumerate(item.text.split())
        words += [TimedWord(item.recording, "A", item.start + n * step, 0.9 * step, word) for n, word in said]
    result = run_hubscr(sctk_bin, TimedSet(segments, words), overlap=4)["sum"]
    hyphens = sum(word.word.count("-") for word in words)  # mm-hmm is scored as two words
    assert result.words == len(words) + hyphens and result.errors <= 2


def test_what_is_too_short_after_that_is_left_out(tmp_path: Path) -> None:
    def said(utt: str, start: float, end: float, speaker: str = "s") -> Spoken:
        return Spoken(utt, speaker, tmp_path / "a.wav", "so it is", "a", start, end)

    items = [said("u1", 1, 5), said("u2", 4.5, 6), said("u3", 2, 5.02), said("u4", 2, 3, "other"), said("u5", 5.99, 7)]
    notes, checks = ami.Corpus({}, {}).notes, ami.Checks()
    kept = ami._separate("dev", [*items, *(said(f"v{n}", 10 + n, 10.9 + n) for n in range(500))], notes, checks)
    assert [(item.utt, item.start, item.end) for item in kept[:4]] == [
        ("u1", 1, 5), ("u2", 5, 6), ("u4", 2, 3), ("u5", 6, 7)
    ]  # fmt: skip
    assert notes == {"left out, within another of the speaker": 1, "moved to the end of the speaker's last": 2}
    assert checks.problems == [] and checks.warnings == [
        "2 of 505 utterances of dev that begin before their speaker's last one has ended, "
        "the start is moved to its end: first u3, by 3.00 s, left out"
    ]
    ami._separate("dev", items, notes, checks)
    assert checks.problems[0].startswith("2 of 5 utterances of dev that begin before")


def test_long_sentences_are_cut_at_commas() -> None:
    def tokens(text: str) -> list[Token]:
        return [Token(word, word in ".,?", None, None) for word in text.split()]

    def split(text: str, longest: int) -> list[str]:
        return [" ".join(token.text for token in part) for part in split_sentences(tokens(text), longest)]

    text = "a b , c d e , f . g , h ? i"
    assert split(text, 30) == ["a b c d e f", "g h", "i"]
    assert split(text, 4) == ["a b", "c d e f", "g h", "i"]
    assert all(len(part.split()) <= 3 for part in split(text, 3))
    assert split("a b c d e", 3) == ["a b c d e"]  # nowhere to cut
    assert split(", , .", 3) == []
