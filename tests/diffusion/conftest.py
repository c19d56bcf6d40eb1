"""The oracle: a one-dimensional Gaussian mixture, whose denoiser and whose trajectories are known exactly."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from limner.diffusion.paths import Path
from limner.diffusion.predictions import Denoise


@dataclass(frozen=True)
class Mixture:
    """Pictures of one pixel, x0 ~ sum_k weight_k N(mean_k, std_k^2); tensors (b,) in float64."""

    weight: Tensor
    mean: Tensor
    std: Tensor

    def denoiser(self, path: Path) -> Denoise:
        """E[x0 | x_t], the answer of a perfect network."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
            variance = alpha**2 * self.std**2 + sigma**2
            miss = x[:, None] - alpha * self.mean
            log_density = self.weight.log() - variance.log() / 2 - miss**2 / (2 * variance)
            centre = self.mean + alpha * self.std**2 / variance * miss
            return (log_density.softmax(1) * centre).sum(1)

        return denoise

    def share_below(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Cumulative distribution of x_t."""
        spread = (alpha**2 * self.std**2 + sigma**2).sqrt()
        z = (x[:, None] - alpha * self.mean) / spread
        return (self.weight * torch.special.ndtr(z)).sum(1)

    def carry(self, x: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
        """Where the probability-flow ODE takes x. In one dimension trajectories cannot cross, so the share of
        the distribution below them stays what it was: invert the distribution function at the end by
        bisection."""
        share = self.share_below(x, *start)
        low, high = torch.full_like(x, -100.0), torch.full_like(x, 100.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = self.share_below(middle, *end) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of x0."""
        mean = (self.weight * self.mean).sum()
        square = (self.weight * (self.mean**2 + self.std**2)).sum()
        return mean.item(), (square - mean**2).sqrt().item()


@pytest.fixture
def mixture() -> Mixture:
    rows = torch.tensor([[0.3, -1.0, 0.3], [0.7, 0.8, 0.4]], dtype=torch.float64)
    return Mixture(*rows.T)


@pytest.fixture
def no_noise() -> Callable[[int], Tensor]:
    """For samplers that must not draw."""

    def draw(index: int) -> Tensor:
        raise AssertionError(f"a deterministic sampler drew noise at step {index}")

    return draw
