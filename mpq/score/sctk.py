"""NIST's own scoring tools (sctk), where they are installed: hubscr.pl with sclite or asclite, and sclite on text."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mpq.io import BadInput
from mpq.score.ctm import TimedWord, write_ctm
from mpq.score.glm import Rule, write_glm
from mpq.score.stm import IGNORED, channel_of, write_stm
from mpq.score.timed import TimedSet
from mpq.score.wer import Texts, WerResult

_PLACES = ("/usr/lib/sctk/bin",)  # where Debian and Ubuntu install them
# as the evaluations were scored; asclite: at most 2 GB each, words are not aligned over more than that
_HUBSCR = ["-V", "-l", "english"]
_OVERLAP = ["-h", "rt-stt", "-a", "-C", "-B", "8192", "-m", "1:2"]
_AT_ONCE = 4  # asclites
_ROW = re.compile(r"^ *\| *(\S+) *\|([ \d]+)\|([ \d]+)\|", re.MULTILINE)


def find_sctk() -> Path | None:
    """The folder of sclite, hubscr.pl and the others; None where they are not installed."""
    found = shutil.which("sclite", path=os.pathsep.join([*_PLACES, os.environ.get("PATH", "")]))
    return Path(found).parent if found else None


def run_hubscr(programs: Path, timed: TimedSet, overlap: int = 0, reports: Path | None = None) -> dict[str, WerResult]:
    """Score by hubscr.pl, as the evaluations were.

    Overlapping speech takes asclite hours: recordings are scored one by one, several at once, and their counts added,
    which are those of one call for all.

    Args:
        programs: folder of the programs.
        timed: reference, recognized words (confidences are left out) and rules.
        overlap: score segments in which up to so many speakers overlap, by asclite; 0: by sclite.
        reports: folder for sctk's own reports, with ``overlap`` a folder for each recording in it; None to keep none.

    Returns:
        Words and errors by speaker, ``sum`` for all.
    """
    if not overlap:
        return _hubscr(programs, timed, 0, reports)
    parts = timed.by_recording()
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(_hubscr, programs, part, overlap, reports and reports / n) for n, part in parts.items()]
        try:
            results = [job.result() for job in jobs]
        except BaseException:  # the rest is of no use
            pool.shutdown(cancel_futures=True)
            raise
    sums: defaultdict[str, WerResult] = defaultdict(WerResult)
    for result in results:
        for speaker, counts in result.items():
            sums[speaker] += counts
    return dict(sums)


def _hubscr(programs: Path, timed: TimedSet, overlap: int, reports: Path | None) -> dict[str, WerResult]:
    """One call of hubscr.pl.

    A channel in which nothing was recognized, which sctk refuses, is given the empty word ``@``, after all else in a
    segment that is not scored: asclite would take it for a word that was not said, or for another one.
    """
    segments = [replace(segment, labels="") for segment in timed.segments]
    said = [replace(word, confidence=None) for word in timed.words]
    heard = {channel_of(word) for word in said}
    silent = {channel_of(segment): segment for segment in timed.segments if channel_of(segment) not in heard}
    late = 1.0 + max(segment.end for segment in segments)
    said += [TimedWord(segment.recording, segment.channel, late, 0.5, "@") for segment in silent.values()]
    segments += [replace(s, labels="", start=late, end=late + 1.0, text=IGNORED) for s in silent.values()]
    how = [*_OVERLAP, f"-o{overlap}"] if overlap else ["-h", "hub5"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # labels must be explained in comments, and only serve a report that --subset replaces
        write_stm(folder / "ref.stm", segments)
        write_ctm(folder / "hyp.ctm", said)
        if timed.glm is None:
            write_glm(folder / "rules.glm", [Rule("~", "~")], "no rules (rfilter1 needs one)")
        else:
            shutil.copyfile(timed.glm, folder / "rules.glm")
        _run(programs, ["hubscr.pl", *_HUBSCR, *how, "-g", "rules.glm", "-r", "ref.stm", "hyp.ctm"], folder)
        return _results(folder / "hyp.ctm.filt.raw", reports)


def run_sclite(programs: Path, ref: Texts, hyp: Texts, reports: Path | None = None) -> WerResult:
    """Score texts of the same utterances by sclite."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # sclite takes what stands before the first - or _ of a name for the speaker, and names for words in lower case
        for name, texts in (("ref.trn", ref), ("hyp.trn", hyp)):
            lines = [f"{' '.join(texts[utt])} (utt-{number})\n" for number, utt in enumerate(ref)]
            (folder / name).write_text("".join(lines), encoding="utf-8")
        command = ["sclite", "-s", "-e", "utf-8", "-i", "rm", "-r", "ref.trn", "trn", "-h", "hyp.trn", "trn"]
        _run(programs, [*command, "-o", "sum", "rsum", "dtl", "pra"], folder)
        return _results(folder / "hyp.trn.raw", reports)["sum"]


def _run(programs: Path, command: list[str], folder: Path) -> None:
    """Run a program of sctk in a folder.

    Raises:
        BadInput: it failed; the last line that it wrote.
    """
    env = {**os.environ, "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]), "LC_ALL": "C"}
    done = subprocess.run(
        [str(programs / command[0]), *command[1:]],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise BadInput(
            f"{command[0]} of sctk failed: {lines[-1] if lines else 'no message'}; --tool own scores without it"
        )


def _results(summary: Path, reports: Path | None) -> dict[str, WerResult]:
    """Read the counts of sclite's summary, and keep all reports beside it."""
    if not summary.is_file():
        raise BadInput(f"sctk wrote no {summary.name}; --tool own scores without it")
    text = summary.read_text(encoding="latin-1")
    if reports is not None:
        reports.mkdir(parents=True, exist_ok=True)
        for file in summary.parent.iterdir():
            shutil.copyfile(file, reports / file.name)
    results = {}
    for name, of_texts, counts in _ROW.findall(text):
        n_words = int(of_texts.split()[1])
        _, subs, dels, ins, _, _ = map(int, counts.split())
        results[name.lower()] = WerResult(n_words, ins, dels, subs)
    if "sum" not in results:
        raise BadInput(f"sctk's {summary.name} holds no sum; --tool own scores without it")
    return results
