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
from limner.families.stages import ChangeStage, DiffusionStage, one_by_one
from limner.models.pixel_dit import PixelDiT, PixelDiTConfig
from limner.models.upscaler import Upscaler, UpscalerConfig
from limner.text import words
from limner.text.lexicon import load_lexicon
from limner.text.reading import NOT_LEARNED, Part, Reading, Unknown
from limner.text.tokenizers import WordTokenizer
from limner.util.suggest import suggestion
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
        """The prompt in the words of this model; `style` is added where the prompt names none.

        Raises RequestError for a style that the model has not learned, or another than the prompt names.
        """
        reading = load_lexicon().read(prompt, known=self.objects)
        reading = replace(reading, parts=self._learned(reading.parts))
        if style is None:
            return reading
        wanted = self._style(style)
        named = {part.words[0] for part in reading.parts if part.kind == "style" and part.words}
        if named - {wanted}:
            raise RequestError(
                f"the prompt asks for {' and '.join(sorted(named))} style, the style setting for {wanted}; "
                "give only one"
            )
        if named:
            return reading
        added = Part(said=style, position=len(prompt), kind="style", words=("in", wanted, "style"))
        return replace(reading, parts=(*reading.parts, added))

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
        if not _drawable(prompt):
            raise RequestError(_nothing(prompt))
        text = self.encode(prompt, negative)
        for reading, left_out, where in (
            (prompt, text.left_out[0], "the prompt"),
            (negative, text.left_out[1], "the negative prompt"),
        ):
            notices += [f'{where} says "{said}", drawn as {became}' for said, became in reading.resolved]
            warnings += [f"{where} says {unknown}" for unknown in reading.unknown]
            if left_out:
                warnings.append(f"{where} is too long: its last {left_out} words were left out")
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

    def _learned(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """A style, or a word to write, that the model has not learned becomes an unknown word, so that it is
        reported; the "in", "style" or "with" around it go with it."""
        told = list(parts)
        for index, part in enumerate(parts):
            if part.kind == "style" and part.words[0] not in self.styles:
                nearest, reason = self.styles, NOT_LEARNED
            elif part.kind == "quote" and not self.spells:
                nearest, reason = (), "this model has not learned to write words"
            else:
                continue
            unknown = Unknown(word=part.said, position=part.position, nearest=nearest, reason=reason)
            told[index] = replace(part, kind="unknown", words=(), became=None, unknown=unknown)
            before = next((j for j in reversed(range(index)) if told[j].words), index)
            after = next((j for j in range(index + 1, len(told)) if told[j].words), index)
            for beside, around in ((before, ("in", "with")), (after, ("style",))):
                if told[beside].words and told[beside].words[0] in around:
                    told[beside] = replace(told[beside], kind="dropped", words=())
        return tuple(told)

    def _style(self, said: str) -> str:
        """The learned style that `said` names, itself or by a synonym."""
        parts = load_lexicon().read(said).parts
        if len(parts) == 1 and parts[0].kind == "style" and parts[0].words[0] in self.styles:
            return parts[0].words[0]
        offered = [name for style in self.styles for name in (style, *words.STYLES[style])]
        raise RequestError(f"this model has no style {said!r}{suggestion(said, offered, shown=self.styles)}")


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


def _drawable(reading: Reading) -> bool:
    """Whether anything would show: an object, a setting, spelled words, or a coloured background."""
    kinds = {part.kind for part in reading.parts if part.words}
    ground = "background" in reading.words or "gradient" in reading.words
    return bool(kinds & {"object", "setting", "quote"}) or ("colour" in kinds and ground)


def _nothing(reading: Reading) -> str:
    if reading.unknown:
        told = "; ".join(str(unknown) for unknown in reading.unknown)
        return (
            f"the prompt names nothing that this model can draw: {told}. `limner words` lists what it knows"
        )
    return 'the prompt names nothing to draw; try "a cat on a blue background", or see `limner words`'


FAMILY = Family(
    name="mini",
    folder=Path(__file__).parents[1] / "weights" / "mini",
    knows=lambda path: (path / BASE).exists() or (path / UPSCALER).exists(),
    load=lambda path, device, wishes: load(path, device),
)
