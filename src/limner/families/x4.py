"""Stable Diffusion's upscaler: a picture drawn again four times larger, by words and by what is in it.

    a small picture, noised a little -> beside the latents of the large one -> diffuse -> decode

It is told how much the small picture was noised: what lies below that much noise it makes up. By itself it
enlarges the picture of a request; in a cascade it is the last stage.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from limner.diffusion import grids, guidance, predictions
from limner.diffusion.paths import VPPath
from limner.diffusion.predictions import Denoise
from limner.diffusion.samplers import SAMPLERS
from limner.errors import RequestError
from limner.families.base import Defaults, Order, Plan, guided, refuse, unheard
from limner.families.conditions import Encoder
from limner.families.flow import Canvas
from limner.families.once import heard_once, texts_of
from limner.families.shelf import Shelf
from limner.families.stages import DiffusionStage, Stage, Tag, one_by_one
from limner.families.told import ToldStage, noised
from limner.models.unet import UNet
from limner.util.rng import NoiseSource

FACTOR = 4  # larger than the small picture
ALONE = 20  # noise level of a small picture that was given
MEETS = frozenset({"image", "clip_skip", "emphasis", "rescale", "grid"})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class X4:
    """The loaded upscaler."""

    shelf: Shelf  # "unet", "vae", "text_encoder"
    encoder: Encoder
    canvas: Canvas
    path: VPPath
    noising: VPPath  # of the small picture
    prediction: str  # v or eps
    defaults: Defaults
    fingerprint: str
    device: torch.device
    notices: tuple[str, ...] = ()  # about the files, to be said with every picture

    def plan(self, order: Order) -> Plan:
        """The stages of an order, whose picture is shrunk to a quarter of its size and drawn again at all of
        it. Raises RequestError for what this model cannot do, above all where there is no picture."""
        refuse(order, MEETS, model="the upscaler")
        if order.image is None:
            raise RequestError(
                "the upscaler makes a picture larger: give one as image, or use `limner upscale`"
            )
        size = (max(1, round(order.size[0] / FACTOR)), max(1, round(order.size[1] / FACTOR)))
        small = F.interpolate(order.image, size, mode="bicubic", antialias=True).clamp(-1, 1)
        notices = list(self.notices)
        if (drawn := (FACTOR * size[0], FACTOR * size[1])) != order.size:
            notices.append(f"drawn at {drawn[1]}x{drawn[0]}: sides are multiples of {FACTOR}")
        warnings = () if guided(order) else unheard(order)
        for name, text in texts_of(order):
            warnings += heard_once(name, text, order.steps)[1]
        return Plan(
            stages=(self.stage(order, size, ALONE, small),), notices=tuple(notices), warnings=warnings
        )

    def stage(
        self, order: Order, size: tuple[int, int], level: int, small: Float[Tensor, "1 3 h w"] | None = None
    ) -> ToldStage:
        """From small pictures of `size`, noised at `level`, to large ones; None: of the stage before. Texts
        are read now."""
        guided(order)
        if order.grid in (None, "leading"):
            grid = grids.leading(self.path, order.steps, offset=1)
        else:
            grid = grids.named(str(order.grid), self.path, order.steps)
        lines = [heard_once(name, text, order.steps)[0] for name, text in texts_of(order)]
        encoded = self.encoder.encode_all(lines, skip=order.clip_skip, emphasis=order.emphasis)
        rows = [line.context for line in encoded]

        def lay(pictures: Tensor, noise: NoiseSource) -> tuple[Stage, ...]:
            worn = noised(pictures, self.noising, level, noise, Tag.X4_WORN)
            denoise = self.denoise(rows, worn, level, order.guidance, order.rescale)
            diffusion = DiffusionStage(
                denoise=one_by_one(denoise) if self.device.type == "cpu" else denoise,
                grid=grid,
                sampler=SAMPLERS[order.sampler],
                shape=(self.canvas.config.latents, *size),
                device=self.device,
                tag=Tag.X4,
            )
            return (diffusion, self.canvas.decoder)

        return ToldStage(
            lay=lay,
            given=small,
            device=self.device,
            steps=grid.steps + 1,
            name="x4 upscaler",
            preview=self.canvas.preview,
        )

    def denoise(
        self,
        rows: list[Float[Tensor, "1 _ d"]],  # the text, and the one to move away from
        worn: Float[Tensor, "b 3 h w"],
        level: int,
        scale: float,
        rescale: float = 0.0,
    ) -> Denoise:
        """(x, t) -> x0, guided, for the latents of the pictures that `worn` shows, noised at `level`."""

        def ask(x: Tensor, t: Tensor, *, context: Tensor) -> Tensor:
            unet = self.shelf.take("unet")
            assert isinstance(unet, UNet)
            dtype = unet.first.weight.dtype
            levels = torch.full((len(x),), level, device=x.device)
            told = repeat(context, "1 n d -> b n d", b=len(x)).to(dtype)
            found: Tensor = unet(torch.cat([x, worn.to(x)], 1).to(dtype), t, told, level=levels)
            return found.float()

        predict = predictions.v if self.prediction == "v" else predictions.eps
        each = [predict(partial(ask, context=row), self.path) for row in rows]
        return guidance.cfg(guidance.in_turn(each[0], each[-1]), scale, rescale=rescale)
