"""`mpq score` and `mpq compare` on STM, CTM and GLM, as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mpq.cli.main import load
from mpq.io import BadInput
from mpq.score import TimedWord, align_segments, count, mapsswe_aligned, read_timed, total, write_ctm, write_stm
from tests.score.timed_cases import corpus, write_glm_text

MpqCli = Callable[..., "subprocess.CompletedProcess[str]"]
INPUT = ("--stm", "ref.stm", "--glm", "rules.glm")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    segments, *systems = corpus(6)
    write_stm(tmp_path / "ref.stm", segments)
    for name, words in zip("AB", systems, strict=True):
        write_ctm(tmp_path / f"{name}.ctm", words)
    write_glm_text(tmp_path / "rules.glm")
    return tmp_path


def own(files: Path, prefix: str) -> str:
    timed = read_timed(files / "ref.stm", files / "A.ctm", files / "rules.glm")
    return str(total(count(item.pairs) for item in align_segments(timed.subset(prefix) if prefix else timed)))


@pytest.mark.parametrize("tool", ["sctk", "own"])
def test_subsets_and_total(sctk_bin: Path, files: Path, mpq_cli: MpqCli, tool: str) -> None:
    words = ("score", *INPUT, "--ctm", "A.ctm", "--subset", "switch=sw_", "--subset", "home=en_", "--tool", tool)
    done = mpq_cli(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"switch {own(files, 'sw_')}\nhome {own(files, 'en_')}\n{own(files, '')}\n"


def test_without_sctk_a_line_says_so(
    files: Path, mpq_cli: MpqCli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setattr("mpq.score.sctk._PLACES", ())
    monkeypatch.setenv("PATH", str(files))
    command, parser = load("score")
    command.run(parser.parse(["--stm", "ref.stm", "--glm", "rules.glm", "--ctm", "A.ctm"]))
    said = capsys.readouterr()
    assert said.out == own(files, "") + "\n"
    assert said.err == "note: scored by our own scorer, which counts as sctk does; utils/install_apt.sh installs sctk\n"


def test_reports_details_and_json(sctk_bin: Path, files: Path, mpq_cli: MpqCli) -> None:
    words = ("score", *INPUT, "--ctm", "A.ctm", "--reports", "nist", "--details", "per_utt", "--interval", "--json")
    answer = json.loads(mpq_cli(*words).stdout)
    low, high = answer["interval"]
    assert low < answer["wer"] < high
    assert "Sum/Avg" in (files / "nist" / "hyp.ctm.filt.sys").read_text()
    assert "sw_1_a-000 ref" in (files / "per_utt").read_text()


def test_a_channel_in_which_nothing_was_recognized(sctk_bin: Path, files: Path, mpq_cli: MpqCli) -> None:
    (files / "one.ctm").write_text(re.sub("(?m)^sw_1 B .*\n", "", (files / "A.ctm").read_text()))
    said = {tool: mpq_cli("score", *INPUT, "--ctm", "one.ctm", "--tool", tool).stdout for tool in ("sctk", "own")}
    assert said["sctk"] == said["own"] != ""


def test_overlapping_speakers_by_asclite(sctk_bin: Path, files: Path, mpq_cli: MpqCli) -> None:
    (files / "two.stm").write_text("m 1 x 0 4 ONE TWO THREE\nm 1 y 1 5 FOUR FIVE\nm 1 x 6 8 SIX\n")
    said = {0.5: "one", 1.5: "four", 2.5: "two", 3.5: "five", 6.5: "six"}
    write_ctm(files / "two.ctm", [TimedWord("m", "1", start, 0.4, word) for start, word in said.items()])
    words = ("score", "--stm", "two.stm", "--ctm", "two.ctm")
    done = mpq_cli(*words, "--overlap", "4")
    assert done.stdout == "%WER 16.67 [ 1 / 6, 0 ins, 1 del, 0 sub ]\n", done.stderr
    refused = mpq_cli(*words)
    assert refused.returncode == 2
    assert "two.stm:2: begins at 1, before line 1 of the same channel ends at 4" in refused.stderr
    (files / "two.stm").write_text("m 1 x 0 4 ONE TWO THREE\nm 1 y 1 5 FOUR FIVE\nm 1 x 3.999 8 SIX\n")
    refused = mpq_cli(*words, "--overlap", "4")
    assert refused.returncode == 2
    assert "two.stm:3: begins at 3.999, before line 1 of the same speaker ends at 4, which asclite" in refused.stderr


@pytest.mark.parametrize("tool", ["sctk", "own"])
def test_a_little_overlap_is_told_and_scored(sctk_bin: Path, files: Path, mpq_cli: MpqCli, tool: str) -> None:
    lines = (files / "ref.stm").read_text().splitlines()
    fields = lines[0].split()
    fields[4] = f"{float(lines[1].split()[3]) + 0.1:.2f}"
    (files / "ref.stm").write_text("\n".join([" ".join(fields), *lines[1:]]) + "\n")
    done = mpq_cli("score", *INPUT, "--ctm", "A.ctm", "--tool", tool)
    assert (done.returncode, done.stdout) == (0, own(files, "") + "\n")
    assert re.fullmatch(
        rf"warning: ref.stm:2: begins at \S+, before line 1 of the same channel ends at {float(fields[4]):g}; 1 of 160 "
        "segments overlap, words in both are scored in the first\n",
        done.stderr,
    )


def test_what_sctk_scores_is_not_aligned_by_us_unless_asked(sctk_bin: Path, files: Path, mpq_cli: MpqCli) -> None:
    """A brace without a partner, which sclite lets pass."""
    (files / "brace.stm").write_text((files / "ref.stm").read_text() + "sw_1 B sw_1_b 500 501 { A / B\n")
    words = ("score", "--stm", "brace.stm", "--glm", "rules.glm", "--ctm", "A.ctm")
    done = mpq_cli(*words)
    assert done.returncode == 0 and done.stdout.startswith("%WER "), done.stderr
    for more in (("--tool", "own"), ("--details", "per_utt"), ("--confusions", "ops"), ("--interval",)):
        assert "a brace that is not closed" in mpq_cli(*words, *more).stderr


def test_compare(files: Path, mpq_cli: MpqCli) -> None:
    done = mpq_cli("compare", *INPUT, "--ctm", "A.ctm", "--ctm", "B.ctm")
    systems = [
        align_segments(read_timed(files / "ref.stm", files / f"{name}.ctm", files / "rules.glm")) for name in "AB"
    ]
    test = mapsswe_aligned(((a.pairs, b.pairs) for a, b in zip(*systems, strict=True)))
    last = f"MAPSSWE: {test.segments} segments, Z {test.z:.3f}, p {test.p:.3g}: {test.verdict()}"
    assert done.stdout.splitlines()[0] == f"A A.ctm: {own(files, '')}"
    assert done.stdout.splitlines()[2] == last


def test_text_by_sclite(sctk_bin: Path, tmp_path: Path, mpq_cli: MpqCli) -> None:
    (tmp_path / "ref").write_text("s1-u1 the cat sat\ns2-u2 été\ns3\n")
    (tmp_path / "hyp").write_text("s2-u2 ete\ns1-u1 a the cat\ns3\n")
    said = {tool: mpq_cli("score", "--ref", "ref", "--hyp", "hyp", "--tool", tool).stdout for tool in ("sctk", "own")}
    assert said == dict.fromkeys(said, "%WER 75.00 [ 3 / 4, 1 ins, 1 del, 1 sub ]\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ref", "x", "--ctm", "A.ctm"), "give --ref and --hyp (texts), or --stm and --ctm (with times)"),
        ((*INPUT, "--ctm", "A.ctm", "--utt2spk", "x"), "--utt2spk goes with --ref and --hyp only"),
        (("--ref", "x", "--hyp", "x", "--glm", "x"), "--glm goes with --stm and --ctm only"),
        ((*INPUT, "--ctm", "A.ctm", "--subset", "sw_"), "--subset sw_: expected NAME=PREFIX"),
        ((*INPUT, "--ctm", "A.ctm", "--subset", "x=fsh"), "no recording of the reference begins with 'fsh'"),
        ((*INPUT, "--ctm", "A.ctm", "--overlap", "2", "--tool", "own"), "--overlap is asclite's"),
        ((*INPUT, "--ctm", "A.ctm", "--reports", "x", "--tool", "own"), "--reports are those of sctk"),
        ((*INPUT, "--ctm", "ref.stm"), "ref.stm:1: "),
    ],
)
def test_wrong_options(files: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str) -> None:
    monkeypatch.chdir(files)
    command, parser = load("score")
    with pytest.raises(BadInput) as caught:
        command.run(parser.parse(words))
    assert message in str(caught.value)
