"""unCLIP (Ramesh et al. 2022, "DALL-E 2") as Karlo has it: an embedding of CLIP's becomes a picture.

    a text, or a picture -> embedding -> decoder at 64 -> super-resolution to 256

Start at `Karlo.plan`. How embeddings are found is in `embedder.py`, the same in Stable Diffusion's clothes in
`sd_unclip.py`, and how they come out of folders in `unclip_files.py`.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from limner.diffusion import grids, guidance, predictions
from limner.diffusion.grids import Grid
from limner.diffusion.predictions import Denoise, Uncertain
from limner.diffusion.samplers import SAMPLERS
from limner.families.base import Defaults, Order, Plan, refuse, unheard
from limner.families.embedder import Embedder, Embedding, Sampling, Words, at_ends
from limner.families.once import no_networks
from limner.families.shelf import Shelf
from limner.families.stages import DiffusionStage, Stage, Tag
from limner.families.told import ToldStage
from limner.models.pixel_unet import PixelUNet
from limner.util.rng import NoiseSource

SUPER_RES_STEPS = 7  # the last of them by a network of its own
MEETS = frozenset({"vary", "blend", "blend_at", "grid", "clip_skip", "emphasis"})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Karlo:
    """A decoder that draws small pictures, told of an embedding and of the text, and two networks that make
    them large: one for all steps but the last."""

    shelf: Shelf  # "text_proj", "decoder", "super_res_first", "super_res_last", and what the embedder asks
    embedder: Embedder
    decoder: Sampling
    super_res: Sampling
    sides: tuple[int, int]  # of pictures by the decoder, and at last
    defaults: Defaults
    fingerprint: str
    device: torch.device
    notices: tuple[str, ...] = ()  # about the files, to be said with every picture

    def plan(self, order: Order) -> Plan:
        """The stages of an order. Raises RequestError for what this model cannot do."""
        refuse(order, MEETS, model="Karlo")
        order = at_ends(order)
        wanted = self.embedder.wanted(order)
        texts = {"prompt": order.prompt, "negative prompt": order.negative_prompt}
        if order.blend is not None:
            texts["other text"] = order.blend if isinstance(order.blend, str) else ""
        said, away, *others = (self.embedder.words(name, text, order) for name, text in texts.items())
        warnings = tuple(told for name, text in texts.items() for told in no_networks(name, text))
        if order.guidance == 1 and wanted.words is None:  # a prior is guided always
            warnings += unheard(order)
        else:
            warnings += away.warnings
        for other in others:
            said = said.towards(other, order.blend_at)
        grid = self.decoder.grid(order.steps)
        if order.grid is not None:
            grid = grids.named(order.grid, self.decoder.path, order.steps)

        def decoded(x: Tensor, noise: NoiseSource) -> tuple[Stage, ...]:
            denoise = self._denoise(wanted.embedding(x), said, away, order.guidance)
            return (self._stage(denoise, grid, order.sampler, 0),)

        told = partial(ToldStage, device=self.device)
        stages = (
            *self.embedder.stages(wanted),
            told(lay=decoded, given=wanted.given, steps=grid.steps, name="decoder"),
            told(lay=self._enlarged, steps=SUPER_RES_STEPS, name="super-resolution"),
        )
        return Plan(
            stages=stages, notices=(*self.notices, *self._notices(order)), warnings=said.warnings + warnings
        )

    def _stage(self, denoise: Denoise, grid: Grid, sampler: str, which: int) -> DiffusionStage:
        """Diffusion of pictures with one of the two sides."""
        return DiffusionStage(
            denoise=denoise,
            grid=grid,
            sampler=SAMPLERS[sampler],
            shape=(3, self.sides[which], self.sides[which]),
            device=self.device,
            tag=Tag.SUPER_RES if which else Tag.FIRST,
        )

    def _denoise(self, pictures: Embedding, said: Words, away: Words, scale: float) -> Uncertain:
        """The decoder, told of embeddings and of a text, and guided away from another text alone."""
        projection = self.shelf.take("text_proj")
        dtype = next(projection.parameters()).dtype
        own = [repeat(part, "1 ... -> b ...", b=len(pictures)) for part in (said.pooled, said.rows)]
        told = projection(pictures.to(dtype), *(part.to(dtype) for part in own))
        plain = projection(None, away.pooled.to(dtype), away.rows.to(dtype))
        uncond = self._bound(plain)
        return self._bound(told).wrapped(
            lambda cond: guidance.static_threshold(
                guidance.cfg(guidance.in_turn(cond, uncond), scale), self.decoder.limit
            )
        )

    def _bound(self, told: tuple[Tensor, Tensor]) -> Uncertain:
        """The decoder with rows and times that it is told: of each picture, or one for all."""
        rows, times = told
        text = self._network("decoder").read(rows)

        def network(x: Tensor, t: Tensor) -> Tensor:
            count = len(x) // len(rows)
            added = repeat(times, "r t -> (r b) t", b=count)
            prediction: Tensor = self._network("decoder")(
                x.to(times.dtype), t, text.repeated(count), added=added
            )
            return prediction.float()

        return predictions.eps_and_share(network, self.decoder.path)

    def _enlarged(self, x: Tensor, noise: NoiseSource) -> tuple[Stage, ...]:
        """Super-resolution of what the decoder drew, laid beside x."""
        sides = (self.sides[1],) * 2
        beside = F.interpolate(x.clamp(-1, 1), sides, mode="bicubic", antialias=True)
        grid = self.super_res.grid(SUPER_RES_STEPS)

        def network(x: Tensor, t: Tensor) -> Tensor:
            last = grid.step(float(t[0])) == grid.steps - 1
            unet = self._network("super_res_last" if last else "super_res_first")
            both = torch.cat([x, beside], 1).to(unet.first.weight.dtype)
            prediction: Tensor = unet(both, t)
            return prediction.float()

        denoise = predictions.eps(network, self.super_res.path)
        return (self._stage(guidance.static_threshold(denoise, self.super_res.limit), grid, "ddpm", 1),)

    def _network(self, name: str) -> PixelUNet:
        network = self.shelf.take(name)
        assert isinstance(network, PixelUNet)
        return network

    def _notices(self, order: Order) -> tuple[str, ...]:
        side = self.sides[1]
        if order.size == (side, side):
            return ()
        return (f"this model draws {side}x{side}; resized to {order.size[1]}x{order.size[0]}",)
