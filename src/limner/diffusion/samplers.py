"""Samplers: from noise to a picture along a grid.

Every sampler is a generator of steps over x = alpha * x0 + sigma * eps, whatever the path and whatever the
network predicts. All but `lcm` are one move (`move`), each with a better guess of x0:

    euler, ddim       x0 as denoised                                    order 1
    heun              the slopes at both ends of a step, averaged       order 2, two calls a step
    dpmpp_2m          x0 drawn on along log-SNR from the one before     order 2
    dpmpp_sde         x0 at the inner stage of a double step            order 2
    unipc             as dpmpp_2m, corrected once the next is known     order 3
    ddpm, euler_ancestral, dpmpp_2m_sde, dpmpp_sde: to below the next sigma, then fresh noise back up

lam = log(alpha / sigma) is half the log-SNR: -inf at alpha = 0, inf at the picture. Differences over such a
step are infinite too, and the formulas fall back to first order by themselves unless a line says otherwise.

DDIM = Song et al. 2021 (arXiv 2010.02502); EDM = Karras et al. 2022 (2206.00364); DPM++ = Lu et al. 2022
(2211.01095); UniPC = Zhao et al. 2023 (2302.04867); LCM = Luo et al. 2023 (2310.04378).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from limner.diffusion.grids import Grid
from limner.diffusion.predictions import Denoise, Uncertain
from limner.errors import RequestError

Noise = Callable[[int], Tensor]  # index of a step -> fresh standard normal noise like x (`NoiseSource.draws`)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a sampler yields after each step; the last one's x is the picture."""

    index: int  # 0 ... total - 1
    total: int
    x: Float[Tensor, "b *dims"]  # at the node the step arrived at
    x0: Float[Tensor, "b *dims"]  # as denoised at the node it left: the preview


@runtime_checkable
class Sampler(Protocol):
    """The shape of every function in SAMPLERS; options beyond it have defaults."""

    def __call__(
        self, denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise
    ) -> Iterator[Step]: ...


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a grid in plain float64 numbers."""

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """Half the log-SNR, log(alpha / sigma)."""
        if self.alpha == 0:
            return -math.inf
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)


def move(x: Tensor, x0: Tensor, a: Node, b: Node) -> Tensor:
    """From a to b with x0 held fixed: alpha_b x0 + sigma_b eps, eps = (x - alpha_a x0) / sigma_a.

    DDIM eq. 12 without its noise, first-order DPM-Solver++, and Euler's step on VE and flow paths.
    """
    ratio = b.sigma / a.sigma
    return ratio * x + (b.alpha - a.alpha * ratio) * x0


def split(a: Node, b: Node, eta: float) -> tuple[Node, float]:
    """Divide b's noise: a node below b to move to, and the deviation of the fresh noise that leads back up.

    DDIM eq. 16, whose variance is eta^2 sigma_b^2 (1 - SNR_a / SNR_b) in general (alpha, sigma). eta = 1 is
    the posterior of DDPM, k-diffusion's ancestral step and the reverse SDE in one. Raises RequestError for
    eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise RequestError(f"eta lies between 0 (no fresh noise) and 1 (ancestral), got {eta}")
    up = eta * b.sigma * math.sqrt(1 - (a.alpha * b.sigma / (b.alpha * a.sigma)) ** 2)
    return replace(b, sigma=math.sqrt(b.sigma**2 - up**2)), up


def euler(denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise) -> Iterator[Step]:
    """Euler's method on the probability-flow ODE (EDM algorithm 1 without lines 6-8); `noise` is not used."""
    return ddim(denoise, x, grid, noise=noise, eta=0.0)


def euler_ancestral(
    denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """Euler steps to below the next sigma, then fresh noise: k-diffusion's name for `ddim` with eta = 1."""
    return ddim(denoise, x, grid, noise=noise, eta=eta)


def ddpm(denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise) -> Iterator[Step]:
    """Ancestral sampling with the posterior's variance (Ho et al. 2020, eq. 6-7): `ddim` with eta = 1.

    Of an `Uncertain` denoiser it takes the variance as well. What the path adds over a step is wider than the
    posterior by sigma_a / sigma_b; between the two, logarithms are mixed (Nichol & Dhariwal 2021, eq. 15).
    """
    if not isinstance(denoise, Uncertain):
        yield from ddim(denoise, x, grid, noise=noise, eta=1.0)
        return
    for i, a, b in _steps(grid):
        x0, share = denoise.guess(x, _told(x, a))
        below, up = split(a, b, 1.0)
        x = move(x, x0, a, below)
        if up > 0:
            x = x + up * (a.sigma / b.sigma) ** share * noise(i).to(x)
        yield Step(i, grid.steps, x, x0)


def ddim(
    denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise, eta: float = 0.0
) -> Iterator[Step]:
    """DDIM eq. 12: deterministic at eta = 0, DDPM at eta = 1."""
    for i, a, b in _steps(grid):
        x0 = _ask(denoise, x, a)
        x = _ancestral(x, x0, a, b, eta, noise, i)
        yield Step(i, grid.steps, x, x0)


def heun(denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise) -> Iterator[Step]:
    """Heun's second-order method (EDM algorithm 1 without noise): two calls a step, one in the last.

    Slopes are averaged where the path is straight: in x / alpha, as EDM does, or on a flow path in x itself.
    `noise` is not used.
    """
    is_flow = grid.is_flow
    for i, a, b in _steps(grid):
        x0 = ahead = _ask(denoise, x, a)
        scale_a, scale_b = (1.0, 1.0) if is_flow else (a.alpha, b.alpha)  # x / scale moves straight
        if b.sigma > 0 and scale_a > 0:
            guess = move(x, x0, a, b)  # line 5
            slope_a = (x - scale_a * x0) / a.sigma  # line 4: eps, or eps - x0 on a flow path
            slope_b = (guess - scale_b * _ask(denoise, guess, b)) / b.sigma  # line 7
            ahead = (x - a.sigma * (slope_a + slope_b) / 2) / scale_a  # line 8, as the x0 that moves there
        x = move(x, ahead, a, b)
        yield Step(i, grid.steps, x, x0)


def dpmpp_2m(denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M) (DPM++ algorithm 2); `noise` is not used."""
    return dpmpp_2m_sde(denoise, x, grid, noise=noise, eta=0.0)


def dpmpp_2m_sde(
    denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M): 2M's x0 with the ancestral split; eta = 0 is 2M itself."""
    last: tuple[Node, Tensor] | None = None
    for i, a, b in _steps(grid):
        x0 = ahead = _ask(denoise, x, a)
        if last is not None and b.sigma > 0:
            before, x0_before = last
            r = (a.lam - before.lam) / (b.lam - a.lam)
            ahead = x0 + (x0 - x0_before) / (2 * r)  # D_i of algorithm 2; r = inf after alpha = 0
        x = _ancestral(x, ahead, a, b, eta, noise, i)
        last = a, x0
        yield Step(i, grid.steps, x, x0)


def dpmpp_sde(
    denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2S): two steps of the grid make one of second order, the node between its inner stage.

    DPM++ algorithm 1 with the ancestral split; on `grids.with_midpoints` it is k-diffusion's sampler of this
    name, and with eta = 0 the deterministic DPM-Solver++(2S). The steps from alpha = 0 and to the picture are
    of first order.
    """
    pair: tuple[Node, Tensor, Tensor, Tensor] | None = None  # where a double step began, its x, x0, noise
    for i, a, b in _steps(grid):
        x0 = _ask(denoise, x, a)
        below, up = split(a, b, eta)
        fresh = noise(i).to(x) if up > 0 else torch.zeros_like(x)
        if pair is None or b.sigma == 0:
            pair = (a, x, x0, fresh) if pair is None and a.alpha > 0 else None
            x = move(x, x0, a, below) + up * fresh
        else:
            start, x_start, x0_start, noise_start = pair
            r = (a.lam - start.lam) / (b.lam - start.lam)
            ahead = x0_start + (x0 - x0_start) / (2 * r)  # algorithm 1
            # One Brownian motion drives both stages: the noise of the first, carried on to b, and the fresh.
            carried = below.sigma / a.sigma * split(start, a, eta)[1]
            fresh = (carried * noise_start + up * fresh) / (math.hypot(carried, up) or 1.0)
            below, up = split(start, b, eta)
            x, pair = move(x_start, ahead, start, below) + up * fresh, None
        yield Step(i, grid.steps, x, x0)


def unipc(denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise) -> Iterator[Step]:
    """UniPC-2 with B(h) = e^h - 1 on x0: 2M's step, corrected once the network has been asked where it led.

    The correction needs no further call. `noise` is not used.
    """
    past: list[tuple[Node, Tensor]] = []  # the last two nodes left and the x0 found there
    x_last = x
    for i, a, b in _steps(grid):
        x0 = ahead = _ask(denoise, x, a)
        if past and past[-1][0].alpha > 0:  # a step from alpha = 0 is infinitely long: nothing to correct by
            x = move(x_last, _unic(past, a, x0), past[-1][0], a)
        if past and b.sigma > 0:
            before, x0_before = past[-1]
            r = (before.lam - a.lam) / (b.lam - a.lam)  # r_1 < 0, -inf after alpha = 0
            ahead = x0 + (x0_before - x0) / (2 * r)  # UniP-2: rho_1 = 1 / 2
        past = [*past[-1:], (a, x0)]
        x_last, x = x, move(x, ahead, a, b)
        yield Step(i, grid.steps, x, x0)


def _unic(past: list[tuple[Node, Tensor]], b: Node, x0_b: Tensor) -> Tensor:
    """UniC: the x0 that should have been held from the newest of `past` to b, now that b's own is known."""
    a, x0_a = past[-1]
    if len(past) == 1:
        return (x0_a + x0_b) / 2  # UniC-1: rho_1 = 1 / 2
    before, x0_before = past[0]
    h = b.lam - a.lam
    r = (before.lam - a.lam) / h
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1
    b_1, b_2 = phi_2 / phi_1, 2 * (phi_2 / -h - 1 / 2) / phi_1
    rho_1 = (b_1 - b_2) / (1 - r)  # with rho_2 = b_1 - rho_1: rho_1 + rho_2 = b_1, r rho_1 + rho_2 = b_2
    return x0_a + rho_1 / r * (x0_before - x0_a) + (b_1 - rho_1) * (x0_b - x0_a)


def lcm(denoise: Denoise, x: Float[Tensor, "b *dims"], grid: Grid, *, noise: Noise) -> Iterator[Step]:
    """Multistep consistency sampling (LCM algorithm 3): x0 put back on the path with all-new noise."""
    for i, a, b in _steps(grid):
        x0 = _ask(denoise, x, a)
        x = b.alpha * x0 + b.sigma * noise(i).to(x0) if b.sigma > 0 else x0
        yield Step(i, grid.steps, x, x0)


def _steps(grid: Grid) -> Iterator[tuple[int, Node, Node]]:
    nodes = map(Node, grid.t.tolist(), grid.alpha.tolist(), grid.sigma.tolist())
    return ((i, a, b) for i, (a, b) in enumerate(pairwise(nodes)))


def _ask(denoise: Denoise, x: Tensor, node: Node) -> Tensor:
    """x0 at a node."""
    return denoise(x, _told(x, node))


def _told(x: Tensor, node: Node) -> Tensor:
    """t for each picture, in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.full((len(x),), node.t, dtype=dtype, device=x.device)


def _ancestral(x: Tensor, x0: Tensor, a: Node, b: Node, eta: float, noise: Noise, index: int) -> Tensor:
    """`move` to below b and add the fresh noise back, if there is any."""
    below, up = split(a, b, eta)
    x = move(x, x0, a, below)
    return x + up * noise(index).to(x) if up > 0 else x


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_sde": dpmpp_sde,
    "unipc": unipc,
    "lcm": lcm,
}
