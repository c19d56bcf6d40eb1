"""FLUX.1: a prompt through CLIP, as a whole, and through T5, word by word; latents by a transformer.

Start at `Flux.plan`. dev was taught to draw as guidance would and is told how much; schnell draws in four
steps without. A negative prompt takes real guidance, two calls a step. How they come out of files is in
`flux_files.py`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from limner.diffusion import grids, guidance, predictions
from limner.diffusion.grids import Grid
from limner.diffusion.paths import FlowPath
from limner.diffusion.predictions import Denoise
from limner.errors import RequestError
from limner.families.base import ControlOrder, Defaults, Order, Plan, guided, refuse, unheard
from limner.families.flow import MEETS, Canvas, beyond_t5, lines
from limner.families.shelf import Shelf
from limner.families.stages import Stage
from limner.models import flux
from limner.models.clip import CLIPText, CLIPTextOutput
from limner.models.flux import FluxConfig, FluxControl
from limner.models.t5 import T5Encoder
from limner.text.clip_tokenizer import CLIPTokenizer
from limner.text.prompt import Lora, Prompt, parse
from limner.text.t5_tokenizer import T5Tokenizer

if TYPE_CHECKING:
    from limner.models.flux_control import FluxControlNet

AWAY = 2.0  # real guidance of networks that are told theirs, where there is a negative prompt
COLOURS = (  # figures that ComfyUI previews with
    *((-0.0346, 0.0244, 0.0681), (0.0034, 0.0210, 0.0687), (0.0275, -0.0668, -0.0433)),
    *((-0.0174, 0.0160, 0.0617), (0.0859, 0.0721, 0.0329), (0.0004, 0.0383, 0.0115)),
    *((0.0405, 0.0861, 0.0915), (-0.0236, -0.0185, -0.0259), (-0.0245, 0.0250, 0.1180)),
    *((0.1008, 0.0755, -0.0421), (-0.0515, 0.0201, 0.0011), (0.0428, -0.0012, -0.0036)),
    *((0.0817, 0.0765, 0.0749), (-0.1264, -0.0522, -0.1103), (-0.0280, -0.0881, -0.0499)),
    (-0.1262, -0.0982, -0.0778),
    (-0.0329, -0.0718, -0.0851),
)


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A prompt as the network is told it."""

    context: Float[Tensor, "1 n d"]
    pooled: Float[Tensor, "1 p"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Flux:
    """The loaded model. `plan` is all that a pipeline needs; the parts are there to be used by hand."""

    shelf: Shelf  # "transformer", "vae", "text_encoder" (CLIP), "text_encoder_2" (T5)
    config: FluxConfig
    canvas: Canvas
    tokenizer: T5Tokenizer
    length: int  # tokens of a prompt that T5 hears, its end included
    shift: Callable[[int], float]  # of the path towards noise, by the tokens of a picture
    defaults: Defaults
    fingerprint: str
    device: torch.device
    away: float = AWAY  # as there
    notices: tuple[str, ...] = ()  # about the files, to be said with every picture
    control_network: Callable[[str], "FluxControlNet"]  # by file or folder; raises WeightsError
    adapt: Callable[[tuple[Lora, ...]], tuple[str, ...]]  # puts exactly these LoRAs in place, and says what
    # is to be known of them; asked before every call

    def plan(self, order: Order) -> Plan:
        """The stages of an order. Raises RequestError for what this model cannot do."""
        refuse(order, MEETS)
        guided(order)
        prompt = parse(order.prompt, compose=False)
        loras, warnings = prompt.loras()
        told = self.adapt(loras)  # what is wrong with them is heard of before anything is drawn
        stages, notices = self.canvas.stages(order, self.grid, self.denoise)
        warned = (*warnings, *self._unheard(order, prompt, stages))
        return Plan(stages=stages, notices=(*self.notices, *told, *notices), warnings=warned)

    def grid(self, size: tuple[int, int], steps: int) -> Grid:
        """Equal steps along the path, moved towards noise where a picture is large."""
        height, width = (side // self.canvas.side for side in size)
        return grids.shifted(FlowPath(), steps, self.shift(height * width))

    def denoise(self, order: Order, grid: Grid, size: tuple[int, int], earlier: int = 0) -> Denoise:
        """(x, t) -> x0. All texts are encoded at once, so that the text encoders can go. LoRAs are put in
        place at every call: requests may take turns."""
        prompt = parse(order.prompt, compose=False)
        loras = prompt.loras()[0]
        said = _spoken(prompt, grid, earlier)
        unsaid = _spoken(parse(order.negative_prompt, compose=False), grid, earlier)
        scale = self._scale(order)
        self.adapt(loras)
        texts = self.encode(said if scale == 1 else [*said, *unsaid])
        controls = [
            (one, self._control(one), self.canvas.condition(one.pixels, size)) for one in order.controls
        ]

        def predict(x: Tensor, t: Tensor, text: Text, step: int) -> Tensor:
            told = t.new_full(t.shape, order.guidance)
            hearing = (t, *(part.expand(len(x), *part.shape[1:]) for part in (text.context, text.pooled)))
            total: FluxControl | None = None
            for one, control, condition in controls:
                if one.start <= step / grid.steps and (step + 1) / grid.steps <= one.end:
                    strength = told if control.config.guidance else None
                    heard: FluxControl = control(x, *hearing, condition, guidance=strength, weight=one.weight)
                    total = heard if total is None else total + heard
            network = self.shelf.take("transformer")
            assert isinstance(network, flux.Flux)
            strength = told if self.config.guidance else None
            prediction: Tensor = network(x, *hearing, guidance=strength, control=total)
            return prediction.float()

        def towards(words: list[str]) -> Denoise:
            def x0(x: Tensor, t: Tensor) -> Tensor:
                self.adapt(loras)
                step = grid.step(float(t[0]))
                text = texts[words[step]]
                return predictions.flow(lambda x, t: predict(x, t, text, step), FlowPath())(x, t)

            return x0

        if scale == 1:
            return towards(said)
        return guidance.cfg(guidance.in_turn(towards(said), towards(unsaid)), scale, rescale=order.rescale)

    def encode(self, texts: Iterable[str]) -> dict[str, Text]:
        """Each text once: through one encoder first, then through the other."""
        every = list(dict.fromkeys(texts))
        pooled = self._pooled(every)  # lets go of CLIP, so that it can go
        t5 = self.shelf.take("text_encoder_2")
        assert isinstance(t5, T5Encoder)
        tokens = (torch.tensor([self.tokenizer.encode(text, self.length)[0]]) for text in every)
        context = [t5(row.to(self.device)) for row in tokens]  # padding is seen, as it was in training
        return {text: Text(*told) for text, *told in zip(every, context, pooled, strict=True)}

    def _pooled(self, texts: list[str]) -> list[Float[Tensor, "1 p"]]:
        network, tokenizer = self.shelf.take("text_encoder"), CLIPTokenizer()
        assert isinstance(network, CLIPText)
        found = []
        for text in texts:
            tokens = torch.tensor([tokenizer.frame(tokenizer.encode(text))[0]], device=self.device)
            out: CLIPTextOutput = network(network.embed(tokens), tokens)
            found.append(out.pooled)
        return found

    def _scale(self, order: Order) -> float:
        """Of real guidance; 1: there is none."""
        if not order.negative_prompt:
            return 1.0
        return self.away if self.config.guidance else order.guidance

    def _control(self, one: ControlOrder) -> "FluxControlNet":
        network = self.control_network(one.model)
        theirs, ours = network.config, self.config
        if (theirs.width, theirs.axes, theirs.context) != (ours.width, ours.axes, ours.context):
            raise RequestError(f"the control network {one.model} was made for another model")
        return network

    def _unheard(self, order: Order, prompt: Prompt, stages: tuple[Stage, ...]) -> tuple[str, ...]:
        """What of an order will not be in the picture."""
        found, every = list[str](), {"prompt": prompt}
        negative = parse(order.negative_prompt, compose=False)
        if negative.networks:
            found.append("LoRAs in the negative prompt were left out: name them in the prompt")
        if self._scale(order) != 1:
            every["negative prompt"] = negative
        elif order.negative_prompt:
            found += unheard(order)
        else:
            found += unheard(order, "it needs a negative prompt")
            if guided(order) and not self.config.guidance:
                found.append("guidance was left out: it needs a negative prompt")
        for name, words in every.items():
            found += beyond_t5(name, lines(words, stages, order.steps), self.tokenizer, self.length)
        return tuple(found)


def _spoken(prompt: Prompt, grid: Grid, earlier: int) -> list[str]:
    """What is said at each step."""
    return [prompt.at(step, grid.steps, earlier=earlier)[0].plain for step in range(grid.steps)]
