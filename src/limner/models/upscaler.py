"""Upscaler: a small convolutional network that redraws a picture `factor` times larger.

All layers but the last run at the small size (the sub-pixel layout of Shi et al. 2016); the network adds
detail to a plain enlargement, and is told how much noise was put on its input, so that it can forgive the
errors of the network before it (noise-conditioning augmentation, Ho et al. 2022).
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from limner.nn.convolution import channels_last


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscalerConfig:
    """Shape of an Upscaler."""

    factor: int = 4  # how many times larger
    channels: int = 40  # of every inner layer
    depth: int = 8  # inner layers


class Upscaler(nn.Module):
    """(pixels b 3 h w in [-1, 1], noise b: its standard deviation) -> pixels b 3 (factor h) (factor w)."""

    def __init__(self, config: UpscalerConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Conv2d(4, config.channels, 3, padding=1)
        channels = config.channels
        self.inner = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(config.depth))
        self.slope = nn.Parameter(torch.full((config.depth + 1, channels), 0.2))
        self.last = nn.Conv2d(channels, 3 * config.factor**2, 3, padding=1)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Set every weight: He et al. 2015, but zeros in the last layer: at first, it only enlarges."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=0.2, generator=generator)
                nn.init.zeros_(layer.get_parameter("bias"))
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.slope, 0.2)

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"], noise: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 H W"]:
        factor = self.config.factor
        level = noise[:, None, None, None].expand(-1, 1, *pixels.shape[2:])
        x = F.prelu(self.first(channels_last(torch.cat([pixels, level], 1))), self.slope[0])
        for index in range(0, len(self.inner), 2):
            inner = F.prelu(self.inner[index](x), self.slope[index + 1])
            if index + 1 < len(self.inner):
                inner = F.prelu(self.inner[index + 1](inner), self.slope[index + 2])
            x = x + inner
        detail = rearrange(self.last(x), "b (c p q) h w -> b c (h p) (w q)", p=factor, q=factor)
        plain = F.interpolate(pixels, scale_factor=factor, mode="bilinear", align_corners=False)
        return torch.add(plain, detail)

    def enlarge(
        self, pixels: Float[Tensor, "b 3 h w"], noise: Float[Tensor, " b"], size: int
    ) -> Float[Tensor, "b 3 size size"]:
        """Redraw at size x size, a multiple of the factor: where the network would arrive at another size,
        `prepared` makes up for it."""
        return torch.as_tensor(self(prepared(pixels, size // self.config.factor), noise))


def prepared(pixels: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 side side"]:
    """Pixels as the network is given them: resized by cubic interpolation, unless they have that side."""
    if pixels.shape[2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bicubic", align_corners=False)
