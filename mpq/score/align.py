"""Word alignment with the costs and the tie-breaking of NIST sclite.

kaldialign's ``sclite_mode`` has the same costs, but where alignments of equal cost exist it may take
another one, with other error counts (three substitutions cost as much as two insertions and two deletions)
and other places of the errors, which is what MAPSSWE counts.  So the dynamic programming is done here, by
sclite's rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Op = Literal["C", "S", "I", "D"]

_INSERT_OR_DELETE = 3
_SUBSTITUTE = 4
_LONG = 100  # recognized words from which a row of the table is faster in numpy


class Pair(NamedTuple):
    """One step of an alignment: C(orrect), S(ubstitution), I(nsertion: no ref) or D(eletion: no hyp)."""

    op: Op
    ref: str | None
    hyp: str | None


def align(ref: Sequence[str], hyp: Sequence[str]) -> list[Pair]:
    """Align two word sequences as sclite does.

    The cost of a substitution is 4, of an insertion or deletion 3.  Traced from the end, where costs are
    equal, a correct word or substitution comes before an insertion, and that before a deletion (``net_dp.c``
    of sctk 2.4).

    Args:
        ref: ``R`` reference words.
        hyp: ``H`` recognized words.

    Returns:
        The steps in order; time and memory grow as ``R * H``, less for equal endings; where ``H`` is large, 10 to 20
        ns and a quarter of a byte each.
    """
    n_ref, n_hyp = len(ref), len(hyp)
    # Equal last words are on the traced path, so only what comes before needs the table.
    while n_ref and n_hyp and ref[n_ref - 1] == hyp[n_hyp - 1]:
        n_ref, n_hyp = n_ref - 1, n_hyp - 1
    pairs = [Pair("C", r, h) for r, h in zip(reversed(ref[n_ref:]), reversed(hyp[n_hyp:]), strict=True)]
    last_move = (_long_moves if n_hyp >= _LONG else _short_moves)(ref[:n_ref], hyp[:n_hyp])
    i, j = n_ref, n_hyp
    while i or j:
        move = last_move(i, j)
        if move == "I":
            j -= 1
            pairs.append(Pair("I", None, hyp[j]))
        elif move == "D":
            i -= 1
            pairs.append(Pair("D", ref[i], None))
        else:
            i, j = i - 1, j - 1
            pairs.append(Pair("C" if ref[i] == hyp[j] else "S", ref[i], hyp[j]))
    pairs.reverse()
    return pairs


def _short_moves(ref: Sequence[str], hyp: Sequence[str]) -> Callable[[int, int], str]:
    """Finds the last step, M, I or D, of the best alignment of so many first words of each."""
    table = _moves(ref, hyp)
    return lambda i, j: table[i][j]


def _long_moves(ref: Sequence[str], hyp: Sequence[str]) -> Callable[[int, int], str]:
    """The same in less time and memory where there are many recognized words."""
    packed = _packed_moves(ref, hyp)
    return lambda i, j: _packed_move(packed, i, j)


def _moves(ref: Sequence[str], hyp: Sequence[str]) -> list[list[str]]:
    """The last step, M(atch or substitution), I or D, of the best alignment of each two prefixes."""
    step = _INSERT_OR_DELETE
    above = [step * j for j in range(len(hyp) + 1)]
    table = [["I"] * len(above)]
    for i, ref_word in enumerate(ref, start=1):
        left = step * i
        costs, moves = [left], ["D"]
        for j, hyp_word in enumerate(hyp, start=1):
            match = above[j - 1] + (0 if ref_word == hyp_word else _SUBSTITUTE)
            delete, insert = above[j] + step, left + step
            if match <= delete and match <= insert:
                left = match
                moves.append("M")
            elif delete < insert:
                left = delete
                moves.append("D")
            else:
                left = insert
                moves.append("I")
            costs.append(left)
        table.append(moves)
        above = costs
    return table


def _packed_moves(ref: Sequence[str], hyp: Sequence[str]) -> npt.NDArray[np.uint8]:
    """What `_moves` finds, from the same integers a row at a time, for `_packed_move`.

    Returns:
        Bits of whether a match and whether an insertion is a best last step, (R, 2, ceil(H / 8)).
    """
    ids = {word: number for number, word in enumerate({*ref, *hyp})}
    hyp_ids = np.array([ids[word] for word in hyp], np.int32)
    packed = np.empty((len(ref), 2, -(-len(hyp) // 8)), np.uint8)
    inserted = _INSERT_OR_DELETE * np.arange(len(hyp) + 1, dtype=np.int32)
    above, best = inserted, np.empty_like(inserted)
    for i, word in enumerate(ref):
        match = above[:-1] + (hyp_ids != ids[word]) * np.int32(_SUBSTITUTE)
        best[0] = _INSERT_OR_DELETE * (i + 1)
        np.minimum(match, above[1:] + _INSERT_OR_DELETE, out=best[1:])
        # the least of best[k] and j - k insertions, over all k up to j
        costs = np.minimum.accumulate(best - inserted) + inserted
        is_best = match == costs[1:], costs[:-1] + _INSERT_OR_DELETE == costs[1:]
        packed[i] = np.packbits(is_best, axis=1)
        above = costs
    return packed


def _packed_move(packed: npt.NDArray[np.uint8], i: int, j: int) -> str:
    """The last step of the best alignment of `i` reference words with `j` recognized ones."""
    if not (i and j):
        return "D" if i else "I"
    match, insert = packed[i - 1, :, (j - 1) // 8].tolist()
    bit = 128 >> (j - 1) % 8
    return "M" if match & bit else "I" if insert & bit else "D"
