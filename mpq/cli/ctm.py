"""Give recognized words their times (CTM), for scoring by `mpq score --stm`.

Reads   HYP, Kaldi text (`utt-id word word ...`, of `mpq decode` or `mpq rescore`), the features that were decoded, and
        with --am and --lang an acoustic model and its lexicon, by which the words are aligned.
Writes  OUT: recording, channel (A for the first one), start and duration in seconds, word.
Without --am the words of an utterance share its time evenly: enough where the utterances are the segments that are
scored, as those of `mpq prepare` are, but not for overlapping speech.

Example:
  mpq ctm --hyp exp/decode/test/hyp.txt --features exp/features/test/cuts.jsonl.gz --am exp/am/model.mpq \\
    --lang exp/lang --out exp/decode/test/hyp.ctm
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq ctm``."""
    parser.add_argument("--hyp", type=str, required=True, metavar="FILE", help="recognized words, Kaldi text")
    parser.add_argument("--features", type=str, required=True, metavar="MANIFEST", help="cuts that were decoded")
    parser.add_argument("--am", type=str, metavar="MODEL", help="acoustic model.mpq, or its folder")
    parser.add_argument("--lang", type=str, metavar="DIR", help="folder made by mpq lang, with --am")
    parser.add_argument("--out", type=str, required=True, metavar="FILE", help="CTM file to write")


def run(args: Namespace) -> None:
    """Runs ``mpq ctm``."""
    import sys

    from mpq.am.times import align_texts, share_evenly
    from mpq.data.features import load_feature_cuts
    from mpq.io import BadInput, check_writable, read_text
    from mpq.score import TimedWord, check_ids, write_ctm

    if bool(args.am) != bool(args.lang):
        raise BadInput("--am and --lang go together: the model and the lexicon of its phones")
    check_writable(args.out, [args.hyp, args.features])
    texts = read_text(args.hyp)
    cuts = {cut.id: cut for cut in load_feature_cuts(args.features)}
    check_ids(cuts, texts, args.features, args.hyp)
    if args.am:
        times, problems = align_texts(args.am, args.lang, args.features, texts)
    else:
        times, problems = {utt: share_evenly(cuts[utt].duration, len(text)) for utt, text in texts.items()}, []
    for utt in problems:
        print(f"warning: utterance {utt}: shorter than its words; they share its time evenly", file=sys.stderr)
    words = [
        TimedWord(cut.recording.id, "ABCDEFGH"[cut.channel], cut.start + start, end - start, word)
        for utt, cut in cuts.items()
        for word, (start, end) in zip(texts[utt], times[utt], strict=True)
    ]
    write_ctm(args.out, words)
    how = "aligned" if args.am else "spread evenly"
    print(f"ctm: {len(words)} words of {len(cuts)} utterances, {how}, {len(problems)} warnings: {args.out}")
