"""From a prompt to pictures: start reading here."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from limner.diffusion.samplers import Step
from limner.errors import EngineError, RequestError
from limner.families.base import BY_TOKENS, Model, Order, Plan
from limner.families.stages import Stage
from limner.pipeline.order import cut_out, order_of, size_of
from limner.pipeline.picture import Picture
from limner.pipeline.request import Request
from limner.pipeline.result import Result
from limner.util.images import images_from_pixels
from limner.util.rng import NoiseSource


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Progress:
    """What `Pipeline.generate` yields after every step."""

    index: int  # 0 ... total - 1
    total: int
    stage: str  # whose step it was
    preview: Float[Tensor, "b 3 h w"]  # the pictures as they look now, roughly in [-1, 1], of any size
    result: Result | None = None  # in the last one


class Pipeline:
    """A loaded model that draws requests. Made by `load`."""

    def __init__(self, model: Model, name: str) -> None:
        self.model = model
        self.name = name  # what was asked for: "mini", or a folder

    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        seed: int | None = None,
        count: int = 4,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        size: tuple[int, int] | None = None,
        style: str | None = None,
        image: Picture | Image.Image | str | Path | None = None,
        strength: float = 0.75,
        mask: Picture | Image.Image | str | Path | None = None,
    ) -> Result:
        """Draw; see Request for what the settings mean, and for more of them, which `draw` takes. Raises as
        `generate` does."""
        return self.draw(
            Request(
                prompt=prompt,
                negative_prompt=negative_prompt,
                seed=seed,
                count=count,
                steps=steps,
                guidance=guidance,
                sampler=sampler,
                size=size,
                style=style,
                image=None if image is None else Picture.read(image),
                strength=strength,
                mask=None if mask is None else Picture.read(mask),
            )
        )

    def draw(self, request: Request) -> Result:
        """Draw to the end. Raises as `generate` does."""
        *_, last = self.generate(request)
        assert last.result is not None  # the last one has it
        return last.result

    def resolve(self, request: Request) -> Request:
        """The request with every choice made: the model's defaults, and a random seed of 32 bits.

        Raises RequestError when the request names another model.
        """
        if request.model not in (None, self.name):
            raise RequestError(f'this is the model "{self.name}", and the request asks for "{request.model}"')
        defaults = self.model.defaults
        if request.sampler == "lcm":
            defaults = defaults.lcm or defaults
        return replace(
            request,
            seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
            steps=defaults.steps if request.steps is None else request.steps,
            guidance=defaults.guidance if request.guidance is None else request.guidance,
            sampler=request.sampler or defaults.sampler,
            size=request.size or size_of(request, defaults.size, defaults.factor, square=defaults.square),
            grid=request.grid or defaults.grid,
            model=self.name,
        )

    @torch.inference_mode()
    def generate(self, request: Request) -> Iterator[Progress]:
        """Draw step by step; the last item carries the result. Stop taking items to cancel.

        Picture i of a request with seed s is, bit for bit on the CPU, the single picture of seed s + i.
        Raises RequestError for what the model cannot do, and EngineError when the numbers break down.
        """
        ready = self.ready(request)
        for seen in walk(ready.plan.stages, ready.seeds):
            last = seen.index == seen.total - 1
            yield replace(seen, result=self.finished(ready, seen.preview)) if last else seen

    def ready(self, request: Request) -> "Ready":
        """All that is settled before the first step. Raises RequestError for what the model cannot do."""
        asked, request = request, self.resolve(request)
        order = order_of(request)
        plan = self.model.plan(order)
        _refuse_tokens(order, plan)
        if asked.sampler and plan.by_tokens:
            told = "sampler was left out: this model draws token by token"
            plan = replace(plan, notices=(*plan.notices, told))
        assert request.seed is not None  # resolved
        seeds = tuple(range(request.seed, request.seed + request.count))
        return Ready(request=request, order=order, plan=plan, seeds=seeds)

    def finished(self, ready: "Ready", pixels: Float[Tensor, "b 3 h w"]) -> Result:
        """What came of a request, of the pixels that its plan has drawn."""
        images = _finish(pixels, ready.request.size if ready.request.enlarge == 1 else None)
        return Result(
            images=cut_out(images, ready.order) if ready.request.transparent else images,
            seeds=ready.seeds,
            request=ready.request,
            weights=self.model.fingerprint,
            notices=ready.plan.notices,
            warnings=ready.plan.warnings,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ready:
    """A request that has been read, and can be drawn."""

    request: Request  # with every choice made
    order: Order
    plan: Plan
    seeds: tuple[int, ...]  # of its pictures


def walk(stages: tuple[Stage, ...], seeds: tuple[int, ...]) -> Iterator[Progress]:
    """The steps of all stages, one picture for each seed; the last one's preview is what they have drawn.
    Raises EngineError as `Pipeline.generate` does."""
    noise = NoiseSource(seeds)
    total = sum(stage.steps for stage in stages)
    pixels: Tensor | None = None
    done = 0
    for stage in stages:
        for step in _told_of_memory(stage.run(pixels, noise), stage.name):
            done += 1
            if done < total:
                yield Progress(index=done - 1, total=total, stage=stage.name, preview=stage.look(step.x0))
        pixels = step.x
        _check_finite(pixels, seeds, stage.name)
    assert pixels is not None  # a plan has stages
    yield Progress(index=total - 1, total=total, stage=stage.name, preview=pixels)


def _refuse_tokens(order: Order, plan: Plan) -> None:
    """Raise RequestError for wishes about tokens where a plan draws none."""
    wishes = [name for name in order.beyond() if name in BY_TOKENS]
    if wishes and not plan.by_tokens:
        told = ", ".join(wishes)
        raise RequestError(f"{told}: only models that draw token by token can use that; leave it out")


def _told_of_memory(steps: Iterator[Step], stage: str) -> Iterator[Step]:
    """The steps; an EngineError where memory runs out."""
    try:
        yield from steps
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise EngineError(
            f"memory ran out in the {stage}; ask for fewer or smaller pictures, another type of weights, or "
            "keep one network in memory at a time (offload)"
        ) from None


def _check_finite(pixels: Float[Tensor, "b _ h w"], seeds: tuple[int, ...], stage: str) -> None:
    broken = [seed for seed, picture in zip(seeds, pixels, strict=True) if not picture.isfinite().all()]
    if broken:
        raise EngineError(
            f"after the {stage}, {len(broken)} of {len(seeds)} pictures hold values that are not finite "
            f"(seeds {', '.join(map(str, broken))}). The weights are broken, or the guidance is far too high"
        )


def _finish(pixels: Float[Tensor, "b 3 h w"], size: tuple[int, int] | None) -> tuple[Image.Image, ...]:
    """To images of the size that was asked for, by Lanczos where the model draws another."""
    images = images_from_pixels(pixels)
    if size is None or size == (pixels.shape[2], pixels.shape[3]):
        return tuple(images)
    return tuple(image.resize((size[1], size[0]), Image.Resampling.LANCZOS) for image in images)
