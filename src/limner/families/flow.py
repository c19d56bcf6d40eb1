"""What SD3 and FLUX have in common: latents along a straight path from noise, from an order to stages.

order -> at a size that can be drawn -> diffuse, decode; from a picture or behind a mask; again, larger
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limner.diffusion import guidance
from limner.diffusion.grids import Grid
from limner.diffusion.predictions import Denoise
from limner.diffusion.samplers import SAMPLERS
from limner.families.base import Order
from limner.families.shelf import Shelf
from limner.families.stages import ChangeStage, DiffusionStage, Stage, Tag, one_by_one, paste, resize
from limner.models.kl_vae import KLVAE, KLVAEConfig, decode_tiled, encode_tiled
from limner.text.prompt import Line, Prompt

if TYPE_CHECKING:
    from limner.models.tiny_vae import TinyVAE
    from limner.text.t5_tokenizer import T5Tokenizer

WHOLE = 1024 * 1024  # pixels that the autoencoder takes at once; larger pictures go in tiles
PATCH = 2  # side in latents of a transformer's tokens
MEETS = frozenset({
    *("image", "strength", "mask", "extend", "controls", "enlarge", "enlarge_strength", "rescale"),
})  # fmt: skip

Grids = Callable[[tuple[int, int], int], Grid]  # size in pixels and steps -> grid
Bind = Callable[[Order, Grid, tuple[int, int], int], Denoise]  # ..., size, steps of the pass before
Colours = tuple[tuple[float, float, float], ...]  # what each channel adds to red, green, blue; last: always


def lines(prompt: Prompt, stages: Iterable[Stage], steps: int) -> list[Line]:
    """All that a prompt says during the stages of a plan, once each; `steps` are those of the order, after
    which a second pass goes on counting."""
    passes = [stage.steps for stage in stages if isinstance(stage, DiffusionStage)]
    every = (
        prompt.at(step, count, earlier=index * steps)
        for index, count in enumerate(passes)
        for step in range(count)
    )
    return list(dict.fromkeys(line for said in every for line in said))


def beyond_t5(name: str, said: list[Line], tokenizer: "T5Tokenizer", length: int) -> tuple[str, ...]:
    """Warnings of what T5 does not hear of the lines of a prompt, which is called `name`."""
    found: list[str] = []
    if any(line.weighed for line in said):
        found.append(f"T5 hears plain text: the weights in the {name} are left out there")
    if over := max((tokenizer.encode(line.plain, length)[2] for line in said), default=0):
        found.append(f"T5 does not hear the last {over} tokens of the {name}; it may have {length}")
    return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Canvas:
    """Pixels and latents of one autoencoder, and the stages that lead from the one to the other."""

    shelf: Shelf  # with a "vae"
    config: KLVAEConfig  # its
    device: torch.device
    colours: Colours  # to be watched by
    small_decoder: "TinyVAE | None" = None  # better to be watched by

    @property
    def vae(self) -> KLVAE:
        """The autoencoder, taken from the shelf."""
        network = self.shelf.take("vae")
        assert isinstance(network, KLVAE)
        return network

    @property
    def side(self) -> int:
        """Heights and widths in pixels are multiples of it."""
        return self.config.factor * PATCH

    def stages(self, order: Order, grids: Grids, bind: Bind) -> tuple[tuple[Stage, ...], tuple[str, ...]]:
        """(the stages of an order, notices). Raises RequestError for what cannot be drawn."""
        asked, (order, notices) = order, self._fitted(order)
        grid = grids(order.size, order.steps)
        stages: list[Stage] = [self._diffusion(order, grid, bind), self.decoder]
        if order.enlarge != 1:
            size = self._rounded(tuple(round(side * order.enlarge) for side in order.size))
            second = replace(order, size=size, image=None)
            rest = grids(size, order.steps).last(order.enlarge_strength, up=True)
            again = self._stage(second, rest, bind, order.steps)
            stages += [resize(size), self.encoder, again, self.decoder]
        if asked.image is not None and asked.mask is not None:
            stages.append(paste(asked.image.to(self.device), asked.mask.to(self.device)))
        return tuple(stages), notices

    def _diffusion(self, order: Order, grid: Grid, bind: Bind) -> DiffusionStage:
        """From noise, or begun on the latents of a picture; a mask keeps what it does not cover."""
        if order.image is None:
            return self._stage(order, grid, bind)
        known = self.encode(order.image.to(self.device))
        stage = self._stage(order, grid.last(order.strength, up=True), bind)
        if order.mask is None:
            return replace(stage, begin=known)
        covered = F.max_pool2d((order.mask > 0).to(known), self.config.factor)  # drawn wherever it is touched
        begin = None if order.strength == 1 else known
        return replace(stage, begin=begin, denoise=guidance.kept(stage.denoise, known, covered))

    def _stage(self, order: Order, grid: Grid, bind: Bind, earlier: int = 0) -> DiffusionStage:
        denoise = bind(order, grid, order.size, earlier)
        height, width = (side // self.config.factor for side in order.size)
        return DiffusionStage(
            denoise=one_by_one(denoise) if self.device.type == "cpu" else denoise,
            grid=grid,
            sampler=SAMPLERS[order.sampler],
            shape=(self.config.latents, height, width),
            device=self.device,
            preview=self.preview,
            tag=Tag.SECOND if earlier else Tag.FIRST,
            name="second diffusion" if earlier else "diffusion",
        )

    # -- pixels and latents ----------------------------------------------------------------------------------

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Latents of pixels: the mean of the posterior, so that nothing is left to chance."""
        vae = self.vae
        pixels = pixels.to(vae.encoder.first.weight.dtype)
        large = pixels.shape[2] * pixels.shape[3] > WHOLE
        posterior = encode_tiled(vae, pixels) if large else vae.encode(pixels)
        return vae.scaled(posterior.mean).float()

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pixels of latents."""
        vae = self.vae
        raw = vae.unscaled(latents).to(vae.encoder.first.weight.dtype)
        large = raw.shape[2] * raw.shape[3] * self.config.factor**2 > WHOLE
        return (decode_tiled(vae, raw) if large else vae.decode(raw)).float()

    def preview(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
        """Pixels without asking the autoencoder."""
        if self.small_decoder is not None:
            return self.small_decoder.decode(latents)
        *factors, always = latents.new_tensor(self.colours).unbind(0)
        mixed = torch.einsum("bchw,cr->brhw", latents[:, : len(factors)], torch.stack(factors))
        return (mixed + always[:, None, None]).clamp(-1, 1)

    @property
    def decoder(self) -> ChangeStage:
        """Latents to pixels."""
        return ChangeStage(change=self.decode, name="decoder")

    @property
    def encoder(self) -> ChangeStage:
        """Pixels to latents."""
        return ChangeStage(change=self.encode, name="encoder", preview=self.preview)

    # -- sizes -----------------------------------------------------------------------------------------------

    def condition(
        self, pixels: Float[Tensor, "1 3 h w"], size: tuple[int, int]
    ) -> Float[Tensor, "1 c h2 w2"]:
        """A picture to be followed, as latents at the size that is drawn."""
        pixels = pixels.to(self.device)
        if tuple(pixels.shape[2:]) != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.encode(pixels)

    def _rounded(self, size: tuple[int, ...]) -> tuple[int, int]:
        height, width = (max(self.side, round(length / self.side) * self.side) for length in size)
        return height, width

    def _fitted(self, order: Order) -> tuple[Order, tuple[str, ...]]:
        """The order at a size that can be drawn: the nearest, but where a mask says what to keep one at least
        as large, of which the rest will be cut off."""
        (height, width), side = order.size, self.side
        if order.image is not None and order.mask is not None:
            more = (0, -width % side, 0, -height % side)
            image, mask = (F.pad(part, more, mode="replicate") for part in (order.image, order.mask))
            return replace(order, size=(height + more[3], width + more[1]), image=image, mask=mask), ()
        size = self._rounded(order.size)
        if size == order.size:
            return order, ()
        resized = None if order.image is None else F.interpolate(order.image, size, mode="bicubic")
        said = f"{width}x{height} was rounded to {size[1]}x{size[0]}: sides are multiples of {side}"
        return replace(order, size=size, image=resized), (said,)
