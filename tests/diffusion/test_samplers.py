import math

import pytest
import torch
from torch import Tensor

from limner.diffusion import grids, samplers
from limner.diffusion.grids import Grid
from limner.diffusion.paths import FlowPath, Path, VEPath, VPPath
from limner.diffusion.predictions import Uncertain
from limner.diffusion.samplers import SAMPLERS, Node, Step, ddim, ddpm
from limner.errors import RequestError
from limner.util.rng import NoiseSource

SHAPE = (3, 5, 7)  # odd, so that vector instructions leave a remainder
FLOW = FlowPath()
ZERO_SNR = VPPath.scaled_linear().zero_terminal_snr()
GRIDS: dict[str, tuple[Path, Grid]] = {
    "vp": (VPPath.scaled_linear(), grids.leading(VPPath.scaled_linear(), 6, offset=1)),
    "vp-zero-snr": (ZERO_SNR, grids.trailing(ZERO_SNR, 6)),
    "ve": (VEPath(), grids.karras(VEPath(), 7)),
    "flow": (FLOW, grids.uniform(FLOW, 6)),
    "flow-midpoints": (FLOW, grids.with_midpoints(FLOW, grids.shifted(FLOW, 4, 3.0))),
}
FROM_NOTHING = ["vp-zero-snr", "flow", "flow-midpoints"]  # alpha = 0 at the first node

each_sampler = pytest.mark.parametrize("name", SAMPLERS)
each_grid = pytest.mark.parametrize("where", GRIDS)


def denoise(x: Tensor, t: Tensor) -> Tensor:
    """Pixel by pixel, so that what a picture becomes cannot depend on its neighbours in the batch."""
    return torch.tanh(1.5 * x + t.reshape(-1, *[1] * (x.ndim - 1)).cos())


def sample(name: str, grid: Grid, seeds: list[int], dtype: torch.dtype = torch.float32) -> list[Step]:
    source = NoiseSource(seeds)
    x = grid.sigma[0].item() * source.initial(SHAPE).to(dtype)
    return list(SAMPLERS[name](denoise, x, grid, noise=source.draws(SHAPE)))


@each_sampler
@each_grid
def test_a_picture_of_a_batch_is_the_picture_alone_bit_for_bit(name: str, where: str) -> None:
    grid = GRIDS[where][1]
    batch = sample(name, grid, [40, 41, 42, 43])
    for i in range(4):
        alone = sample(name, grid, [40 + i])
        for one, many in zip(alone, batch, strict=True):
            assert torch.equal(one.x[0], many.x[i])
            assert torch.equal(one.x0[0], many.x0[i])


@each_sampler
@each_grid
def test_one_step_for_each_of_the_grid_and_the_last_is_the_picture(name: str, where: str) -> None:
    grid = GRIDS[where][1]
    steps = sample(name, grid, [1, 2])
    assert [(step.index, step.total) for step in steps] == [(i, grid.steps) for i in range(grid.steps)]
    assert all(step.x.shape == step.x0.shape == (2, *SHAPE) for step in steps)
    assert all(step.x.isfinite().all() for step in steps)
    assert torch.equal(steps[-1].x, steps[-1].x0)


@each_sampler
@pytest.mark.parametrize("where", FROM_NOTHING)
def test_the_first_step_from_alpha_zero_is_first_order(name: str, where: str) -> None:
    path, grid = GRIDS[where]
    assert grid.alpha[0] == 0
    source = NoiseSource([3])
    x = source.initial(SHAPE)
    first = sample(name, grid, [3])[0]
    x0 = denoise(x, torch.tensor([path.start]))
    alpha, sigma = grid.alpha[1].item(), grid.sigma[1].item()
    noise = source.step(0, SHAPE)
    fresh = name in {"ddpm", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde", "lcm"}
    if name == "heun" and grid.is_flow:  # needs no log-SNR: its slopes are finite there
        ahead = alpha * x0 + sigma * x
        later = denoise(ahead, torch.tensor([grid.t[1].item()]))
        expected = x + (sigma - 1) * ((x - x0) + (ahead - later) / sigma) / 2
    else:
        expected = alpha * x0 + sigma * (noise if fresh else x)
    torch.testing.assert_close(first.x, expected)
    assert torch.equal(first.x0, x0)


@each_sampler
def test_a_sampler_is_a_pure_function(name: str) -> None:
    _, grid = GRIDS["vp"]
    source = NoiseSource([9])
    x = source.initial(SHAPE)
    before = x.clone()
    runs = [[*SAMPLERS[name](denoise, x, grid, noise=source.draws(SHAPE))] for _ in range(2)]
    assert torch.equal(x, before)
    assert all(torch.equal(a.x, b.x) for a, b in zip(*runs, strict=True))


@each_sampler
def test_a_constant_network_leads_to_its_picture_and_along_the_path(name: str) -> None:
    """With x0 known exactly, every method is exact: deterministic ones keep the very noise they started
    from."""
    picture = torch.linspace(-1, 1, math.prod(SHAPE), dtype=torch.float64).reshape(1, *SHAPE)
    for _, grid in GRIDS.values():
        source = NoiseSource([4])
        eps = source.initial(SHAPE).double()
        x = grid.alpha[0] * picture + grid.sigma[0] * eps
        steps = list(SAMPLERS[name](lambda x, t: picture, x, grid, noise=source.draws(SHAPE)))
        for step, alpha, sigma in zip(steps, grid.alpha[1:], grid.sigma[1:], strict=True):
            left = step.x - alpha * picture
            if name in {"euler", "ddim", "heun", "dpmpp_2m", "unipc"}:
                torch.testing.assert_close(left, sigma * eps, atol=1e-9, rtol=0)
            elif sigma > 0:
                assert (left / sigma).std().item() == pytest.approx(1, abs=0.25)
        torch.testing.assert_close(steps[-1].x, picture)


@each_sampler
def test_the_network_is_told_t_of_the_node_for_every_picture(name: str) -> None:
    grid = GRIDS["flow"][1]
    told: list[Tensor] = []

    def listening(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (2,)
        assert t.dtype == torch.float32
        assert t[0] == t[1]
        told.append(t[0])
        return denoise(x, t)

    for _ in SAMPLERS[name](listening, torch.zeros(2, *SHAPE), grid, noise=NoiseSource([0, 1]).draws(SHAPE)):
        pass
    nodes = grid.t[:-1].float().tolist()
    twice = [nodes[0], *(t for t in nodes[1:] for _ in range(2))]
    assert [t.item() for t in told] == (twice if name == "heun" else nodes)


@each_sampler
def test_a_sampler_asks_for_the_noise_of_its_own_steps_only(name: str) -> None:
    grid = GRIDS["vp"][1]
    drawn: list[int] = []

    def noise(index: int) -> Tensor:
        drawn.append(index)
        return torch.zeros(1, *SHAPE)

    for _ in SAMPLERS[name](denoise, torch.ones(1, *SHAPE), grid, noise=noise):
        pass
    deterministic = name in {"euler", "ddim", "heun", "dpmpp_2m", "unipc"}
    assert drawn == (
        [] if deterministic else list(range(grid.steps - 1))
    )  # nothing is added to the picture itself


@each_sampler
def test_nothing_runs_before_the_first_step_is_asked_for(name: str) -> None:
    def denoise_never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError

    steps = SAMPLERS[name](
        denoise_never, torch.zeros(1, 1), GRIDS["flow"][1], noise=lambda i: torch.zeros(1, 1)
    )
    with pytest.raises(AssertionError):
        next(steps)


def test_half_precision_pictures_stay_finite() -> None:
    for name in SAMPLERS:
        assert all(step.x.isfinite().all() for step in sample(name, GRIDS["vp"][1], [1], torch.bfloat16))


@pytest.mark.parametrize("a, b", [("ddpm", "euler_ancestral"), ("ddim", "euler")])
@each_grid
def test_names_of_one_method(a: str, b: str, where: str) -> None:
    grid = GRIDS[where][1]
    for one, other in zip(sample(a, grid, [5]), sample(b, grid, [5]), strict=True):
        assert torch.equal(one.x, other.x)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_split_conserves_the_variance(eta: float) -> None:
    a, b = Node(600.0, 0.6, 0.8), Node(300.0, 0.8, 0.6)
    below, up = samplers.split(a, b, eta)
    assert below.sigma**2 + up**2 == pytest.approx(b.sigma**2)
    assert (below.t, below.alpha) == (b.t, b.alpha)
    # DDIM eq. 16 in its own notation
    assert up**2 == pytest.approx(eta**2 * (b.sigma**2 / a.sigma**2) * (1 - a.alpha**2 / b.alpha**2))


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
@pytest.mark.parametrize("name", ["ddim", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde"])
def test_eta_out_of_range(name: str, eta: float) -> None:
    steps = getattr(samplers, name)(
        denoise, torch.zeros(1, 1), GRIDS["vp"][1], noise=lambda i: torch.zeros(1, 1), eta=eta
    )
    with pytest.raises(RequestError, match="eta lies between"):
        next(steps)


def test_lam_at_the_ends_of_the_path() -> None:
    assert Node(1.0, 0.0, 1.0).lam == -math.inf
    assert Node(0.0, 1.0, 0.0).lam == math.inf
    assert Node(0.5, 0.5, 0.5).lam == 0


def test_names() -> None:
    assert all(function.__name__ == name for name, function in SAMPLERS.items())


def test_the_share_of_a_steps_noise_runs_from_the_posteriors_to_that_of_the_path() -> None:
    """beta_tilde and beta of DDPM, section 3.2, for single steps of a table."""
    path = VPPath.linear()
    grid = grids.custom(path, [500, 499], clean=False)
    x, ones = torch.zeros(1, 2), torch.ones(1, 2)

    def spread(share: float) -> float:
        sure = Uncertain(lambda x, t: (x, torch.full_like(x, share)))
        drawn = [list(ddpm(sure, x, grid, noise=lambda i, n=n: n * ones))[-1].x for n in (0.0, 1.0)]
        return float((drawn[1] - drawn[0])[0, 0]) ** 2

    alphas = path.alphas[499:501] ** 2
    beta = float(1 - alphas[1] / alphas[0])
    posterior = float((1 - alphas[0]) / (1 - alphas[1])) * beta
    assert spread(0.0) == pytest.approx(posterior, rel=1e-5)
    assert spread(1.0) == pytest.approx(beta, rel=1e-5)
    assert spread(0.5) == pytest.approx((beta * posterior) ** 0.5, rel=1e-5)


def test_where_nothing_is_known_of_the_noise_ddpm_is_ancestral_ddim() -> None:
    grid = grids.linspace(VPPath.linear(), 5)
    x = torch.ones(1, 2)
    sure = Uncertain(lambda x, t: (0.5 * x, torch.zeros_like(x)))
    noise = lambda i: torch.full((1, 2), float(i))  # noqa: E731
    wanted = list(ddim(lambda x, t: 0.5 * x, x, grid, noise=noise, eta=1.0))
    for plain in (sure, lambda x, t: 0.5 * x):
        found = list(ddpm(plain, x, grid, noise=noise))
        assert all(torch.allclose(one.x, two.x) for one, two in zip(found, wanted, strict=True))
    assert torch.equal(sure.wrapped(lambda denoise: lambda x, t: -denoise(x, t))(x, x), -0.5 * x)
