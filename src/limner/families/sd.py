"""Stable Diffusion 1, 2 and XL: a prompt through CLIP, latents by a U-Net, pixels by an autoencoder.

Start at `StableDiffusion.plan`. What the versions do differently are values: how many text towers there are,
what the U-Net predicts, which path it runs on, and what it is told besides the text. How they come out of
files is in `sd_files.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from limner.diffusion import grids, guidance, predictions
from limner.diffusion.grids import Grid
from limner.diffusion.paths import VPPath
from limner.diffusion.predictions import Denoise, Network
from limner.diffusion.samplers import SAMPLERS
from limner.errors import RequestError
from limner.families.base import ControlOrder, Defaults, Order, Plan, guided, refuse, unheard
from limner.families.conditions import Encoded, Encoder
from limner.families.shelf import Shelf
from limner.families.stages import ChangeStage, DiffusionStage, Stage, Tag, one_by_one, paste, resize
from limner.models.kl_vae import KLVAE, KLVAEConfig, decode_tiled, encode_tiled
from limner.models.unet import Added, Control, KeysValues, UNet, UNetConfig
from limner.text.prompt import Line, Lora, Prompt, parse

if TYPE_CHECKING:
    from limner.models.controlnet import ControlNet
    from limner.models.tiny_vae import TinyVAE

WHOLE = 1024 * 1024  # pixels that the autoencoder takes at once on its own; larger pictures go in tiles
AESTHETIC = 6.0, 2.5  # score that the refiner is told, for the prompt and the negative one (SDXL's code)
MEETS = frozenset({
    *("image", "strength", "mask", "extend", "controls", "enlarge", "enlarge_strength", "rescale"),
    *("grid", "refiner", "refine_from", "tiling", "clip_skip", "emphasis"),
})  # fmt: skip
RGB = {  # what each latent channel adds to red, green and blue; by the scale factor of the autoencoder
    0.18215: (  # figures that ComfyUI and others preview with
        *((0.3512, 0.2297, 0.3227), (0.3250, 0.4974, 0.2350)),
        *((-0.2829, 0.1762, 0.2721), (-0.2120, -0.2616, -0.7177)),
    ),
    0.13025: (
        *((0.3920, 0.4054, 0.4549), (-0.2634, -0.0196, 0.0653)),
        *((0.0568, 0.1687, -0.0755), (-0.3112, -0.2359, -0.2076)),
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What the network is told during some steps: rows of equal length, asked in one call."""

    context: Float[Tensor, "r n d"]
    keys_values: tuple[KeysValues, ...]  # of `context`, for the U-Net
    added: Added | None
    controls: tuple[tuple[KeysValues, ...], ...]  # of `context`, for each control network


Lines = tuple[Line, ...]
Spoken = tuple[Lines, Lines]  # of the prompt and of the negative one, at one step
Told = tuple[tuple[float, ...], tuple[Said, ...]]  # weights of the lines; what to ask, a call each


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StableDiffusion:
    """The loaded model. `plan` is all that a pipeline needs; the parts are there to be used by hand."""

    shelf: Shelf  # "unet", "vae", and the text towers that `encoder` asks
    unet_config: UNetConfig
    vae_config: KLVAEConfig
    encoder: Encoder
    path: VPPath
    prediction: str  # eps, v or x0
    defaults: Defaults
    zeros: bool  # an empty negative prompt is told as zeros (SDXL)
    fingerprint: str
    device: torch.device
    notices: tuple[str, ...] = ()  # about the files, to be said with every picture
    control_network: Callable[[str], "ControlNet"]  # by file or folder; raises WeightsError
    companion: Callable[[str], "StableDiffusion"]  # another model by file or folder; raises WeightsError
    adapt: Callable[[tuple[Lora, ...]], tuple[str, ...] | None]  # puts exactly these LoRAs in place; asked
    # before every call; returns what is to be said to those who draw without the sampler lcm
    picture: Float[Tensor, "b p"] | None = None  # what unCLIP U-Nets are told besides the text
    small_decoder: "TinyVAE | None" = None  # to be watched by; None: each latent is one pixel

    @property
    def unet(self) -> UNet:
        """The U-Net, taken from the shelf."""
        return cast(UNet, self.shelf.take("unet"))

    @property
    def vae(self) -> KLVAE:
        """The autoencoder, taken from the shelf."""
        return cast(KLVAE, self.shelf.take("vae"))

    # -- the way of a request --------------------------------------------------------------------------------

    def plan(self, order: Order) -> Plan:
        """The stages of an order. Raises RequestError for what this model cannot do."""
        if order.vary is not None or isinstance(order.blend, Tensor):
            raise RequestError(
                "this model cannot be told what is in a picture; that takes an unCLIP model, such as Karlo "
                "or Stable Diffusion 2.1 unCLIP. To draw over a picture, give it as image"
            )
        unclip = self.unet_config.pooled and not self.unet_config.sizes  # which blends pictures, too
        refuse(order, MEETS if order.blend is None and not unclip else MEETS | {"blend", "blend_at"})
        asked, (order, notices) = order, self._fitted(order)
        prompt = parse(order.prompt)
        loras, warnings = prompt.loras()
        if parse(order.negative_prompt, compose=False).networks:
            warnings += ("LoRAs in the negative prompt were left out: name them in the prompt",)
        few = self.adapt(loras) or ()  # what is wrong with them is heard of before anything is drawn
        alone = order if len(prompt.parts) == 1 else replace(order, negative_prompt="")  # AND hears it always
        if self.unet_config.guidance:
            warnings += unheard(alone, "this model draws without it")
        elif order.guidance == 1:
            warnings += unheard(alone)
        grid = grids.named(order.grid or self.defaults.grid or "karras", self.path, order.steps)
        if order.refiner and order.image is not None:
            raise RequestError("a refiner finishes pictures drawn from noise; leave it out, or the image")
        if order.refiner and not 0 < self._own(order, grid) < grid.steps:
            raise RequestError(
                f"refine_from {order.refine_from:g} leaves one of the models none of {grid.steps} steps; "
                "change it, or take more steps"
            )
        drawn = self._passes(order, grid, order.size) if order.image is None else self._redrawn(order, grid)
        stages: list[Stage] = [*drawn, self.decoder(order.tiling)]
        if order.enlarge != 1:
            size = self._rounded(tuple(round(side * order.enlarge) for side in order.size))
            second = replace(order, size=size, image=None, mask=None)
            rest = grid.last(order.enlarge_strength)
            again = self._passes(second, rest, size, order.steps)
            stages += [resize(size), self.vae_encoder(order.tiling), *again, self.decoder(order.tiling)]
        if asked.image is not None and asked.mask is not None and order.enlarge == 1:
            stages.append(paste(asked.image.to(self.device), asked.mask.to(self.device)))
        told = [self._count(prompt), *(few if order.sampler != "lcm" else ())]
        said = (*self.notices, *notices, *filter(None, told))
        return Plan(stages=tuple(stages), notices=said, warnings=warnings)

    def _passes(
        self, order: Order, grid: Grid, size: tuple[int, int], earlier: int = 0
    ) -> list[DiffusionStage]:
        """From noise, or from what the stage before drew, along `grid`; the refiner takes the last steps."""
        own = self._own(order, grid)
        first = self.stage(order, grid, size, earlier=earlier)
        if order.refiner is None or own == grid.steps:
            return [first]
        refiner = self.companion(order.refiner)
        if refiner.vae_config != self.vae_config:
            raise RequestError(f"the refiner {order.refiner} works on latents of another kind")
        alone = replace(order, controls=())  # they were made for the base
        second = refiner.stage(alone, grid, size, earlier=earlier, plain=True)
        if own == 0:  # of a second pass
            return [replace(second, name="refiner")]
        return [
            replace(first, grid=grid.part(0, own)),
            replace(second, grid=grid.part(own, grid.steps), midway=True, tag=first.tag + 1, name="refiner"),
        ]

    def _own(self, order: Order, grid: Grid) -> int:
        """How many steps of a grid are not the refiner's: it is for little noise, t below its share of the
        table, wherever a grid has its steps."""
        if order.refiner is None:
            return grid.steps
        return int((grid.t[:-1] >= (1 - order.refine_from) * self.path.steps).sum())

    def _redrawn(self, order: Order, grid: Grid) -> list[DiffusionStage]:
        """Begin on the latents of a picture; with a mask, keep what it does not cover."""
        assert order.image is not None  # asked for where there is one
        image = order.image.to(self.device)
        known = self.encode(image, tiling=order.tiling)
        grid = grid.last(order.strength)
        if order.mask is None:
            if self.unet_config.inputs != known.shape[1]:
                raise RequestError("this model was made for masks; give a mask beside the picture")
            return [replace(self.stage(order, grid, order.size), begin=known)]
        mask = (order.mask.to(self.device) > 0).to(image)
        covered = F.max_pool2d(mask, self.vae_config.factor)  # a latent that the mask touches is drawn
        begin = None if order.strength == 1 else known  # at 1 nothing of it is left at the first step
        beside: Tensor | None = None
        if self.unet_config.inputs > known.shape[1]:
            beside = torch.cat([covered, self.encode(image * (1 - mask), tiling=order.tiling)], 1)
        stage = self.stage(order, grid, order.size, beside=beside)
        if beside is None:
            stage = replace(stage, denoise=guidance.kept(stage.denoise, known, covered))
        return [replace(stage, begin=begin)]

    def stage(
        self,
        order: Order,
        grid: Grid,
        size: tuple[int, int],
        *,
        beside: Tensor | None = None,
        earlier: int = 0,
        plain: bool = False,
    ) -> DiffusionStage:
        """Diffusion of latents for pictures of `size` along `grid`; see `denoise` for the rest."""
        denoise = self.denoise(order, grid, size, beside=beside, earlier=earlier, plain=plain)
        factor, channels = self.vae_config.factor, self.vae_config.latents
        return DiffusionStage(
            denoise=one_by_one(denoise) if self.device.type == "cpu" else denoise,
            grid=grid,
            sampler=SAMPLERS[order.sampler],
            shape=(channels, size[0] // factor, size[1] // factor),
            device=self.device,
            preview=self.preview,
            tag=Tag.SECOND if earlier else Tag.FIRST,
            name="second diffusion" if earlier else "diffusion",
        )

    # -- the network, bound to a prompt ----------------------------------------------------------------------

    def denoise(
        self,
        order: Order,
        grid: Grid,
        size: tuple[int, int],
        *,
        beside: Tensor | None = None,  # further input channels, of networks that inpaint
        earlier: int = 0,  # steps of the pass before, when this is the second
        plain: bool = False,  # without the LoRAs of the prompt, which were made for another model
    ) -> Denoise:
        """(x, t) -> x0, guided. LoRAs and edges are put in place at every call: requests may take turns."""
        if beside is None and self.unet_config.inputs != self.vae_config.latents:
            raise RequestError("this model was made for masks; give a picture and a mask")
        guided(order)
        excess: float | None = None
        if self.unet_config.guidance:  # it is told the scale, and asked once
            order, excess = replace(order, guidance=1.0), order.guidance - 1
        networks = tuple(self._control(control.model) for control in order.controls)
        seen = tuple(
            network.look(self._condition(control, size, network))
            for network, control in zip(networks, order.controls, strict=True)
        )
        prompt, negative = parse(order.prompt), parse(order.negative_prompt, compose=False)
        loras = () if plain else prompt.loras()[0]
        spoken = [
            (prompt.at(step, grid.steps, earlier=earlier), negative.at(step, grid.steps, earlier=earlier))
            for step in range(grid.steps)
        ]
        self.adapt(loras)
        texts = self._encoded(tuple(dict.fromkeys(spoken)), order)  # now: the text towers can go
        cache: dict[Spoken, Told] = {}

        def said(step: int) -> Told:
            words = spoken[step]
            if words not in cache:
                cache[words] = self._said(words[0], texts[words], size, networks)
            return cache[words]

        def ask(x: Tensor, timestep: Tensor, unet: UNet, told: Said, step: int) -> Tensor:
            count = len(x) // len(told.context)  # pictures
            x = x.to(unet.first.weight.dtype)
            added = _for_all(told.added, count)
            if self.picture is not None and added is not None:  # a row of 0 and 1: who is told of it
                added = added[0] * repeat(self.picture, "b p -> (r b) p", r=len(told.context)), None
            total: Control | None = None
            for network, control, hint, text in zip(
                networks, order.controls, seen, told.controls, strict=True
            ):
                if control.start <= step / grid.steps and (step + 1) / grid.steps <= control.end:
                    text = _of_all(text, count)
                    heard = network(x, timestep, text, hint, added=added, weight=control.weight)
                    total = heard if total is None else total + heard
            text = _of_all(told.keys_values, count)
            if beside is not None:
                x = torch.cat([x, beside.to(x).expand(len(x), -1, -1, -1)], 1)
            scale = None if excess is None else torch.full_like(timestep, excess)
            prediction: Tensor = unet(x, timestep, text, added=added, control=total, guidance=scale)
            return prediction.float()

        predict = {"v": predictions.v, "x0": _x0}.get(self.prediction, predictions.eps)

        def branches(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            self.adapt(loras)
            unet = self.unet
            for network in (unet, *networks):
                seamless(network, order.tiling)
            step = grid.step(float(t[0]))
            weights, calls = said(step)
            x0s: list[Tensor] = []
            for told in calls:
                rows = len(told.context)
                several = repeat(x, "b ... -> (r b) ...", r=rows), repeat(t, "b -> (r b)", r=rows)
                asked = partial(ask, unet=unet, told=told, step=step)
                x0s += predict(asked, self.path)(*several).chunk(rows)
            if len(x0s) == len(weights):  # no guidance: the prompt alone
                return x0s[0], x0s[0]
            *conds, uncond = x0s
            return guidance.composed(conds, weights, uncond), uncond

        denoise = guidance.cfg(branches, order.guidance, rescale=order.rescale)
        return predictions.consistency(denoise) if order.sampler == "lcm" else denoise

    def _encoded(self, spoken: tuple[Spoken, ...], order: Order) -> dict[Spoken, list[Encoded]]:
        """Everything that is said during an order, the negative prompt last."""
        wanted = {words: words[0] if _alone(words[0], order) else (*words[0], *words[1]) for words in spoken}
        lines = tuple(dict.fromkeys(line for said in wanted.values() for line in said))
        other = parse(order.blend, compose=False).at(0, 1)[0] if isinstance(order.blend, str) else None
        every = lines if other is None else (*lines, other)
        rows = self.encoder.encode_all(every, skip=order.clip_skip, emphasis=order.emphasis)
        known = dict(zip(every, rows, strict=True))
        texts = {}
        for words, said in wanted.items():
            encoded = [known[line] for line in said]
            if self.zeros and not _alone(words[0], order) and not order.negative_prompt:
                last = encoded[-1]
                empty = None if last.pooled is None else torch.zeros_like(last.pooled)
                encoded[-1] = Encoded(torch.zeros_like(last.context), empty)
            if other is not None:
                for index in range(len(words[0])):
                    encoded[index] = self.encoder.between(encoded[index], known[other], order.blend_at)
            texts[words] = encoded
        return texts

    def _said(
        self,
        lines: Lines,
        encoded: list[Encoded],
        size: tuple[int, int],
        networks: "tuple[ControlNet, ...]",
    ) -> Told:
        """A call for neighbours of one length; the negative prompt comes last."""
        unet = self.unet
        rows = [(one, index < len(lines)) for index, one in enumerate(encoded)]
        told = []
        for _, neighbours in groupby(rows, lambda row: row[0].context.shape):
            group = list(neighbours)
            context = torch.cat([one.context for one, _ in group])
            controls = tuple(network.text_kv(context) for network in networks)
            told.append(Said(context, unet.text_kv(context), self._added(group, size), controls))
        return tuple(line.weight for line in lines), tuple(told)

    def _added(self, group: list[tuple[Encoded, bool]], size: tuple[int, int]) -> Added | None:
        """What the XL family is told besides: the pooled text, and sizes in pixels (SDXL, section 2.2). For
        unCLIP 1 where the picture is to be told of, and 0 where it is moved away from."""
        config = self.unet_config
        if not config.pooled:
            return None
        if not config.sizes:
            return torch.tensor([[float(wanted)] for _, wanted in group], device=self.device), None
        pooled = [one.pooled for one, _ in group if one.pooled is not None]
        if len(pooled) < len(group):
            raise RequestError("this U-Net wants a pooled text, and its text encoders have no projection")
        ids = [
            [*size, 0, 0, *((AESTHETIC[0 if wanted else 1],) if config.sizes == 5 else size)]
            for _, wanted in group
        ]
        return torch.cat(pooled), torch.tensor(ids, dtype=torch.float32, device=self.device)

    def _control(self, name: str) -> "ControlNet":
        """A control network whose findings fit into this U-Net; those of 4 channels are heard by 9, too."""
        network = self.control_network(name)
        unet = self.unet_config
        if replace(network.config, inputs=unet.inputs, guidance=unet.guidance) != unet:
            raise RequestError(f"the control network {name} was made for another model")
        return network

    def _condition(
        self, control: ControlOrder, size: tuple[int, int], network: "ControlNet"
    ) -> Float[Tensor, "1 3 h w"]:
        """A control picture in [0, 1], at the size that is drawn."""
        pixels = control.pixels.to(self.device)
        if tuple(pixels.shape[2:]) != size:
            pixels = resize(size).change(pixels)
        return ((pixels + 1) / 2).to(next(network.parameters()).dtype)

    # -- pixels and latents ----------------------------------------------------------------------------------

    def encode(self, pixels: Float[Tensor, "b 3 h w"], *, tiling: bool = False) -> Float[Tensor, "b c h2 w2"]:
        """Latents of pixels: the mean of the posterior, so that nothing is left to chance. In tiles where
        they are many, unless opposite edges are to fit together, which tiles would not know of."""
        vae = self.vae
        pixels = pixels.to(vae.encoder.first.weight.dtype)
        seamless(vae, tiling)
        large = pixels.shape[2] * pixels.shape[3] > WHOLE and not tiling
        posterior = encode_tiled(vae, pixels) if large else vae.encode(pixels)
        return vae.scaled(posterior.mean).float()

    def decode(self, latents: Float[Tensor, "b c h w"], *, tiling: bool = False) -> Float[Tensor, "b 3 H W"]:
        """Pixels of latents; in tiles as in `encode`."""
        vae = self.vae
        raw = vae.unscaled(latents).to(vae.encoder.first.weight.dtype)
        seamless(vae, tiling)
        large = raw.shape[2] * raw.shape[3] * vae.config.factor**2 > WHOLE and not tiling
        return (decode_tiled(vae, raw) if large else vae.decode(raw)).float()

    def decoder(self, tiling: bool) -> ChangeStage:
        """Latents to pixels."""
        return ChangeStage(change=partial(self.decode, tiling=tiling), name="decoder")

    def vae_encoder(self, tiling: bool) -> ChangeStage:
        """Pixels to latents."""
        change = partial(self.encode, tiling=tiling)
        return ChangeStage(change=change, name="encoder", preview=self.preview)

    def preview(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
        """Pixels without asking the autoencoder."""
        if self.small_decoder is not None:
            return self.small_decoder.decode(latents)
        factors = latents.new_tensor(RGB[0.13025 if self.vae_config.scale_factor == 0.13025 else 0.18215])
        return torch.einsum("bchw,cr->brhw", latents[:, :4], factors).clamp(-1, 1)

    # -- sizes and steps -------------------------------------------------------------------------------------

    def _rounded(self, size: tuple[int, ...]) -> tuple[int, int]:
        factor = self.vae_config.factor
        height, width = (max(factor, round(side / factor) * factor) for side in size)
        return height, width

    def _fitted(self, order: Order) -> tuple[Order, list[str]]:
        """The order at a size that the autoencoder can make: the nearest, but where a mask says what to keep
        one at least as large, of which the rest will be cut off."""
        (height, width), factor = order.size, self.vae_config.factor
        if order.image is not None and order.mask is not None:
            more = (0, -width % factor, 0, -height % factor)
            image, mask = (F.pad(part, more, mode="replicate") for part in (order.image, order.mask))
            return replace(order, size=(height + more[3], width + more[1]), image=image, mask=mask), []
        size = self._rounded(order.size)
        if size == order.size:
            return order, []
        resized = None if order.image is None else F.interpolate(order.image, size, mode="bicubic")
        said = f"{width}x{height} was rounded to {size[1]}x{size[0]}: sides are multiples of {factor}"
        return replace(order, size=size, image=resized), [said]

    def _count(self, prompt: Prompt) -> str:
        """How many tokens the prompt has, where it is longer than a chunk."""
        said = [self.encoder.count(line) for line in prompt.at(0, 1)]
        return "; ".join(f"the prompt has {one}" for one in said if not one.endswith(" 1 chunk"))


def _x0(network: Network, path: VPPath) -> Denoise:
    return predictions.x0(network)


def _alone(lines: Lines, order: Order) -> bool:
    """Whether the prompt is asked for without the negative one: there is no guidance."""
    return order.guidance == 1 and len(lines) == 1


def seamless(module: nn.Module, wanted: bool) -> None:
    """Let every padded convolution look across to the opposite edge, or not (as published)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0):
            layer.padding_mode = "circular" if wanted else "zeros"


def _for_all(added: Added | None, count: int) -> Added | None:
    """What every row is told, for `count` pictures of each."""
    if added is None:
        return None
    pooled, ids = added
    return _each(pooled, count), None if ids is None else _each(ids, count)


def _of_all(text: tuple[KeysValues, ...], count: int) -> tuple[KeysValues, ...]:
    return text if count == 1 else tuple((_each(k, count), _each(v, count)) for k, v in text)


def _each(rows: Tensor, count: int) -> Tensor:
    return repeat(rows, "r ... -> (r b) ...", b=count)
