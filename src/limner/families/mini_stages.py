"""Parts of the built-in model's plans: rows of a batch in calls, pictures to begin with, the upscaler."""

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.diffusion import guidance
from limner.diffusion.predictions import Denoise
from limner.errors import RequestError
from limner.families.base import Order
from limner.families.stages import ChangeStage, DiffusionStage, Stage, paste, resize
from limner.models.upscaler import Upscaler

OWN = ("prompt", "negative_prompt", "guidance", "style")  # in which the orders of a batch may differ


def alike(orders: Sequence[Order]) -> Order:
    """One order for what all of a batch agree in. Raises RequestError where they differ in more than OWN."""
    first = orders[0]
    for order in orders[1:]:
        for field in fields(Order):
            if field.name not in OWN and not _same(getattr(first, field.name), getattr(order, field.name)):
                raise RequestError(
                    f"pictures that are drawn together have the same {field.name}; draw these apart"
                )
    return first


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other)
    return one is other or (not isinstance(one, Tensor) and one == other)


def rows(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Which rows of a batch are asked for in one call: those of one length, in powers of two up to `most`, so
    that few shapes occur and each can be tried."""
    calls = []
    for length in dict.fromkeys(lengths):
        left = [row for row, other in enumerate(lengths) if other == length]
        while left:
            count = 1 << (min(len(left), most).bit_length() - 1)
            calls.append(left[:count])
            left = left[count:]
    return calls


def in_calls(calls: Sequence[Sequence[int]], denoise: Sequence[Denoise]) -> Denoise:
    """Each denoise function asked for its rows of a batch."""

    def denoised(x: Tensor, t: Tensor) -> Tensor:
        x0 = torch.empty_like(x)
        for chosen, ask in zip(calls, denoise, strict=True):
            x0[chosen] = ask(x[chosen], t[chosen])
        return x0

    return denoised


def begun(stage: DiffusionStage, order: Order) -> DiffusionStage:
    """The stage begun on the order's picture, made as small as what it draws. What the mask keeps is held to
    that picture at every step; a pixel that the mask touches is drawn."""
    assert order.image is not None  # asked for where there is one
    size = stage.shape[1], stage.shape[2]
    known = resize(size).change(order.image.to(stage.device))
    stage = replace(stage, begin=known)
    if order.mask is None:
        return stage
    covered = F.adaptive_max_pool2d((order.mask.to(stage.device) > 0).to(known), size)
    return replace(stage, denoise=guidance.kept(stage.denoise, known, covered))


def pasted(order: Order, native: int, device: torch.device) -> tuple[Stage, ...]:
    """What puts back the pixels that a mask keeps, at the size of the order."""
    if order.image is None or order.mask is None:
        return ()
    back = paste(order.image.to(device), order.mask.to(device))
    return (back,) if order.size == (native, native) else (resize(order.size), back)


def upscale(network: Upscaler, noise: float, size: int) -> ChangeStage:
    """To `size` x `size` by a network that is told to expect `noise` (a standard deviation) on its input."""

    def enlarged(pixels: Tensor) -> Tensor:
        return network.enlarge(pixels, pixels.new_full((len(pixels),), noise), size)

    return ChangeStage(change=enlarged, name="upscaler")
