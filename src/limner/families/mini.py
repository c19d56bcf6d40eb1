"""mini: the built-in model. Words -> 48 x 48 pixels by diffusion -> 192 x 192 by an upscaler."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from limner.diffusion import grids, guidance
from limner.diffusion.paths import FlowPath
from limner.diffusion.predictions import Denoise
from limner.diffusion.samplers import SAMPLERS
from limner.errors import RequestError, WeightsError
from limner.families.base import Defaults, Family, Order, Plan
from limner.families.drawn import DrawnWords, account, drawable, nothing
from limner.families.stages import ChangeStage, DiffusionStage, one_by_one
from limner.models.pixel_dit import PixelDiT, PixelDiTConfig
from limner.models.upscaler import Upscaler, UpscalerConfig
from limner.text.reading import Reading
from limner.text.tokenizers import WordTokenizer
from limner.weights import files, header

DEFAULTS = Defaults(steps=16, guidance=2.5, sampler="ddpm", size=(192, 192))  # of the shipped weights
UPSCALE_NOISE = 0.05  # how worn the upscaler takes the small picture to be; it was trained on 0 to 0.2
SIDES = (64, 1024)  # least and most side that may be asked for, in pixels
BASE, UPSCALER = "base.safetensors", "upscaler.safetensors"  # in a model's folder


def grid_shift(side: int) -> float:
    """How far the grid lies towards noise, for pictures of side x side pixels: 3 at 48, as flat pictures stay
    readable there and shapes are decided early; in proportion beyond (SD3 eq. 23)."""
    return 3 * side / 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A prompt and what to move away from, encoded once for all steps: row 0 the prompt, row 1 the other."""

    context: Float[Tensor, "2 n d"]
    pooled: Float[Tensor, "2 d"]
    mask: Bool[Tensor, "2 n"]  # False on padding
    left_out: tuple[int, int]  # words at the end of each that did not fit


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mini:
    """The loaded model. `plan` is all that a pipeline needs; the parts are there to be used by hand."""

    base: PixelDiT
    upscaler: Upscaler
    tokenizer: WordTokenizer
    objects: frozenset[str]  # that it has learned
    styles: tuple[str, ...]  # that it has learned
    spells: bool  # whether it has learned to write words in quotes
    fingerprint: str
    device: torch.device
    path: FlowPath
    defaults: Defaults
    scales: tuple[float, float] | None = None  # guidance that it is told, least and most; None: it is not

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one small picture: channels, height, width."""
        return 3, self.base.config.size, self.base.config.size

    def read(self, prompt: str, style: str | None = None) -> Reading:
        """The prompt in the words of this model, as `DrawnWords.read` has them."""
        learned = DrawnWords(objects=self.objects, styles=self.styles, spells=self.spells)
        return learned.read(prompt, style)

    def encode(self, prompt: Reading, negative: Reading) -> Text:
        """Both readings as the network's context; an empty reading is the empty caption of the training."""
        rows = prompt.words, negative.words
        length = min(self.base.config.text_length, 2 + max(map(len, rows)))
        encoded = [self.tokenizer.encode(row, length) for row in rows]
        tokens = torch.tensor([ids for ids, _ in encoded], device=self.device)
        mask = tokens != self.tokenizer.pad
        context, pooled = self.base.encode(tokens, mask)
        return Text(context=context, pooled=pooled, mask=mask, left_out=(encoded[0][1], encoded[1][1]))

    def network(self, text: Text) -> Denoise:
        """The base network bound to `text`, for `guidance.batched`: first the rows with the prompt, then as
        many without."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            count = len(x) // 2
            context = repeat(text.context, "two n d -> (two b) n d", b=count)
            pooled = repeat(text.pooled, "two d -> (two b) d", b=count)
            mask = repeat(text.mask, "two n -> (two b) n", b=count)
            prediction: Tensor = self.base(x, t, context, pooled, mask)
            return prediction

        return denoise

    def told(self, text: Text, scale: float) -> Denoise:
        """The base network bound to the prompt alone and told the guidance scale: one call a step."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            context, pooled, mask = (
                repeat(part[0], "... -> b ...", b=len(x)) for part in (text.context, text.pooled, text.mask)
            )
            prediction: Tensor = self.base(x, t, context, pooled, mask, torch.full_like(t, scale))
            return prediction

        return denoise

    def plan(self, order: Order) -> Plan:
        """The stages of an order. Raises RequestError for a size, a style or a prompt beyond this model."""
        if beyond := order.beyond():
            told = ", ".join(beyond)
            raise RequestError(f"the built-in model has no {told}; leave that out or take another model")
        notices, warnings = list(self._size_notices(order.size)), []
        prompt, negative = self.read(order.prompt, order.style), self.read(order.negative_prompt)
        if not drawable(prompt):
            raise RequestError(nothing(prompt))
        text = self.encode(prompt, negative)
        for reading, left_out, where in (
            (prompt, text.left_out[0], "the prompt"),
            (negative, text.left_out[1], "the negative prompt"),
        ):
            understood, unmet = account(reading, left_out, where)
            notices += understood
            warnings += unmet
        if self.scales is None:
            guided = guidance.cfg(guidance.batched(self.network(text)), order.guidance)
        else:
            scale = min(max(order.guidance, self.scales[0]), self.scales[1])
            guided = self.told(text, scale)
            if scale != order.guidance:
                low, high = self.scales
                notices.append(f"drawn with guidance {scale:g}: this model knows {low:g} to {high:g}")
            if negative.words:
                warnings.append("the negative prompt was left out: this model draws in few steps without one")
        denoise = guidance.static_threshold(guided)
        diffusion = DiffusionStage(
            denoise=one_by_one(denoise) if self.device.type == "cpu" else denoise,
            grid=grids.shifted(self.path, order.steps, grid_shift(self.base.config.size)),
            sampler=SAMPLERS[order.sampler],
            shape=self.shape,
            device=self.device,
        )
        enlarge = upscale(self.upscaler, UPSCALE_NOISE, self.defaults.size[0])
        return Plan(stages=(diffusion, enlarge), notices=tuple(notices), warnings=tuple(warnings))

    def _size_notices(self, size: tuple[int, int]) -> list[str]:
        height, width = size
        native = self.defaults.size[0]
        if height != width:
            raise RequestError(f"this model draws squares, and {width}x{height} is none; try {min(size)}")
        if not SIDES[0] <= height <= SIDES[1]:
            raise RequestError(
                f"this model draws squares of {SIDES[0]} to {SIDES[1]} pixels, best {native}, not {height}"
            )
        return [] if height == native else [f"drawn at {native}x{native} and resized to {width}x{height}"]


def load(folder: Path, device: torch.device) -> Mini:
    """The model in a folder with base.safetensors and upscaler.safetensors, as `limner train` writes them.

    Raises WeightsError when a file is missing, is of another kind, or does not fit.
    """
    base, upscaler = folder / BASE, folder / UPSCALER
    for path in (base, upscaler):
        if not path.is_file():
            raise WeightsError(
                f"{folder} has no {path.name}. A model folder holds {BASE} and {UPSCALER}: the "
                "weights.safetensors of a [denoise] and of an [upscale] run"
            )
    metadata = header.read_metadata(base)
    vocabulary = header.listed(metadata, "vocabulary", base)
    shape = header.network_config(metadata, "PixelDiT", PixelDiTConfig, base)
    if shape.vocabulary != len(vocabulary):
        raise WeightsError(f"{base}: {len(vocabulary)} words in the header for {shape.vocabulary} embeddings")
    objects, styles = (header.listed(metadata, key, base) for key in ("objects", "styles"))
    if unsaid := [word for word in (*objects, *styles) if word not in vocabulary]:
        raise WeightsError(f"{base}: the vocabulary in the header lacks {', '.join(unsaid[:5])}")
    told = header.read_metadata(upscaler)
    larger = header.network_config(told, "Upscaler", UpscalerConfig, upscaler)
    native = header.whole(told, "large", upscaler) if "large" in told else shape.size * larger.factor
    if native % larger.factor:
        raise WeightsError(f"{upscaler}: {native} pixels are no multiple of the factor {larger.factor}")
    few = _few_step(metadata, shape, base) if "few_step" in metadata else None
    return Mini(
        base=files.load(lambda: PixelDiT(shape), base, device),
        upscaler=files.load(lambda: Upscaler(larger), upscaler, device),
        tokenizer=WordTokenizer(vocabulary),
        objects=frozenset(objects),
        styles=styles,
        spells=metadata.get("spells") == "true",
        fingerprint=header.fingerprint([base, upscaler]),
        device=device,
        path=FlowPath(),
        defaults=replace(few[0] if few else DEFAULTS, size=(native, native)),
        scales=few[1] if few else None,
    )


def _few_step(
    metadata: dict[str, str], shape: PixelDiTConfig, path: Path
) -> tuple[Defaults, tuple[float, float]]:
    """How weights that draw in few steps want to be used: defaults, and the guidance scales they know."""
    try:
        told = json.loads(metadata["few_step"])
        steps, scale, low, high = (told[key] for key in ("steps", "guidance", "low", "high"))
        fits = 1 <= steps <= 1000 and 0 <= low <= scale <= high <= 30 and shape.guidance_channels > 0
        if type(steps) is int and fits:
            defaults = replace(DEFAULTS, steps=steps, guidance=float(scale), sampler="lcm")
            return defaults, (float(low), float(high))
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise WeightsError(f"{path}: few_step in the header is broken; publish the weights again")


def upscale(network: Upscaler, noise: float, size: int) -> ChangeStage:
    """To `size` x `size` by a network that is told to expect `noise` (a standard deviation) on its input."""

    def enlarged(pixels: Tensor) -> Tensor:
        return network.enlarge(pixels, pixels.new_full((len(pixels),), noise), size)

    return ChangeStage(change=enlarged, name="upscaler")


FAMILY = Family(
    name="mini",
    folder=Path(__file__).parents[1] / "weights" / "mini",
    marks=(BASE, UPSCALER),
    load=lambda path, device, wishes: load(path, device),
)
