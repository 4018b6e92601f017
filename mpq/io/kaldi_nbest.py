"""Kaldi n-best folders, as ``lattice-to-nbest`` and ``nbest-to-linear`` leave them.

A folder holds ``words_text`` (or ``words``, with numbers for words), ``ac_cost`` and ``lm_cost``; the ids
are ``utt-1``, ``utt-2`` ..., the best hypothesis first, and costs are minus natural-log scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from mpq.io.errors import BadInput
from mpq.io.files import PathLike, atomic_folder, atomic_write
from mpq.io.nbest import Hyp, NBest
from mpq.io.symbols import SymbolTable
from mpq.io.text import read_text, split_words


def read_kaldi_nbest(folder: PathLike, symbols: SymbolTable | None = None) -> Iterator[NBest]:
    """Yield the n-best lists of a Kaldi n-best folder, utterances in their order, hypotheses by rank.

    Args:
        folder: holds ``words_text`` (or ``words``), ``ac_cost`` and ``lm_cost``.
        symbols: words of the numbers in ``words``; needed where there is no ``words_text``.

    Raises:
        BadInput: a missing file, an id that does not end in ``-<rank>``, a cost that is missing, left over,
            not a number, NaN or infinite, or a number without a word.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BadInput(f"{folder}: no such folder; expected one with words_text, ac_cost and lm_cost")
    texts = _read_words(root, symbols)
    acoustic, graph = (_read_costs(root / name, texts) for name in ("ac_cost", "lm_cost"))
    ranked: dict[str, list[tuple[int, Hyp]]] = {}
    for key, text in texts.items():
        utt, dash, rank = key.rpartition("-")
        if not (utt and dash and rank.isdecimal()):
            raise BadInput(f"{root}: id {key!r} of a hypothesis; expected 'utterance-rank', such as 'utt-1'")
        hyp = Hyp(" ".join(text), am=-acoustic[key], lm=-graph[key])
        ranked.setdefault(utt, []).append((int(rank), hyp))
    for utt, hyps in ranked.items():
        yield NBest(utt, [hyp for _, hyp in sorted(hyps, key=lambda item: item[0])])


def write_kaldi_nbest(folder: PathLike, nbests: Iterable[NBest]) -> None:
    """Write n-best lists as a Kaldi n-best folder with ``words_text``, ``ac_cost`` and ``lm_cost``, all or none."""
    with atomic_folder(folder) as root, ExitStack() as stack:
        names = ("words_text", "ac_cost", "lm_cost")
        texts, acoustic, graph = (stack.enter_context(atomic_write(root / name)) for name in names)
        for nbest in nbests:
            for rank, hyp in enumerate(nbest.hyps, start=1):
                key = f"{nbest.utt}-{rank}"
                texts.write(" ".join([key, *split_words(hyp.text)]) + "\n")
                # "0.0 -" makes the cost of a zero score 0.0, not -0.0
                acoustic.write(f"{key} {0.0 - hyp.am!r}\n")
                graph.write(f"{key} {0.0 - hyp.lm!r}\n")


def _read_words(root: Path, symbols: SymbolTable | None) -> dict[str, list[str]]:
    """The words of each hypothesis, from ``words_text`` or from the numbers in ``words``."""
    if (root / "words_text").exists():
        return read_text(root / "words_text")
    path = root / "words"
    if not path.exists():
        raise BadInput(f"{root}: has neither words_text nor words; expected a Kaldi n-best folder")
    numbers = read_text(path)
    if symbols is None:
        raise BadInput(f"{path}: holds numbers for words; give the words.txt that they come from")
    known = {str(number): word for number, word in symbols.words.items()}
    for key, text in numbers.items():
        unknown = next((number for number in text if number not in known), None)
        if unknown is not None:
            raise BadInput(f"{path}: hypothesis {key!r}: {unknown!r} is not a word number of the symbol table")
    return {key: [known[number] for number in text] for key, text in numbers.items()}


def _read_costs(path: Path, keys: Iterable[str]) -> dict[str, float]:
    """One finite cost for each of ``keys``."""
    costs: dict[str, float] = {}
    for key, fields in read_text(path).items():
        try:
            (costs[key],) = map(float, fields)
        except ValueError:
            raise BadInput(f"{path}: hypothesis {key!r}: {' '.join(fields)!r}; expected one cost") from None
        if not math.isfinite(costs[key]):
            raise BadInput(f"{path}: hypothesis {key!r}: the cost is {fields[0]}; expected a finite number")
    odd = sorted(costs.keys() ^ set(keys))
    if odd:
        where = "has a cost but no words" if odd[0] in costs else "has no cost"
        raise BadInput(f"{path}: hypothesis {odd[0]!r} {where} ({len(odd)} such); the files must hold the same ids")
    return costs
