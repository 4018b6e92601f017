"""Carried-over state equals scoring the whole recording as one text; broken maps are told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from mpq.data.lmtext import LmBatch, Tokenizer
from mpq.io import BadInput, Hyp, NBest
from mpq.lm import LanguageModel
from mpq.rescore import Weights, add_lm_scores
from mpq.rescore.carry import Place, carry_over, read_recordings

from .conftest import alone, made_up_list

WEIGHTS = Weights(ngram_weight=1.0, lm_weight=0.5)


@torch.no_grad()
def after(model: LanguageModel, before: list[int], units: list[int], eos: int) -> float:
    """Score of `units` and `</s>` after `before`, which ends in `<s>`, by one pass over all of it."""
    row = torch.tensor([[*before, *units, eos]])
    mask = torch.arange(row.shape[1] - 1)[None] >= len(before) - 1
    return float(model.score(LmBatch(row[:, :-1], row[:, 1:], mask)).item())


def test_equals_one_long_text(any_lm: LanguageModel, units: Tokenizer) -> None:
    lists = {utt: made_up_list(utt, 12, 6, seed) for seed, utt in enumerate(["a1", "a2", "a3", "b1", "b2"])}
    places = {utt: Place(utt[0], float(utt[1])) for utt in lists}
    shuffled = [lists[utt] for utt in ("b2", "a3", "a1", "b1", "a2")]
    scored = {nbest.utt: nbest for nbest in carry_over(any_lm, units, shuffled, places, WEIGHTS)}
    assert list(scored) == [nbest.utt for nbest in shuffled]
    for recording in ("a", "b"):
        before: list[int] = []
        for utt in (utt for utt in lists if utt[0] == recording):
            before.append(units.bos)
            hyps = scored[utt].hyps
            want = [after(any_lm, before, units.encode(hyp.text), units.eos) for hyp in hyps]
            assert [hyp.nnlm for hyp in hyps] == pytest.approx(want, abs=1e-4)
            best = max(range(12), key=lambda i: hyps[i].am + hyps[i].lm + 0.5 * want[i])
            before += units.encode(hyps[best].text)


def test_one_utterance_a_recording_changes_nothing(any_lm: LanguageModel, units: Tokenizer) -> None:
    nbests = [made_up_list("u", 9, 5, 0), NBest("v", [Hyp("", 0.0, 0.0)])]
    places = {"u": Place("r1", 0.0), "v": Place("r2", 0.0)}
    carried = carry_over(any_lm, units, nbests, places, WEIGHTS)
    plain = list(add_lm_scores(any_lm, units, nbests))
    assert [h.nnlm for n in carried for h in n.hyps] == pytest.approx([h.nnlm for n in plain for h in n.hyps])
    assert carried[1].hyps[0].nnlm == pytest.approx(alone(any_lm, units, ""), abs=1e-4)


def test_missing_recording(any_lm: LanguageModel, units: Tokenizer) -> None:
    with pytest.raises(BadInput, match="utterance 'u': not in the map of recordings"):
        carry_over(any_lm, units, [made_up_list("u", 2, 3, 0)], {}, WEIGHTS)


def test_utt2rec(tmp_path: Path) -> None:
    path = tmp_path / "utt2rec"
    path.write_text("u2 r1\nu1 r1\n")
    assert read_recordings(path) == {"u2": Place("r1", 0.0), "u1": Place("r1", 1.0)}
    path.write_text("u2 r1 r2\n")
    with pytest.raises(BadInput, match="utterance 'u2': 'r1 r2'; expected one recording"):
        read_recordings(path)


def test_cuts(tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    cut = {"id": "c", "start": 2.5, "recording": {"id": "r"}, "supervisions": [{"id": "s", "start": 0.5}]}
    bare = {"id": "d", "start": 0, "supervisions": [{"id": "t", "start": 0, "recording_id": "q"}]}
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(cut) + "\n" + json.dumps(bare) + "\n")
    assert read_recordings(path) == {
        "c": Place("r", 2.5),
        "s": Place("r", 3.0),
        "d": Place("q", 0.0),
        "t": Place("q", 0.0),
    }
    with gzip.open(path, "wt") as file:
        file.write('{"id": "c"}\n')
    with pytest.raises(BadInput, match=r"cuts.jsonl.gz:1: expected a lhotse cut"):
        read_recordings(path)
