"""Guidance: wrappers around denoise functions; each takes and gives x0.

They stack, innermost first:

    plain = ...                # denoiser bound to the prompts (b rows)
    both = batched(...)        # denoiser bound to the prompts and then the negative prompts (2b rows)
    denoise = static_threshold(interval(cfg(both, 4.0), plain, 0.1, 0.9))
"""

import math
from collections.abc import Callable, Sequence

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from limner.diffusion.predictions import Denoise
from limner.errors import RequestError

Branches = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, t) -> x0 towards, x0 away from


def batched(denoise: Denoise) -> Branches:
    """Both branches in one call.

    `denoise` is bound to 2b conditions: the b prompts, then the b to move away from (empty or negative ones).
    """

    def branches(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        twice = repeat(x, "b ... -> (two b) ...", two=2), repeat(t, "b -> (two b)", two=2)
        cond, uncond = denoise(*twice).chunk(2)
        return cond, uncond

    return branches


def in_turn(cond: Denoise, uncond: Denoise) -> Branches:
    """The branches one after the other: half the memory, or two different networks."""
    return lambda x, t: (cond(x, t), uncond(x, t))


def cfg(branches: Branches, scale: float | Tensor, *, rescale: float = 0.0) -> Denoise:
    """Classifier-free guidance: uncond + scale (cond - uncond) (Ho & Salimans 2022, eq. 6, w = scale - 1).

    scale 1 is the prompt alone, 0 the other branch alone; a tensor, b 1 ... 1, has one for each picture. It
    is linear, so guiding x0, eps or v is the same thing. `rescale` in [0, 1] pulls each picture's standard
    deviation back to that of the prompt's branch (Lin et al. 2023, eq. 14-16, here on x0; the paper uses
    0.7). Raises RequestError for a rescale outside [0, 1].
    """
    if not 0 <= rescale <= 1:
        raise RequestError(f"guidance rescale lies between 0 and 1, got {rescale}")

    def guided(x: Tensor, t: Tensor) -> Tensor:
        cond, uncond = branches(x, t)
        x0 = uncond + scale * (cond - uncond)
        if rescale == 0:
            return x0
        ratio = _each(cond, Tensor.std) / _each(x0, Tensor.std)  # eq. 14, 15
        return x0 * (rescale * ratio + 1 - rescale)  # eq. 16

    return guided


def autoguidance(main: Denoise, weak: Denoise, scale: float) -> Denoise:
    """Guide by a weaker version of the same network, both with the prompt (Karras et al. 2024)."""
    return cfg(in_turn(main, weak), scale)


def pushed(
    cond: Float[Tensor, "b *dims"], reduced: Float[Tensor, "b *dims"], scale: float
) -> Float[Tensor, "b *dims"]:
    """Skip-layer guidance: the prompt's branch pushed away from what the network says with some of its layers
    left out, cond + scale (cond - reduced) (published with SD3.5 medium; after Hyung et al. 2024). `cfg`
    multiplies that by its own scale, so for a total of k give k / scale of guidance."""
    return cond + scale * (cond - reduced)


def interval(guided: Denoise, plain: Denoise, low: float, high: float) -> Denoise:
    """`guided` where low <= t <= high, `plain` elsewhere (Kynkaanniemi et al. 2024, whose sigma is EDM's t).

    Outside the interval the guided function is not called. Raises RequestError unless low < high.
    """
    if not low < high:
        raise RequestError(f"a guidance interval needs low < high, got {low} and {high}")

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        inside = (t >= low) & (t <= high)
        if inside.all():
            return guided(x, t)
        if not inside.any():
            return plain(x, t)
        return torch.where(inside.reshape(-1, *[1] * (x.ndim - 1)), guided(x, t), plain(x, t))

    return denoise


def static_threshold(denoise: Denoise, limit: float = 1.0) -> Denoise:
    """x0 clipped to [-limit, limit] (Imagen, Saharia et al. 2022, section 2.3). Raises RequestError unless
    limit > 0."""
    if not limit > 0:
        raise RequestError(f"a threshold is above 0, got {limit}")
    return lambda x, t: denoise(x, t).clamp(-limit, limit)


def dynamic_threshold(
    denoise: Denoise, percentile: float = 0.995, limit: float = 1.0, most: float = math.inf
) -> Denoise:
    """x0 clipped to [-s, s] and brought back into [-limit, limit], s the percentile of its absolute values in
    each picture, at least `limit` and at most `most` (Imagen, section 2.3; figure A.10). For pixels, not
    latents.

    Raises RequestError for a percentile outside (0, 1], limit <= 0, or a `most` below the limit.
    """
    if not 0 < percentile <= 1 or not 0 < limit <= most:
        raise RequestError(
            "need a percentile in (0, 1], a limit above 0 and a most not below it, got "
            f"{percentile}, {limit} and {most}"
        )

    def thresholded(x: Tensor, t: Tensor) -> Tensor:
        x0 = denoise(x, t)
        s = _each(x0, lambda picture: picture.float().abs().quantile(percentile))
        s = s.clamp(limit, most).to(x0.dtype)
        return x0.clamp(-s, s) * (limit / s)

    return thresholded


def composed(
    conds: Sequence[Float[Tensor, "b *dims"]], weights: Sequence[float], uncond: Float[Tensor, "b *dims"]
) -> Float[Tensor, "b *dims"]:
    """Several prompts as one: uncond + sum w_i (cond_i - uncond) (Liu et al. 2022, "Composable Diffusion",
    eq. 11, where the scale of guidance comes on top)."""
    total = uncond
    for cond, weight in zip(conds, weights, strict=True):
        total = total + weight * (cond - uncond)
    return total


def kept(denoise: Denoise, x0: Tensor, mask: Tensor) -> Denoise:
    """`x0` is known where `mask` is 0, and only asked for where it is 1; both are shaped to be laid over x
    (after Lugmayr et al. 2022, "RePaint").

    Deterministic samplers that start from x0 on its path then carry the known part along exactly.
    """

    def denoised(x: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(x0.to(x), denoise(x, t), mask.to(x))

    return denoised


def _each(x: Tensor, statistic: Callable[[Tensor], Tensor]) -> Tensor:
    """A statistic of each picture, (b, 1, ..., 1): taken one at a time, so its sums do not depend on the
    batch."""
    return torch.stack([statistic(picture.flatten()) for picture in x]).reshape(-1, *[1] * (x.ndim - 1))
