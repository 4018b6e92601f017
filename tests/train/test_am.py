"""Acoustic training: CTC and LF-MMI learn a task that can be learned, and utterances that do not fit are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mpq.am import Tdnn, TdnnConfig, TdnnfConfig, load_am, save_am
from mpq.am.model import check_features
from mpq.am.tdnnf import UnitDropout
from mpq.data.batches import FeatureSet, SpecAugment
from mpq.data.features import FeatureConfig, extract
from mpq.data.manifests import Spoken, write_manifests
from mpq.fst.lfmmi import lfmmi_loss, total_score
from mpq.fst.phone_lm import PhoneLmConfig
from mpq.fst.units import Units
from mpq.io import BadInput
from mpq.lang.lexicon import Lexicon
from mpq.quant import read_model_file
from mpq.train import am
from mpq.train.am import AmConfig, AmTask, collapse, run_key
from mpq.train.graphs import phone_model
from mpq.train.loop import FitConfig, fit
from mpq.train.trainee import Trainee

RATE = 16000
TONES = {"A": 400.0, "B": 1100.0, "C": 2900.0}  # Hz: what each phone sounds like
LEXICON = Lexicon({"ab": [["A", "B"]], "ca": [["C", "A"]], "bac": [["B", "A", "C"], ["B", "C"]]})
UNITS = Units(LEXICON.phones)


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
        log_probs, lengths = task.acoustic(batch.features, batch.lengths)
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


@pytest.mark.k2
def test_k2_trains_by_the_same_loss_and_gradient(features: Path) -> None:
    results = []
    for fst in ("native", "k2"):
        task = AmTask(config(ctc_part=0.0, fst=fst), FeatureSet(features), FeatureSet(features), LEXICON)
        task.model.eval()
        loss = task.loss(task.model, next(task.batches(0)), 0.0)
        grads = torch.autograd.grad(loss, list(task.acoustic.parameters()), allow_unused=True)
        with torch.no_grad():
            results.append([loss, *(g for g in grads if g is not None), torch.tensor(task.validate()["loss"])])
    assert len(results[0]) > 5
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def phone_log_prob(task: AmTask, phones: list[int]) -> float:
    """Natural-log probability of a phone sequence under the denominator's bigram."""
    model, state, total = task.graphs.phone_lm, task.graphs.phone_lm.start, 0.0
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


def test_few_that_do_not_fit_are_left_out(
    features: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mpq.train.am._MISFITS", 0.5)
    data, dev = FeatureSet(features), FeatureSet(features)
    data.texts[3] = dev.texts[3] = "bac " * 40
    data.texts[5] = ""
    task = AmTask(config(), data, dev, LEXICON)
    assert "left out, transcripts do not fit their audio: u03 (" in capsys.readouterr().err
    utts = [utt for batch in task.batches(0) for utt in batch.utts]
    assert sorted(utts) == [utt for utt in data.utts if utt not in ("u03", "u05")]
    task.model.eval()
    with torch.no_grad():
        assert np.isfinite(task.validate()["loss"])


def test_held_out_sequences_that_training_has_not_are_scored(features: Path) -> None:
    options = config(ctc_part=0.0, phone_order=4, phone_smooth=False)
    train, dev = FeatureSet(features), FeatureSet(features)
    train.texts[:] = ["ab ca ab ca" for _ in train.texts]
    task = AmTask(options, train, dev, LEXICON)
    task.model.eval()
    unseen = [text for text in dev.texts if np.isinf(task.numerator(text).min_frames)]
    assert len(unseen) > 40, "no path through the model of the training transcripts"
    frames = task.acoustic.out_lengths(torch.from_numpy(dev.lengths)).tolist()
    assert all(task.fits(text, n) for text, n in zip(dev.texts, frames, strict=True))
    batch = dev.batch(range(len(dev)))
    with torch.no_grad():
        log_probs, lengths = task.acoustic(batch.features, batch.lengths)
        graphs = [task.held_out.numerator(text) for text in batch.texts]
        losses = lfmmi_loss(log_probs, lengths, graphs, task.held_out.denominator)
        assert (losses > 0.0).all() and losses.isfinite().all()
        assert task.validate()["loss"] == pytest.approx((losses.sum() / lengths.sum()).item(), rel=1e-4)
        assert task.loss(task.model, next(task.batches(0)), 1.0) > -1e-4
    assert len(task.denominator.src) < len(task.held_out.denominator.src)
    alone = AmTask(config(ctc_part=1.0, phone_order=4, phone_smooth=False), train, dev, LEXICON, acoustic=task.acoustic)
    with torch.no_grad():
        by_ctc = -total_score(log_probs, lengths, graphs).sum() / lengths.sum()
        assert alone.validate()["loss"] == pytest.approx(by_ctc.item(), rel=1e-4), "what is trained decides"
    smooth = AmTask(config(phone_order=4), train, dev, LEXICON)
    assert smooth.held_out is smooth.graphs


def test_it_learns_with_a_four_gram_that_is_not_smooth(features: Path, tmp_path: Path) -> None:
    options = config(ctc_part=0.3, phone_order=4, phone_smooth=False, phone_histories=20)
    task = AmTask(options, FeatureSet(features), FeatureSet(features), LEXICON)
    task.model.eval()
    with torch.no_grad():
        before = task.validate()
    result = fit(task, options.fit, tmp_path)
    assert 0.0 < result.best["loss"] < 0.5 * before["loss"] and result.best["per"] < 40.0


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
    dev.texts[:] = ["zebra"] * len(dev)
    with pytest.raises(BadInput, match="every utterance has a word outside the lexicon of 3 words"):
        AmTask(config(), FeatureSet(features), dev, LEXICON)


def test_processes_share_the_held_out_batches(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sums are those of one process, which sees every batch once."""
    data = FeatureSet(features)
    task = AmTask(AmConfig(TdnnConfig(hidden=8), max_frames=300), data, data, LEXICON)
    task.model.eval()
    shares = []

    def gather(values: list[float], device: torch.device) -> list[float]:
        shares.append(values)
        return values

    monkeypatch.setattr(am, "sum_over_processes", gather)
    with torch.no_grad():
        task.validate()
        for rank in range(3):
            monkeypatch.setattr(am, "world", lambda rank=rank: (rank, 3))
            task.validate()
    whole, *parts = shares
    assert [sum(column) for column in zip(*parts, strict=True)] == pytest.approx(whole, rel=1e-6)
    assert all(part[1] > 0 for part in parts)


def test_run_key_changes_with_what_changes_the_numbers(features: Path) -> None:
    key = run_key(config(), [features], LEXICON, UNITS)
    assert key == run_key(config(), [features], LEXICON, UNITS)
    assert key != run_key(config(den_scale=0.9), [features], LEXICON, UNITS)
    assert key != run_key(config(), [features], Lexicon({"ab": [["A", "B"]]}), UNITS)


def test_run_key_is_that_of_the_batch_of_all_processes(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training goes on with another number of them, each with its share of the batch, and not with other batches."""

    def key(max_frames: int) -> object:
        return run_key(AmConfig(TdnnConfig(hidden=8), max_frames=max_frames), [features], LEXICON, UNITS)

    one = key(40000)
    assert one != key(39999)
    for processes, share in ((2, 20000), (3, 13333), (8, 5000)):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        assert key(share) == one
        assert key(40000) != one


def test_collapse_and_phone_model() -> None:
    assert collapse([0, 1, 1, 0, 1, 2, 2, 0, 0, 3]) == [1, 1, 2, 3]
    assert collapse([]) == []
    model = phone_model(["ab ca"], LEXICON, PhoneLmConfig())
    a, b = 1, 2
    seen = model.log_prob[model.next_history[model.start, a], b]
    assert seen == max(model.log_prob[model.next_history[model.start, a]])


def test_the_model_is_seeded(features: Path) -> None:
    tasks = [AmTask(config(), FeatureSet(features), FeatureSet(features), LEXICON) for _ in range(2)]
    first, second = (task.acoustic for task in tasks)
    assert isinstance(first, Tdnn)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ctc_part": 1.5}, "ctc_part: 1.5 must be at least 0 and at most 1"),
        ({"phone_order": 0}, "phone_order: 0 must be at least 1"),
        ({"phone_histories": -1}, "phone_histories: -1 must be at least 0"),
        ({"max_frames": 0}, "max_frames: 0 must be at least 1"),
        ({"den_scale": -1.0}, "den_scale: -1.0 must be at least 0"),
    ],
)
def test_bad_options(options: dict[str, float], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        AmConfig(**options)  # type: ignore[arg-type]


FACTORIZED = TdnnfConfig(
    channels=[4, 8], height_strides=[4, 4], hidden=48, bottleneck=16, first_bottleneck=16, strides=[1], prefinal=16
)


def test_the_cross_entropy_branch_learns_and_does_not_decode(features: Path, tmp_path: Path) -> None:
    options = AmConfig(model=FACTORIZED, fit=FitConfig(epochs=4, lr=5e-3), max_frames=1500, augment=False, xent=0.1)
    task = AmTask(options, FeatureSet(features), FeatureSet(features), LEXICON)
    assert isinstance(task.model, Trainee) and task.model.xent is not None
    task.model.eval()
    with torch.no_grad():
        untrained = task.validate()
    before = {name: p.detach().clone() for name, p in task.model.xent.named_parameters()}
    result = fit(task, options.fit, tmp_path, task.plugins)
    assert result.best["loss"] < 0.8 * untrained["loss"]
    assert all(not torch.equal(p, before[name]) for name, p in task.model.xent.named_parameters())
    save_am(tmp_path / "model.mpq", task.acoustic, LEXICON.phones)
    assert not any("xent" in name or "lhuc" in name for name in read_model_file(tmp_path / "model.mpq").tensors)
    batch = task.dev.batch([0, 1])
    expected, xent, _ = task.model(batch.features, batch.lengths)
    assert xent is not None and not torch.allclose(expected, xent, atol=0.1)
    served, _ = load_am(tmp_path / "model.mpq", LEXICON.phones)(batch.features, batch.lengths)
    assert torch.equal(served, expected)


def test_the_cross_entropy_branch_is_pulled_towards_the_numerators_posteriors(features: Path) -> None:
    task = AmTask(config(ctc_part=0.0, xent=0.5), FeatureSet(features), FeatureSet(features), LEXICON)
    task.model.eval()
    batch = next(task.batches(0))
    loss = task.loss(task.model, batch, 1.0)
    assert isinstance(task.model, Trainee) and task.model.xent is not None
    log_probs, xent, lengths = task.model(batch.features, batch.lengths)
    assert xent is not None
    numerators = [task.numerator(text) for text in batch.texts]
    leaf = log_probs.detach().requires_grad_()
    (posteriors,) = torch.autograd.grad(total_score(leaf, lengths, numerators).sum(), leaf)
    assert torch.allclose(posteriors.sum((1, 2)), lengths.float(), rtol=1e-4)  # one class a frame
    lfmmi = lfmmi_loss(log_probs, lengths, numerators, task.denominator).sum()
    expected = (lfmmi - 0.5 * (posteriors * xent).sum()) / lengths.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_dropout_follows_its_schedule(features: Path) -> None:
    options = AmConfig(model=FACTORIZED, max_frames=1500, dropout_schedule="0,0@0.2,0.5@0.5,0.1")
    task = AmTask(options, FeatureSet(features), FeatureSet(features), LEXICON)
    batch = next(task.batches(0))
    seen = []
    for done in (0.0, 0.2, 0.35, 0.5, 0.75, 1.0):
        task.loss(task.model, batch, done)
        seen.append([m.p for m in task.acoustic.modules() if isinstance(m, UnitDropout)])
    assert np.allclose(seen, [[p, p] for p in (0.0, 0.0, 0.25, 0.5, 0.3, 0.1)])


@pytest.mark.parametrize("text", ["a", "0,1@0.5,0", "0,0.1,0", "0,0@0.5,0@0.4,0", "0,0@1.5,0", ","])
def test_bad_dropout_schedules(text: str) -> None:
    with pytest.raises(BadInput, match=f"dropout_schedule: '{text}'; expected values of at most 0.5"):
        AmConfig(dropout_schedule=text)


def test_speaker_adaptive_training_gives_each_speaker_amplitudes(features: Path, tmp_path: Path) -> None:
    train = FeatureSet(features)
    train.speakers = [f"s{i % 3}" for i in range(len(train))]
    options = config(lhuc=0.5)
    options.fit.epochs = 1
    task = AmTask(options, train, FeatureSet(features), LEXICON)
    fit(task, options.fit, tmp_path)
    assert isinstance(task.model, Trainee) and task.model.lhuc is not None
    logits = task.model.lhuc.detach()
    assert logits.shape == (3, *task.acoustic.lhuc_shape)
    assert all(not torch.allclose(logits[i], logits[j], atol=1e-3) for i, j in ((0, 1), (0, 2), (1, 2)))
    batch = train.batch([0, 1, 2])
    without, _, _ = task.model(batch.features, batch.lengths, None, torch.tensor([-1, -1, -1]))
    plain, _ = task.acoustic(batch.features, batch.lengths)
    adapted, _, _ = task.model(batch.features, batch.lengths, None, torch.tensor([0, -1, 2]))
    assert torch.allclose(without, plain) and torch.allclose(adapted[1], plain[1], atol=1e-5)
    assert not torch.allclose(adapted[0], plain[0], atol=1e-4)


def test_lhuc_without_speakers(features: Path) -> None:
    train = FeatureSet(features)
    train.n_without_speaker = 2
    with pytest.raises(BadInput, match="2 of 48 utterances have no speaker; LHUC adapts to speakers"):
        AmTask(config(lhuc=0.5), train, FeatureSet(features), LEXICON)


def test_normalization_and_masks_are_options(features: Path) -> None:
    options = config(normalization="speaker", masks=SpecAugment(n_feature_masks=1, feature_mask=80, n_frame_masks=0))
    options.augment = True
    data = FeatureSet(features, "speaker")
    task = AmTask(options, data, data, LEXICON)
    assert task.acoustic.normalization == "speaker" and task.acoustic.sampling_rate == 16000
    task.acoustic.sampling_rate = 8000
    with pytest.raises(BadInput, match="sampled at 16000 Hz, the model was trained on 8000 Hz: convert the audio"):
        check_features(task.acoustic, task.train)
    batch = next(task.batches(0))
    masked = (batch.features == 0.0).all(1)  # (N, C)
    assert masked.any() and not masked.all()
    assert not torch.equal(masked[0], masked[1])
    with pytest.raises(BadInput, match="normalized by utterance, the model expects speaker"):
        AmTask(options, data, FeatureSet(features), LEXICON)


def test_features_of_another_model(features: Path) -> None:
    for model, says in (
        (TdnnConfig(feature_dim=40), "80 bins a frame, the model expects 40"),
        (TdnnConfig(ivector_dim=30), r"i-vectors of dimension 0 \(0: none\), the model expects 30"),
    ):
        with pytest.raises(BadInput, match=says):
            AmTask(AmConfig(model=model), FeatureSet(features), FeatureSet(features), LEXICON)
