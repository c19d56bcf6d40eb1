"""Samplers against a perfect network: how fast they close in on the exact trajectory, and what they draw."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.diffusion import grids, samplers
from limner.diffusion.grids import Grid
from limner.diffusion.paths import FlowPath, Path, VEPath, VPPath

PATHS: dict[str, Path] = {"vp": VPPath.scaled_linear(), "ve": VEPath(), "flow": FlowPath()}
ORDERS = {
    "euler": (samplers.euler, 1),
    "heun": (samplers.heun, 2),
    "dpmpp_2m": (samplers.dpmpp_2m, 2),
    "dpmpp_2m_sde at eta 0": (partial(samplers.dpmpp_2m_sde, eta=0.0), 2),
    "dpmpp_sde at eta 0": (partial(samplers.dpmpp_sde, eta=0.0), 2),
    "unipc": (samplers.unipc, 3),
}
# Steps that suffice. euler_ancestral is ddpm bit for bit, as euler is ddim: test_samplers.py.
STOCHASTIC = {"ddpm": 160, "dpmpp_2m_sde": 50, "dpmpp_sde": 50}


def smooth(path: Path, steps: int, high: float = 8.0, low: float = 0.05) -> Grid:
    """Equal ratios of sigma / alpha, stopping short of the picture: a smooth problem for every method."""
    ratio = torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=torch.float64)
    t = path.t(ratio / (1 + ratio) if isinstance(path, FlowPath) else ratio)
    return grids.custom(path, t, clean=False)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("sampler, order", ORDERS.values(), ids=ORDERS)
def test_order_of_convergence(
    sampler: Callable[..., Any], order: int, path: Path, mixture: Any, no_noise: Callable[[int], Tensor]
) -> None:
    def error(steps: int) -> float:
        grid = smooth(path, steps)
        start, end = [(grid.alpha[i], grid.sigma[i]) for i in (0, -1)]
        x = torch.linspace(-2, 2, 17, dtype=torch.float64) * torch.hypot(*start)
        *_, last = sampler(mixture.denoiser(path), x, grid, noise=no_noise)
        return float((last.x - mixture.carry(x, start, end)).square().mean().sqrt())

    coarse, fine = error(64), error(128)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert fine < {1: 2e-2, 2: 2e-3, 3: 1e-5}[order]


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_stochastic_samplers_draw_the_mixture(name: str, path: Path, mixture: Any) -> None:
    count, generator = 4000, torch.Generator().manual_seed(5)

    def normal(_: int = 0) -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    steps = STOCHASTIC[name]
    grid = grids.shifted(path, steps, 3.0) if isinstance(path, FlowPath) else grids.karras(path, steps)
    start = grid.sigma[0] * normal() + grid.alpha[0] * mixture.moments()[0]
    *_, last = samplers.SAMPLERS[name](mixture.denoiser(path), start, grid, noise=normal)

    mean, std = mixture.moments()
    # about three standard errors of the sample, plus what bias the steps leave
    assert last.x.mean().item() == pytest.approx(mean, abs=0.05)
    assert last.x.std().item() == pytest.approx(std, abs=0.04)
    assert (last.x < -0.3).double().mean().item() == pytest.approx(
        mixture.share_below(torch.tensor([-0.3]).double(), torch.tensor(1.0), torch.tensor(0.0)).item(),
        abs=0.035,
    )


def test_one_step_of_lcm_is_the_denoiser_and_more_steps_keep_the_noise_level(mixture: Any) -> None:
    """A consistency network maps to its trajectory's end, which in one dimension is `carry`: then every step
    of lcm returns to the true distribution, whatever the noise."""
    path, count, generator = PATHS["flow"], 20_000, torch.Generator().manual_seed(6)

    def perfect(x: Tensor, t: Tensor) -> Tensor:
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return mixture.carry(x, (path.alpha(t[:1]), path.sigma(t[:1])), (one, zero))

    def normal(_: int = 0) -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    steps = list(samplers.lcm(perfect, normal(), grids.uniform(path, 4), noise=normal))

    mean, std = mixture.moments()
    for step in steps:
        assert step.x0.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(count))
        assert step.x0.std().item() == pytest.approx(std, rel=0.02)
    assert steps[-1].x is steps[-1].x0


def test_half_the_noise_of_ancestral_sampling_is_still_the_mixture(mixture: Any) -> None:
    path, count, generator = PATHS["vp"], 4000, torch.Generator().manual_seed(7)

    def normal(_: int = 0) -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    for sampler in (samplers.ddim, samplers.dpmpp_2m_sde, samplers.dpmpp_sde):
        *_, last = sampler(mixture.denoiser(path), normal(), grids.karras(path, 60), noise=normal, eta=0.5)
        mean, std = mixture.moments()
        assert last.x.mean().item() == pytest.approx(mean, abs=0.05)
        assert last.x.std().item() == pytest.approx(std, abs=0.04)
