"""Grids: where on its path a sampler stops, from noise to picture.

A grid of N steps has N + 1 nodes; the network is asked at the first N. The last node is the picture itself
(alpha 1, sigma 0), except for `custom(..., clean=False)`, which reproduces samplers that stop just short of
it. Spacings after Lin et al. 2023 (arXiv 2305.08891), table 2, and EDM = Karras et al. 2022 (arXiv
2206.00364).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from limner.diffusion.paths import FlowPath, Path, VPPath, shift
from limner.errors import RequestError
from limner.util.suggest import suggestion


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Nodes of a path, most noise first, in float64 on the CPU.

    Raises RequestError unless there are two or more and the noise falls at every step.
    """

    t: Float64[Tensor, " nodes"]  # what the path runs on; told to the denoiser
    alpha: Float64[Tensor, " nodes"]
    sigma: Float64[Tensor, " nodes"]

    def __post_init__(self) -> None:
        if self.t.ndim != 1 or not self.t.shape == self.alpha.shape == self.sigma.shape or len(self.t) < 2:
            shapes = [tuple(part.shape) for part in (self.t, self.alpha, self.sigma)]
            raise RequestError(f"a grid needs three rows of the same two or more nodes, got shapes {shapes}")
        # atan2(sigma, alpha) measures noise and stays finite where alpha is 0
        if not (torch.atan2(self.sigma, self.alpha).diff() < 0).all() or self.sigma[-1] < 0:
            raise RequestError(f"the noise must fall at every step of a grid, got t = {self.t.tolist()}")

    @property
    def steps(self) -> int:
        """Steps that a sampler takes: one fewer than nodes."""
        return len(self.t) - 1

    def part(self, first: int, last: int) -> "Grid":
        """The steps from `first` (counted from 0) to before `last`. Raises RequestError for none."""
        nodes = slice(first, last + 1)
        return Grid(self.t[nodes], self.alpha[nodes], self.sigma[nodes])

    def last(self, share: float, *, up: bool = False) -> "Grid":
        """The last steps: `share` of them, rounded down, or up. Raises RequestError where none is left."""
        kept = min(self.steps * share, self.steps)
        first = int(self.steps - kept) if up else self.steps - int(kept)
        if first >= self.steps:
            raise RequestError(f"strength {share:g} of {self.steps} steps leaves none to draw: raise one")
        return self.part(first, self.steps)

    def step(self, t: float) -> int:
        """The step during which a network is asked at t: from 0, the last one once the noise is gone."""
        behind = int((self.t[:-1] >= t - 1e-6 * abs(t)).sum())  # samplers tell t in float32
        return max(0, behind - 1)

    @property
    def is_flow(self) -> bool:
        """Whether alpha + sigma = 1 at every node, so that pictures move in straight lines as sigma falls."""
        return bool(torch.allclose(self.alpha + self.sigma, torch.ones_like(self.t), atol=1e-9))


def custom(path: Path, t: Sequence[float] | Sequence[int] | Tensor, *, clean: bool = True) -> Grid:
    """The given values of t, falling, then the picture; with clean=False the last of them is the end.

    Raises RequestError for a t that is not on the path.
    """
    nodes = torch.as_tensor(t, dtype=torch.float64)
    if nodes.numel() and not 0 <= nodes.min() <= nodes.max() <= path.start:
        raise RequestError(f"t must lie between 0 and {path.start} on this path, got {nodes.tolist()}")
    alpha, sigma = path.alpha(nodes), path.sigma(nodes)
    if clean:
        nodes, sigma = (torch.cat([part, part.new_zeros(1)]) for part in (nodes, sigma))
        alpha = torch.cat([alpha, alpha.new_ones(1)])
    return Grid(nodes, alpha, sigma)


def uniform(path: Path, steps: int, *, whole: bool = False) -> Grid:
    """t in equal steps from the start of the path to 0; `whole` rounds them to entries of the table."""
    t = path.start * (1 - torch.arange(_checked(steps), dtype=torch.float64) / steps)
    return custom(path, t.round() if whole else t)


def linspace(path: Path, steps: int, *, whole: bool = False) -> Grid:
    """t in equal steps from the start of the path to its end, both included; `whole` as in `uniform`."""
    t = torch.linspace(path.start, path.end, _checked(steps), dtype=torch.float64)
    return custom(path, t.round() if whole else t)


def leading(path: VPPath, steps: int, *, offset: int = 0) -> Grid:
    """Whole t: multiples of floor(table / steps), raised by `offset` (1 for Stable Diffusion).

    It stops short of the last entry of the table, where the most noise is.
    """
    stride = path.steps // _checked(steps, path.steps)
    return custom(path, torch.arange(steps - 1, -1, -1) * stride + offset)


def trailing(path: VPPath, steps: int) -> Grid:
    """Whole t counted back from the last entry, which zero-terminal-SNR networks must see."""
    _checked(steps, path.steps)
    back = torch.arange(steps, dtype=torch.float64) * (path.steps / steps)
    return custom(path, (path.steps - back).round() - 1)


def lcm(path: VPPath, steps: int, *, trained: int = 50) -> Grid:
    """Whole t that consistency networks were distilled at, `trained` in all, counted back from the last entry
    of the table and thinned out evenly (Luo et al. 2023, section 4.3, as published)."""
    _checked(steps, trained)
    chosen = torch.arange(steps) * trained // steps  # of the falling row
    return custom(path, path.steps // trained * (trained - chosen) - 1)


def karras(
    path: Path, steps: int, *, rho: float = 7.0, low: float | None = None, high: float | None = None
) -> Grid:
    """Noise levels linear in level^(1 / rho) from `high` to `low` (EDM eq. 5).

    None means the path's own ends. Raises RequestError unless they are finite and above 0.
    """
    low, high = _ends(path, low, high)
    ramp = torch.linspace(high ** (1 / rho), low ** (1 / rho), _checked(steps), dtype=torch.float64)
    return custom(path, path.t(ramp**rho))


def exponential(path: Path, steps: int, *, low: float | None = None, high: float | None = None) -> Grid:
    """Noise levels in equal ratios from `high` to `low`: log-SNR rises evenly on VP and VE paths.

    None means the path's own ends. Raises RequestError unless they are finite and above 0.
    """
    low, high = _ends(path, low, high)
    ramp = torch.linspace(math.log(high), math.log(low), _checked(steps), dtype=torch.float64)
    return custom(path, path.t(ramp.exp()))


def shifted(path: FlowPath, steps: int, factor: float, *, start: float = 1.0) -> Grid:
    """`uniform` after SD3's resolution shift (eq. 23); `paths.sd3_shift` and `flux_shift` give the factor. A
    `start` below 1 spends the steps on that share of the way, the end of it."""
    return custom(path, shift(start * uniform(path, steps).t[:-1], factor))


def with_midpoints(path: Path, grid: Grid) -> Grid:
    """`grid` with a node between each two, halfway in log-SNR: the inner stages of the published `dpmpp_sde`.

    Steps to the picture and from alpha = 0 span infinitely much log-SNR and are left whole.
    """
    level = grid.sigma / grid.alpha
    middle = (level[:-1] * level[1:]).sqrt()
    inner = path.t(middle / (1 + middle) if isinstance(path, FlowPath) else middle)
    keep = (middle > 0) & middle.isfinite()
    t = torch.cat([grid.t, inner[keep]])
    alpha = torch.cat([grid.alpha, path.alpha(inner[keep])])
    sigma = torch.cat([grid.sigma, path.sigma(inner[keep])])
    order = torch.atan2(sigma, alpha).argsort(descending=True)
    return Grid(t[order], alpha[order], sigma[order])


def _ends(path: Path, low: float | None, high: float | None) -> tuple[float, float]:
    last, first = path.level(torch.tensor([path.end, path.start], dtype=torch.float64)).tolist()
    low, high = last if low is None else low, first if high is None else high
    if not 0 < low < high < math.inf:
        raise RequestError(
            f"noise levels must run from a finite high to a low above 0, got {high} to {low}; "
            "a path that starts at alpha = 0 needs `high` given"
        )
    return low, high


def _checked(steps: int, most: int | None = None) -> int:
    if steps < 1 or (most is not None and steps > most):
        raise RequestError(f"steps must be at least 1{f' and at most {most}' if most else ''}, got {steps}")
    return steps


def _highest(path: VPPath) -> float:
    """The largest finite noise level of a path: its last, or on a path to alpha = 0 the last but one."""
    levels = path.level(torch.tensor([path.start, path.start - 1], dtype=torch.float64))
    return float(levels[levels.isfinite()][0])


def named(name: str, path: VPPath, steps: int) -> Grid:
    """The grid that GRIDS calls `name`. Raises RequestError for another name and for steps it cannot have."""
    if name not in GRIDS:
        raise RequestError(f'there is no grid "{name}"{suggestion(name, GRIDS)}')
    return GRIDS[name](path, steps)


GRIDS: dict[str, Callable[[VPPath, int], Grid]] = {
    "leading": lambda path, steps: leading(path, steps, offset=1),  # as Stable Diffusion was published
    "trailing": trailing,
    "lcm": lcm,
    "linspace": linspace,
    "uniform": uniform,
    "karras": lambda path, steps: karras(path, steps, high=_highest(path)),
    "exponential": lambda path, steps: exponential(path, steps, high=_highest(path)),
}
