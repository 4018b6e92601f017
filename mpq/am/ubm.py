"""Universal background models: Gaussian mixtures of diagonal covariances, by EM."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq.io import BadInput

VARIANCE_FLOOR = 1e-3  # smallest variance, as part of the variance of all frames


@dataclass
class Ubm:
    """Gaussian mixture of diagonal covariances: weights `(G,)`, means and variances `(G, D)`."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        precision = 1.0 / self.variances
        squares = (2.0 * math.pi * self.variances).log() + self.means.square() * precision
        self._constant = self.weights.log() - 0.5 * squares.sum(1)
        self._linear, self._quadratic = (self.means * precision).T, -0.5 * precision.T

    def log_likelihoods(self, frames: Tensor) -> Tensor:
        """Log of weight times density of each Gaussian, `(T, G)`, for frames `(T, D)`."""
        return (frames @ self._linear).addmm_(frames.square(), self._quadratic).add_(self._constant)

    def posteriors(self, frames: Tensor, num_gselect: int, min_post: float) -> tuple[Tensor, Tensor]:
        """The likeliest Gaussians of frames `(T, D)` and their posteriors, as Kaldi selects them.

        Of a frame `num_gselect` Gaussians are kept (all of fewer), of these the likeliest and those whose posterior
        is at least `min_post`, and what is left sums to one (`VectorToPosteriorEntry` in Kaldi's hmm/posterior.cc).

        Returns:
            numbers of Gaussians `(T, K)`, the likeliest first, and posteriors `(T, K)`, 0 where they are not kept.
        """
        scores, chosen = self.log_likelihoods(frames).topk(min(num_gselect, len(self.weights)), dim=1)
        posteriors = scores.softmax(1)
        posteriors[:, 1:] *= posteriors[:, 1:] >= min_post
        return chosen, posteriors / posteriors.sum(1, keepdim=True)


def train_ubm(frames: Tensor, n_gaussians: int, n_iterations: int, seed: int = 0) -> tuple[Ubm, list[float]]:
    """A background model by EM from random frames as means.

    Args:
        frames: `(T, D)` float64.
        n_gaussians: G.
        n_iterations: of EM.
        seed: draws the first means.

    Returns:
        The model, and the mean log-likelihood of a frame before each iteration.

    Raises:
        BadInput: fewer frames than twice the Gaussians.
    """
    if len(frames) < 2 * n_gaussians:
        raise BadInput(f"{len(frames)} frames for {n_gaussians} Gaussians: give more speech, or set fewer gaussians")
    chosen = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed))[:n_gaussians]
    variance = frames.var(0)
    floor = VARIANCE_FLOOR * variance
    uniform = torch.full((n_gaussians,), 1.0 / n_gaussians, dtype=frames.dtype)
    ubm = Ubm(uniform, frames[chosen].clone(), variance.expand(n_gaussians, -1).clone())
    history = []
    for _ in range(n_iterations):
        total, count = 0.0, torch.zeros_like(uniform)
        first, second = torch.zeros_like(ubm.means), torch.zeros_like(ubm.means)
        for part in torch.split(frames, 50_000):
            likelihoods = ubm.log_likelihoods(part)
            whole = likelihoods.logsumexp(1)
            posteriors = (likelihoods - whole[:, None]).exp()
            total += whole.sum().item()
            count += posteriors.sum(0)
            first += posteriors.T @ part
            second += posteriors.T @ part.square()
        history.append(total / len(frames))
        ubm = _maximize(ubm, count, first, second, floor)
    return ubm, history


def _maximize(ubm: Ubm, count: Tensor, first: Tensor, second: Tensor, floor: Tensor) -> Ubm:
    """Weights, means and variances of the sums over frames; a Gaussian that hardly any frame is of keeps its own."""
    seen = (count > 1e-3)[:, None]
    means = torch.where(seen, first / count[:, None], ubm.means)
    variances = torch.where(seen, second / count[:, None] - means.square(), ubm.variances)
    return Ubm((count / count.sum()).clamp(min=1e-10), means, torch.maximum(variances, floor))
