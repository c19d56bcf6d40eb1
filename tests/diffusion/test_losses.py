import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limner.diffusion import losses
from limner.errors import ConfigError

COUNT = 40_000
Draw = Callable[[torch.Generator], Tensor]
DRAWS: dict[str, Draw] = {
    "uniform": lambda g: losses.uniform(COUNT, g),
    "logit-normal": lambda g: losses.logit_normal(COUNT, 0.8, 0.7, generator=g),
    "logit-normal-with-uniform": lambda g: losses.logit_normal(COUNT, 0.0, 1.0, 0.1, g),
    "mode": lambda g: losses.mode(COUNT, 1.29, g),
    "mode-ends": lambda g: losses.mode(COUNT, -0.8, g),
    "cosmap": lambda g: losses.cosmap(COUNT, g),
}
DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.ones_like,
    "logit-normal": lambda t: losses.logit_normal_density(t, 0.8, 0.7),
    "logit-normal-with-uniform": lambda t: 0.9 * losses.logit_normal_density(t) + 0.1,
    "mode": lambda t: losses.mode_density(t, 1.29),
    "mode-ends": lambda t: losses.mode_density(t, -0.8),
    "cosmap": losses.cosmap_density,
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_follow_their_density(name: str) -> None:
    t = DRAWS[name](seeded())
    assert t.shape == (COUNT,)
    assert (t >= 0).all()
    assert (t <= 1).all()
    middles = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    density = DENSITIES[name](middles)
    assert density.mean().item() == pytest.approx(1, abs=1e-3)
    expected = density.reshape(20, 200).mean(1) / 20
    observed = torch.histc(t.double(), 20, 0, 1) / COUNT
    torch.testing.assert_close(observed, expected, rtol=0, atol=0.005)  # over four standard errors


@pytest.mark.parametrize("name", DRAWS)
def test_draws_repeat_with_the_generator(name: str) -> None:
    generator = seeded()
    first, second = DRAWS[name](generator), DRAWS[name](generator)
    assert torch.equal(first, DRAWS[name](seeded()))
    assert not torch.equal(first, second)


def test_logit_normal_by_its_definition() -> None:
    logit = torch.logit(losses.logit_normal(COUNT, -0.5, 1.5, generator=seeded()).double())
    assert logit.mean().item() == pytest.approx(-0.5, abs=4 * 1.5 / math.sqrt(COUNT))
    assert logit.std().item() == pytest.approx(1.5, rel=0.02)
    assert losses.logit_normal(3).shape == (3,)
    assert torch.equal(losses.logit_normal(4, 0.3, 0.0), torch.full((4,), torch.tensor(0.3).sigmoid()))


def test_logit_normal_all_uniform() -> None:
    t = losses.logit_normal(COUNT, 4.0, 0.1, 1.0, seeded())
    assert t.mean().item() == pytest.approx(0.5, abs=0.006)
    assert t.std().item() == pytest.approx(math.sqrt(1 / 12), rel=0.02)


def test_mode_map_runs_from_noise_to_picture_without_turning() -> None:
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(losses.mode_map(u, 0.0), 1 - u)
    for scale in (-1.0, 0.5, losses.MODE_SCALE_MAX):
        t = losses.mode_map(u, scale)
        assert (t.diff() < 1e-12).all()
        assert (t[0].item(), t[-1].item()) == pytest.approx((1, 0))


def test_log_normal_sigma_of_edm() -> None:
    log = losses.log_normal_sigma(COUNT, generator=seeded()).log()
    assert log.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert log.std().item() == pytest.approx(1.2, rel=0.02)


def test_densities_vanish_or_stay_finite_at_the_ends() -> None:
    ends = torch.tensor([0.0, 1.0])
    assert losses.logit_normal_density(ends).tolist() == [0, 0]
    assert losses.cosmap_density(ends).tolist() == pytest.approx([2 / math.pi] * 2)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow"])
def test_min_snr_weighs_the_same_error_the_same_in_every_prediction(prediction: str) -> None:
    """The weight times the squared error of the prediction is min(SNR, gamma) times the squared error of
    x0."""
    if prediction == "flow":
        sigma = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
        alpha = 1 - sigma
    else:
        angle = torch.linspace(0.05, 1.5, 19, dtype=torch.float64)
        alpha, sigma = angle.cos(), angle.sin()
    x0, x0_hat, eps = 0.3, -0.2, 1.1
    x = alpha * x0 + sigma * eps
    eps_hat = (x - alpha * x0_hat) / sigma
    truth, guess = {
        "x0": (x0, x0_hat),
        "eps": (eps, eps_hat),
        "v": (alpha * eps - sigma * x0, alpha * eps_hat - sigma * x0_hat),
        "flow": (eps - x0, eps_hat - x0_hat),
    }[prediction]
    expected = ((alpha / sigma) ** 2).clamp(max=5.0) * (x0 - x0_hat) ** 2
    weight = losses.min_snr(alpha, sigma, 5.0, prediction)  # type: ignore[arg-type]
    torch.testing.assert_close(weight * (guess - truth) ** 2, expected)


def test_min_snr_is_finite_at_both_ends() -> None:
    alpha, sigma = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    for prediction, weights in {"x0": [0, 5], "eps": [1, 0], "v": [0, 0], "flow": [0, 0]}.items():
        assert losses.min_snr(alpha, sigma, 5.0, prediction).tolist() == weights  # type: ignore[arg-type]


def test_edm_weight_undoes_the_output_scale() -> None:
    sigma = torch.tensor([0.01, 0.5, 30.0])
    c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(losses.edm_weight(sigma), 1 / c_out**2)


def pictures(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_flow_loss_is_the_error_of_the_velocity() -> None:
    x0, x0_hat, eps = (pictures(seed, 4, 3, 8, 8) for seed in (0, 1, 2))
    t = torch.tensor([0.9, 0.5, 0.1, 0.06])
    z = (1 - t).reshape(-1, 1, 1, 1) * x0 + t.reshape(-1, 1, 1, 1) * eps
    velocity, velocity_hat = ((z - x) / t.reshape(-1, 1, 1, 1) for x in (x0, x0_hat))
    torch.testing.assert_close(velocity, eps - x0, rtol=1e-4, atol=1e-4)
    expected = (velocity - velocity_hat).square().flatten(1).mean(1)
    torch.testing.assert_close(losses.flow_x0_loss(x0_hat, x0, t), expected)


def test_flow_loss_is_bounded_near_the_picture() -> None:
    x0_hat, x0 = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, 1, 2, 2)
    t = torch.tensor([0.0, 0.05, 0.1])
    assert losses.flow_x0_loss(x0_hat, x0, t).tolist() == pytest.approx([100, 100, 25])
    assert losses.flow_x0_loss(x0_hat, x0, t, None, 0.1).tolist() == pytest.approx([25, 25, 25])


def test_weights_count_pixels() -> None:
    x0_hat, x0 = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    weight = torch.zeros(2, 1, 4, 4)
    weight[0, :, :2] = 1
    weight[1, :, 0, 0] = 8
    losses_ = losses.flow_x0_loss(x0_hat, x0, torch.ones(2), weight)
    assert losses_.tolist() == pytest.approx([0.5, 0.5])
    plain = losses.flow_x0_loss(x0_hat, x0, torch.ones(2), torch.ones(2, 1, 1, 1))
    assert torch.equal(plain, losses.flow_x0_loss(x0_hat, x0, torch.ones(2)))


def test_losses_are_float32_and_carry_gradients() -> None:
    x0_hat = torch.zeros(2, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    loss = losses.flow_x0_loss(x0_hat, torch.ones(2, 1, 2, 2, dtype=torch.bfloat16), torch.tensor([1.0, 0.5]))
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert x0_hat.grad is not None
    torch.testing.assert_close(x0_hat.grad[:, 0, 0, 0].float(), torch.tensor([-0.5, -2.0]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.logit_normal(3, 0.0, -1.0),
        lambda: losses.logit_normal(3, 0.0, 1.0, 1.5),
        lambda: losses.logit_normal(3, 0.0, 1.0, -0.5),
        lambda: losses.mode(3, 2.0),
        lambda: losses.mode(3, -1.5),
        lambda: losses.min_snr(torch.ones(1), torch.ones(1), 0.0),
    ],
)
def test_settings_out_of_range(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"got|in \["):
        call()


def test_shapes_that_differ() -> None:
    # annotated as well, and checked while tests run: either error says so
    with pytest.raises(Exception, match=r"differ in shape|Type-check error"):
        losses.squared_error(torch.zeros(2, 3), torch.zeros(2, 1))
