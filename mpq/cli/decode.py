"""Decode a data set: word lattices, n-best lists with separate acoustic and language model scores, best words.

Reads   an acoustic model of `mpq train-am`, features of `mpq features`, the graph and n-gram model of `mpq lang`.
Writes  OUT/nbest.jsonl.gz, OUT/lat.gz (Kaldi archive of CompactLattice), OUT/hyp.txt (the best hypotheses, Kaldi
        text), OUT/warnings.jsonl (utterances without a full result). A killed run continues where it stopped;
        the result does not depend on --nj.

Example:
  mpq decode --am exp/am/model.mpq --features exp/features/dev/cuts.jsonl.gz --lang exp/lang \\
    --out exp/decode/dev --nj 2
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq decode``."""
    from mpq.fst.decoder import DecoderConfig

    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--am", type=str, required=True, metavar="MODEL", help="acoustic model")
    parser.add_argument("--features", type=str, required=True, metavar="MANIFEST", help="cuts with features")
    parser.add_argument("--lang", type=str, required=True, metavar="DIR", help="folder made by mpq lang")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--nj", type=int, default=2, help="number of processes")
    parser.add_class_arguments(DecoderConfig)


def run(args: Namespace) -> None:
    """Runs ``mpq decode``."""
    import time
    from pathlib import Path

    from mpq.am import load_am
    from mpq.am.decode import decode_set
    from mpq.data.batches import FeatureSet
    from mpq.fst.decoder import Decoder, DecoderConfig
    from mpq.fst.graph import GRAPH_NAME, load_graph
    from mpq.io import BadInput, check_writable, read_symbols, sha256_file
    from mpq.lang.arpa import read_arpa
    from mpq.lang.lexicon import read_lexicon

    if args.nj < 1:
        raise BadInput(f"--nj {args.nj}: expected a number above 0")
    check_writable(Path(args.out, "hyp.txt"))
    started = time.monotonic()
    lang = Path(args.lang)
    config = DecoderConfig(**{name: args[name] for name in DecoderConfig.__dataclass_fields__})
    lexicon, words = read_lexicon(lang), read_symbols(lang / "words.txt")
    missing = [word for word in lexicon.words if word not in words.ids]
    if missing:
        raise BadInput(
            f"{lang / 'words.txt'}: lacks {len(missing)} of the {len(lexicon)} words of lexicon.txt, such as "
            f"{missing[0]!r}; the files of a lang folder belong together: run mpq lang again"
        )
    model = load_am(args.am, lexicon.phones)
    decoder = Decoder(load_graph(lang), read_arpa(lang / "lm.arpa"), words, config)
    features = FeatureSet(args.features)
    inputs = [args.am, args.features, *(lang / name for name in (GRAPH_NAME, "lm.arpa", "words.txt"))]
    key = [config, [sha256_file(path) for path in inputs]]
    summary = decode_set(model, features, decoder, Path(args.out), key, args.nj)
    seconds = time.monotonic() - started
    print(f"decode: {summary}, {seconds:.0f} s: {args.out}")
