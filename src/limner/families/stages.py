"""Stages: what a model is made of. Each is a generator of steps, and its last step's x goes to the next.

mini                 diffuse pixels, upscale
DALL-E               draw codes row by row, decode, rank the candidates
Stable Diffusion     diffuse latents, decode; SD3 and FLUX likewise
  with a refiner       diffuse latents, go on with the refiner, decode
  from a picture       the same, begun on its latents
  in two passes        ..., resize, encode, diffuse again, decode
  with a mask          ..., paste
cascade              diffuse pixels, four times larger beside the small ones, x4 upscaler
  with a mask          ..., paste
x4 upscaler          one stage: diffuse latents beside a small picture, noised a little, and decode
Karlo                diffuse an embedding and unscale it, diffuse pixels told of it, super-resolution
SD 2.1 unCLIP        the same embedding, then one stage: Stable Diffusion told of it
  of a picture         both without the embedding's stages: CLIP has seen it
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limner.diffusion.grids import Grid
from limner.diffusion.predictions import Denoise, Guess, Uncertain
from limner.diffusion.samplers import Sampler, Step
from limner.util.rng import NoiseSource

Change = Callable[[Tensor], Tensor]  # b c h w -> b d H W, each picture by itself


class Tag(IntEnum):
    """What noise is drawn for. No two uses in one plan share a tag: none repeats the numbers of another."""

    FIRST = 0  # pictures of a seed are known by it: never changed
    REFINER = 1  # goes on after FIRST
    SECOND = 2  # a second pass
    SECOND_REFINER = 3  # after SECOND
    X4 = 5  # the x4 upscaler's latents
    X4_WORN = 6  # the small picture that it is given
    SUPER_RES = 7  # Karlo's
    CODES = 8  # of pictures that are drawn token by token
    PRIOR = 9  # embeddings of pictures
    EMBEDDING_WORN = 10  # an embedding made vague
    LARGER = 16  # twice n more: stage n of a cascade; and one more: the small picture that it is given


@runtime_checkable
class Stage(Protocol):
    """One part of the way from noise to picture."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def steps(self) -> int:
        """How many steps it yields."""

    def run(self, x: Float[Tensor, "b c h w"] | None, noise: NoiseSource) -> Iterator[Step]:
        """Draw on; x is what the stage before has drawn, None is given to the first."""

    def look(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """A step's x0 as pixels, roughly in [-1, 1], to be watched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionStage:
    """Pictures from noise: a sampler walks a grid."""

    denoise: Denoise
    grid: Grid
    sampler: Sampler
    shape: tuple[int, int, int]  # of one picture: channels, height, width
    device: torch.device
    begin: Float[Tensor, "#b c h w"] | None = None  # start from this, noised; None: from the stage before
    midway: bool = False  # go on with what the stage before left on the path, and noise nothing
    tag: int = Tag.FIRST  # of all its noise; another one for each stage of a plan
    preview: Change | None = None  # x0 as pixels; None: it is pixels
    name: str = "diffusion"

    @property
    def steps(self) -> int:
        return self.grid.steps

    def run(self, x: Float[Tensor, "b c h w"] | None, noise: NoiseSource) -> Iterator[Step]:
        start = x
        if not self.midway:
            start = noise.initial(self.shape, self.tag).to(self.device)
            x0 = x if self.begin is None else self.begin
            if x0 is not None:  # x_t = alpha x0 + sigma eps
                start = float(self.grid.alpha[0]) * x0.to(start) + float(self.grid.sigma[0]) * start
        assert start is not None  # midway is never the first stage
        return self.sampler(self.denoise, start, self.grid, noise=noise.draws(self.shape, self.tag))

    def look(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return x0 if self.preview is None else self.preview(x0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeStage:
    """Something done to each picture by itself, in one step: decode, encode, resize, paste."""

    change: Change
    name: str  # such as "decoder"
    preview: Change | None = None  # what comes out as pixels; None: it is pixels
    steps: int = 1

    def run(self, x: Float[Tensor, "b c h w"] | None, noise: NoiseSource) -> Iterator[Step]:
        assert x is not None  # never the first stage
        changed = torch.cat([self.change(picture[None]) for picture in x])
        yield Step(0, 1, changed, changed)

    def look(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return x0 if self.preview is None else self.preview(x0)


def resize(size: tuple[int, int]) -> ChangeStage:
    """Pixels to (height, width), bicubic."""

    def resized(pixels: Tensor) -> Tensor:
        return F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)

    return ChangeStage(change=resized, name="resize")


def paste(original: Float[Tensor, "1 3 h w"], mask: Float[Tensor, "1 1 h w"]) -> ChangeStage:
    """The original where `mask` is 0, bit for bit; what was drawn where it is 1; a blend between. What was
    drawn larger loses the rest at the right and at the bottom."""

    def pasted(pixels: Tensor) -> Tensor:
        behind = original.to(pixels)
        pixels = pixels[:, :, : behind.shape[2], : behind.shape[3]]
        return torch.where(mask.to(pixels) == 0, behind, torch.lerp(behind, pixels, mask.to(pixels)))

    return ChangeStage(change=pasted, name="paste")


def one_by_one(denoise: Denoise) -> Denoise:
    """Ask for each picture by itself, so that its bits do not depend on how many are drawn beside it.

    Libraries add up a matrix product in an order that follows from its shape. On the CPU eight pictures at a
    time differ from one at a time in the last bits (4e-6); up to four they happened to agree, but nobody
    promises that. The price is about 60 % more time in the network than four at a time.
    """
    if isinstance(denoise, Uncertain):
        guess = denoise.guess

        def guesses(x: Tensor, t: Tensor) -> Guess:
            x0s, shares = zip(*(guess(x[i : i + 1], t[i : i + 1]) for i in range(len(x))), strict=True)
            return torch.cat(x0s), torch.cat(shares)

        return Uncertain(guesses)
    return lambda x, t: torch.cat([denoise(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
