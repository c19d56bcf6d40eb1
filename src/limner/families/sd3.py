"""Stable Diffusion 3 and 3.5: a prompt through two CLIPs and T5, latents by a transformer on a straight path.

Start at `StableDiffusion3.plan`. T5 may be left out, then zeros stand in its place. How the parts come out of
files is in `sd3_files.py`.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from limner.diffusion import flow_grids, guidance, predictions
from limner.diffusion.grids import Grid
from limner.diffusion.paths import FlowPath, shift
from limner.diffusion.predictions import Denoise
from limner.errors import RequestError
from limner.families.base import ControlOrder, Defaults, Order, Plan, guided, refuse, unheard
from limner.families.conditions import Encoder
from limner.families.flow import MEETS, Canvas, beyond_t5, lines
from limner.families.shelf import Shelf
from limner.models.mmdit import Control, MMDiT, MMDiTConfig
from limner.models.t5 import T5Encoder
from limner.text.prompt import Line, Lora, Prompt, parse

if TYPE_CHECKING:
    from limner.models.mmdit_control import MMDiTControl
    from limner.text.t5_tokenizer import T5Tokenizer

LENGTH = 256  # tokens of a prompt that T5 hears, its end included
LEAST = 1e-3  # t of the last step: one of the thousand that the networks were trained at
SKIPPED = (7, 8, 9)  # blocks that skip-layer guidance leaves out (published with SD3.5 medium)
SKIPPING = (0.01, 0.2)  # shares of the steps between which it does
COLOURS = (  # figures that ComfyUI previews with
    *((-0.0922, -0.0175, 0.0749), (0.0311, 0.0633, 0.0954), (0.1994, 0.0927, 0.0458)),
    *((0.0856, 0.0339, 0.0902), (0.0587, 0.0272, -0.0496), (-0.0006, 0.1104, 0.0309)),
    *((0.0978, 0.0306, 0.0427), (-0.0042, 0.1038, 0.1358), (-0.0194, 0.0020, 0.0669)),
    *((-0.0488, 0.0130, -0.0268), (0.0922, 0.0988, 0.0951), (-0.0278, 0.0524, -0.0542)),
    *((0.0332, 0.0456, 0.0895), (-0.0069, -0.0030, -0.0810), (-0.0596, -0.0465, -0.0293)),
    (-0.1448, -0.1463, -0.1189),
    (0.2394, 0.2135, 0.1925),
)


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Lines as the network is told them: CLIP's rows, then T5's."""

    context: Float[Tensor, "r n d"]
    pooled: Float[Tensor, "r p"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """How far the grid lies towards noise."""

    factor: float = 3.0  # for every size
    by_tokens: Callable[[int], float] | None = None  # instead, by the tokens of a picture


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StableDiffusion3:
    """The loaded model. `plan` is all that a pipeline needs; the parts are there to be used by hand."""

    shelf: Shelf  # "transformer", "vae", the towers that `encoders` ask, and perhaps "text_encoder_3" (T5)
    config: MMDiTConfig
    canvas: Canvas
    encoders: tuple[Encoder, ...]  # CLIPs, of one tower each
    tokenizer: "T5Tokenizer | None"  # None: without T5
    shift: Shift
    defaults: Defaults
    fingerprint: str
    device: torch.device
    notices: tuple[str, ...] = ()  # about the files, to be said with every picture
    control_network: Callable[[str], "MMDiTControl"]  # by file or folder; raises WeightsError
    adapt: Callable[[tuple[Lora, ...]], tuple[str, ...]]  # puts exactly these LoRAs in place, and says what
    # is to be known of them; asked before every call
    skipped: tuple[int, ...] = SKIPPED  # as there

    def plan(self, order: Order) -> Plan:
        """The stages of an order. Raises RequestError for what this model cannot do."""
        refuse(order, MEETS | {"grid", "clip_skip", "emphasis", "skip_layers"})
        prompt, negative = parse(order.prompt), parse(order.negative_prompt, compose=False)
        loras, warnings = prompt.loras()
        if negative.networks:
            warnings += ("LoRAs in the negative prompt were left out: name them in the prompt",)
        if order.skip_layers and max(self.skipped) >= self.config.depth:
            raise RequestError("skip_layers: this model does not have so many layers; leave it out")
        if not guided(order) and len(prompt.parts) > 1:
            raise RequestError("several prompts (AND) need guidance above 1")
        told = self.adapt(loras)  # what is wrong with them is heard of before anything is drawn
        grid = partial(self.grid, name=order.grid or "linspace")
        stages, notices = self.canvas.stages(order, grid, self.denoise)
        said = () if guided(order) else unheard(order)
        for name, words in (("prompt", prompt), ("negative prompt", negative)):
            if self.tokenizer is not None and (words is prompt or guided(order)):
                said += beyond_t5(name, lines(words, stages, order.steps), self.tokenizer, LENGTH)
        return Plan(
            stages=stages,
            notices=(*self.notices, *notices, *told, *self._lengths(prompt)),
            warnings=(*warnings, *said),
        )

    def grid(self, size: tuple[int, int], steps: int, name: str) -> Grid:
        """The grid of that name (one of `flow_grids.FLOW_GRIDS`) for pictures of `size`."""
        if self.shift.by_tokens is not None:
            height, width = (side // self.canvas.side for side in size)
            return flow_grids.named(name, steps, self.shift.by_tokens(height * width), least=LEAST)
        factor = self.shift.factor
        least = shift(torch.tensor(LEAST, dtype=torch.float64), factor)  # here, and once more there
        return flow_grids.named(name, steps, factor, least=float(least))

    # -- the network, bound to a prompt ----------------------------------------------------------------------

    def denoise(self, order: Order, grid: Grid, size: tuple[int, int], earlier: int = 0) -> Denoise:
        """(x, t) -> x0, guided. All texts are encoded at once, so that the text encoders can go. LoRAs are
        put in place at every call: requests may take turns."""
        prompt, negative = parse(order.prompt), parse(order.negative_prompt, compose=False)
        loras, compared = prompt.loras()[0], guided(order)
        spoken = [prompt.at(step, grid.steps, earlier=earlier) for step in range(grid.steps)]
        unsaid = [negative.at(step, grid.steps, earlier=earlier) for step in range(grid.steps)]
        self.adapt(loras)
        texts = self.encode(
            (line for lines in (*spoken, *(unsaid if compared else ())) for line in lines), order
        )
        controls = [(one, self._control(one), self._condition(one, size)) for one in order.controls]

        def predict(x: Tensor, timestep: Tensor, text: Text, step: int, skip: Collection[int]) -> Tensor:
            network = self.shelf.take("transformer")
            assert isinstance(network, MMDiT)
            dtype = next(network.parameters()).dtype
            x, context, pooled = (part.to(dtype) for part in (x, text.context, text.pooled))
            total: Control = ()
            for one, steering, seen in controls:
                if one.start <= step / grid.steps and (step + 1) / grid.steps <= one.end:
                    found = steering(
                        x, timestep, context, pooled, seen.to(dtype), network.patches, weight=one.weight
                    )
                    total = found if not total else _sum(total, found)
            prediction: Tensor = network(x, timestep, context, pooled, control=total, skip=skip)
            return prediction.float()

        def ask(x: Tensor, t: Tensor, lines: tuple[Line, ...], skip: Collection[int] = ()) -> list[Tensor]:
            """x0 for each line; in one call where they are of one length."""
            self.adapt(loras)
            step, found = grid.step(float(t[0])), list[Tensor]()
            rows = [texts[line] for line in lines]
            for call in [rows] if len({row.context.shape for row in rows}) == 1 else [[row] for row in rows]:
                several = repeat(x, "b ... -> (r b) ...", r=len(call)), repeat(t, "b -> (r b)", r=len(call))
                asked = partial(predict, text=_each(call, len(x)), step=step, skip=skip)
                x0 = predictions.flow(asked, FlowPath(), timestep=lambda t: 1000 * t)
                found += x0(*several).chunk(len(call))
            return found

        def composed(conds: list[Tensor], lines: tuple[Line, ...], uncond: Tensor) -> Tensor:
            if len(lines) == 1 and lines[0].weight == 1:
                return conds[0]
            return guidance.composed(conds, [line.weight for line in lines], uncond)

        def branches(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            step = grid.step(float(t[0]))
            lines = spoken[step]
            *conds, uncond = ask(x, t, (*lines, *unsaid[step]))
            cond = composed(conds, lines, uncond)
            if not low < step < high:
                return cond, uncond
            reduced = composed(ask(x, t, lines, self.skipped), lines, uncond)
            return guidance.pushed(cond, reduced, order.skip_layers / order.guidance), uncond

        if not compared:
            return lambda x, t: ask(x, t, spoken[grid.step(float(t[0]))])[0]
        low, high = (share * grid.steps if order.skip_layers else 0.0 for share in SKIPPING)
        return guidance.cfg(branches, order.guidance, rescale=order.rescale)

    def encode(self, lines: Iterable[Line], order: Order) -> dict[Line, Text]:
        """Each line once, through one encoder after the other. CLIP's rows, filled up with zeros to the width
        of T5's, come first."""
        every = list(dict.fromkeys(lines))
        clips = [
            encoder.encode_all(every, skip=order.clip_skip, emphasis=order.emphasis)
            for encoder in self.encoders
        ]
        found = {}
        for line, told, long in zip(every, zip(*clips, strict=True), self._long(every), strict=True):
            context = torch.cat([one.context for one in told], -1)
            context = F.pad(context, (0, self.config.context - context.shape[-1]))
            pooled = torch.cat([one.pooled for one in told if one.pooled is not None], -1)
            found[line] = Text(torch.cat([context, long.to(context)], 1), pooled)
        return found

    def _long(self, lines: list[Line]) -> list[Float[Tensor, "1 n d"]]:
        """What T5 says of each line, or zeros in its place."""
        if self.tokenizer is None:
            return [torch.zeros(1, LENGTH, self.config.context, device=self.device) for _ in lines]
        t5 = self.shelf.take("text_encoder_3")
        assert isinstance(t5, T5Encoder)
        tokens = (torch.tensor([self.tokenizer.encode(line.plain, LENGTH)[0]]) for line in lines)
        return [t5(row.to(self.device)) for row in tokens]  # padding is seen, as it was in training

    def _control(self, one: ControlOrder) -> "MMDiTControl":
        network = self.control_network(one.model)
        ours = self.config
        theirs = replace(network.config.network, depth=ours.depth, normed=ours.normed, dual=ours.dual)
        if theirs != ours:
            raise RequestError(f"the control network {one.model} was made for another model")
        return network

    def _condition(self, one: ControlOrder, size: tuple[int, int]) -> Float[Tensor, "1 c h w"]:
        """The latents of a control picture, which some networks want without their shift."""
        seen, vae = self.canvas.condition(one.pixels, size), self.canvas.config
        return seen + vae.shift * vae.scale_factor if self.control_network(one.model).config.zeros else seen

    # -- what is said to people ------------------------------------------------------------------------------

    def _lengths(self, prompt: Prompt) -> tuple[str, ...]:
        """How long the prompt is in CLIP's tokens, where it is longer than a chunk."""
        said = (self.encoders[0].count(line) for line in prompt.at(0, 1))
        return tuple(f"the prompt has {one}" for one in said if not one.endswith(" 1 chunk"))


def _each(texts: list[Text], count: int) -> Text:
    """Several texts as one, for `count` pictures of each."""
    context, pooled = torch.cat([text.context for text in texts]), torch.cat([text.pooled for text in texts])
    return Text(repeat(context, "r n d -> (r b) n d", b=count), repeat(pooled, "r p -> (r b) p", b=count))


def _sum(one: Control, other: Control) -> Control:
    """What two control networks add. Raises RequestError where they have not the same number of blocks."""
    if len(one) != len(other):
        raise RequestError(f"control networks of {len(one)} and of {len(other)} blocks do not go together")
    return tuple(a + b for a, b in zip(one, other, strict=True))
