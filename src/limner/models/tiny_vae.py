"""A small autoencoder for previews, of the shape of TAESD (Boer Bohan 2023, github.com/madebyollin/taesd).

It works on scaled `latents`, not on raw ones, and its decoder has 1.2 million weights where the real
one has 50: good enough to watch a picture appear.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyVAEConfig:
    """Shape of a TinyVAE."""

    latents: int = 4  # channels of the latents
    width: int = 64  # channels of every inner layer
    blocks: tuple[int, ...] = (1, 3, 3, 3)  # residual blocks of each level, the finest first

    @property
    def factor(self) -> int:
        """How many pixels a latent is wide and high."""
        return int(2 ** (len(self.blocks) - 1))


TAESD = TinyVAEConfig()  # also taesdxl: the same shape, other weights
TAESD3 = replace(TAESD, latents=16)  # also taef1


class Block(nn.Module):
    """relu(x + three convolutions), b c h w -> b c h w."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, outer, last = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(inner, nn.ReLU(), outer, nn.ReLU(), last)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.relu(x + self.conv(x))


class TinyVAE(nn.Module):
    """Pixels in [-1, 1], b 3 h w, <-> latents, b c h/factor w/factor."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        width, deepest = config.width, len(config.blocks) - 1
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        for level, count in enumerate(config.blocks):
            self.encoder.append(
                nn.Conv2d(width if level else 3, width, 3, 2 if level else 1, padding=1, bias=level == 0)
            )
            self.encoder.extend(Block(width) for _ in range(count))
        self.encoder.append(nn.Conv2d(width, config.latents, 3, padding=1))
        self.decoder.extend([nn.Conv2d(config.latents, width, 3, padding=1), nn.ReLU()])
        for level, count in enumerate(reversed(config.blocks)):
            self.decoder.extend(Block(width) for _ in range(count))
            if level < deepest:
                enlarge = nn.Upsample(scale_factor=2)
                self.decoder.extend([enlarge, nn.Conv2d(width, width, 3, padding=1, bias=False)])
        self.decoder.append(nn.Conv2d(width, 3, 3, padding=1))

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Scaled latents, as a U-Net wants them."""
        latents: Tensor = self.encoder((pixels + 1) / 2)
        return latents

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pixels from scaled latents; they may leave [-1, 1] a little."""
        return torch.sub(2 * self.decoder(3 * torch.tanh(latents / 3)), 1)
