"""Predictions: each wraps a raw network once, so that everything else hears only of x0.

A network is called as `network(x, timestep)` on x (b ...) and timestep (b,); what conditions it is bound
beforehand. `timestep` turns the path's t into what that network was trained to be told: unchanged for tables
of 1000 steps and for FLUX, whose networks are told the flow path's t itself; `torch.round` where only whole
steps were seen; `lambda t: 1000 * t` for SD3's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from limner.diffusion.paths import Path
from limner.errors import ConfigError

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t: b ..., t: b) -> estimate of x0, shaped as x_t
Network = Callable[[Tensor, Tensor], Tensor]  # (x_t: b ..., timestep: b) -> prediction, shaped as x_t
Timestep = Callable[[Tensor], Tensor]
Guess = tuple[Tensor, Tensor]  # x0, and the share of a step's noise as in `Uncertain`; both shaped as x_t


@dataclass(frozen=True, slots=True, eq=False)
class Uncertain:
    """A denoise function that also says how much fresh noise a step should leave, pixel by pixel: from 0, the
    posterior's deviation, to 1, that of the noise which the path adds over the step (Nichol & Dhariwal 2021,
    eq. 15). The sampler `ddpm` hears of it; to all others it is a plain denoise function."""

    guess: Callable[[Tensor, Tensor], Guess]  # (x_t, t)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.guess(x, t)[0]

    def wrapped(self, wrapper: Callable[[Denoise], Denoise]) -> "Uncertain":
        """With a wrapper from `guidance` around what it says of x0."""

        def guess(x: Tensor, t: Tensor) -> Guess:
            x0, share = self.guess(x, t)
            return wrapper(lambda x, t: x0)(x, t), share

        return Uncertain(guess)


def unchanged(t: Tensor) -> Tensor:
    """The timestep of a network that is told t itself."""
    return t


def eps(network: Network, path: Path, *, timestep: Timestep = unchanged) -> Denoise:
    """Network that predicts the noise: x0 = (x - sigma eps) / alpha (DDPM eq. 15).

    Raises ConfigError on a path that starts at alpha = 0, where the noise tells nothing of the picture.
    """
    if path.alpha(torch.tensor([path.start], dtype=torch.float64)).item() == 0:
        raise ConfigError("eps gives no x0 where alpha = 0; on this path use a v, x0 or flow network")

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = _at(path, x, t)
        return (x - sigma * network(x, timestep(t))) / alpha

    return denoise


def eps_and_share(network: Network, path: Path, *, timestep: Timestep = unchanged) -> Uncertain:
    """Network that predicts the noise and, in as many channels behind it, the share of a step's noise, there
    from -1 to 1 (Nichol & Dhariwal 2021)."""

    def guess(x: Tensor, t: Tensor) -> Guess:
        noise, share = network(x, timestep(t)).chunk(2, 1)
        return eps(lambda x, t: noise, path)(x, t), (share + 1) / 2

    return Uncertain(guess)


def v(network: Network, path: Path, *, timestep: Timestep = unchanged) -> Denoise:
    """Network that predicts v = alpha eps - sigma x0 on a variance-preserving path: x0 = alpha x - sigma v
    (Salimans & Ho 2022, appendix D)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = _at(path, x, t)
        return alpha * x - sigma * network(x, timestep(t))

    return denoise


def x0(network: Network, *, timestep: Timestep = unchanged) -> Denoise:
    """Network that predicts the picture itself."""
    return lambda x, t: network(x, timestep(t))


def flow(network: Network, path: Path, *, timestep: Timestep = unchanged) -> Denoise:
    """Network that predicts the velocity eps - x0 on the flow path: x0 = x - sigma (eps - x0)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        _, sigma = _at(path, x, t)
        return x - sigma * network(x, timestep(t))

    return denoise


def edm(network: Network, *, sigma_data: float = 0.5) -> Denoise:
    """EDM's preconditioned network on `VEPath`, where t = sigma: x0 = c_skip x + c_out F(c_in x, ln(sigma) /
    4) (Karras et al. 2022, eq. 7 and table 1). `sigma_data` is the standard deviation of the training
    pictures."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        sigma = _along(x, t)
        total = sigma**2 + sigma_data**2
        c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data / total.sqrt(), 1 / total.sqrt()
        return c_skip * x + c_out * network(c_in * x, t.log() / 4)

    return denoise


def consistency(denoise: Denoise, *, scale: float = 10.0, sigma_data: float = 0.5) -> Denoise:
    """Boundary of a latent consistency network: c_skip x + c_out x0, so that t = 0 returns x itself.

    Song et al. 2023 eq. 5, with the coefficients of the published LCM networks; `scale` multiplies t.
    """

    def bounded(x: Tensor, t: Tensor) -> Tensor:
        u = _along(x, t) * scale
        total = u**2 + sigma_data**2
        return sigma_data**2 / total * x + u / total.sqrt() * denoise(x, t)

    return bounded


def _at(path: Path, x: Tensor, t: Float[Tensor, " b"]) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t, shaped and typed to multiply x."""
    return _along(x, path.alpha(t)), _along(x, path.sigma(t))


def _along(x: Tensor, values: Float[Tensor, " b"]) -> Tensor:
    """(b,) -> (b, 1, ..., 1) beside x; never narrower than float32, so that half-precision x is promoted."""
    return values.reshape(-1, *[1] * (x.ndim - 1)).to(torch.promote_types(x.dtype, torch.float32))
