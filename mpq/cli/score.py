"""Print the word error rate of a hypothesis file.

Reads   REF and HYP, Kaldi text files (`utt-id word word ...`) with the same utterances; gzip by suffix.
Writes  nothing, or the files that --details and --confusions name.
The alignment and its counts are those of NIST sclite.

Example:
  mpq score --ref data/test/text --hyp decode/test/hyp.txt
  %WER 12.34 [ 123 / 997, 10 ins, 20 del, 93 sub ]
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mpq.score import WerResult


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq score``."""
    parser.add_argument("--ref", type=str, required=True, metavar="FILE", help="reference, Kaldi text")
    parser.add_argument("--hyp", type=str, required=True, metavar="FILE", help="hypothesis, Kaldi text")
    parser.add_argument("--interval", action="store_true", help="print the 95 percent interval (bootstrap)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument("--utt2spk", type=str, metavar="FILE", help="speakers: print a line for each, too")
    parser.add_argument("--details", type=str, metavar="FILE", help="write alignments, as Kaldi's per_utt")
    parser.add_argument("--confusions", type=str, metavar="FILE", help="write error counts, as Kaldi's ops")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: Namespace) -> None:
    """Runs ``mpq score``."""
    from mpq.io import BadInput, check_writable, read_text
    from mpq.score import align_all, bootstrap_interval, check_ids, count, total, write_alignments, write_confusions

    if args.seed < 0:
        raise BadInput(f"--seed {args.seed}: expected a number of at least 0")
    for path in (args.details, args.confusions):
        if path:
            check_writable(path, [args.ref, args.hyp, args.utt2spk])
    ref, hyp = read_text(args.ref), read_text(args.hyp)
    check_ids(ref, hyp, args.ref, args.hyp)
    alignments = align_all(ref, hyp)
    if args.details:
        write_alignments(args.details, alignments)
    if args.confusions:
        write_confusions(args.confusions, alignments)
    counts = {utt: count(pairs) for utt, pairs in alignments.items()}
    speakers = by_speaker(args.utt2spk, counts) if args.utt2spk else {}
    result = total(counts.values())
    interval = bootstrap_interval(counts.values(), seed=args.seed) if args.interval else None
    if args.json:
        each = {speaker: as_dict(of_speaker) for speaker, of_speaker in speakers.items()}
        print(json.dumps({**as_dict(result), "interval": interval, "speakers": each}))
        return
    for speaker, of_speaker in speakers.items():
        print(f"{speaker} {of_speaker}")
    print(result if interval is None else "{} [ 95 %: {:.2f} to {:.2f} ]".format(result, *interval))


def by_speaker(path: str, counts: dict[str, WerResult]) -> dict[str, WerResult]:
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
