"""I-vectors: posteriors and likelihoods in closed form, EM, online estimation, sets, files."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from mpq.am.ivector import (
    IvectorConfig,
    IvectorExtractor,
    Stats,
    TotalVariability,
    em_step,
    initial_model,
    load_extractor,
    principal_components,
    save_extractor,
    splice,
    train_extractor,
)
from mpq.am.ivector_set import histories
from mpq.am.ubm import train_ubm
from mpq.cli.main import main
from mpq.data.batches import FeatureSet
from mpq.data.features import FeatureConfig, extract
from mpq.data.manifests import Spoken, write_manifests
from mpq.io import BadInput

G, D, R = 3, 2, 2


def random_model(seed: int) -> TotalVariability:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((G, D), (G, D, R), (G, D))]
    return TotalVariability(draw[0], draw[1], draw[2].exp())


def spoken(model: TotalVariability, n_utts: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames `(T, D)` drawn from the model, and the Gaussian of each."""
    rng = np.random.default_rng(seed)
    frames, owners = [], []
    for _ in range(n_utts):
        owner = rng.integers(G, size=int(rng.integers(4, 9)))
        w = rng.standard_normal(R)
        mean = model.means.numpy()[owner] + model.subspaces.numpy()[owner] @ w
        frames.append(mean + np.sqrt(model.variances.numpy()[owner]) * rng.standard_normal((len(owner), D)))
        owners.append(owner)
    return frames, owners


def count(frames: list[np.ndarray], owners: list[np.ndarray]) -> Stats:
    stats = Stats(torch.zeros(len(frames), G), torch.zeros(len(frames), G, D), torch.zeros(G, D))
    stats.count, stats.first, stats.second = stats.count.double(), stats.first.double(), stats.second.double()
    for u, (x, owner) in enumerate(zip(frames, owners, strict=True)):
        for row, g in zip(torch.from_numpy(x), owner, strict=True):
            stats.count[u, g] += 1
            stats.first[u, g] += row
            stats.second[g] += row.square()
    return stats


def test_posteriors_are_those_of_the_joint_gaussian() -> None:
    """All frames of an utterance and w are jointly Gaussian: condition on the frames, in numpy."""
    model = random_model(0)
    frames, owners = spoken(model, 4, 1)
    stats = count(frames, owners)
    linear = torch.einsum("ngd,gdr->nr", model.centered(stats), model.projections)
    means, covariances, log_dets = model.posterior(stats.count, linear)
    for u, (x, owner) in enumerate(zip(frames, owners, strict=True)):
        t = model.subspaces.numpy()[owner].reshape(-1, R)
        total = t @ t.T + np.diag(model.variances.numpy()[owner].ravel())
        gain = t.T @ np.linalg.inv(total)
        np.testing.assert_allclose(means[u], gain @ (x - model.means.numpy()[owner]).ravel(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(covariances[u], np.eye(R) - gain @ t, rtol=1e-9, atol=1e-12)
        assert log_dets[u].item() == pytest.approx(-np.linalg.slogdet(covariances[u].numpy())[1], rel=1e-9)


def test_likelihood_is_that_of_the_joint_gaussian() -> None:
    model = random_model(2)
    frames, owners = spoken(model, 5, 3)
    _, found = em_step(model, count(frames, owners))
    expected = 0.0
    for x, owner in zip(frames, owners, strict=True):
        t = model.subspaces.numpy()[owner].reshape(-1, R)
        total = t @ t.T + np.diag(model.variances.numpy()[owner].ravel())
        expected += multivariate_normal(model.means.numpy()[owner].ravel(), total).logpdf(x.ravel())
    assert found == pytest.approx(expected, rel=1e-10)


def test_em_never_lowers_the_likelihood_and_finds_the_subspace() -> None:
    truth = random_model(4)
    frames, owners = spoken(truth, 300, 5)
    stats = count(frames, owners)
    model, likelihoods = initial_model(stats, R), []
    for _ in range(30):
        model, likelihood = em_step(model, stats)
        likelihoods.append(likelihood)
    assert all(after >= before - 1e-7 * abs(before) for before, after in pairwise(likelihoods))
    assert likelihoods[-1] > likelihoods[0] + 50
    _, best = em_step(truth, stats)
    assert likelihoods[-1] > best - 5  # it fits what was drawn at least about as well as the truth
    found, expected = (m.subspaces.reshape(-1, R) @ m.subspaces.reshape(-1, R).T for m in (model, truth))
    assert float((found - expected).norm() / expected.norm()) < 0.3


def test_background_model_against_scipy_and_its_em() -> None:
    rng = np.random.default_rng(0)
    centers = np.array([[-4.0, 0.0], [0.0, 3.0], [5.0, -1.0]])
    frames = torch.from_numpy(np.concatenate([c + rng.standard_normal((200, 2)) for c in centers]))
    ubm, history = train_ubm(frames, 3, 20, seed=1)
    assert all(after >= before - 1e-10 for before, after in pairwise(history))
    found = ubm.means[ubm.means[:, 0].argsort()].numpy()
    np.testing.assert_allclose(found, centers, atol=0.3)
    densities = norm.logpdf(frames[:7, None].numpy(), ubm.means.numpy(), ubm.variances.sqrt().numpy()).sum(2)
    np.testing.assert_allclose(ubm.log_likelihoods(frames[:7]), densities + ubm.weights.log().numpy(), rtol=1e-9)
    assert logsumexp(densities, axis=1).shape == (7,)
    with pytest.raises(BadInput, match="5 frames for 3 Gaussians"):
        train_ubm(frames[:5], 3, 1)


def test_splicing_and_projection() -> None:
    frames = torch.arange(8.0, dtype=torch.float64).reshape(4, 2)
    assert splice(frames, 1)[0].tolist() == [0, 1, 0, 1, 2, 3] and splice(frames, 1)[3].tolist() == [4, 5, 6, 7, 6, 7]
    rng = np.random.default_rng(0)
    data = rng.standard_normal((500, 4)) @ np.diag([3.0, 0.1, 2.0, 0.5]) + 7
    mean, directions = principal_components(torch.from_numpy(data), 2)
    np.testing.assert_allclose(mean, data.mean(0))
    _, _, rows = np.linalg.svd(data - data.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(directions @ rows[:2].T), np.eye(2), atol=1e-9)


SMALL = IvectorConfig(feature_dim=4, dim=2, gaussians=3, context=1, projected=3, max_count=5.0, max_history=2.0)


@pytest.fixture(scope="module")
def extractor() -> IvectorExtractor:
    rng = np.random.default_rng(0)
    voices = rng.standard_normal((20, 4)).repeat(2, 0)
    utterances = [torch.from_numpy((v + rng.standard_normal((60, 4))).astype(np.float32)) for v in voices]
    trained, likelihoods = train_extractor(utterances, SMALL, 5)
    assert likelihoods[-1] > likelihoods[0]
    return trained


def test_online_ivectors_are_posterior_means_of_what_was_heard(extractor: IvectorExtractor) -> None:
    """Each from the sums over all frames so far, written as a loop."""
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.standard_normal((95, 4)).astype(np.float32))
    ivectors, _ = extractor.extract(features)
    assert ivectors.shape == (10, 2)
    model, frames = extractor.model, extractor.project(features)
    gaussians, counts = extractor.posteriors(frames)
    posteriors = torch.zeros(95, 3, dtype=torch.float64).scatter_(1, gaussians, counts)
    torch.testing.assert_close(posteriors.sum(1), torch.full((95,), 0.1, dtype=torch.float64))
    for number, last in enumerate(range(0, 95, 10)):
        n, f = posteriors[: last + 1].sum(0), posteriors[: last + 1].T @ frames[: last + 1]
        factor = min(1.0, 5.0 / float(n.sum()))
        precision, linear = np.eye(2), np.zeros(2)
        for g in range(3):
            t, inverse = model.subspaces[g].numpy(), np.diag(1 / model.variances[g].numpy())
            precision += factor * float(n[g]) * t.T @ inverse @ t
            linear += factor * t.T @ inverse @ (f[g] - n[g] * model.means[g]).numpy()
        np.testing.assert_allclose(ivectors[number], np.linalg.solve(precision, linear), rtol=1e-6, atol=1e-9)


def test_likeliest_gaussians_are_those_of_kaldi() -> None:
    """Selected, pruned and normalized frame by frame."""
    rng = np.random.default_rng(3)
    ubm, _ = train_ubm(torch.from_numpy(rng.standard_normal((300, 4))), 12, 3)
    frames = torch.from_numpy(2 * rng.standard_normal((50, 4)))
    every, all_of_them = ubm.posteriors(frames, 100, 0.0)
    expected = ubm.log_likelihoods(frames).softmax(1)
    torch.testing.assert_close(torch.zeros_like(expected).scatter_(1, every, all_of_them), expected)
    gaussians, kept = ubm.posteriors(frames, 4, 0.1)
    assert gaussians.shape == kept.shape == (50, 4) and (kept == 0).any() and (kept[:, 3] > 0).any()
    for row, chosen, values in zip(expected.numpy(), gaussians.numpy(), kept.numpy(), strict=True):
        best = sorted(range(12), key=lambda g: -row[g])[:4]
        part = row[best] / row[best].sum()
        part[part < 0.1] = 0.0
        assert chosen.tolist() == best
        np.testing.assert_allclose(values, part / part.sum(), rtol=1e-9)
    _, alone = ubm.posteriors(frames, 12, 0.99)
    assert (alone[:, 0] == 1).all() and not alone[:, 1:].any()  # the likeliest is kept, however small


def test_pruned_posteriors_hardly_change_ivectors() -> None:
    """By less than the part of the counts that goes to other Gaussians: sums are frames weighted by their counts."""
    rng = np.random.default_rng(4)
    voices = rng.standard_normal((40, 6))
    utterances = [torch.from_numpy((v + rng.standard_normal((120, 6))).astype(np.float32)) for v in voices]
    size = {"feature_dim": 6, "dim": 4, "gaussians": 24, "context": 1, "projected": 6}
    whole, _ = train_extractor(utterances, IvectorConfig(**size, num_gselect=24, min_post=0.0), 4)
    pruned = IvectorExtractor(IvectorConfig(**size))
    pruned.load_state_dict(whole.state_dict())
    for features in utterances[:5]:
        frames = whole.project(features)
        dense = [torch.zeros(120, 24, dtype=torch.float64).scatter_(1, *e.posteriors(frames)) for e in (whole, pruned)]
        moved = float((dense[0] - dense[1]).abs().sum() / dense[0].sum())
        exact, found = whole.extract(features)[0], pruned.extract(features)[0]
        assert 0.01 < moved < 0.5
        assert float((found - exact).norm() / exact.norm()) < moved


def test_history_goes_on_where_the_utterance_before_ended(extractor: IvectorExtractor) -> None:
    rng = np.random.default_rng(2)
    features = torch.from_numpy(rng.standard_normal((30, 4)).astype(np.float32))
    whole, _ = extractor.extract(features.tile(2, 1))
    first, history = extractor.extract(features)
    second, after = extractor.extract(features, history)
    torch.testing.assert_close(first, whole[:3], atol=0.05, rtol=0.05)  # but for splicing over the boundary
    cold, _ = extractor.extract(features)
    assert (second[0] - whole[3]).norm() < 0.3 * (cold[0] - whole[3]).norm()
    assert float(history.count.sum()) == pytest.approx(2.0) == pytest.approx(float(after.count.sum()))  # max_history


def test_histories() -> None:
    speakers = ["a", "b", "a", "a", "b"]
    assert histories(speakers, 0) == [[0, 2, 3], [1, 4]]
    assert histories(speakers, 2) == [[0, 2], [3], [1, 4]]


def test_file(extractor: IvectorExtractor, tmp_path: Path) -> None:
    save_extractor(tmp_path / "ivector.mpq", extractor)
    stored = load_extractor(tmp_path / "ivector.mpq")
    features = torch.randn(30, 4)
    torch.testing.assert_close(stored.extract(features)[0], extractor.extract(features)[0])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    items = []
    for i in range(6):
        soundfile.write(folder / f"u{i}.flac", 0.1 * rng.standard_normal(16000 + 800 * i), 16000)
        items.append(Spoken(f"u{i}", f"s{i % 2}", folder / f"u{i}.flac", "a"))
    write_manifests(folder / "data", items, 16000)
    extract(folder / "data" / "cuts.jsonl.gz", folder / "features", FeatureConfig(n_mels=20), 1)
    return folder / "features" / "cuts.jsonl.gz"


def test_commands(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = "--feature_dim 20 --dim 3 --gaussians 4 --projected 5 --iterations 3"
    assert main(f"ivector train --features {manifest} --out {tmp_path}/i.mpq {size}".split()) == 0
    command = f"ivector extract --extractor {tmp_path}/i.mpq --features {manifest} --history 2"
    for nj in (1, 2):
        assert main(f"{command} --out {tmp_path}/{nj} --nj {nj}".split()) == 0
    assert "6 utterances in 4 histories, dimension 3" in capsys.readouterr().out
    data, other = (FeatureSet(tmp_path / str(nj) / "cuts.jsonl.gz") for nj in (1, 2))
    assert data.ivector_dim == 3 and FeatureSet(manifest).ivector_dim == 0
    batch, same = data.batch([1, 5]), other.batch([1, 5])
    assert batch.ivectors is not None and same.ivectors is not None and torch.equal(batch.ivectors, same.ivectors)
    plain = FeatureSet(manifest, normalization="none")
    expected, _ = load_extractor(tmp_path / "i.mpq").extract(torch.from_numpy(plain.load(5)))  # a history of its own
    assert batch.utts[0] == "u5"
    torch.testing.assert_close(batch.ivectors[0, : len(expected)], expected.float(), atol=2**-8, rtol=0)

    for part in ("train", "dev"):
        shutil.copytree(manifest.parent, tmp_path / "all" / part)
    folder = f"--data {tmp_path}/all --history 2 --out {tmp_path}/parts"
    assert main(f"ivector extract --extractor {tmp_path}/i.mpq {folder}".split()) == 0
    assert "train 6 utterances in 4 histories; dev 6 utterances in 2 histories, dimension 3" in capsys.readouterr().out
    again = FeatureSet(tmp_path / "parts" / "train" / "cuts.jsonl.gz").batch([1, 5]).ivectors
    assert again is not None and torch.equal(again, batch.ivectors)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("train --out {out} --feature_dim 20 --gaussians 4 --extractor x", "none with 'train'"),
        ("extract --out {out}", "--extractor: None; expected an extractor"),
        ("extract --out {out} --extractor {other}", "holds a lstm model, expected an extractor from mpq ivector train"),
        ("train --out {out} --projected 141 --feature_dim 20", "projected: 141 is more than the dimension"),
        ("train --out {out} --data x", "give --features (one manifest), or with 'extract' --data"),
        ("train --out {out} --dim 0", "dim: 0 must be at least 1"),
        ("train --out {out} --num_gselect 0", "--num-gselect: 0 must be at least 1"),
        ("train --out {out} --min_post 1", "--min-post: 1.0 must be"),
        ("train --out {out} --feature_dim 40 --gaussians 4", "20 bins a frame, the extractor expects 40"),
    ],
)
def test_bad_input(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, says: str) -> None:
    from mpq.quant import save_model, uniform_plan

    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    save_model(tmp_path / "lm.mpq", model, "lstm", {}, uniform_plan(model, 32), "0")
    action, *rest = options.format(out=tmp_path / "out", other=tmp_path / "lm.mpq").split()
    assert main(["ivector", action, "--features", str(manifest), *rest]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
