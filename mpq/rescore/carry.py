"""Language-model state carried from utterance to utterance of one recording.

An LSTM goes on from the state after the best hypothesis of the utterance before; a Transformer sees the units of the
best hypotheses before, as many as `CONTEXT`. Recordings are independent, so the k-th utterances of all are scored
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpq.data.lmtext import Tokenizer
from mpq.io import BadInput, NBest, PathLike, progress, read_jsonl, read_text, split_words
from mpq.lm import LanguageModel, LstmLm
from mpq.rescore.combine import Weights, rerank
from mpq.rescore.scoring import Scoring, check_lists, check_vocabulary, score_lists
from mpq.rescore.steps import LstmState, advance, zero_state

CONTEXT = 256  # units that a Transformer sees before an utterance


@dataclass(frozen=True, slots=True)
class Place:
    """Where an utterance belongs: its recording, and its start in seconds (or its rank where no time is known)."""

    recording: str
    start: float


def read_recordings(path: PathLike) -> dict[str, Place]:
    """The recording of each utterance, from Kaldi's `utt2rec` or a lhotse manifest of cuts (`*.jsonl[.gz]`).

    Utterances of `utt2rec` follow one another in the order of the file. Cuts have times; both the cut's and its
    supervisions' ids are known.

    Raises:
        BadInput: a line of another form.
    """
    if ".jsonl" not in str(path):
        places = {}
        for rank, (utt, fields) in enumerate(read_text(path).items()):
            if len(fields) != 1:
                raise BadInput(f"{path}: utterance '{utt}': {' '.join(fields)!r:.60}; expected one recording")
            places[utt] = Place(fields[0], float(rank))
        return places
    places = {}
    for number, cut in read_jsonl(path):
        try:
            places.update(_places(cut))
        except (KeyError, TypeError, IndexError, ValueError):
            raise BadInput(f"{path}:{number}: expected a lhotse cut with id, start and recording") from None
    return places


def _places(cut: dict[str, Any]) -> dict[str, Place]:
    supervisions = cut.get("supervisions") or []
    recording = cut["recording"]["id"] if cut.get("recording") else supervisions[0]["recording_id"]
    start = float(cut["start"])
    inside = {str(part["id"]): Place(str(recording), start + float(part["start"])) for part in supervisions}
    return {**inside, str(cut["id"]): Place(str(recording), start)}


def carry_over(
    model: LanguageModel,
    tokenizer: Tokenizer,
    nbests: Sequence[NBest],
    places: Mapping[str, Place],
    weights: Weights,
    scoring: Scoring | None = None,
) -> list[NBest]:
    """The lists with `nnlm` filled in, every utterance after the best hypotheses of its recording so far.

    Args:
        model: float or quantized.
        tokenizer: its units.
        nbests: lists, in any order.
        places: of all utterances.
        weights: what makes a hypothesis the best.
        scoring: memory and merging.

    Raises:
        BadInput: as `add_lm_scores`, or an utterance has no recording.
    """
    scoring = scoring or Scoring()
    check_lists(nbests)
    check_vocabulary(tokenizer, {word for nbest in nbests for hyp in nbest.hyps for word in split_words(hyp.text)})
    queues = _queues(nbests, places)
    memories: dict[str, _Memory] = {recording: _Memory([], None) for recording in queues}
    scored: dict[str, NBest] = {}
    for turn in progress(range(max(map(len, queues.values()), default=0)), what="score (turns)"):
        active = [recording for recording, queue in queues.items() if len(queue) > turn]
        lists = [queues[recording][turn] for recording in active]
        before = [memories[recording] for recording in active]
        roots = [[*memory.units, tokenizer.bos] for memory in before]
        lists = score_lists(model, tokenizer, lists, scoring, roots, _states(model, before))
        best = [tokenizer.encode(rerank(nbest, weights).hyps[0].text) for nbest in lists]
        memories.update(zip(active, _remember(model, before, [[tokenizer.bos, *units] for units in best]), strict=True))
        scored.update((nbest.utt, nbest) for nbest in lists)
    return [scored[nbest.utt] for nbest in nbests]


@dataclass(frozen=True, slots=True)
class _Memory:
    """What is kept of a recording so far: units for a Transformer, a state (layers, 1, C) for an LSTM."""

    units: list[int]
    state: LstmState | None


def _queues(nbests: Sequence[NBest], places: Mapping[str, Place]) -> dict[str, list[NBest]]:
    """The lists of every recording, by time."""
    queues: dict[str, list[NBest]] = {}
    for nbest in nbests:
        if nbest.utt not in places:
            raise BadInput(f"utterance '{nbest.utt}': not in the map of recordings; --carry-over needs every utterance")
        queues.setdefault(places[nbest.utt].recording, []).append(nbest)
    for queue in queues.values():
        queue.sort(key=lambda nbest: places[nbest.utt].start)
    return queues


def _states(model: LanguageModel, memories: Sequence[_Memory]) -> LstmState | None:
    """States before the roots, (layers, utterances, C); none for a Transformer."""
    if not isinstance(model, LstmLm):
        return None
    states = [memory.state or zero_state(model, 1) for memory in memories]
    return LstmState(torch.cat([state.h for state in states], 1), torch.cat([state.c for state in states], 1))


def _remember(model: LanguageModel, before: Sequence[_Memory], units: list[list[int]]) -> list[_Memory]:
    """What is kept after each recording's next `units`."""
    states = _states(model, before)
    if not isinstance(model, LstmLm) or states is None:
        return [_Memory([*memory.units, *new][-CONTEXT:], None) for memory, new in zip(before, units, strict=True)]
    after = advance(model, states, units)
    rows = (torch.tensor([i], device=model.device) for i in range(len(units)))
    return [_Memory([], after.rows(row)) for row in rows]
