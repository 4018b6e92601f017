"""Switchboard prepared from folders of any names: segments, channels, speakers, splits, texts; what is wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import load_manifest

from local import swbd
from local.check import Checks
from local.fisher import find_fisher, read_fisher
from local.hub5 import spoken
from local.swbd_parts import find_parts, read_speakers, walk
from local.swbd_text import Speller
from mpq.data.sphere import inspect_sphere, read_sphere_channels
from mpq.io import BadInput, read_text
from mpq.score.stm import StmSegment, read_stm
from tests.corpora.sphere import sphere
from tests.corpora.swbd import CALLERS, CALLS


@pytest.fixture(scope="module")
def data(swbd_dirs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    swbd.prepare(out, corpus_dirs=swbd_dirs, partial=True)
    return out


@pytest.fixture
def folders(swbd_dirs: list[Path], tmp_path: Path) -> list[Path]:
    """Copies to break."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in swbd_dirs]


def complaint(folders: list[Path], partial: bool = True) -> str:
    """The one line of `check`."""
    with pytest.raises(BadInput) as error:
        swbd.check(corpus_dirs=folders, partial=partial)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_channels_and_speakers_are_the_right_ones(swbd_dirs: list[Path], data: Path) -> None:
    cuts = [*load_manifest(data / "train" / "cuts.jsonl.gz"), *load_manifest(data / "dev" / "cuts.jsonl.gz")]
    speakers = {(cut.recording_id, cut.channel): cut.supervisions[0].speaker for cut in cuts}
    expected = {(f"sw0{call}", side): f"swbd{CALLERS[call][side]}" for call in CALLS for side in (0, 1)}
    assert speakers == expected
    (source,) = swbd_dirs[0].rglob("sw02010.sph")
    samples, _ = read_sphere_channels(source)
    np.testing.assert_array_equal(soundfile.read(data / "audio" / "sw02010.flac", dtype="int16")[0], samples)
    # speech is where the transcript says, on this side and not on the other
    mine = [cut for cut in cuts if (cut.recording_id, cut.channel) == ("sw02010", 1) and cut.duration > 1]
    loud = [np.sqrt((cut.load_audio() ** 2).mean()) for cut in mine]
    assert len(mine) > 2 and min(loud) > 0.02


def test_turns_overlap_as_people_do(data: Path) -> None:
    cuts = list(load_manifest(data / "train" / "cuts.jsonl.gz"))
    calls = [(cut.recording_id, cut.channel, cut.start, cut.end) for cut in cuts]
    overlaps = [1 for a in calls for b in calls if a[0] == b[0] and a[1] < b[1] and a[2] < b[3] and b[2] < a[3]]
    assert len(overlaps) >= 10


def test_ids_split_and_words(data: Path) -> None:
    dev, train = read_text(data / "dev" / "text"), read_text(data / "train" / "text")
    ids = [*dev, *train]
    assert ids == sorted(ids) and ids[0].startswith("sw02001-A_000050-") and len(dev) == len(ids) // 10
    words = {word for text in train.values() for word in text}
    assert {"i", "b", "m", "weekened", "yuppiedom", "um-hum"} <= words and words & {"wo-", "-cause"}
    assert not any(set(word) & set("[]{}<>_/") or word != word.lower() for word in words)
    held_out = {word for text in dev.values() for word in text}
    assert not any(word.startswith("-") or word.endswith("-") for word in held_out)


def test_language_model_text_is_held_out(data: Path) -> None:
    def lines(name: str) -> list[str]:
        return (data / "lm" / f"{name}.txt").read_text().splitlines()

    texts = {name: lines(name) for name in ("swbd", "fisher", "train", "dev", "test")}
    assert texts["train"] == [*texts["swbd"] * 3, *texts["fisher"]]
    spoken = read_text(data / "train" / "text")
    dev_call = next(iter(read_text(data / "dev" / "text")))[:7]
    others = [words for utt, words in spoken.items() if not utt.startswith(dev_call)]
    # no line of the conversation that dev is from, and of the others every one that is more than a fragment
    assert any(utt.startswith(dev_call) for utt in spoken) and abs(len(texts["swbd"]) - len(others)) <= 2
    long = {line for line in texts["dev"] if len(line.split()) > 9}
    assert long and not long & set(texts["swbd"])
    words = {word for line in texts["train"] for word in line.split()}
    dictionary = {line.split()[0] for line in (data / "dictionary.txt").read_text().splitlines()}
    assert not any(word.startswith("-") or word.endswith("-") for word in words) and "weekend" in words
    assert {word for line in texts["fisher"] for word in line.split()} <= dictionary | set(
        " ".join(texts["swbd"]).split()
    )


def test_segments_of_the_tests_are_those_that_are_scored(swbd_dirs: list[Path], data: Path) -> None:
    for name, channels in (("eval2000", "AB"), ("rt03", "AB")):
        scored = [item for item in read_stm(data / name / "stm") if item.is_scored]
        cuts = {cut.id: cut for cut in load_manifest(data / name / "cuts.jsonl.gz")}
        for item in scored:
            times = f"{round(100 * item.start):06d}-{round(100 * item.end):06d}"
            cut = cuts[f"{item.recording}-{item.channel}_{times}"]
            assert (cut.recording_id, "AB"[cut.channel]) == (item.recording, item.channel)
            assert item.start - 0.101 < cut.start < item.start + 0.001
            assert min(item.end, cut.recording.duration) - 0.001 < cut.end < item.end + 0.101
        assert len(cuts) == len(scored)
        assert {item.channel for item in scored} == set(channels) and (data / name / "glm").stat().st_size > 100
        assert len({cut.supervisions[0].speaker for cut in cuts.values()}) == 4
    stm = (data / "eval2000" / "stm").read_text()
    assert "ASIDE" not in stm and ';; LABEL "sw"' in stm and "IGNORE_TIME_SEGMENT_IN_SCORING" in stm
    assert "inter_segment_gap" not in (data / "rt03" / "stm").read_text()
    assert (data / "rt03" / "stm").read_text().count(';; LABEL "O"') == 1


def test_a_second_run_makes_no_audio_again_and_mends_what_is_cut_off(swbd_dirs: list[Path], data: Path) -> None:
    files = sorted((data / "audio").iterdir())
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])
    before = [path.stat().st_mtime_ns for path in files[2:]]
    swbd.prepare(data, corpus_dirs=swbd_dirs, smoke=True)
    assert files[0].read_bytes() == whole and [path.stat().st_mtime_ns for path in files[2:]] == before


def test_a_small_corpus_is_not_taken_for_the_whole(swbd_dirs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    message = complaint(swbd_dirs, partial=False)
    for expected in (
        ".sph files: 5, expected 2435 or 2438",
        "channels: 4, expected 80",
        "(--partial: ",
    ):
        assert expected in message
    said = swbd.check(corpus_dirs=swbd_dirs, partial=True)
    assert "eval2000" in said and "4 Fisher conversations" in said
    assert "expected 2435 or 2438" in capsys.readouterr().err


def test_folders_that_lack_parts(swbd_dirs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="swbd: no --corpus-dir; give the folders of LDC97S62"):
        swbd.check(corpus_dirs=[])
    message = complaint(swbd_dirs[:1])
    for expected in ("sw-ms98-dict.text", "hub5e_00.pem, hub5e00.english.000405.stm, en20000405_hub5.glm"):
        assert expected in message
    assert "missing: sw0NNNN.sph" in complaint([*swbd_dirs[1:4]])
    (tmp_path / "empty").mkdir()
    assert "4 problems" in complaint([tmp_path / "empty"])


def test_everything_wrong_is_told_at_once(folders: list[Path]) -> None:
    audio = {path.stem: path for path in folders[0].rglob("*.sph")}
    truncated = audio["sw02001"]
    truncated.write_bytes(truncated.read_bytes()[:9000])
    audio["sw02010"].write_bytes(sphere(np.zeros((800, 1), np.int16), 8000, "ulaw"))
    transcript = next(folders[1].rglob("sw2039A-ms98-a-trans.text"))
    transcript.write_text("sw2039A-ms98-a-0001 zero one hello\n")
    late = next(folders[1].rglob("sw2121B-ms98-a-trans.text"))
    late.write_text("sw2121B-ms98-a-0001 0.5 999.0 hello\n")
    fisher = next(folders[5].rglob("fe_03_00001.txt"))
    fisher.write_text("1.0 2.0 C: hello\n")
    message = complaint(folders)
    for expected in (
        f"{truncated}: truncated: its header promises",
        f"{audio['sw02010']}: has 1 channels, expected 2",
        f"{transcript}:1: expected 'utterance start end words'",
        f"{late}:1: from 0.5 to 999 s, but its audio lasts",
        f"{fisher}:1: expected 'start end A: words'",
    ):
        assert expected in message


def test_single_odd_lines_of_the_real_corpora_are_told_and_stop_nothing(
    swbd_dirs: list[Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swbd.check(corpus_dirs=swbd_dirs, partial=True)
    said = capsys.readouterr().err
    files = {path.name: path for folder in swbd_dirs for path in folder.rglob("*.*t*")}
    stm = files["hub5e00.english.000405.stm"]
    for expected in (
        rf"1 of \d+ lines of transcripts [\w ]+, left out: {files['sw2010A-ms98-a-trans.text']}:\d+: from \S+ to ",
        rf"1 of \d+ lines of the dictionary without phones, left out: {files['sw-ms98-dict.text']}:5: 'zyzzyva'; ",
        rf"1 of 250 lines of Fisher [\w ]+, left out: {files['fe_03_00002.txt']}:9: expected 'start end A: words', ",
        rf"1 of 250 lines of Fisher that are not UTF-8, read as Latin-1: {files['fe_03_05851.txt']}:9: '12.10 12.40 B",
        rf"1 of 16 segments of eval2000 [\w ]+, decoded as far as there is audio: {stm}:13: sw_4390 A from ",
        rf"{stm}:10: begins at \S+, before line 7 of the same channel ends at \S+; 1 of 18 segments overlap, ",
    ):
        assert re.search(expected, said), expected
    assert "sw2005" not in said, "silence may go on for as long as it likes"
    cuts = load_manifest(data / "eval2000" / "cuts.jsonl.gz")
    assert [cut.end for cut in cuts if cut.id.startswith("sw_4390-A_001717-")] == [pytest.approx(19.24)]


def test_a_line_that_breaks_off_is_no_utterance_without_words(tmp_path: Path) -> None:
    path = tmp_path / "sw2010A-ms98-a-trans.text"
    path.write_text("sw2010A-ms98-a-0001 0 1 yes\nsw2010A-ms98-a-0002 1 2\nsw2010A-ms98-a-0003 2 3 [silence]\n")
    odd: list[str] = []
    turns = swbd.read_turns(path, "sw02010-A", 9.0, Speller({}), odd)
    assert [turn.said for turn in turns] == [("yes",)]
    assert odd == [f"{path}:2: expected 'utterance start end words', found 'sw2010A-ms98-a-0002 1 2'"]


def test_many_odd_lines_are_a_broken_corpus(folders: list[Path]) -> None:
    """Partial or not, every other line of each kind."""
    for path in folders[1].rglob("*-trans.text"):
        lines = path.read_text().splitlines()
        lines[1::2] = [re.sub(r" \S+ ", " x ", line, count=1) for line in lines[1::2]]
        path.write_text("\n".join(lines))
    dictionary = next(folders[1].rglob("sw-ms98-dict.text"))
    dictionary.write_text(re.sub(r"(?m)^(o\w*) .*", r"\1", dictionary.read_text()))
    for path in folders[5].rglob("fe_03_*.txt"):
        path.write_bytes(path.read_bytes().replace(b" A: ", b" A ").replace(b" he- ", b" caf\xe9 "))
    message = complaint(folders)
    for expected in (
        "transcripts without times",
        "the dictionary",
        "Fisher without times",
        "Fisher that are not UTF-8",
    ):
        assert re.search(rf"\d+ of \d+ lines of {expected}[\w ]*, of which 0.5 % are let pass: ", message), expected


@pytest.mark.parametrize("name", ["eval2000", "rt03"])
def test_references_are_scored_before_anything_is_computed(folders: list[Path], name: str) -> None:
    """What only scoring reads: brackets without a partner, speech of two at once."""
    pattern = "hub5e00.english.000405.stm" if name == "eval2000" else "fsh_60262.stm"
    stm = next(path for folder in folders for path in folder.rglob(pattern))
    lines = stm.read_text().splitlines()
    scored = [n for n, line in enumerate(lines) if "> " in line and "IGNORE" not in line and "gap" not in line]
    lines[scored[1]] += " (UH"
    stm.write_text("\n".join(lines))
    said = complaint(folders)
    assert f"{stm}: line {scored[1] + 1} of the reference: " in said and "parentheses without a partner" in said
    lines[scored[1]] = lines[scored[1]].removesuffix(" (UH")
    fields = lines[scored[-1]].split()
    fields[3] = "1.5"
    stm.write_text("\n".join([*lines, " ".join(fields)]))
    assert re.search(rf"{stm}:\d+: begins at .* of the same channel ends at .*; correct the times", complaint(folders))


def test_what_is_decoded_goes_on_a_little_on_both_sides() -> None:
    """As Kaldi's extend_segments.pl 0.1: to the middle between two segments at most, never beyond the audio."""
    times = [(0.05, 1.0), (1.08, 2.0), (2.0, 3.0), (2.9, 4.0), (5.0, 6.0), (7.0, 9.7)]
    segments = [StmSegment("sw_1", "A", "s", start, end, "SO") for start, end in times]
    segments.append(StmSegment("sw_1", "B", "t", 1.02, 1.06, "YES"))  # the other side hinders nobody
    items = spoken(segments, {"sw_1": Path("sw_1.flac")}, {"sw_1": 9.45})
    assert [(item.start, item.end) for item in items] == [
        (0.0, 1.04), (1.04, 2.0), (2.0, 3.0), (2.9, 4.1), (4.9, 6.1), (6.9, 9.45), (0.92, 1.16)
    ]  # fmt: skip
    assert [items[0].utt, items[-1].utt] == ["sw_1-A_000005-000100", "sw_1-B_000102-000106"]


def test_audio_and_transcripts_must_fit(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    next(folders[0].rglob("sw02010.sph")).unlink()
    next(folders[1].rglob("sw2121A-ms98-a-trans.text")).unlink()
    for path in folders[1].rglob("sw2039?-ms98-a-trans.text"):
        path.unlink()
    message = complaint(folders, partial=False)
    assert "1 files of LDC97S62 that have a transcript missing: sw02010.sph" in message
    assert "1 transcripts of LDC97S62, whose other side has one missing: sw2121A-ms98-a-trans.text" in message
    swbd.check(corpus_dirs=folders, partial=True)
    warning = capsys.readouterr().err
    assert "sw02010.sph" in warning and "no transcripts of sw2039, which are left out" in warning


def silent_copies(folders: list[Path], transcribed: int, recorded: int) -> None:
    """Adds conversations of nobody: empty transcripts of `transcribed`, and links as audio of `recorded`."""
    source = next(folders[0].rglob("sw02010.sph"))
    trans = next(folders[1].rglob("sw2010A-ms98-a-trans.text"))
    for number in range(3000, 3000 + transcribed):
        for side in "AB":
            trans.with_name(f"sw{number}{side}-ms98-a-trans.text").touch()
        if number < 3000 + recorded:
            source.with_name(f"sw0{number}.sph").symlink_to(source)


def pairs(folders: list[Path]) -> Checks:
    """What is said of transcripts and audio."""
    checks = Checks()
    swbd._check_pairs(find_parts(folders, Checks(partial=True)), checks)
    return checks


def test_few_transcripts_without_audio_are_left_out(folders: list[Path]) -> None:
    silent_copies(folders, 2438 - len(CALLS), 2435 - len(CALLS))  # releases of LDC97S62 that have 2,435 files
    lacking = [f"sw0{3000 + 2435 - len(CALLS) + more}.sph" for more in range(3)]
    checks = pairs(folders)
    assert checks.problems == [] and checks.warnings == [
        f"transcripts whose audio is not there, left out: {', '.join(lacking)}"
    ]
    for number in range(3000, 3009):  # 12 of 2,438 are 0.5 %
        next(folders[0].rglob(f"sw0{number}.sph")).unlink()
    assert pairs(folders).problems == []
    next(folders[0].rglob("sw03009.sph")).unlink()
    assert [problem.partition(" missing")[0] for problem in pairs(folders).problems] == [
        "LDC97S62: .sph files: 2425, expected 2435 or 2438",
        "13 files of LDC97S62 that have a transcript",
    ]


def test_half_a_corpus_that_lacks_a_file_is_half_a_corpus(folders: list[Path]) -> None:
    silent_copies(folders, 1000, 999)
    assert pairs(folders).problems == ["LDC97S62: .sph files: 1004, expected 2435 or 2438"]


def test_segments_that_end_a_little_after_their_audio_are_cut(folders: list[Path], tmp_path: Path) -> None:
    stm = folders[3] / "2000_hub5_eng_eval_tr" / "reference" / "hub5e00.english.000405.stm"
    lines = stm.read_text().splitlines()
    last = max(index for index, line in enumerate(lines) if line.startswith("sw_") and "IGNORE" not in line)
    recording, *fields = lines[last].split()
    length = inspect_sphere(next(folders[2].rglob(f"{recording}.sph")), swbd.RATE, 2) / swbd.RATE
    fields[3] = f"{length + 0.4:.2f}"
    lines[last] = " ".join([recording, *fields])
    stm.write_text("\n".join(lines) + "\n")
    swbd.prepare(tmp_path / "out", corpus_dirs=folders, partial=True)
    cuts = load_manifest(tmp_path / "out" / "eval2000" / "cuts.jsonl.gz")
    (cut,) = (cut for cut in cuts if cut.id.endswith(f"-{100 * (length + 0.4):06.0f}"))
    assert cut.recording_id == recording and cut.end == pytest.approx(length)
    assert fields[3] in (tmp_path / "out" / "eval2000" / "stm").read_text(), "what is scored stays as it is"
    fields[3] = f"{length + 0.6:.2f}"
    beyond = [recording, fields[0], fields[1], f"{length + 0.1:.2f}", f"{length + 0.2:.2f}", *fields[4:]]
    stm.write_text("\n".join([*lines[:last], " ".join([recording, *fields]), " ".join(beyond)]) + "\n")
    next(folders[0].rglob("sw02010.sph")).write_bytes(b"NIST_1A")
    message = complaint(folders)
    for expected in (
        "segments of eval2000 that end after their audio, of which 0.5 % are let pass: "
        f"{stm}:{last + 1}: {recording} {fields[0]} from {float(fields[2]):g} to {float(fields[3]):g} s, "
        f"but its audio lasts {length:.2f} s",
        f"from {float(beyond[3]):g} to {float(beyond[4]):g} s, but its audio lasts",
        "sw02010.sph: ",
    ):
        assert expected in message


def test_references_without_recordings(folders: list[Path]) -> None:
    stm = folders[3] / "2000_hub5_eng_eval_tr" / "reference" / "hub5e00.english.000405.stm"
    stm.write_text(stm.read_text() + "sw_9999 A sw_9999_A 1.00 2.00 <O,sw,F,sw-F> HELLO\n")
    pem = next(folders[2].rglob("*.pem"))
    pem.write_text(pem.read_text().replace("en_4156 B", "en_4157 B"))
    (rt03,) = folders[4].rglob("fsh_60262.stm")
    rt03.write_text("fsh_60262 1 speaker 5.0 x HELLO\n")
    message = complaint(folders, partial=False)
    assert f"eval2000: 1 of 3 recordings of {stm.name} have no .sph file: sw_9999" in message
    assert f"{rt03}:1: " in message and f"{pem}: " in message and "segments of the STM file are not in it" in message
    for path in folders[2].rglob("*.sph"):
        path.rename(path.with_name(f"xx_{path.name[3:]}"))
    assert f"no recording of {stm} has a .sph file; is the audio another set's?" in complaint(folders)


def test_files_that_break_off_where_nothing_else_would_notice(folders: list[Path]) -> None:
    dictionary = next(folders[1].rglob("sw-ms98-dict.text"))
    lines = dictionary.read_text().splitlines()
    dictionary.write_text("\n".join(lines[: len(lines) // 2]))
    glm = next(folders[3].rglob("*.glm"))
    glm.write_text(glm.read_text().rstrip() + "\n[UH] => [%HESI")
    (other,) = folders[4].rglob("*.glm")
    other.write_text(other.read_text() + "[UH]\n")
    message = complaint(folders, partial=False)
    assert re.search(rf"{dictionary}: lacks \d+ % of the transcripts' words, is it cut off\? \w+", message)
    assert f"{glm}: breaks off in '[UH] => [%HESI'" in message
    assert f"{other}:" in message and "no '=>' in '[UH]'" in message


def test_folders_that_overlap_or_lead_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    assert list(walk([tmp_path, tmp_path / "a"])) == [tmp_path / "a" / "b" / "x"]


def test_callers_of_both_tables(tmp_path: Path) -> None:
    table = tmp_path / "conv.tab"
    sides = '2001, "A", 1032, "X", 10, 303, "", "Y"\n2001, "B", 1074, "X", 10, 303, "", "Y"\n'
    for text in (
        sides,
        "2001,Y,1032,1074,303,0,910304,1218,1222, ,\n",
        "conversation,active\n2001, Y, 1032, 1074, 303\n",
    ):
        table.write_text(text)
        assert read_speakers(table, Checks()) == {"sw02001-A": "swbd1032", "sw02001-B": "swbd1074"}
    table.write_text("nothing\n")
    checks = Checks()
    assert read_speakers(table, checks) == {} and "no callers" in checks.problems[0]


def test_copies_of_a_sentence_are_limited() -> None:
    turns = [swbd.Turn("sw02001-A", float(n), n + 0.5, ("uh-huh",), ("uh-huh",)) for n in range(1000)]
    train, dev = swbd.split(turns)
    assert len(dev) == 100 and len(train) == 300 and train[0].start == 100
    with pytest.raises(BadInput, match="9 utterances are too few"):
        swbd.split(turns[:9])


def test_fisher_is_found_and_read_on_its_own(swbd_dirs: list[Path]) -> None:
    paths = find_fisher([swbd_dirs[5], swbd_dirs[5] / "LDC2004T19"])
    assert [path.stem for path in paths] == ["fe_03_00001", "fe_03_00002", "fe_03_05851", "fe_03_05852"]
    sentences = list(read_fisher(paths))
    assert (
        len(sentences) == 241
        and ["caf\u00e9"] in sentences
        and sentences[2][-3:] == ["i", "b", "m"]
        and "um-hum" in sentences[4]
    )
