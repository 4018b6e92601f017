"""Turn a corpus on disk, or speech of your own, into manifests, transcripts and language model text.

Reads   the corpus in --corpus-dir, several where its parts lie apart (a corpus that is generated needs none).
        Speech of your own (CORPUS kaldi): Kaldi data folders, wav.scp with files or pipes, segments, text, utt2spk; or
        folders of WAV or FLAC files with a file text, 'FILE-WITHOUT-SUFFIX word word ...'. Each becomes a part of the
        same name, or of that in PART=DIR; without text it can only be decoded.
Writes  OUT/{train,dev,test}/{recordings,supervisions,cuts}.jsonl.gz and text (Kaldi),
        OUT/lm/{train,dev,test}.txt, and OUT/audio where the corpus' own files cannot be used as they are.
What is missing or broken in the corpus is told all at once. A killed run continues where it stopped.

Examples:
  mpq prepare mini --out exp/data --nj 2
  mpq prepare ami --corpus-dir /data/amicorpus --check-only
  mpq prepare kaldi --corpus-dir data/train --corpus-dir dev=data/dev_10h --corpus-dir data/test --out exp/data
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from jsonargparse import ArgumentParser, Namespace

# Options that only some corpora take, and why the others do not.
_SPECIAL = {
    "smoke": "is taken as it is",
    "hours": "is recorded speech",
    "mic": "has one microphone",
    "train": "has one training part",
    "partial": "is checked as a whole",
}


def _find_corpora() -> dict[str, str]:
    """Names and summaries of the corpus modules: those of the package ``local`` that define ``prepare``.

    The sources are parsed, not imported, since a corpus module may import slow libraries.
    """
    try:
        package = importlib.import_module("local")
    except ModuleNotFoundError:
        sys.path.append(str(Path(__file__).resolve().parents[2]))  # the root of a checkout
        package = importlib.import_module("local")
    corpora = {}
    for info in pkgutil.iter_modules(package.__path__):
        for folder in package.__path__:
            source = Path(folder, f"{info.name}.py")
            tree = ast.parse(source.read_text(encoding="utf-8")) if source.is_file() else ast.Module([], [])
            if any(isinstance(node, ast.FunctionDef) and node.name == "prepare" for node in tree.body):
                corpora[info.name] = (ast.get_docstring(tree) or info.name).partition("\n")[0].removesuffix(".")
    return corpora


def _load_corpus(name: str) -> ModuleType:
    """Imports the module of a corpus; BadInput names the known ones."""
    from mpq.io import BadInput

    corpora = _find_corpora()
    if name not in corpora:
        near = get_close_matches(name, corpora, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(corpora))}"
        raise BadInput(f"no corpus {name!r}; {hint}")
    return importlib.import_module(f"local.{name}")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq prepare``."""
    known = "; ".join(_find_corpora().values())
    parser.add_argument("corpus", type=str, metavar="CORPUS", help=f"which corpus: {known}")
    parser.add_argument(
        "--corpus-dir", type=str, action="append", metavar="DIR", help="where the corpus lies; may be given repeatedly"
    )
    parser.add_argument("--out", type=str, metavar="DIR", help="folder to write")
    parser.add_argument("--check-only", action="store_true", help="check the corpus, write nothing")
    parser.add_argument("--partial", action="store_true", help="a part of the corpus will do; warn of what is missing")
    parser.add_argument("--smoke", action="store_true", help="a tiny version, to try the recipe")
    parser.add_argument("--hours", type=float, help="hours of training audio, where the corpus is generated")
    parser.add_argument("--mic", type=str, help="microphone, where there are several: ihm, sdm or mdm")
    parser.add_argument("--train", type=str, help="hours of the training parts, where there are several: 100, 460, 960")
    parser.add_argument("--nj", type=int, default=2, help="number of processes")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn at random")


def run(args: Namespace) -> None:
    """Runs ``mpq prepare``."""
    from mpq.io import BadInput, check_writable

    if args.nj < 1:
        raise BadInput(f"--nj {args.nj}: expected a number above 0")
    if args.seed < 0:
        raise BadInput(f"--seed {args.seed}: expected a number of at least 0")
    module = _load_corpus(args.corpus)
    if args.check_only:
        print(f"{args.corpus}: {module.check(**_options(args, module.check))}")
        return
    if not args.out:
        raise BadInput("--out is needed: the folder to write (or --check-only)")
    check_writable(Path(args.out, "file"))
    print(f"{args.corpus}: {module.prepare(Path(args.out), **_options(args, module.prepare))}")


def _options(args: Namespace, function: Callable[..., str]) -> dict[str, object]:
    """What `function` of a corpus takes of the options; BadInput for one that it does not take."""
    from mpq.io import BadInput

    known = inspect.signature(function).parameters
    folders = [Path(folder) for folder in args.corpus_dir or []]
    options: dict[str, object] = {"nj": args.nj, "seed": args.seed}
    if "corpus_dirs" in known:
        options["corpus_dirs"] = folders
    elif len(folders) > 1:
        raise BadInput(f"--corpus-dir {folders[1]}: {args.corpus} lies in one folder; give it once")
    else:
        options["corpus_dir"] = folders[0] if folders else None
    for name, why in _SPECIAL.items():
        if args[name] not in (None, False):
            if name not in known:
                value = args[name]
                given = "" if value is True else f" {value:g}" if isinstance(value, float) else f" {value}"
                raise BadInput(f"--{name}{given}: {args.corpus} {why}; leave the option out")
            options[name] = args[name]
    return {name: value for name, value in options.items() if name in known}
