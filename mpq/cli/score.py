"""Print the word error rate of a hypothesis file, or of words with their times as the NIST evaluations score them.

Reads   REF and HYP, Kaldi text files (`utt-id word word ...`) with the same utterances; or a reference with times
        (STM), recognized words with times (CTM) and mapping rules (GLM); gzip by suffix.
Writes  nothing, or what --details, --confusions and --reports name.
Prints  one line for each speaker or subset asked for, then one for all.
Alignments and counts are those of NIST's sctk. --stm and --ctm are scored by hubscr.pl where sctk is installed (with
asclite under --overlap), else by our own scorer, which gives the same numbers and says so; not for overlapping speech.

Examples:
  mpq score --ref data/test/text --hyp decode/test/hyp.txt
  %WER 12.34 [ 123 / 997, 10 ins, 20 del, 93 sub ]

  mpq score --stm exp/data/test/stm --glm exp/data/test/glm --ctm decode/test/hyp.ctm --subset sw=sw_ --subset en=en_
  sw %WER 8.60 [ 1840 / 21395, 310 ins, 520 del, 1010 sub ]
  en %WER 17.00 [ 3671 / 21594, 492 ins, 1104 del, 2075 sub ]
  %WER 12.82 [ 5511 / 42989, 802 ins, 1624 del, 3085 sub ]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mpq.score import Pair, TimedSet, WerResult


Rows = list[tuple[str, "WerResult", "tuple[float, float] | None"]]
"""Name (empty for all), result, 95 percent interval."""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq score``."""
    parser.add_argument("--ref", type=str, metavar="FILE", help="reference, Kaldi text")
    parser.add_argument("--hyp", type=str, metavar="FILE", help="hypothesis, Kaldi text")
    parser.add_argument("--stm", type=str, metavar="FILE", help="reference with times")
    parser.add_argument("--ctm", type=str, metavar="FILE", help="recognized words with times")
    parser.add_argument("--glm", type=str, metavar="FILE", help="mapping rules for --stm and --ctm")
    parser.add_argument(
        "--subset", type=str, action="append", default=[], metavar="NAME=PREFIX",
        help="of --stm: also score the recordings whose names begin so; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=int, default=0, help="of --stm: score speech of up to so many speakers at once, by asclite"
    )
    parser.add_argument(
        "--tool", type=Literal["auto", "sctk", "own"], default="auto",
        help="NIST's programs or our own scorer; auto: for --stm sctk where it is installed, else own",
    )  # fmt: skip
    parser.add_argument(
        "--reports",
        type=str,
        metavar="DIR",
        help="keep sctk's own reports there; with --overlap a folder for each recording",
    )
    parser.add_argument("--interval", action="store_true", help="print the 95 percent interval (bootstrap)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument("--utt2spk", type=str, metavar="FILE", help="of --ref: print a line for each speaker, too")
    parser.add_argument("--details", type=str, metavar="FILE", help="write alignments, as Kaldi's per_utt")
    parser.add_argument("--confusions", type=str, metavar="FILE", help="write error counts, as Kaldi's ops")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: Namespace) -> None:
    """Runs ``mpq score``."""
    from mpq.io import SEEDS, check_range, check_writable

    check_range("--seed", args.seed, SEEDS)
    check_range("--overlap", args.overlap, "[0, 8]")
    check_options(args)
    for path in (args.details, args.confusions):
        if path:
            check_writable(path, [args.ref, args.hyp, args.stm, args.ctm, args.glm, args.utt2spk])
    rows = score_text(args) if args.ref else score_timed(args)
    *parts, (_, result, interval) = rows
    if args.json:
        name = "speakers" if args.ref else "subsets"
        each = {part: as_dict(of_part) for part, of_part, _ in parts}
        print(json.dumps({**as_dict(result), "interval": interval, name: each}))
        return
    for part, of_part, of_interval in rows:
        line = str(of_part) if of_interval is None else "{} [ 95 %: {:.2f} to {:.2f} ]".format(of_part, *of_interval)
        print(f"{part} {line}" if part else line)


def check_options(args: Namespace) -> None:
    """Raise BadInput unless the options name one kind of input, and only what that kind has."""
    from mpq.io import BadInput

    given = {name for name in ("ref", "hyp", "stm", "ctm") if getattr(args, name)}
    if given not in ({"ref", "hyp"}, {"stm", "ctm"}):
        raise BadInput("give --ref and --hyp (texts), or --stm and --ctm (with times)")
    timed = {"--glm": args.glm, "--subset": args.subset, "--overlap": args.overlap}
    foreign = timed if args.ref else {"--utt2spk": args.utt2spk}
    if wrong := [name for name, value in foreign.items() if value]:
        raise BadInput(f"{wrong[0]} goes with {'--stm and --ctm' if args.ref else '--ref and --hyp'} only")
    if args.overlap and (args.details or args.confusions or args.interval or args.tool == "own"):
        raise BadInput("--overlap is asclite's: it goes without --details, --confusions, --interval and --tool own")
    if args.reports and (args.tool == "own" or (args.tool == "auto" and args.ref)):
        raise BadInput("--reports are those of sctk; give --tool sctk")


def score_text(args: Namespace) -> Rows:
    """Scores Kaldi texts."""
    from mpq.io import read_text
    from mpq.score import align_all, bootstrap_interval, check_ids, count, run_sclite, total, warn_writing

    ref, hyp = read_text(args.ref), read_text(args.hyp)
    check_ids(ref, hyp, args.ref, args.hyp)
    warn_writing(ref, hyp, args.ref, args.hyp)
    alignments = align_all(ref, hyp)
    write_details(args, alignments)
    counts = {utt: count(pairs) for utt, pairs in alignments.items()}
    speakers = by_speaker(args.utt2spk, counts) if args.utt2spk else {}
    interval = bootstrap_interval(counts.values(), seed=args.seed) if args.interval else None
    programs = programs_of(args) if args.tool == "sctk" else None
    result = run_sclite(programs, ref, hyp, reports_of(args)) if programs else total(counts.values())
    return [*((speaker, of_speaker, None) for speaker, of_speaker in speakers.items()), ("", result, interval)]


def score_timed(args: Namespace) -> Rows:
    """Scores CTM by STM: each subset, then all."""
    from mpq.score import align_segments, bootstrap_interval, count, read_timed, run_hubscr, total

    whole = read_timed(args.stm, args.ctm, args.glm, overlapping=args.overlap > 0)
    parts = {**subsets_of(args, whole), "": whole}
    programs = programs_of(args)
    # sctk takes what our own alignment may refuse
    needs_own = programs is None or args.details or args.confusions or args.interval
    alignments = {item.utt: item for item in align_segments(whole)} if needs_own else {}
    write_details(args, {utt: item.pairs for utt, item in alignments.items()})
    rows: Rows = []
    for name, part in parts.items():
        chosen = set(part.segments)
        counts = [count(item.pairs) for item in alignments.values() if item.segment in chosen]
        interval = bootstrap_interval(counts, seed=args.seed) if args.interval else None
        result = total(counts)
        if programs is not None:
            result = run_hubscr(programs, part, args.overlap, reports_of(args, name))["sum"]
        rows.append((name, result, interval))
    return rows


def subsets_of(args: Namespace, whole: TimedSet) -> dict[str, TimedSet]:
    """The subsets that --subset names."""
    from mpq.io import BadInput

    subsets = {}
    for option in args.subset:
        name, equals, prefix = option.partition("=")
        if not (name and equals and prefix) or name in subsets:
            raise BadInput(f"--subset {option}: expected NAME=PREFIX, each name once, such as sw=sw_")
        subsets[name] = whole.subset(prefix)
    return subsets


def programs_of(args: Namespace) -> Path | None:
    """Where sctk's programs are; None for our own scorer, which says that it was used."""
    from mpq.io import BadInput
    from mpq.score import find_sctk

    programs = None if args.tool == "own" else find_sctk()
    if programs is None and (args.overlap or args.tool == "sctk"):
        need = "--overlap needs asclite of sctk, which" if args.overlap else "--tool sctk: sctk"
        raise BadInput(f"{need} is not installed; install it by utils/install_apt.sh")
    if programs is None and args.tool == "auto":
        print(
            "note: scored by our own scorer, which counts as sctk does; utils/install_apt.sh installs sctk",
            file=sys.stderr,
        )
    return programs


def reports_of(args: Namespace, name: str = "") -> Path | None:
    """Where to keep sctk's reports of a subset."""
    return Path(args.reports, name) if args.reports else None


def write_details(args: Namespace, alignments: Mapping[str, Sequence[Pair]]) -> None:
    """Writes alignments and error counts where they are asked for."""
    from mpq.score import write_alignments, write_confusions

    if args.details:
        write_alignments(args.details, alignments)
    if args.confusions:
        write_confusions(args.confusions, alignments)


def by_speaker(path: str, counts: Mapping[str, WerResult]) -> dict[str, WerResult]:
    """Counts by speaker, by a Kaldi ``utt2spk`` file."""
    from mpq.io import BadInput, read_text
    from mpq.score import speaker_counts

    utt2spk = {}
    for utt, fields in read_text(path).items():
        if len(fields) != 1:
            raise BadInput(f"{path}: utterance {utt!r}: {' '.join(fields)!r}; expected one speaker")
        utt2spk[utt] = fields[0]
    return speaker_counts(counts, utt2spk)


def as_dict(result: WerResult) -> dict[str, float | None]:
    """A result for JSON; the rate of errors against no words is null."""
    return {
        "wer": result.rate if result.words or not result.errors else None,
        "errors": result.errors,
        "words": result.words,
        "ins": result.ins,
        "del": result.dels,
        "sub": result.subs,
    }
