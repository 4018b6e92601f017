"""Test whether two systems differ in word errors (MAPSSWE, NIST's matched pairs test).

Reads   REF and twice HYP, Kaldi text files (`utt-id word word ...`) with the same utterances; gzip by suffix.
Writes  nothing.
Prints the word error rates of A and B, Z, the two-sided p and the verdict. Z is that of NIST sc_stats; it is
negative where A has fewer errors.

Example:
  mpq compare --ref data/test/text --hyp lstm/hyp-test.txt --hyp lstm-4bit/hyp-test.txt
"""

from __future__ import annotations

import json
from dataclasses import asdict

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq compare``."""
    parser.add_argument("--ref", type=str, required=True, metavar="FILE", help="reference, Kaldi text")
    parser.add_argument(
        "--hyp", type=str, required=True, action="append", metavar="FILE", help="hypothesis; give it twice: A, B"
    )
    parser.add_argument("--level", type=float, default=0.05, help="level of significance of the verdict")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: Namespace) -> None:
    """Runs ``mpq compare``."""
    from mpq.io import BadInput, read_text
    from mpq.score import check_ids, mapsswe, wer

    if len(args.hyp) != 2:
        raise BadInput(f"--hyp is given {len(args.hyp)} times; expected twice, for systems A and B")
    if not 0 < args.level < 1:
        raise BadInput(f"--level {args.level}: expected a probability between 0 and 1, such as 0.05")
    ref = read_text(args.ref)
    hyps = [read_text(path) for path in args.hyp]
    for path, hyp in zip(args.hyp, hyps, strict=True):
        check_ids(ref, hyp, args.ref, path)
    rates = [wer(ref, hyp) for hyp in hyps]
    test = mapsswe(ref, *hyps)
    verdict = test.verdict(args.level)
    if args.json:
        systems = [{"file": path, "wer": rate.rate} for path, rate in zip(args.hyp, rates, strict=True)]
        print(json.dumps({**asdict(test), "systems": systems, "level": args.level, "verdict": verdict}))
        return
    for name, path, rate in zip("AB", args.hyp, rates, strict=True):
        print(f"{name} {path}: {rate}")
    print(f"MAPSSWE: {test.segments} segments, Z {test.z:.3f}, p {test.p:.3g}: {verdict}")
