"""Test whether two systems differ in word errors (MAPSSWE, NIST's matched pairs test).

Reads   REF and twice HYP, Kaldi text files (`utt-id word word ...`) with the same utterances; or a reference with
        times (STM), twice recognized words with times (CTM) and mapping rules (GLM); gzip by suffix.
Writes  nothing.
Prints the word error rates of A and B, Z, the two-sided p and the verdict. Z is that of NIST sc_stats; it is
negative where A has fewer errors.

Examples:
  mpq compare --ref data/test/text --hyp lstm/hyp-test.txt --hyp lstm-4bit/hyp-test.txt
  mpq compare --stm exp/data/test/stm --glm exp/data/test/glm --ctm lstm/test.ctm --ctm lstm-4bit/test.ctm
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mpq.score import Pair


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq compare``."""
    parser.add_argument("--ref", type=str, metavar="FILE", help="reference, Kaldi text")
    parser.add_argument("--stm", type=str, metavar="FILE", help="reference with times")
    for option, what in (("--hyp", "hypothesis"), ("--ctm", "recognized words with times")):
        parser.add_argument(
            option, type=str, action="append", default=[], metavar="FILE", help=f"{what}; give it twice: A, B"
        )
    parser.add_argument("--glm", type=str, metavar="FILE", help="mapping rules for --stm and --ctm")
    parser.add_argument("--level", type=float, default=0.05, help="level of significance of the verdict")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: Namespace) -> None:
    """Runs ``mpq compare``."""
    from mpq.io import BadInput, check_range
    from mpq.score import count, mapsswe_aligned, total

    if bool(args.ref) == bool(args.stm) or (args.ref and (args.ctm or args.glm)) or (args.stm and args.hyp):
        raise BadInput("give --ref and twice --hyp (texts), or --stm, twice --ctm and --glm (with times)")
    name, files = ("--hyp", args.hyp) if args.ref else ("--ctm", args.ctm)
    if len(files) != 2:
        raise BadInput(f"{name} is given {len(files)} times; expected twice, for systems A and B")
    check_range("--level", args.level, "(0, 1)")
    systems = [align_text(args.ref, path) if args.ref else align_timed(args, path) for path in files]
    rates = [total(map(count, alignments)) for alignments in systems]
    test = mapsswe_aligned(zip(*systems, strict=True))
    verdict = test.verdict(args.level)
    if args.json:
        rows = [{"file": path, "wer": rate.rate} for path, rate in zip(files, rates, strict=True)]
        print(json.dumps({**asdict(test), "systems": rows, "level": args.level, "verdict": verdict}))
        return
    for letter, path, rate in zip("AB", files, rates, strict=True):
        print(f"{letter} {path}: {rate}")
    print(f"MAPSSWE: {test.segments} segments, Z {test.z:.3f}, p {test.p:.3g}: {verdict}")


def align_text(reference: str, path: str) -> list[list[Pair]]:
    """Alignments of a hypothesis, in the order of the reference."""
    from mpq.io import read_text
    from mpq.score import align_all, check_ids, warn_writing

    ref, hyp = read_text(reference), read_text(path)
    check_ids(ref, hyp, reference, path)
    warn_writing(ref, hyp, reference, path)
    return list(align_all(ref, hyp).values())


def align_timed(args: Namespace, path: str) -> list[list[Pair]]:
    """Alignments of recognized words with times, in the order of the reference's segments."""
    from mpq.score import align_segments, read_timed

    return [item.pairs for item in align_segments(read_timed(args.stm, path, args.glm))]
