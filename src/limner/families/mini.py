"""mini: the built-in model. Words -> 96 x 96 pixels by diffusion -> 512 x 512 by an upscaler."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from limner.diffusion import grids, guidance
from limner.diffusion.paths import FlowPath
from limner.diffusion.predictions import Denoise
from limner.diffusion.samplers import SAMPLERS
from limner.errors import RequestError
from limner.families.base import Defaults, Order, Plan
from limner.families.drawn import DrawnWords, account, drawable, nothing, smaller
from limner.families.mini_stages import alike, begun, in_calls, pasted, rows, upscale
from limner.families.stages import DiffusionStage, Stage, one_by_one
from limner.models.pixel_dit import PixelDiT
from limner.models.upscaler import Upscaler
from limner.text.reading import Reading
from limner.text.tokenizers import WordTokenizer

DEFAULTS = Defaults(
    steps=16, guidance=2.5, sampler="ddpm", size=(512, 512), square=True, around=0.5
)  # of the shipped weights
UPSCALE_NOISE = 0.15  # how worn the upscaler takes the small picture to be; it was trained on 0 to 0.2
MEETS = frozenset({"image", "strength", "mask", "extend"})  # of the wishes that not every model meets
LENGTHS = 16  # lengths of texts are multiples of it, so that most of them can share a call; costs 4 %
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
    learned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # words of its user -> their tokens
    wear: "Wear | None" = None  # puts on the LoRAs that a prompt names; None: it can name none
    notices: tuple[str, ...] = ()  # about the files, to be said with every picture

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one small picture: channels, height, width."""
        return 3, self.base.config.size, self.base.config.size

    def read(self, prompt: str, style: str | None = None) -> Reading:
        """The prompt in the words of this model, as `DrawnWords.read` has them."""
        drawn = DrawnWords(objects=self.objects, styles=self.styles, spells=self.spells, learned=self.learned)
        return drawn.read(prompt, style)

    def encode(self, prompt: Reading, negative: Reading) -> Text:
        """Both readings as the network's context; an empty reading is the empty caption of the training."""
        rows = prompt.words, negative.words
        needed = 2 + max(map(len, rows))
        length = min(self.base.config.text_length, -(-needed // LENGTHS) * LENGTHS)
        encoded = [self.tokenizer.encode(row, length) for row in rows]
        tokens = torch.tensor([ids for ids, _ in encoded], device=self.device)
        mask = tokens != self.tokenizer.pad
        context, pooled = self.base.encode(tokens, mask)
        return Text(context=context, pooled=pooled, mask=mask, left_out=(encoded[0][1], encoded[1][1]))

    def network(self, *texts: Text) -> Denoise:
        """The base network bound to a text for each picture, or to one for all, for `guidance.batched`: first
        the rows with the prompts, then as many without. Texts are of one length."""
        context, pooled, mask = (
            torch.stack([getattr(text, name) for text in texts], 1) for name in ("context", "pooled", "mask")
        )

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            count = len(x) // 2 // len(texts)
            told = (repeat(part, "two r ... -> (two r b) ...", b=count) for part in (context, pooled, mask))
            prediction: Tensor = self.base(x, t, *told)
            return prediction

        return denoise

    def told(self, texts: Sequence[Text], scales: Sequence[float]) -> Denoise:
        """The base network bound to the prompts alone and told the guidance scales: one call a step. One of
        each for every picture, or one for all."""
        context, pooled, mask = (
            torch.stack([getattr(text, name)[0] for text in texts]) for name in ("context", "pooled", "mask")
        )

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            count = len(x) // len(texts)
            told = (repeat(part, "r ... -> (r b) ...", b=count) for part in (context, pooled, mask))
            prediction: Tensor = self.base(x, t, *told, repeat(t.new_tensor(scales), "r -> (r b)", b=count))
            return prediction

        return denoise

    def denoise(self, texts: Sequence[Text], scales: Sequence[float]) -> Denoise:
        """(x, t) -> x0 in [-1, 1], guided; one text and one scale for every picture, or one for all."""
        if self.scales is not None:
            return guidance.static_threshold(self.told(texts, scales))
        each = torch.tensor(scales, device=self.device).reshape(-1, 1, 1, 1)
        return guidance.static_threshold(guidance.cfg(guidance.batched(self.network(*texts)), each))

    def plan(self, order: Order) -> Plan:
        """The stages of an order. Raises RequestError for a size, a style or a prompt beyond this model."""
        if beyond := [name for name in order.beyond() if name not in MEETS]:
            told = ", ".join(beyond)
            raise RequestError(f"the built-in model has no {told}; leave that out or take another model")
        if self.wear is not None:
            model, bare, unheard = self.wear(self, order.prompt)
            plan = replace(model, wear=None).plan(replace(order, prompt=bare))
            return replace(plan, warnings=(*unheard, *plan.warnings))
        notices, warnings = [*self.notices, *self._size_notices(order)], list[str]()
        prompt, negative = self._heard(order)
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
        if any(order.extend) and prompt.objects:
            notices.append("around the picture things are drawn small, as they are seen from farther away")
        if self.scales is not None:
            if (scale := self._scale(order)) != order.guidance:
                low, high = self.scales
                notices.append(f"drawn with guidance {scale:g}: this model knows {low:g} to {high:g}")
            if negative.words:
                warnings.append("the negative prompt was left out: this model draws in few steps without one")
        denoise = self.denoise([text], [self._scale(order)])
        stages = self._stages(order, one_by_one(denoise) if self.device.type == "cpu" else denoise)
        return Plan(stages=stages, notices=tuple(notices), warnings=tuple(warnings))

    def plan_together(self, orders: Sequence[Order], most: int) -> Plan:
        """As `pipeline.together.Together` has it."""
        if self.wear is not None:
            worn = [self.wear(self, order.prompt)[:2] for order in orders]
            if any(model is not worn[0][0] for model, _ in worn):
                raise RequestError("pictures that are drawn together wear the same LoRAs; draw these apart")
            bare = [replace(order, prompt=prompt) for order, (_, prompt) in zip(orders, worn, strict=True)]
            return replace(worn[0][0], wear=None).plan_together(bare, most)
        first = alike(orders)
        known: dict[tuple[str, str, str | None], Text] = {}
        texts = []
        for order in orders:
            said = order.prompt, order.negative_prompt, order.style
            if said not in known:
                known[said] = self.encode(*self._heard(order))
            texts.append(known[said])
        calls = rows([text.mask.shape[1] for text in texts], most)
        asked = [
            self.denoise([texts[row] for row in call], [self._scale(orders[row]) for row in call])
            for call in calls
        ]
        return Plan(stages=self._stages(first, in_calls(calls, asked)), notices=(), warnings=())

    def _heard(self, order: Order) -> tuple[Reading, Reading]:
        """What the prompt and the negative prompt say. Around a picture its things are small: that is how far
        away the world was learned to be seen from."""
        prompt = self.read(order.prompt, order.style)
        return smaller(prompt) if any(order.extend) else prompt, self.read(order.negative_prompt)

    def _scale(self, order: Order) -> float:
        low, high = self.scales or (order.guidance, order.guidance)
        return min(max(order.guidance, low), high)

    def _stages(self, order: Order, denoise: Denoise) -> tuple[Stage, ...]:
        """Diffuse, upscale; begun on a picture, and what a mask keeps put back at last. A strength is the
        share of the way, and of the steps to the nearest one: at 1 nothing of the picture is left."""
        share = 1.0 if order.image is None else order.strength
        steps = max(1, round(order.steps * share))
        stage = DiffusionStage(
            denoise=denoise,
            grid=grids.shifted(self.path, steps, grid_shift(self.base.config.size), start=share),
            sampler=SAMPLERS[order.sampler],
            shape=self.shape,
            device=self.device,
        )
        native = self.defaults.size[0]
        enlarge = upscale(self.upscaler, UPSCALE_NOISE, native)
        if order.image is None:
            return stage, enlarge
        return begun(stage, order), enlarge, *pasted(order, native, self.device)

    def _size_notices(self, order: Order) -> list[str]:
        height, width = order.size
        native = self.defaults.size[0]
        if height != width:
            middle = ", which takes the middle of the picture" if order.image is not None else ""
            raise RequestError(
                f"this model draws squares, and {width}x{height} is none; try {min(height, width)}{middle}"
            )
        if not SIDES[0] <= height <= SIDES[1]:
            raise RequestError(
                f"this model draws squares of {SIDES[0]} to {SIDES[1]} pixels, best {native}, not {height}"
            )
        return [] if height == native else [f"drawn at {native}x{native} and resized to {width}x{height}"]


Wear = Callable[[Mini, str], tuple[Mini, str, tuple[str, ...]]]  # (model, prompt) -> (the model in its LoRAs,
# the prompt without their names, warnings)
