"""Pictures that a network draws while it is being trained: for sheets, and to be judged by a reward."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limner.diffusion import grids, guidance
from limner.diffusion.paths import FlowPath
from limner.diffusion.predictions import Denoise
from limner.diffusion.samplers import ddpm, lcm
from limner.families.mini import grid_shift
from limner.models.pixel_dit import PixelDiT


@torch.no_grad()
def rollout(
    model: PixelDiT,
    tokens: Int[Tensor, "b n"],
    empty: Int[Tensor, "b n"],  # of the empty caption
    pad: int,
    *,
    steps: int,
    scale: float,  # of the guidance
    seed: int,
) -> Float[Tensor, "b 3 h w"]:
    """One picture per caption, in [-1, 1], as the family `mini` draws: a network that is told its guidance by
    multistep consistency with one call a step, another by DDPM with two, or one where `scale` is 1.

    All noise follows from `seed` and the device.
    """
    device, size = tokens.device, model.config.size
    shape = (len(tokens), 3, size, size)
    generator = torch.Generator(device).manual_seed(seed)

    def noise(_: int = 0) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    grid = grids.shifted(FlowPath(), steps, grid_shift(size))
    if model.config.guidance_channels:
        told = torch.full((len(tokens),), scale, device=device)
        denoise, sampler = guidance.static_threshold(bound(model, tokens, pad, told)), lcm
    elif scale == 1:
        denoise, sampler = guidance.static_threshold(bound(model, tokens, pad)), ddpm
    else:
        both = guidance.batched(bound(model, torch.cat([tokens, empty]), pad))
        denoise, sampler = guidance.static_threshold(guidance.cfg(both, scale)), ddpm
    *_, last = sampler(denoise, noise(), grid, noise=noise)
    return last.x.clamp(-1, 1)


def bound(
    model: PixelDiT,
    tokens: Int[Tensor, "b n"],
    pad: int,
    told: Float[Tensor, " b"] | None = None,
) -> Denoise:
    """The network bound to captions, and to the guidance scales that it is told."""
    mask = tokens != pad
    context, pooled = model.encode(tokens, mask)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        x0: Tensor = model(x, t, context, pooled, mask, told)
        return x0

    return denoise
