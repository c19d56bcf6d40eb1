"""Cascades of pixels: DeepFloyd IF, after Imagen (Saharia et al. 2022).

    a text -> T5, once -> 64 pixels -> 256, told of the noise on the small ones -> 1024 (the x4 upscaler)

Start at `Cascade.plan`. Pictures are guided strongly and their values kept in range by dynamic thresholding;
how wide the noise of a step is, the networks say themselves. A picture to begin with, and a mask, count at
every stage of pixels, at its size. The x4 upscaler knows neither: it draws all of what it is given, and at
last what the mask keeps is put back as it was. How a cascade comes out of folders is in `cascade_files.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from limner.diffusion import grids, guidance, predictions, respacing
from limner.diffusion.grids import Grid
from limner.diffusion.paths import VPPath
from limner.diffusion.predictions import Guess, Uncertain
from limner.diffusion.samplers import SAMPLERS
from limner.families.base import Defaults, Order, Plan, guided, refuse, unheard
from limner.families.once import cut, heard_once, texts_of
from limner.families.shelf import Shelf
from limner.families.stages import DiffusionStage, Stage, Tag, one_by_one, paste
from limner.families.told import ToldStage, noised
from limner.models.pixel_unet import PixelUNet, PixelUNetConfig, Text
from limner.models.t5 import T5Encoder
from limner.text.t5_tokenizer import T5Tokenizer
from limner.util.rng import NoiseSource

if TYPE_CHECKING:
    from limner.families.x4 import X4

LENGTH = 77  # tokens of a text
WORN = 250  # noise level of a small picture; where a mask keeps most of it, 0
STEPS = (1.0, 0.5)  # share of an order's steps that the first stage takes, and the others
GUIDANCE = (1.0, 4 / 7)  # share of an order's guidance, likewise
X4_STEPS, X4_GUIDANCE = 0.75, 9 / 7  # the same of the upscaler
AFTER = 100  # noise level of the picture that it is given
FACTOR = 4  # how many times larger than the one before each stage draws
MEETS = frozenset({"image", "strength", "mask", "extend", "grid"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolution:
    """One U-Net of a cascade, and how it was published to be sampled."""

    network: str  # on the shelf
    config: PixelUNetConfig
    path: VPPath
    noising: VPPath  # of the small picture, where it takes one
    percentile: float  # of dynamic thresholding; values beyond it are clipped
    most: float  # and brought back into [-1, 1] up to this factor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Known:
    """What a stage is given of a picture."""

    pixels: Float[Tensor, "1 3 h w"]
    mask: Float[Tensor, "1 1 h w"] | None  # 1 where to draw, 0 what to keep; nothing in between


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cascade:
    """The loaded stages. `plan` is all that a pipeline needs."""

    shelf: Shelf  # "text_encoder" and the networks of `resolutions`
    tokenizer: T5Tokenizer
    resolutions: tuple[Resolution, ...]  # the first draws, each of the others enlarges four times
    upscaler: "X4 | None"  # comes last; None: there is none
    defaults: Defaults
    fingerprint: str
    device: torch.device
    notices: tuple[str, ...] = ()  # about the files, to be said with every picture

    def plan(self, order: Order) -> Plan:
        """The stages of an order. Raises RequestError for what this model cannot do."""
        refuse(order, MEETS, model="a cascade")
        alone = () if guided(order) else unheard(order)
        sizes, notices = self._sizes(order.size)
        texts, warnings = self._read(order)
        stages: list[Stage] = []
        for index, size in enumerate(sizes[: len(self.resolutions)]):
            stages.append(self._stage(index, order, size, texts))
        if self.upscaler is not None:
            usual = order.sampler == self.defaults.sampler
            last = replace(
                order,
                steps=_some(order.steps, X4_STEPS),
                guidance=_guided(order, X4_GUIDANCE),
                sampler=self.upscaler.defaults.sampler if usual else order.sampler,
            )
            stages.append(self.upscaler.stage(last, sizes[-2], AFTER))
        known = _fitted(order, sizes[-1])
        if known is not None and known.mask is not None:
            stages.append(paste(known.pixels.to(self.device), known.mask.to(self.device)))
        return Plan(stages=tuple(stages), notices=(*self.notices, *notices), warnings=alone + warnings)

    def _stage(self, index: int, order: Order, size: tuple[int, int], texts: list[Tensor]) -> Stage:
        """One resolution: the first from noise, the others beside the small picture."""
        resolution, later = self.resolutions[index], index > 0
        grid = self._grid(resolution, order.grid, _some(order.steps, STEPS[later]))
        tag = Tag.LARGER + 2 * index if later else Tag.FIRST
        known = _fitted(order, size)
        if known is not None:
            grid = grid.last(order.strength)
        lay = partial(
            self._diffusion,
            resolution=resolution,
            grid=grid,
            order=replace(order, guidance=_guided(order, GUIDANCE[later])),
            texts=texts,
            known=known,
            tag=tag,
        )
        if not later:
            return lay(None, None, size=size)
        level = 0 if known is not None and known.mask is not None else WORN

        def enlarged(small: Tensor, noise: NoiseSource) -> tuple[Stage, ...]:
            large = F.interpolate(small, size, mode="bilinear", align_corners=True)
            worn = noised(large, resolution.noising, level, noise, tag + 1)
            return (lay(worn, level, size=size),)

        return ToldStage(
            lay=enlarged, device=self.device, steps=grid.steps, name=f"diffusion at {size[1]}x{size[0]}"
        )

    def _diffusion(
        self,
        worn: Tensor | None,
        level: int | None,
        *,
        size: tuple[int, int],
        resolution: Resolution,
        grid: Grid,
        order: Order,
        texts: list[Tensor],
        known: Known | None,
        tag: int,
    ) -> DiffusionStage:
        denoise = self.denoise(resolution, texts, order.guidance, worn=worn, level=level, known=known)
        pixels = None if known is None else known.pixels.to(self.device)
        return DiffusionStage(
            denoise=one_by_one(denoise) if self.device.type == "cpu" else denoise,
            grid=grid,
            sampler=SAMPLERS[order.sampler],
            shape=(3, *size),
            device=self.device,
            begin=pixels,
            tag=tag,
            name=f"diffusion at {size[1]}x{size[0]}",
        )

    # -- the networks ----------------------------------------------------------------------------------------

    def denoise(
        self,
        resolution: Resolution,
        texts: Sequence[Float[Tensor, "1 n d"]],  # the text, and the one to move away from
        scale: float,
        *,
        worn: Float[Tensor, "b 3 h w"] | None = None,  # the small picture, enlarged and noised
        level: int | None = None,  # how much
        known: Known | None = None,
    ) -> Uncertain:
        """(x, t) -> x0 and how wide its noise is; guided, in range. Outside of a mask the network is always
        shown the picture itself, without noise."""
        context = torch.cat(list(texts if scale != 1 else texts[:1]))
        rows, cache = len(context), list[Text]()

        def ask(x: Tensor, t: Tensor) -> Tensor:
            unet = self.shelf.take(resolution.network)
            assert isinstance(unet, PixelUNet)
            dtype = unet.first.weight.dtype
            if not cache:
                cache.append(unet.read(context.to(dtype)))
            if worn is not None:
                x = torch.cat([x, repeat(worn.to(x), "b ... -> (r b) ...", r=rows)], 1)
            levels = None if level is None else torch.full_like(t, level)
            found: Tensor = unet(x.to(dtype), t, cache[0].repeated(len(x) // rows), level=levels)
            return found.float()

        plain = predictions.eps_and_share(ask, resolution.path)

        def guess(x: Tensor, t: Tensor) -> Guess:
            if known is not None and known.mask is not None:
                x = torch.where(known.mask.to(x) > 0, x, known.pixels.to(x))
            x0, share = plain.guess(repeat(x, "b ... -> (r b) ...", r=rows), repeat(t, "b -> (r b)", r=rows))
            if rows == 1:
                return x0, share
            cond, uncond = x0.chunk(2)
            return uncond + scale * (cond - uncond), share.chunk(2)[0]

        threshold = partial(
            guidance.dynamic_threshold, percentile=resolution.percentile, most=resolution.most
        )
        return Uncertain(guess).wrapped(threshold)

    def _read(self, order: Order) -> tuple[list[Float[Tensor, "1 n d"]], tuple[str, ...]]:
        """The texts through T5, now, so that it can go; and what of them will not be in the picture."""
        network = self.shelf.take("text_encoder")
        assert isinstance(network, T5Encoder)
        rows, warnings = [], list[str]()
        for name, text in texts_of(order):
            line, said = heard_once(name, text, order.steps)
            warnings += said
            if line.weighed:
                warnings.append(f"T5 hears plain text: the weights in the {name} are left out")
            ids, mask, over = self.tokenizer.encode(line.plain.lower(), LENGTH)  # small, as IF was taught
            warnings += cut(name, over, LENGTH, "T5")
            told = torch.tensor([ids], device=self.device), torch.tensor([mask], device=self.device)
            rows.append(network(*told))
        return rows, tuple(warnings)

    # -- sizes and steps -------------------------------------------------------------------------------------

    def _grid(self, resolution: Resolution, name: str | None, steps: int) -> Grid:
        """The named one; else IF's own table of so many steps, or where there is none, equal strides."""
        if name is None and steps in respacing.SMART:
            return respacing.smart(resolution.path, steps)
        if name in (None, "leading"):
            return grids.leading(resolution.path, steps)
        return grids.named(str(name), resolution.path, steps)

    def _sizes(self, size: tuple[int, int]) -> tuple[list[tuple[int, int]], list[str]]:
        """Of the pictures of every stage, so that all networks can make theirs; and what is to be said."""
        count = len(self.resolutions) + (self.upscaler is not None)
        whole = FACTOR ** (count - 1)
        unit = max(  # of the first picture
            -(-one.config.factor // FACTOR**index) for index, one in enumerate(self.resolutions)
        )
        height, width = (max(unit, round(side / whole / unit) * unit) for side in size)
        sizes = [(height * FACTOR**index, width * FACTOR**index) for index in range(count)]
        if sizes[-1] == size:
            return sizes, []
        (tall, wide), (height, width) = size, sizes[-1]
        said = f"{wide}x{tall} was rounded to {width}x{height}: sides are multiples of {unit * whole}"
        return sizes, [said]


def _fitted(order: Order, size: tuple[int, int]) -> Known | None:
    """The picture and the mask of an order at a stage's size. What a mask touches is drawn."""
    if order.image is None:
        return None
    pixels, mask = order.image, order.mask
    if tuple(pixels.shape[2:]) != size:
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)
    if mask is not None:
        mask = F.adaptive_max_pool2d((mask > 0).float(), size)
    return Known(pixels=pixels, mask=mask)


def _some(steps: int, share: float) -> int:
    return max(1, round(steps * share))


def _guided(order: Order, share: float) -> float:
    """A share of an order's guidance; none where it wants none."""
    return 1.0 if order.guidance == 1 else max(1.0, order.guidance * share)
