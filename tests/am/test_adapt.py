"""LHUC at test time: what supervises, that it fits the speaker and nothing else, files, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mpq.am import Tdnn, TdnnConfig
from mpq.am.adapt import (
    LhucConfig,
    adapt,
    load_logits,
    read_supervision,
    recognized,
    save_logits,
    supervision_graph,
)
from mpq.data.batches import Batch
from mpq.fst.fsa import ctc_graph
from mpq.fst.lfmmi import lfmmi_loss, total_score
from mpq.fst.phone_lm import estimate_phone_ngram
from mpq.fst.units import Units
from mpq.io import BadInput, Hyp, NBest, write_nbest
from mpq.lang.lexicon import Lexicon
from mpq.train.graphs import phone_model

LEXICON = Lexicon({"yes": [["a", "b"]], "no": [["c"], ["c", "a"]], "go": [["b", "c"]]})
UNITS = Units(LEXICON.phones)
PHONE_LM = estimate_phone_ngram([[1, 2, 3], [2, 3], [3, 1, 1, 2]], 3, order=2)
DENOMINATOR = ctc_graph(PHONE_LM.fsa)


class Features:
    """What `adapt` uses of a `FeatureSet`: five utterances of two speakers, noise."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.path = "cuts.jsonl.gz"
        self.utts = [f"u{i}" for i in range(5)]
        self.speakers = ["s1", "s2", "s1", "s1", "s2"]
        self.lengths = np.array([40, 36, 33, 30, 45])
        self.n_without_speaker = 0
        self._frames = [torch.randn(int(length), 8, generator=generator) for length in self.lengths]

    def __len__(self) -> int:
        return len(self.utts)

    def batch(self, indexes: list[int]) -> Batch:
        padded = torch.nn.utils.rnn.pad_sequence([self._frames[i] for i in indexes], batch_first=True)
        lengths = torch.from_numpy(self.lengths[indexes])
        utts, speakers = ([names[i] for i in indexes] for names in (self.utts, self.speakers))
        return Batch(padded, lengths, [""] * len(indexes), utts, speakers)


def make() -> Tdnn:
    torch.manual_seed(3)
    return Tdnn(TdnnConfig(feature_dim=8, hidden=16, dilations=[1, 2], channels=(4, 4)), len(UNITS) + 1).eval()


def supervise(features: Features, words: str) -> dict[str, object]:
    return {utt: supervision_graph([Hyp(words, 0.0, -1.0)], LEXICON, UNITS, PHONE_LM, 1.0) for utt in features.utts}


def loss(model: Tdnn, features: Features, graphs: dict[str, object], lhuc: dict[str, torch.Tensor]) -> np.ndarray:
    """Of each utterance."""
    batch = features.batch(list(range(5)))
    with torch.no_grad():
        log_probs, lengths = model(
            batch.features, batch.lengths, lhuc=torch.stack([lhuc[speaker] for speaker in batch.speakers])
        )
        numerators = [graphs[utt] for utt in batch.utts]
        return lfmmi_loss(log_probs, lengths, numerators, DENOMINATOR).numpy()  # type: ignore[arg-type]


def test_supervision_sums_the_hypotheses_by_their_language_model_scores() -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(1, 9, 4).log_softmax(-1)
    hyps = [Hyp("yes go", -3.0, -1.5), Hyp("go", -2.0, -2.5), Hyp("", -9.0, -4.0)]
    graph = supervision_graph(hyps, LEXICON, UNITS, PHONE_LM, 0.5)
    found = total_score(log_probs, torch.tensor([9]), [graph])
    scores = []
    for hyp in hyps:
        phones = [p for word in hyp.text.split() for p in LEXICON.pronunciations(word)[0]]
        ctc = torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1),
            torch.tensor([phones], dtype=torch.long).reshape(1, -1),
            torch.tensor([9]),
            torch.tensor([len(phones)]),
            reduction="sum",
        )
        state, phone_score = PHONE_LM.start, 0.0
        for phone in phones:
            phone_score += float(PHONE_LM.log_prob[state, phone])
            state = int(PHONE_LM.next_history[state, phone])
        scores.append(0.5 * hyp.lm + phone_score + float(PHONE_LM.log_prob[state, 0]) - ctc)
    assert found.item() == pytest.approx(torch.stack(scores).logsumexp(0).item(), rel=1e-5)


def test_logits_fit_the_speaker_and_the_model_stays() -> None:
    model, features = make(), Features()
    graphs = supervise(features, "yes no")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lhuc = adapt(model, features, graphs, DENOMINATOR, LhucConfig(steps=15, lr=0.1), 1)  # type: ignore[arg-type]
    assert lhuc.keys() == {"s1", "s2"} and lhuc["s1"].shape == model.lhuc_shape
    before = loss(model, features, graphs, {name: torch.zeros(model.lhuc_shape) for name in lhuc})
    after = loss(model, features, graphs, lhuc)
    swapped = loss(model, features, graphs, {"s1": lhuc["s2"], "s2": lhuc["s1"]})
    assert (after < before).all() and after.sum() < swapped.sum()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    held = adapt(model, features, graphs, DENOMINATOR, LhucConfig(steps=15, lr=0.1, decay=10.0), 1)  # type: ignore[arg-type]
    assert all(held[name].norm() < 0.7 * lhuc[name].norm() for name in lhuc)


def test_batches_processes_and_utterances_without_supervision() -> None:
    model, features = make(), Features()
    graphs = supervise(features, "go")
    config = LhucConfig(steps=3, max_frames=50)  # a batch is one utterance
    one, two = (adapt(model, features, graphs, DENOMINATOR, config, nj) for nj in (1, 2))  # type: ignore[arg-type]
    assert all(torch.equal(one[name], two[name]) for name in one)
    for utt in ("u1", "u4"):
        del graphs[utt]
    fewer = adapt(model, features, graphs, DENOMINATOR, config, 1)  # type: ignore[arg-type]
    assert torch.equal(fewer["s1"], one["s1"]) and not fewer["s2"].any()


def test_what_was_recognized_has_a_path_in_a_model_that_is_not_smooth(tmp_path: Path) -> None:
    model, features = make(), Features()
    said = ["go yes", "", "no no", "yes", "go go go"]
    lists = [NBest(utt, [Hyp(text, 0.0, -1.0)]) for utt, text in zip(features.utts, said, strict=True)]
    write_nbest(tmp_path / "nbest.jsonl", lists)
    config = LhucConfig(phone_order=4, phone_smooth=False)
    found = recognized(tmp_path / "nbest.jsonl", config.hyps)
    assert found == said
    phone_lm = phone_model(["yes yes", *found], LEXICON, config)
    graphs = read_supervision(tmp_path / "nbest.jsonl", LEXICON, UNITS, phone_lm, config)
    logits = adapt(model, features, graphs, ctc_graph(phone_lm.fsa), config, 1)  # type: ignore[arg-type]
    assert all(r.isfinite().all() and r.any() for r in logits.values())


def test_speakers_must_be_known() -> None:
    features = Features()
    features.n_without_speaker = 2
    with pytest.raises(BadInput, match=r"cuts.jsonl.gz: 2 of 5 utterances have no speaker"):
        adapt(make(), features, {}, DENOMINATOR, LhucConfig(), 1)  # type: ignore[arg-type]


def test_files(tmp_path: Path) -> None:
    logits = {"s1": torch.randn(2, 3), "s2": torch.randn(2, 3)}
    save_logits(tmp_path / "lhuc.safetensors", logits, "key")
    read = load_logits(tmp_path / "lhuc.safetensors", "key")
    assert read is not None and all(torch.equal(read[name], logits[name]) for name in logits)
    assert load_logits(tmp_path / "lhuc.safetensors", "another") is None
    assert load_logits(tmp_path / "none.safetensors", "key") is None
    hyps = [Hyp("yes", -1.0, -1.0), Hyp("no", -2.0, -2.0)]
    write_nbest(tmp_path / "nbest.jsonl", [NBest("u1", hyps), NBest("u2", [Hyp("", 0.0, -1.0)])])
    sizes = {
        n: len(read_supervision(tmp_path / "nbest.jsonl", LEXICON, UNITS, PHONE_LM, LhucConfig(hyps=n))["u1"].final)
        for n in (1, 2)
    }
    assert sizes[1] < sizes[2]
    assert read_supervision(tmp_path / "nbest.jsonl", LEXICON, UNITS, PHONE_LM, LhucConfig()).keys() == {"u1"}


@pytest.mark.parametrize("options", [{"steps": 0}, {"lr": 0.0}, {"decay": -1.0}, {"hyps": 0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(options))):
        LhucConfig(**options)  # type: ignore[arg-type]
