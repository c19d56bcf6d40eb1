"""Losses: where on the path a training picture is put, and how its error is weighed.

Draws give `t` on the flow path (0 = picture, 1 = noise) unless they say otherwise; weights are (b,) factors
on a squared error. Sources: SD3 = Esser et al. 2024 (arXiv 2403.03206); min-SNR = Hang et al. 2023 (arXiv
2303.09556); EDM = Karras et al. 2022 (arXiv 2206.00364); JiT = Li & He 2025 (arXiv 2511.13720).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import ConfigError

Prediction = Literal["eps", "v", "x0", "flow"]
MODE_SCALE_MAX = 2 / (math.pi - 2)  # SD3 eq. 20: beyond it the map u -> t is no longer monotone


def uniform(count: int, generator: torch.Generator | None = None) -> Float[Tensor, " b"]:
    """`count` values of t, uniform in [0, 1), on the generator's device (CPU when None)."""
    return torch.rand(count, generator=generator, device=_device(generator))


def logit_normal(
    count: int,
    mean: float = 0.0,
    std: float = 1.0,
    uniform_share: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " b"]:
    """`count` values of t = sigmoid(mean + std * n), n standard normal: mostly the middle (SD3 eq. 19).

    A mean above 0 leans to noise (JiT's -0.8 counts from the other end: it is +0.8 here). Each value is drawn
    from the uniform distribution instead with probability `uniform_share`, so that no part of the path is
    starved (0.1 is usual). Returned on the generator's device, in [0, 1]. Raises ConfigError for a negative
    std or a share outside [0, 1].
    """
    if std < 0 or not 0 <= uniform_share <= 1:
        raise ConfigError(f"need std >= 0 and 0 <= uniform_share <= 1, got {std} and {uniform_share}")
    device = _device(generator)
    t = torch.sigmoid(mean + std * torch.randn(count, generator=generator, device=device))
    if uniform_share == 0:
        return t
    pick, flat = torch.rand(2, count, generator=generator, device=device)
    return torch.where(pick < uniform_share, flat, t)


def mode(count: int, scale: float = 1.29, generator: torch.Generator | None = None) -> Float[Tensor, " b"]:
    """`count` values of t from SD3's mode sampling (eq. 20): scale > 0 favours the middle, < 0 the ends.

    Raises ConfigError for a scale outside [-1, 2 / (pi - 2)], where the map is not monotone.
    """
    return mode_map(uniform(count, generator), scale)


def mode_map(u: Tensor, scale: float) -> Tensor:
    """SD3 eq. 20: u in [0, 1] -> t in [0, 1], falling. Raises ConfigError as `mode` does."""
    if not -1 <= scale <= MODE_SCALE_MAX:
        raise ConfigError(f"mode sampling needs a scale in [-1, {MODE_SCALE_MAX:.4f}], got {scale}")
    return 1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)


def cosmap(count: int, generator: torch.Generator | None = None) -> Float[Tensor, " b"]:
    """`count` values of t whose log-SNR is spread as on the cosine path (SD3 eq. 21)."""
    return 1 - 1 / (torch.tan(math.pi / 2 * uniform(count, generator)) + 1)


def log_normal_sigma(
    count: int, mean: float = -1.2, std: float = 1.2, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """`count` values of sigma > 0 for the EDM path, ln sigma ~ N(mean, std^2) (EDM table 1)."""
    return torch.exp(mean + std * torch.randn(count, generator=generator, device=_device(generator)))


def logit_normal_density(t: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Density of `logit_normal` at t (SD3 eq. 19), 0 at both ends: a loss weight where t is drawn
    uniformly."""
    inside = (t > 0) & (t < 1)
    s = torch.where(inside, t, 0.5)
    bell = torch.exp(-((torch.logit(s) - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
    density = bell / (s * (1 - s))
    return torch.where(inside, density, 0.0)


def mode_density(t: Tensor, scale: float = 1.29) -> Tensor:
    """Density of `mode` at t: |du/dt| at the u that eq. 20 sends to t, found by bisection."""
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(40):
        u = (low + high) / 2
        above = mode_map(u, scale) > t  # the map falls: a value above t asks for a larger u
        low, high = torch.where(above, u, low), torch.where(above, high, u)
    slope = -1 - scale * (1 - math.pi / 2 * torch.sin(math.pi * (low + high) / 2))
    return 1 / slope.abs()


def cosmap_density(t: Tensor) -> Tensor:
    """Density of `cosmap` at t: 2 / (pi - 2 pi t + 2 pi t^2) (SD3 eq. 21)."""
    return 2 / (math.pi * (1 - 2 * t + 2 * t**2))


def min_snr(alpha: Tensor, sigma: Tensor, gamma: float = 5.0, prediction: Prediction = "eps") -> Tensor:
    """Min-SNR-gamma weight for a squared error measured in `prediction` (Hang et al. 2023, section 3.4).

    The x0 error is worth min(SNR, gamma), SNR = alpha^2 / sigma^2; the other predictions are linear in x0, so
    their weight is that times (d x0 / d prediction)^2. Same shape as alpha; finite from alpha = 0 to sigma =
    0. Raises ConfigError when gamma <= 0.
    """
    if gamma <= 0:
        raise ConfigError(f"min-SNR needs gamma > 0, got {gamma}")
    snr = (alpha / sigma) ** 2
    match prediction:
        case "x0":
            return snr.clamp(max=gamma)
        case "eps":  # x0 = (x - sigma eps) / alpha: min(SNR, gamma) / SNR
            return (gamma / snr).clamp(max=1)
        case "v":  # x0 = alpha x - sigma v on a variance-preserving path: min(SNR, gamma) / (SNR + 1)
            return snr.clamp(max=gamma) / (snr + 1)
        case "flow":  # x0 = x - sigma * flow
            return snr.clamp(max=gamma) * sigma**2


def target(
    prediction: Prediction,
    x0: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "b *dims"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, "b *dims"]:
    """What a network should have said of x_t = alpha x0 + sigma noise: the noise, v = alpha noise - sigma x0
    (Salimans & Ho 2022, appendix D), the picture, or the velocity noise - x0 (Liu et al. 2022)."""
    match prediction:
        case "eps":
            return noise
        case "x0":
            return x0
        case "v":
            return along(alpha, x0) * noise - along(sigma, x0) * x0
        case "flow":
            return noise - x0


def noised(
    x0: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "b *dims"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, "b *dims"]:
    """x_t = alpha x0 + sigma noise."""
    return along(alpha, x0) * x0 + along(sigma, x0) * noise


def offset(
    noise: Float[Tensor, "b c h w"], share: float, generator: torch.Generator | None = None
) -> Float[Tensor, "b c h w"]:
    """`noise` with `share` of one more number for each channel of each picture, so that brightness is learned
    too ("offset noise", Guttenberg 2023). The number is drawn on the generator's device (CPU when None)."""
    count, channels = noise.shape[:2]
    more = torch.randn(count, channels, 1, 1, generator=generator, device=_device(generator))
    return noise + share * more.to(noise)


def along(values: Float[Tensor, " b"], x: Float[Tensor, "b *dims"]) -> Float[Tensor, "b *ones"]:
    """One number for each picture, shaped to multiply x."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def edm_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """EDM's weight on the x0 error, (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2 (table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def squared_error(
    estimate: Float[Tensor, "b *dims"], target: Float[Tensor, "b *dims"], weight: Tensor | None = None
) -> Float[Tensor, " b"]:
    """Mean squared error of each picture, in float32.

    `weight` (per pixel, broadcast to the pictures) multiplies the squares. The mean divides by the number of
    values, not by the sum of the weights. Raises ConfigError when the shapes differ.
    """
    if estimate.shape != target.shape:
        raise ConfigError(
            f"estimate and target differ in shape: {tuple(estimate.shape)}, {tuple(target.shape)}"
        )
    error = (estimate.float() - target.float()).square()
    if weight is not None:
        error = error * weight.float()
    return error.flatten(1).mean(1)


def flow_x0_loss(
    x0_hat: Float[Tensor, "b *dims"],
    x0: Float[Tensor, "b *dims"],
    t: Float[Tensor, " b"],
    weight: Tensor | None = None,
    t_min: float = 0.05,
) -> Float[Tensor, " b"]:
    """Velocity loss of a network that predicts x0 on the flow path (JiT, algorithm 1), one value per picture.

    With z_t = (1 - t) x0 + t eps both velocities are (z_t - x) / t, so z_t cancels and the loss is the x0
    error over max(t, t_min)^2; t_min bounds the weight near the picture. `weight` is per pixel, as in
    `squared_error`.
    """
    return squared_error(x0_hat, x0, weight) / t.float().clamp(min=t_min).square()


def _device(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")
