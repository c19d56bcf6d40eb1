from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limner.diffusion import predictions
from limner.diffusion.paths import FlowPath, Path, VEPath, VPPath
from limner.diffusion.predictions import Denoise, Network
from limner.errors import ConfigError

VP, VE, FLOW = VPPath.scaled_linear(), VEPath(), FlowPath()
ZERO_SNR = VP.zero_terminal_snr()
X0 = torch.linspace(-1, 1, 96, dtype=torch.float64).reshape(2, 3, 4, 4)
EPS = torch.randn(X0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def at(path: Path, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    alpha, sigma = path.alpha(t).reshape(-1, 1, 1, 1), path.sigma(t).reshape(-1, 1, 1, 1)
    return alpha * X0 + sigma * EPS, alpha, sigma


CASES: dict[
    str, tuple[Path, Callable[[Network, Path], Denoise], Callable[[Tensor, Tensor], Tensor], list[float]]
] = {
    "eps-vp": (VP, predictions.eps, lambda a, s: EPS, [3.0, 999.0]),
    "eps-ve": (VE, predictions.eps, lambda a, s: EPS, [0.01, 80.0]),
    "v-vp": (VP, predictions.v, lambda a, s: a * EPS - s * X0, [3.5, 998.25]),
    "v-zero-snr": (ZERO_SNR, predictions.v, lambda a, s: a * EPS - s * X0, [3.0, 999.0]),
    "x0-vp": (VP, lambda network, _: predictions.x0(network), lambda a, s: X0, [3.0, 999.0]),
    "x0-flow": (FLOW, lambda network, _: predictions.x0(network), lambda a, s: X0, [0.1, 1.0]),
    "flow": (FLOW, predictions.flow, lambda a, s: EPS - X0, [0.1, 1.0]),
}


@pytest.mark.parametrize("path, wrap, target, t", CASES.values(), ids=CASES)
def test_a_perfect_network_gives_back_the_picture(
    path: Path,
    wrap: Callable[[Network, Path], Denoise],
    target: Callable[[Tensor, Tensor], Tensor],
    t: list[float],
) -> None:
    times = torch.tensor(t, dtype=torch.float64)
    x, alpha, sigma = at(path, times)

    def network(seen: Tensor, timestep: Tensor) -> Tensor:
        assert torch.equal(seen, x)
        assert torch.equal(timestep, times)
        return target(alpha, sigma)

    torch.testing.assert_close(wrap(network, path)(x, times), X0)


def test_edm_preconditioning_by_table_1() -> None:
    sigma = torch.tensor([0.002, 0.7], dtype=torch.float64)
    x, _, s = at(VE, sigma)
    data = 0.5

    def network(seen: Tensor, timestep: Tensor) -> Tensor:
        torch.testing.assert_close(seen, x / (s**2 + data**2).sqrt())
        torch.testing.assert_close(timestep, sigma.log() / 4)
        c_skip, c_out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
        return (X0 - c_skip * x) / c_out  # EDM eq. 8: what the network is trained to say

    torch.testing.assert_close(predictions.edm(network, sigma_data=data)(x, sigma), X0)


@pytest.mark.parametrize("level", [0.01, 0.5, 20.0])
def test_edm_gives_the_network_unit_variance(level: float) -> None:
    generator = torch.Generator().manual_seed(1)
    picture, noise = (torch.randn(1, 100_000, generator=generator) for _ in range(2))

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        assert x.std().item() == pytest.approx(1, abs=0.02)
        return torch.ones_like(x)

    x = 0.5 * picture + level * noise
    told = predictions.edm(network)(x, torch.tensor([level]))
    # what it adds is at most the deviation of the pictures: a network of unit variance cannot do harm
    assert 0 < (told - 0.25 / (level**2 + 0.25) * x).mean() <= 0.5


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network, timestep: predictions.eps(network, VP, timestep=timestep),
        lambda network, timestep: predictions.v(network, VP, timestep=timestep),
        lambda network, timestep: predictions.x0(network, timestep=timestep),
        lambda network, timestep: predictions.flow(network, FLOW, timestep=timestep),
    ],
    ids=["eps", "v", "x0", "flow"],
)
def test_the_network_is_told_its_own_timestep(wrap: Callable[..., Denoise]) -> None:
    told: list[Tensor] = []

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        told.append(timestep)
        return x

    t = torch.tensor([0.2503, 0.75])
    wrap(network, lambda t: (1000 * t).round())(torch.zeros(2, 3, 4, 4), t)
    assert told[0].tolist() == [250, 750]


def test_eps_has_no_picture_at_alpha_zero() -> None:
    for path in (FLOW, ZERO_SNR):
        with pytest.raises(ConfigError, match="alpha = 0"):
            predictions.eps(lambda x, t: x, path)


def test_the_type_of_x_is_kept_and_half_precision_raised() -> None:
    for dtype, expected in [
        (torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32),
    ]:  # fmt: skip
        x = torch.ones(2, 3, 4, 4, dtype=dtype)
        for wrap, path, t in [(predictions.eps, VP, 500.0), (predictions.flow, FLOW, 0.5)]:
            assert wrap(lambda x, _: x, path)(x, torch.full((2,), t)).dtype == expected


def test_consistency_boundary() -> None:
    x, guess = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    bounded = predictions.consistency(lambda x, t: guess)
    torch.testing.assert_close(bounded(x, torch.zeros(2)), x)
    torch.testing.assert_close(bounded(x, torch.full((2,), 999.0)), guess, atol=1e-6, rtol=1e-6)
    half = bounded(x, torch.full((2,), 0.05))  # scaled t = sigma_data
    torch.testing.assert_close(half, x / 2 + guess / 2**0.5)
