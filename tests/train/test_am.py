"""Acoustic training: CTC and LF-MMI learn a task that can be learned, and utterances that do not fit are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mpq.am import Tdnn, TdnnConfig
from mpq.data.batches import FeatureSet
from mpq.data.features import FeatureConfig, extract
from mpq.data.manifests import Spoken, write_manifests
from mpq.io import BadInput
from mpq.lang.lexicon import Lexicon
from mpq.train.am import AmConfig, AmTask, collapse, phone_model, run_key
from mpq.train.loop import FitConfig, fit

RATE = 16000
TONES = {"A": 400.0, "B": 1100.0, "C": 2900.0}  # Hz: what each phone sounds like
LEXICON = Lexicon({"ab": [["A", "B"]], "ca": [["C", "A"]], "bac": [["B", "A", "C"], ["B", "C"]]})


def speak(words: list[str], rng: np.random.Generator) -> np.ndarray:
    """A tone of 0.12 to 0.2 s for each phone, in noise."""
    parts = []
    for word in words:
        for phone in LEXICON.pronunciations(word)[int(rng.integers(len(LEXICON.pronunciations(word))))]:
            time = np.arange(int(RATE * rng.uniform(0.12, 0.2))) / RATE
            parts.append(np.sin(2 * np.pi * TONES[LEXICON.phones[phone - 1]] * time))
        parts.append(np.zeros(RATE // 20))
    audio = np.concatenate(parts)
    return 0.3 * audio + 0.01 * rng.standard_normal(len(audio))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of 48 utterances of tones."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    spoken = []
    for i in range(48):
        words = [str(word) for word in rng.choice(LEXICON.words, 4)]
        soundfile.write(folder / f"u{i:02}.flac", speak(words, rng), RATE)
        spoken.append(Spoken(f"u{i:02}", "s", folder / f"u{i:02}.flac", " ".join(words)))
    write_manifests(folder / "data", spoken, RATE)
    extract(folder / "data" / "cuts.jsonl.gz", folder / "features", FeatureConfig(), 1)
    return folder / "features" / "cuts.jsonl.gz"


def config(**options: object) -> AmConfig:
    model = TdnnConfig(hidden=48, dilations=[1, 1], channels=(8, 8), dropout=0.0)
    return AmConfig(model=model, fit=FitConfig(epochs=12, lr=5e-3), max_frames=1500, augment=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("ctc_part", [1.0, 0.3])
def test_training_learns_phones(features: Path, tmp_path: Path, ctc_part: float) -> None:
    task = AmTask(config(ctc_part=ctc_part), FeatureSet(features), FeatureSet(features), LEXICON)
    task.model.eval()
    with torch.no_grad():
        before = task.validate()
    result = fit(task, task.config.fit, tmp_path)
    assert result.best["loss"] < 0.5 * before["loss"]
    assert result.best["loss"] > 0.0  # the numerator's paths are among the denominator's
    if ctc_part == 1.0:
        assert result.best["per"] < 15.0


def test_loss_is_ctc_first_and_lfmmi_after(features: Path) -> None:
    task = AmTask(config(ctc_part=0.5), FeatureSet(features), FeatureSet(features), LEXICON)
    task.model.eval()
    batch = next(task.batches(0))
    with torch.no_grad():
        ctc, lfmmi = (task.loss(task.model, batch, done).item() for done in (0.49, 0.5))
        log_probs, lengths = task.model(batch.features, batch.lengths)
    single = [i for i, text in enumerate(batch.texts) if "bac" not in text.split()]
    targets = [[p for w in batch.texts[i].split() for p in LEXICON.pronunciations(w)[0]] for i in single]
    weight = [phone_log_prob(task, target) for target in targets]
    reference = torch.nn.functional.ctc_loss(
        log_probs[single].transpose(0, 1),
        torch.tensor([p for target in targets for p in target]),
        lengths[single],
        torch.tensor([len(target) for target in targets]),
        reduction="none",
    )
    batch_of_singles = task.train.batch([task.train.utts.index(batch.utts[i]) for i in single])
    with torch.no_grad():
        loss = task.loss(task.model, batch_of_singles, 0.0).item()
    expected = (reference.sum().item() - sum(weight)) / int(lengths[single].sum())
    assert loss == pytest.approx(expected, rel=1e-3)
    assert 0.0 < lfmmi < ctc


def phone_log_prob(task: AmTask, phones: list[int]) -> float:
    """Natural-log probability of a phone sequence under the denominator's bigram."""
    model, state, total = task.phone_lm, task.phone_lm.start, 0.0
    for phone in phones:
        total += float(model.log_prob[state, phone])
        state = int(model.next_history[state, phone])
    return total + float(model.log_prob[state, 0])


def test_utterances_shorter_than_their_transcripts_are_named(features: Path) -> None:
    data = FeatureSet(features)
    data.texts[3] = "bac " * 40
    data.texts[5] = ""
    with pytest.raises(BadInput, match=r"u03 \(\d+ frames at 33 a second, .*needs \d+\), u05 \(no words\)"):
        AmTask(config(), data, FeatureSet(features), LEXICON)


def test_a_word_outside_the_lexicon_is_named(features: Path) -> None:
    data = FeatureSet(features)
    data.texts[0] = "ab zebra"
    with pytest.raises(BadInput, match="'zebra' is not in the lexicon"):
        AmTask(config(), data, FeatureSet(features), LEXICON)


def test_held_out_words_outside_the_lexicon(features: Path) -> None:
    dev = FeatureSet(features)
    task = AmTask(config(), FeatureSet(features), dev, LEXICON)
    task.model.eval()
    with torch.no_grad():
        every = task.validate()
        dev.texts[7] += " zebra"
        fewer = task.validate()
    assert fewer["loss"] != every["loss"]
    dev.texts = ["zebra"] * len(dev)
    with pytest.raises(BadInput, match="every utterance has a word outside the lexicon of 3 words"):
        AmTask(config(), FeatureSet(features), dev, LEXICON)


def test_run_key_changes_with_what_changes_the_numbers(features: Path) -> None:
    key = run_key(config(), [features], LEXICON)
    assert key == run_key(config(), [features], LEXICON)
    assert key != run_key(config(den_scale=0.9), [features], LEXICON)
    assert key != run_key(config(), [features], Lexicon({"ab": [["A", "B"]]}))


def test_collapse_and_phone_model() -> None:
    assert collapse([0, 1, 1, 0, 1, 2, 2, 0, 0, 3]) == [1, 1, 2, 3]
    assert collapse([]) == []
    model = phone_model(["ab ca"], LEXICON, 2)
    a, b = 1, 2
    seen = model.log_prob[model.next_history[model.start, a], b]
    assert seen == max(model.log_prob[model.next_history[model.start, a]])


def test_the_model_is_seeded(features: Path) -> None:
    tasks = [AmTask(config(), FeatureSet(features), FeatureSet(features), LEXICON) for _ in range(2)]
    first, second = (task.model for task in tasks)
    assert isinstance(first, Tdnn)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ctc_part": 1.5}, "ctc_part: 1.5 must be between"),
        ({"phone_order": 0}, "phone_order: 0 must be at least 1"),
        ({"max_frames": 0}, "max_frames: 0 must be at least 1"),
        ({"den_scale": -1.0}, "den_scale: -1.0 must be at least 0"),
    ],
)
def test_bad_options(options: dict[str, float], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        AmConfig(**options)  # type: ignore[arg-type]
