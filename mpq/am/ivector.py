"""I-vectors: what tells a speaker and a channel apart in a few numbers, and their online estimation.

The total variability model (Dehak et al. 2011, "Front-end factor analysis for speaker verification"): the frames x
of an utterance that belong to Gaussian g of a universal background model are `N(m_g + T_g w, S_g)` with one hidden
`w ~ N(0, I)` for the utterance; its posterior mean is the i-vector. As in Kaldi's online i-vectors (Peddinti et al.
2015), frames are spliced and projected, aligned to the likeliest Gaussians of a diagonal background model after
subtraction of a running mean, counted as a tenth (neighbouring frames say the same), and an i-vector is estimated every
few frames from all that was heard so far of the speaker.

Everything is computed in float64. C, D, R, G: bins of a frame, dimension after the projection, of an i-vector, number
of Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from mpq.am.ubm import VARIANCE_FLOOR, Ubm, train_ubm
from mpq.data.batches import IVECTOR_PERIOD
from mpq.io import BadInput, PathLike, check_ranges
from mpq.quant import load_weights_into, read_model_file, save_model, uniform_plan

_ARCH = "ivector"
_PCA_FRAMES = 50_000  # more would not change the projection
_DERIVED = ("ubm", "model")  # what is computed of an extractor's buffers, once
_PRIOR_FRAMES = 200  # what the running mean of an utterance's beginning counts the training mean as


@dataclass
class IvectorConfig:
    """Size of an extractor; the defaults are Kaldi's.

    Attributes:
        feature_dim: log-mel bins of a frame.
        dim: of an i-vector.
        gaussians: of the background model.
        context: frames on each side that a frame is spliced with.
        projected: dimension after the projection of spliced frames on their principal components.
        num_gselect: Gaussians that a frame may count for; as many as there are: all.
        min_post: posteriors below it are none.
        posterior_scale: what a frame counts.
        max_count: counts beyond which more frames make an i-vector no surer.
        max_history: counts of earlier utterances of the speaker that are kept.
    """

    feature_dim: int = 80
    dim: int = 100
    gaussians: int = 512
    context: int = 3
    projected: int = 40
    num_gselect: int = 5
    min_post: float = 0.025
    posterior_scale: float = 0.1
    max_count: float = 100.0
    max_history: float = 100.0

    def __post_init__(self) -> None:
        for name in ("feature_dim", "dim", "gaussians", "projected", "num_gselect"):
            check_ranges(self, **{name: "[1, 1e6]"})
        check_ranges(self, min_post="[0, 1)")
        check_ranges(self, context="[0, 100]", posterior_scale="(0, 1]", max_count="(0, inf)", max_history="[0, inf)")
        if self.projected > (2 * self.context + 1) * self.feature_dim:
            raise BadInput(f"projected: {self.projected} is more than the dimension of spliced frames")


@dataclass
class Stats:
    """Sums over the frames of each of N utterances, for training.

    Attributes:
        count: frames of each Gaussian, `(N, G)`.
        first: sums of their frames, `(N, G, D)`.
        second: sums of their squares, over all utterances, `(G, D)`.
    """

    count: Tensor
    first: Tensor
    second: Tensor


class TotalVariability:
    """Means m `(G, D)`, subspaces T `(G, D, R)` and variances S `(G, D)` of the total variability model."""

    def __init__(self, means: Tensor, subspaces: Tensor, variances: Tensor) -> None:
        self.means, self.subspaces, self.variances = means, subspaces, variances
        weighted = subspaces / variances[:, :, None]
        self.projections = weighted  # S^-1 T, (G, D, R)
        self.squares = torch.einsum("gdr,gds->grs", subspaces, weighted)  # T' S^-1 T, (G, R, R)
        self.identity = torch.eye(subspaces.shape[2], dtype=subspaces.dtype)

    def posterior(self, count: Tensor, linear: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior of w.

        Args:
            count: frames of each Gaussian, `(N, G)`.
            linear: `sum_g T_g' S_g^-1 (f_g - n_g m_g)`, `(N, R)`.

        Returns:
            means `(N, R)`, covariances `(N, R, R)`, and the log-determinants of their inverses `(N,)`.
        """
        factor = torch.linalg.cholesky(self.identity + torch.einsum("ng,grs->nrs", count, self.squares))
        mean = torch.cholesky_solve(linear[:, :, None], factor)[:, :, 0]
        return mean, torch.cholesky_inverse(factor), 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def centered(self, stats: Stats) -> Tensor:
        """First sums of N utterances around the means, `(N, G, D)`."""
        return stats.first - stats.count[:, :, None] * self.means


def initial_model(stats: Stats, dim: int, seed: int = 0) -> TotalVariability:
    """Means and variances of all frames of each Gaussian, and random subspaces of a tenth of their deviation."""
    count = stats.count.sum(0)[:, None].clamp(min=1e-6)
    means = stats.first.sum(0) / count
    variances = stats.second / count - means.square()
    variances = torch.maximum(variances, VARIANCE_FLOOR * variances.mean(0).abs())
    noise = torch.randn((*means.shape, dim), dtype=means.dtype, generator=torch.Generator().manual_seed(seed))
    return TotalVariability(means, 0.1 * variances.sqrt()[:, :, None] * noise, variances)


def em_step(model: TotalVariability, stats: Stats) -> tuple[TotalVariability, float]:
    """One iteration of EM (Kenny, Boulianne and Dumouchel 2005, proposition 3), with minimum divergence.

    The prior of w is estimated as well and then turned back into N(0, I) by m and T, which is where most of the
    gain of the first iterations comes from.

    Returns:
        The new model, and the old one's log-likelihood of all frames, given which Gaussian each belongs to.
    """
    centered = model.centered(stats)
    linear = torch.einsum("ngd,gdr->nr", centered, model.projections)
    mean, covariance, log_det = model.posterior(stats.count, linear)
    total = stats.count.sum(0)
    around = (
        stats.second - 2.0 * model.means * stats.first.sum(0) + total[:, None] * model.means.square()
    )  # squares around the means
    likelihood = -0.5 * float(
        (total[:, None] * (2.0 * math.pi * model.variances).log() + around / model.variances).sum()
        + (log_det - (linear * mean).sum(1)).sum()
    )
    moment = covariance + mean[:, :, None] * mean[:, None, :]  # (N, R, R)
    squares = torch.einsum("ng,nrs->grs", stats.count, moment)
    cross = torch.einsum("ngd,nr->gdr", centered, mean)
    tiny = 1e-10 * torch.eye(mean.shape[1], dtype=mean.dtype)
    subspaces = torch.linalg.solve(squares + tiny, cross.transpose(1, 2)).transpose(1, 2)
    variances = (around - (subspaces * cross).sum(2)) / total[:, None].clamp(min=1e-6)
    variances = torch.maximum(variances, VARIANCE_FLOOR * model.variances.mean(0))
    prior_mean = mean.mean(0)
    prior = torch.linalg.cholesky(moment.mean(0) - torch.outer(prior_mean, prior_mean))
    return TotalVariability(model.means + subspaces @ prior_mean, subspaces @ prior, variances), likelihood


@dataclass
class History:
    """What was heard of a speaker so far.

    Attributes:
        count: of frames, those of an utterance before bounded.
        squares: sums of `T' S^-1 T` of the Gaussians they count for, `(R, R)`.
        linear: as of `TotalVariability.posterior`, `(R,)`.
        n_frames, total: frames and their sum `(D,)`, not bounded.
    """

    count: Tensor
    squares: Tensor
    linear: Tensor
    n_frames: int
    total: Tensor


class IvectorExtractor(nn.Module):
    """Everything that extraction needs.

    Args:
        config: the size.
    """

    def __init__(self, config: IvectorConfig) -> None:
        super().__init__()
        self.config = config
        size, spliced = (config.gaussians, config.projected), (2 * config.context + 1) * config.feature_dim
        shapes = {
            "frame_mean": (config.projected,),
            "ubm_weights": size[:1],
            "ubm_means": size,
            "ubm_variances": size,
            "means": size,
            "subspaces": (*size, config.dim),
            "variances": size,
        }
        self.projection = nn.Linear(spliced, config.projected)  # the bias subtracts the mean
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def fill(self, **values: Tensor) -> None:
        """Sets buffers."""
        for name, value in values.items():
            self.get_buffer(name).copy_(value)
        for name in _DERIVED:
            self.__dict__.pop(name, None)  # what was computed of the old ones

    def prepare(self) -> IvectorExtractor:
        """Computes at once what all utterances need; processes that are forked later share it."""
        for name in _DERIVED:
            getattr(self, name)
        return self

    def _get(self, *names: str) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(name).double() for name in names)

    @cached_property
    def ubm(self) -> Ubm:
        """The background model, in float64."""
        return Ubm(*self._get("ubm_weights", "ubm_means", "ubm_variances"))

    @cached_property
    def model(self) -> TotalVariability:
        """The total variability model, in float64."""
        return TotalVariability(*self._get("means", "subspaces", "variances"))

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        """Spliced and projected frames `(T, D)` of log-mel features `(T, C)`."""
        spliced = splice(features.double(), self.config.context)
        return spliced @ self.projection.weight.double().T + self.projection.bias.double()

    def posteriors(self, frames: Tensor, history: History | None = None) -> tuple[Tensor, Tensor]:
        """Gaussians of each frame `(T, D)` and its counts for them, both `(T, K)`; they sum to `posterior_scale`."""
        (prior,) = self._get("frame_mean")
        before, total = (0, torch.zeros_like(prior)) if history is None else (history.n_frames, history.total)
        heard = torch.arange(before + 1, before + len(frames) + 1, dtype=frames.dtype)[:, None]
        mean = (total + frames.cumsum(0) + _PRIOR_FRAMES * prior) / (heard + _PRIOR_FRAMES)
        config = self.config
        gaussians, posteriors = self.ubm.posteriors(frames - mean + prior, config.num_gselect, config.min_post)
        return gaussians, config.posterior_scale * posteriors

    @torch.sparse.check_sparse_tensor_invariants(False)  # type: ignore[no-untyped-call, untyped-decorator]
    def _sums(self, frames: Tensor, history: History | None) -> tuple[Tensor, Tensor, Tensor]:
        """What frames 0, 1 to `IVECTOR_PERIOD`, and so on add: counts `(P,)`, squares `(P, R, R)`, linear `(P, R)`.

        Only Gaussians that frames count for are looked at, and those of a period once.
        """
        gaussians, counts = self.posteriors(frames, history)
        period = (torch.arange(len(frames)) + IVECTOR_PERIOD - 1) // IVECTOR_PERIOD
        n_periods, (n_gaussians, dim, _) = int(period[-1]) + 1, self.model.subspaces.shape
        pairs = torch.stack([period[:, None].expand_as(gaussians), gaussians])[:, counts > 0]
        values = counts[:, :, None] * torch.cat([torch.ones_like(frames[:, :1]), frames], 1)[:, None]
        size = (n_periods, n_gaussians)  # of sparse tensors: counts, and sums of frames, where a period has a Gaussian
        merged = torch.sparse_coo_tensor(pairs, values[counts > 0], (*size, dim + 1)).coalesce()
        at, n, sums = merged.indices(), merged.values()[:, 0], merged.values()[:, 1:]
        squares = torch.sparse.mm(torch.sparse_coo_tensor(at, n, size), self.model.squares.flatten(1))
        centered = sums - n[:, None] * self.model.means[at[1]]
        places = torch.stack([at[0, :, None].expand_as(centered), at[1, :, None] * dim + torch.arange(dim)]).flatten(1)
        spread = torch.sparse_coo_tensor(places, centered.flatten(), (n_periods, n_gaussians * dim))
        linear = torch.sparse.mm(spread, self.model.projections.flatten(0, 1))
        count = torch.zeros(n_periods, dtype=n.dtype).index_add_(0, at[0], n)
        return count, squares.unflatten(1, (-1, linear.shape[1])), linear

    @torch.no_grad()
    def extract(self, features: Tensor, history: History | None = None) -> tuple[Tensor, History]:
        """Online i-vectors of an utterance.

        Args:
            features: `(T, C)`, log-mel, not normalized.
            history: of the speaker's earlier utterances.

        Returns:
            i-vectors `(P, R)`, of frames 0, `IVECTOR_PERIOD`, ..., each from all frames up to its own; and the
            history with this utterance.
        """
        frames = self.project(features)
        count, squares, linear = self._sums(frames, history)
        n_frames, total = len(frames), frames.sum(0)
        if history is not None:
            count[0] += history.count
            squares[0] += history.squares
            linear[0] += history.linear
            n_frames, total = n_frames + history.n_frames, total + history.total
        count, squares, linear = count.cumsum(0), squares.cumsum(0), linear.cumsum(0)
        bound = (self.config.max_count / count).clamp(max=1.0)[: (len(frames) - 1) // IVECTOR_PERIOD + 1]
        n = len(bound)
        factor = torch.linalg.cholesky(self.model.identity + bound[:, None, None] * squares[:n])
        ivectors = torch.cholesky_solve((bound[:, None] * linear[:n])[:, :, None], factor)[:, :, 0]
        kept = (self.config.max_history / count[-1]).clamp(max=1.0)
        return ivectors, History(kept * count[-1], kept * squares[-1], kept * linear[-1], n_frames, total)


def splice(features: Tensor, context: int) -> Tensor:
    """Each frame with its neighbours, `(T, C)` to `(T, (2 context + 1) C)`; the ends are repeated."""
    index = torch.arange(len(features))[:, None] + torch.arange(-context, context + 1)
    return features[index.clamp(0, len(features) - 1)].flatten(1)


def principal_components(frames: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean `(C,)` of frames `(T, C)` and the `n` directions of the largest variance, `(n, C)`, largest first."""
    mean = frames.mean(0)
    _, directions = torch.linalg.eigh(torch.cov((frames - mean).T))
    return mean, directions.T.flip(0)[:n]


def check_bins(config: IvectorConfig, n_bins: int, name: PathLike) -> None:
    """See that features are of the kind an extractor expects.

    Raises:
        BadInput: another number of bins.
    """
    if n_bins != config.feature_dim:
        raise BadInput(f"{name}: {n_bins} bins a frame, the extractor expects {config.feature_dim} (feature_dim)")


def train_extractor(
    utterances: Sequence[Tensor], config: IvectorConfig, n_iterations: int = 10, seed: int = 0
) -> tuple[IvectorExtractor, list[float]]:
    """Trains an extractor.

    Args:
        utterances: log-mel features `(T, C)` of each, not normalized, in random order.
        config: the size.
        n_iterations: of EM, for the background model and again for the total variability.
        seed: draws the initial values.

    Returns:
        The extractor, and the log-likelihood of a frame before each iteration of the total variability model.
    """
    check_bins(config, int(utterances[0].shape[1]), "the features")
    extractor = IvectorExtractor(config)
    with torch.no_grad():
        offset, directions = principal_components(_some(utterances, config.context), config.projected)
        extractor.projection.weight.copy_(directions)
        extractor.projection.bias.copy_(-directions @ offset)
        parts = [extractor.project(features) for features in utterances]
        mean = torch.cat(parts).mean(0)
        normal = torch.cat([part - part.mean(0) + mean for part in parts])
        ubm, _ = train_ubm(normal, config.gaussians, n_iterations, seed)
        extractor.fill(frame_mean=mean, ubm_weights=ubm.weights, ubm_means=ubm.means, ubm_variances=ubm.variances)
        stats = collect(extractor, parts)
        model, likelihoods = initial_model(stats, config.dim, seed), []
        for _ in range(n_iterations):
            model, likelihood = em_step(model, stats)
            likelihoods.append(likelihood / float(stats.count.sum()))
        extractor.fill(means=model.means, subspaces=model.subspaces, variances=model.variances)
    return extractor, likelihoods


def _some(utterances: Sequence[Tensor], context: int) -> Tensor:
    """Spliced frames of the first utterances, for the projection."""
    parts: list[Tensor] = []
    for features in utterances:
        if sum(map(len, parts)) < _PCA_FRAMES:
            parts.append(splice(features.double(), context))
    return torch.cat(parts)


def collect(extractor: IvectorExtractor, parts: Sequence[Tensor]) -> Stats:
    """Sums over projected frames `(T, D)` of each utterance."""
    size = (len(parts), *extractor.get_buffer("ubm_means").shape)
    count, first = torch.zeros(size[:2], dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    second = torch.zeros(size[1:], dtype=torch.float64)
    for number, frames in enumerate(parts):
        gaussians, posteriors = extractor.posteriors(frames)
        weighted = posteriors[:, :, None] * frames[:, None]  # (T, K, D)
        count[number].index_add_(0, gaussians.flatten(), posteriors.flatten())
        first[number].index_add_(0, gaussians.flatten(), weighted.flatten(0, 1))
        second.index_add_(0, gaussians.flatten(), (weighted * frames[:, None]).flatten(0, 1))
    return Stats(count, first, second)


def save_extractor(path: PathLike, extractor: IvectorExtractor) -> None:
    """Writes an extractor as a `*.mpq` file."""
    save_model(path, extractor, _ARCH, asdict(extractor.config), uniform_plan(extractor, 32), "")


def load_extractor(path: PathLike) -> IvectorExtractor:
    """Reads an extractor.

    Raises:
        BadInput: another kind of model, or a damaged file.
    """
    stored = read_model_file(path)
    if stored.arch != _ARCH:
        raise BadInput(f"{path}: holds a {stored.arch} model, expected an extractor from mpq ivector train")
    extractor = IvectorExtractor(IvectorConfig(**stored.config))
    load_weights_into(extractor, stored)
    return extractor
