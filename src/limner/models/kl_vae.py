"""The autoencoder of latent diffusion: pixels <-> a small picture of latents (Rombach et al. 2022, 3.1).

Three states of what is in between: `Posterior` is a normal distribution per number, `raw_latents` are drawn
from it, `latents` are raw latents brought to about unit variance, which is what a U-Net works on. Published
autoencoders differ by the values of `KLVAEConfig` only.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from limner.errors import WeightsError
from limner.nn.attention import attention
from limner.nn.convolution import channels_last
from limner.nn.resnet import Downsample, ResBlock, Upsample
from limner.nn.tiles import tiled

EPS = 1e-6  # of every normalisation


@dataclass(frozen=True, kw_only=True, slots=True)
class KLVAEConfig:
    """Shape of a KLVAE, and the scale of its latents."""

    channels: tuple[int, ...] = (128, 256, 512, 512)  # of each level, the finest first
    layers: int = 2  # residual blocks of a level in the encoder; the decoder has one more
    latents: int = 4  # channels of the latents
    groups: int = 32  # of every normalisation
    pointwise: bool = True  # whether a 1x1 convolution stands on each side of the latents
    scale_factor: float = 0.18215  # latents = (raw_latents - shift) scale_factor
    shift: float = 0.0

    @property
    def factor(self) -> int:
        """How many pixels a latent is wide and high."""
        return int(2 ** (len(self.channels) - 1))


SD = KLVAEConfig()  # Stable Diffusion 1 and 2
SDXL = replace(SD, scale_factor=0.13025)
X4 = replace(SD, channels=(128, 256, 512), scale_factor=0.08333)  # of the upscaler: a latent is 4 pixels wide
SD3 = replace(SD, latents=16, pointwise=False, scale_factor=1.5305, shift=0.0609)
FLUX = replace(SD3, scale_factor=0.3611, shift=0.1159)


@dataclass(frozen=True, slots=True)
class Posterior:
    """What an encoder knows about the raw latents: independent normal distributions, b c h w."""

    mean: Float[Tensor, "b c h w"]
    logvar: Float[Tensor, "b c h w"]  # logarithm of the variance, in [-30, 20]

    def sample(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Raw latents; `noise` is standard normal."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


class SelfAttention(nn.Module):
    """One head as wide as the picture has channels, b c h w -> b c h w."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, EPS)
        self.q, self.k, self.v, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        rows = rearrange(self.norm(x), "b c h w -> b 1 (h w) c")
        seen = self.out(attention(self.q(rows), self.k(rows), self.v(rows)))
        return torch.add(x, rearrange(seen, "b (h w) c -> b c h w", h=x.shape[2]))


class Level(nn.Module):
    """Residual blocks of one size, then the step to the next."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resample: nn.Module) -> None:
        super().__init__()
        widths = (inputs, *[outputs] * layers)
        self.blocks = nn.Sequential(*(ResBlock(a, b, groups=groups, eps=EPS) for a, b in pairwise(widths)))
        self.resample = resample

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o H W"]:
        resampled: Tensor = self.resample(self.blocks(x))
        return resampled


def _levels(
    widths: tuple[int, ...], layers: int, groups: int, resample: Callable[[int], nn.Module]
) -> nn.Sequential:
    """A level for every width; each but the last ends with a step to the next size."""
    steps = [*(resample(width) for width in widths[:-1]), nn.Identity()]
    ways = zip(pairwise((widths[0], *widths)), steps, strict=True)
    return nn.Sequential(*(Level(before, width, layers, groups, step) for (before, width), step in ways))


def _middle(config: KLVAEConfig) -> nn.Sequential:
    width, groups = config.channels[-1], config.groups
    first, last = (ResBlock(width, width, groups=groups, eps=EPS) for _ in range(2))
    return nn.Sequential(first, SelfAttention(width, groups), last)


class Encoder(nn.Module):
    """Pixels b 3 h w -> means and log-variances b 2c h/factor w/factor."""

    def __init__(self, config: KLVAEConfig) -> None:
        super().__init__()
        widths, groups = config.channels, config.groups
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = _levels(widths, config.layers, groups, partial(Downsample, centred=False))
        self.middle = _middle(config)
        self.norm = nn.GroupNorm(groups, widths[-1], EPS)
        self.last = nn.Conv2d(widths[-1], 2 * config.latents, 3, padding=1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        x = self.middle(self.down(self.first(x)))
        moments: Tensor = self.last(F.silu(self.norm(x)))
        return moments


class Decoder(nn.Module):
    """Raw latents b c h w -> pixels b 3 (factor h) (factor w)."""

    def __init__(self, config: KLVAEConfig) -> None:
        super().__init__()
        widths, groups = config.channels[::-1], config.groups
        self.first = nn.Conv2d(config.latents, widths[0], 3, padding=1)
        self.middle = _middle(config)
        self.up = _levels(widths, config.layers + 1, groups, Upsample)
        self.norm = nn.GroupNorm(groups, widths[-1], EPS)
        self.last = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        x = self.up(self.middle(self.first(x)))
        pixels: Tensor = self.last(F.silu(self.norm(x)))
        return pixels


class KLVAE(nn.Module):
    """Pixels in [-1, 1], b 3 h w, <-> raw latents. Sizes are multiples of `config.factor`."""

    def __init__(self, config: KLVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        both, one = 2 * config.latents, config.latents
        self.leave: nn.Module = nn.Conv2d(both, both, 1) if config.pointwise else nn.Identity()
        self.enter: nn.Module = nn.Conv2d(one, one, 1) if config.pointwise else nn.Identity()

    def moments(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Means and log-variances, one behind the other along the channels."""
        return _held(self.leave(self.encoder(channels_last(pixels))))

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Posterior:
        """Raises WeightsError when these weights overflow half precision."""
        return _posterior(self.moments(pixels))

    def decode(self, raw_latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pixels, which may leave [-1, 1] a little. Raises WeightsError as `encode` does."""
        return _held(self.decoder(self.enter(channels_last(raw_latents))))

    def scaled(self, raw_latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Raw latents as a U-Net wants them."""
        return (raw_latents - self.config.shift) * self.config.scale_factor

    def unscaled(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents as `decode` wants them."""
        return latents / self.config.scale_factor + self.config.shift


def encode_tiled(
    vae: KLVAE, pixels: Float[Tensor, "b 3 h w"], *, tile: int = 64, overlap: int = 16
) -> Posterior:
    """`KLVAE.encode` in tiles; `tile` and `overlap` as in `decode_tiled`."""
    return _posterior(tiled(vae.moments, pixels, tile=tile, overlap=overlap, into=vae.config.factor))


def decode_tiled(
    vae: KLVAE, raw_latents: Float[Tensor, "b c h w"], *, tile: int = 64, overlap: int = 16
) -> Float[Tensor, "b 3 H W"]:
    """`KLVAE.decode` in tiles, so that memory beyond the picture's own does not grow with its size.

    `tile` is the side of a tile and `overlap` the width of what neighbours share at least, both in latents.
    There they fade into each other. A tile does not know its surroundings, so colours can differ a little
    from those of the whole; what fits into one tile is the same. Raises ValueError when `overlap` is not less
    than `tile`.
    """
    return tiled(vae.decode, raw_latents, tile=tile, overlap=overlap, out=vae.config.factor)


def _posterior(moments: Tensor) -> Posterior:
    mean, logvar = moments.chunk(2, 1)
    return Posterior(mean, logvar.clamp(-30, 20))


def _held(result: Tensor) -> Tensor:
    """Half precision ends at 65,504, and the published autoencoder of XL goes beyond it."""
    if result.dtype == torch.float16 and not result.isfinite().all():
        raise WeightsError(
            "the autoencoder overflows float16, as the one that came with Stable Diffusion XL does; run it "
            "in float32 or bfloat16, or take the weights known as sdxl-vae-fp16-fix"
        )
    return result
