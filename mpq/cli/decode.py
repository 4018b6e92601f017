"""Decode a data set: word lattices, n-best lists with separate acoustic and language model scores, best words.

Reads   an acoustic model of `mpq train-am`, features of `mpq features`, the graph and n-gram model of `mpq lang`.
Writes  OUT/nbest.jsonl.gz, OUT/lat.gz (Kaldi archive of CompactLattice), OUT/words.sha256 (which words.txt its numbers
        are of), OUT/hyp.txt (the best hypotheses, Kaldi text), OUT/warnings.jsonl (utterances without a full result),
        OUT/speed.yaml (seconds of the acoustic model alone, of one processor core or a GPU, and seconds of speech).
        A killed run continues where it stopped; the result does not depend on --nj.
        With --adapt lhuc, the result of a first pass in OUT/first-pass, and OUT/lhuc.safetensors: the LHUC logits of
        each speaker, adapted to what the first pass recognized, with which OUT is then decoded.

Example:
  mpq decode --am exp/am/model.mpq --features exp/features/dev/cuts.jsonl.gz --lang exp/lang \\
    --out exp/decode/dev --nj 2
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from mpq.cli._options import make_config

if TYPE_CHECKING:
    from torch import Tensor

    from mpq.am import AcousticModel
    from mpq.data.batches import FeatureSet
    from mpq.fst.decoder import Decoder
    from mpq.fst.units import Units
    from mpq.io import SymbolTable
    from mpq.lang.lexicon import Lexicon


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq decode``."""
    from mpq.am.adapt import LhucConfig
    from mpq.fst.decoder import DecoderConfig

    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--am", type=str, required=True, metavar="MODEL", help="acoustic model.mpq, or its folder")
    parser.add_argument("--features", type=str, required=True, metavar="MANIFEST", help="cuts with features")
    parser.add_argument("--lang", type=str, required=True, metavar="DIR", help="folder made by mpq lang")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--nj", type=int, default=2, help="number of processes")
    parser.add_argument(
        "--device", type=str, default="auto", help="where the model runs: auto (a GPU if there is one), cpu, cuda"
    )
    parser.add_argument("--adapt", type=Literal["none", "lhuc"], default="none", help="adapt to speakers, two passes")
    parser.add_argument(
        "--transcripts", type=str, metavar="FILE", help="Kaldi text that the model was trained on, for --adapt lhuc"
    )
    parser.add_class_arguments(LhucConfig, "lhuc", help="with --adapt lhuc")
    parser.add_class_arguments(DecoderConfig)


def run(args: Namespace) -> None:
    """Runs ``mpq decode``."""
    import time

    from mpq.am import load_am
    from mpq.am.decode import decode_set
    from mpq.am.model import check_features
    from mpq.cli._device import find_device
    from mpq.data.batches import FeatureSet
    from mpq.fst.backend import check_backend
    from mpq.fst.decoder import Decoder, DecoderConfig
    from mpq.fst.graph import GRAPH_NAME, load_graph
    from mpq.fst.units import read_units
    from mpq.io import check_range, check_writable, sha256_file, write_symbols_hash
    from mpq.lang.arpa import read_arpa
    from mpq.quant import model_path

    check_range("--nj", args.nj, "[1, inf)")
    check_writable(Path(args.out, "hyp.txt"))
    device = find_device(args.device)
    started = time.monotonic()
    lang, out = Path(args.lang), Path(args.out)
    config = make_config(DecoderConfig, args)
    check_backend(config.fst)
    lexicon, words = _read_words(lang)
    units = read_units(lang, lexicon.phones)
    model = load_am(args.am, units.names).to(device)
    decoder = Decoder(load_graph(lang), read_arpa(lang / "lm.arpa"), words, config)
    features = FeatureSet(args.features, model.normalization)
    check_features(model, features)
    inputs = [model_path(args.am), args.features, *(lang / name for name in (GRAPH_NAME, "lm.arpa", "words.txt"))]
    key: list[object] = [config, device.type, [sha256_file(path) for path in inputs]]
    lhuc = _adapt(args, key, model, features, decoder, lexicon, units) if args.adapt == "lhuc" else None
    summary = decode_set(model, features, decoder, out, key, args.nj, lhuc)
    write_symbols_hash(args.out, lang / "words.txt")
    seconds = time.monotonic() - started
    print(f"decode: {summary}, {seconds:.0f} s: {args.out}")


def _adapt(
    args: Namespace,
    key: list[object],
    model: AcousticModel,
    features: FeatureSet,
    decoder: Decoder,
    lexicon: Lexicon,
    units: Units,
) -> dict[str, Tensor]:
    """LHUC logits by speaker after a first pass; what they depend on is added to `key`."""
    import sys

    from mpq.am.adapt import LhucConfig, adapt, check_speakers, load_logits, read_supervision, recognized, save_logits
    from mpq.am.decode import decode_set
    from mpq.fst.backend import path_sums
    from mpq.fst.fsa import ctc_graph
    from mpq.io import BadInput, hash_config, read_text
    from mpq.train.graphs import phone_model

    options = make_config(LhucConfig, args, "lhuc")
    check_speakers(features)
    if args.transcripts is None:
        raise BadInput("--adapt lhuc needs --transcripts: the Kaldi text that the acoustic model was trained on")
    texts = [" ".join(words) for words in read_text(args.transcripts).values()]
    key += [options, texts]
    path, first_pass = Path(args.out, "lhuc.safetensors"), Path(args.out, "first-pass")
    logits = load_logits(path, hash_config(key))
    if logits is None:
        first = decode_set(model, features, decoder, first_pass, key, args.nj)
        print(f"decode: first pass: {first}", file=sys.stderr)
        nbest = first_pass / "nbest.jsonl.gz"
        spoken = texts if options.phone_smooth else [*texts, *recognized(nbest, options.hyps)]
        phone_lm = phone_model(spoken, lexicon, options)
        supervision = read_supervision(nbest, lexicon, units, phone_lm, options)
        denominator = ctc_graph(units.expand(phone_lm.fsa))
        logits = adapt(model, features, supervision, denominator, options, args.nj, path_sums(args.fst))
        save_logits(path, logits, hash_config(key))
    return logits


def _read_words(lang: Path) -> tuple[Lexicon, SymbolTable]:
    """Lexicon and words of a lang folder, which must belong together."""
    from mpq.io import BadInput, read_symbols
    from mpq.lang.lexicon import read_lexicon

    lexicon, words = read_lexicon(lang), read_symbols(lang / "words.txt")
    missing = [word for word in lexicon.words if word not in words.ids]
    if missing:
        raise BadInput(
            f"{lang / 'words.txt'}: lacks {len(missing)} of the {len(lexicon)} words of lexicon.txt, such as "
            f"{missing[0]!r}; the files of a lang folder belong together: run mpq lang again"
        )
    return lexicon, words
