"""Stages: what a model is made of. Each is a generator of steps, and its last step's x goes to the next."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from limner.diffusion.grids import Grid
from limner.diffusion.predictions import Denoise
from limner.diffusion.samplers import Sampler, Step
from limner.models.upscaler import Upscaler
from limner.util.rng import NoiseSource


@runtime_checkable
class Stage(Protocol):
    """One part of the way from noise to picture."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def steps(self) -> int:
        """How many steps it yields."""

    def run(self, pixels: Float[Tensor, "b 3 h w"] | None, noise: NoiseSource) -> Iterator[Step]:
        """Draw on; `pixels` in [-1, 1] come from the stage before, None is given to the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionStage:
    """Pictures from noise: a sampler walks a grid."""

    denoise: Denoise
    grid: Grid
    sampler: Sampler
    shape: tuple[int, int, int]  # of one picture: channels, height, width
    device: torch.device
    name: str = "diffusion"

    @property
    def steps(self) -> int:
        return self.grid.steps

    def run(self, pixels: Float[Tensor, "b 3 h w"] | None, noise: NoiseSource) -> Iterator[Step]:
        start = noise.initial(self.shape).to(self.device)
        return self.sampler(self.denoise, start, self.grid, noise=noise.draws(self.shape))


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscaleStage:
    """Larger pictures from small ones, in one step, each by itself (see `one_by_one`)."""

    network: Upscaler
    noise: float  # standard deviation that the network is told to expect on its input
    name: str = "upscaler"
    steps: int = 1

    def run(self, pixels: Float[Tensor, "b 3 h w"] | None, noise: NoiseSource) -> Iterator[Step]:
        assert pixels is not None  # never the first stage
        large = torch.cat(
            [self.network(picture[None], picture.new_tensor([self.noise])) for picture in pixels]
        )
        yield Step(0, 1, large, large)


def one_by_one(denoise: Denoise) -> Denoise:
    """Ask for each picture by itself, so that its bits do not depend on how many are drawn beside it.

    Libraries add up a matrix product in an order that follows from its shape. On the CPU eight pictures at a
    time differ from one at a time in the last bits (4e-6); up to four they happened to agree, but nobody
    promises that. The price is about 60 % more time in the network than four at a time.
    """
    return lambda x, t: torch.cat([denoise(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
