"""Paths from picture to noise: x_t = alpha(t) * x0 + sigma(t) * eps, eps standard normal.

    VPPath      alpha^2 + sigma^2 = 1     t in [0, 999], the network's table of steps; fractions lie between
    VEPath      alpha = 1, sigma = t      t in [0.002, 80] (EDM)
    FlowPath    alpha = 1 - t, sigma = t  t in [0, 1], 1 is noise

Every method takes t of any shape and answers in that shape, in t's float type (float32 at least), on t's
device.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import ConfigError


@runtime_checkable
class Path(Protocol):
    """What grids and predictions need to know of a path."""

    @property
    def start(self) -> float:
        """t of the most noise."""

    @property
    def end(self) -> float:
        """t of the least noise at which a network is still asked; the picture itself lies one step beyond."""

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the picture at t."""

    def sigma(self, t: Tensor) -> Tensor:
        """Share of the noise at t, rising with t."""

    def level(self, t: Tensor) -> Tensor:
        """Noise level in which Karras and exponential grids are spaced: sigma / alpha, but sigma on the flow
        path, where that ratio has no largest value."""

    def t(self, level: Tensor) -> Tensor:
        """Inverse of `level`, kept within [end, start]."""


@dataclass(frozen=True, slots=True, eq=False)
class VPPath:
    """Variance-preserving path given by a table (DDPM, Ho et al. 2020): alpha at t = 0, 1, ..., falling from
    below 1.

    Between two entries (alpha, sigma) runs along their chord, pushed out to the unit circle: whole t give the
    table exactly, alpha^2 + sigma^2 = 1 everywhere, and nothing diverges where alpha is 0. Raises ConfigError
    unless the table falls strictly within [0, 1).
    """

    alphas: Float[Tensor, " steps"]  # float64; alpha = sqrt(alpha_bar)

    def __post_init__(self) -> None:
        table = self.alphas
        if table.ndim != 1 or len(table) < 2:
            raise ConfigError(f"alphas must be one row of two or more values, got shape {tuple(table.shape)}")
        if not (table.diff() < 0).all() or table[0] >= 1 or table[-1] < 0:
            raise ConfigError("the alphas of a variance-preserving path must fall strictly within [0, 1)")
        object.__setattr__(self, "alphas", table.double())

    @classmethod
    def from_betas(cls, betas: Float[Tensor, " steps"]) -> "VPPath":
        """Path of a beta table: alpha_bar_t = prod_{s <= t} (1 - beta_s) (DDPM eq. 4)."""
        return cls((1 - betas.double()).cumprod(0).sqrt())

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> "VPPath":
        """beta linear in t (DDPM, section 4)."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000
    ) -> "VPPath":
        """sqrt(beta) linear in t (latent diffusion; the defaults are Stable Diffusion's)."""
        return cls.from_betas(torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2)

    @classmethod
    def cosine(cls, offset: float = 0.008, beta_max: float = 0.999, steps: int = 1000) -> "VPPath":
        """alpha_bar a squared cosine in t, betas capped (Nichol & Dhariwal 2021, eq. 17)."""
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bar = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls.from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=beta_max))

    def zero_terminal_snr(self) -> "VPPath":
        """The same path, stretched until its last alpha is exactly 0 (Lin et al. 2023, algorithm 1)."""
        first, last = self.alphas[0], self.alphas[-1]
        return replace(self, alphas=(self.alphas - last) * first / (first - last))

    @property
    def steps(self) -> int:
        """Entries of the table: 1000 in every published model."""
        return len(self.alphas)

    @property
    def start(self) -> float:
        return self.steps - 1.0

    @property
    def end(self) -> float:
        return 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return self._between(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self._between(t)[1]

    def level(self, t: Tensor) -> Tensor:
        alpha, sigma = self._between(t)
        return sigma / alpha

    def t(self, level: Tensor) -> Tensor:
        alphas, sigmas = self._table(level)
        level = level.to(alphas.dtype)
        below = torch.searchsorted(sigmas / alphas, level.contiguous()) - 1
        below = below.clamp(0, self.steps - 2)
        a0, a1, s0, s1 = alphas[below], alphas[below + 1], sigmas[below], sigmas[below + 1]
        # The share w of the chord where (s0 + w (s1 - s0)) / (a0 + w (a1 - a0)) is the level.
        w = (level * a0 - s0) / ((s1 - s0) - level * (a1 - a0))
        return (below + w).clamp(self.end, self.start)

    def _table(self, like: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(like.dtype, torch.float32)
        sigmas = (1 - self.alphas**2).sqrt()
        return self.alphas.to(like.device, dtype), sigmas.to(like.device, dtype)

    def _between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alphas, sigmas = self._table(t)
        t = t.to(alphas.dtype).clamp(self.end, self.start)
        below = t.long().clamp(max=self.steps - 2)
        w = t - below
        alpha = alphas[below] * (1 - w) + alphas[below + 1] * w
        sigma = sigmas[below] * (1 - w) + sigmas[below + 1] * w
        radius = torch.hypot(alpha, sigma)
        return alpha / radius, sigma / radius


@dataclass(frozen=True, slots=True, kw_only=True)
class VEPath:
    """Variance-exploding path with t = sigma (EDM, Karras et al. 2022, table 1)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ConfigError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def start(self) -> float:
        return self.sigma_max

    @property
    def end(self) -> float:
        return self.sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(_float(t))

    def sigma(self, t: Tensor) -> Tensor:
        return _float(t)

    def level(self, t: Tensor) -> Tensor:
        return _float(t)

    def t(self, level: Tensor) -> Tensor:
        return _float(level).clamp(self.end, self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPath:
    """Rectified-flow path (Liu et al. 2022; SD3, Esser et al. 2024, eq. 13): straight from picture to
    noise."""

    end: float = 1e-3  # least t at which a linspace, Karras or exponential grid asks the network

    def __post_init__(self) -> None:
        if not 0 < self.end < 1:
            raise ConfigError(f"the end of a flow path lies between 0 and 1, got {self.end}")

    @property
    def start(self) -> float:
        return 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - _float(t)

    def sigma(self, t: Tensor) -> Tensor:
        return _float(t)

    def level(self, t: Tensor) -> Tensor:
        return _float(t)

    def t(self, level: Tensor) -> Tensor:
        return _float(level).clamp(self.end, self.start)


def shift(t: Tensor, factor: float) -> Tensor:
    """SD3's resolution shift of t in [0, 1]: factor * t / (1 + (factor - 1) * t) (eq. 23).

    A factor above 1 spends more of the path in noise, as larger pictures need; it divides alpha / sigma by
    the factor. Raises ConfigError unless factor > 0.
    """
    if not factor > 0:
        raise ConfigError(f"a shift factor is above 0, got {factor}")
    return factor * t / (1 + (factor - 1) * t)


def sd3_shift(size: tuple[int, int], base: tuple[int, int]) -> float:
    """Shift factor for pictures of `size` by a network at home in `base`: sqrt of the ratio of their pixels.

    SD3 eq. 23.
    """
    return math.sqrt(size[0] * size[1] / (base[0] * base[1]))


def flux_shift(
    tokens: int, *, low: float = 0.5, high: float = 1.15, few: int = 256, many: int = 4096
) -> float:
    """FLUX.1-dev's shift factor exp(mu): mu is linear in tokens, `low` at `few` and `high` at `many` (1024
    px)."""
    return math.exp(low + (high - low) * (tokens - few) / (many - few))


def _float(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))
