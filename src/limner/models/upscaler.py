"""Upscaler: a small convolutional network that redraws a picture `factor` times larger.

All layers but the last run at the small size (the sub-pixel layout of Shi et al. 2016); the network adds detail to
a plain enlargement, and is told how much noise was put on its input, so that it can forgive the errors of the
network before it (noise-conditioning augmentation, Ho et al. 2022).
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscalerConfig:
    """Shape of an Upscaler."""

    factor: int = 4  # how many times larger
    channels: int = 40  # of every inner layer
    depth: int = 8  # inner layers


class Upscaler(nn.Module):
    """(pixels b 3 h w in [-1, 1], noise b) -> pixels b 3 (factor h) (factor w); noise is its standard deviation."""

    def __init__(self, config: UpscalerConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Conv2d(4, config.channels, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(config.channels, config.channels, 3, padding=1) for _ in range(config.depth))
        self.slope = nn.Parameter(torch.full((config.depth + 1, config.channels), 0.2))
        self.last = nn.Conv2d(config.channels, 3 * config.factor**2, 3, padding=1)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Set every weight: He et al. 2015 for the convolutions, zeros for the last, so that it starts as plain enlargement."""
        for layer in (self.first, *self.inner):
            nn.init.kaiming_normal_(layer.weight, a=0.2, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        nn.init.constant_(self.slope, 0.2)

    def forward(self, pixels: Float[Tensor, "b 3 h w"], noise: Float[Tensor, " b"]) -> Float[Tensor, "b 3 H W"]:
        level = noise[:, None, None, None].expand(-1, 1, *pixels.shape[2:])
        x = F.prelu(self.first(torch.cat([pixels, level], 1)), self.slope[0])
        for index in range(0, len(self.inner), 2):
            inner = F.prelu(self.inner[index](x), self.slope[index + 1])
            if index + 1 < len(self.inner):
                inner = F.prelu(self.inner[index + 1](inner), self.slope[index + 2])
            x = x + inner
        detail = rearrange(self.last(x), "b (c p q) h w -> b c (h p) (w q)", p=self.config.factor, q=self.config.factor)
        return detail + F.interpolate(pixels, scale_factor=self.config.factor, mode="bilinear", align_corners=False)
