"""Upscalers trained against a discriminator: RRDBNet of ESRGAN and Real-ESRGAN, and its compact kin.

RRDBNet (Wang et al. 2018, "ESRGAN", figures 3 and 4; Real-ESRGAN, Wang et al. 2021, section 3.4) runs its
dense blocks at the small size and doubles twice at the end. For less than four times as large, the picture is
first folded, p x p neighbours into channels. Compact (SRVGGNetCompact of Real-ESRGAN's code, 2022) is a plain
stack at the small size whose last layer holds the pixels of the large one, laid over the nearest ones.

Both were trained on RGB in [0, 1]; here they take and give `pixels` in [-1, 1], as everything else does.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from limner.nn.convolution import channels_last

SLOPE = 0.2  # of the leaky rectifiers
RESIDUAL = 0.2  # share of what a block finds that is added (ESRGAN, section 3.1: residual scaling)


@dataclass(frozen=True, kw_only=True, slots=True)
class RRDBNetConfig:
    """Shape of an RRDBNet."""

    blocks: int = 23  # of three dense blocks each
    features: int = 64  # channels between blocks
    growth: int = 32  # channels that each layer of a dense block adds
    fold: int = 1  # side of the square of pixels that becomes one at the beginning
    doublings: int = 2  # at the end

    def __post_init__(self) -> None:
        if 2**self.doublings % self.fold:
            raise ValueError(f"doublings {self.doublings} and fold {self.fold} make no whole factor")

    @property
    def factor(self) -> int:
        """How many times larger the result is."""
        return int(2**self.doublings // self.fold)

    @property
    def radius(self) -> int:
        """How many pixels away a pixel still matters, at most."""
        layers = 3 * 5 * self.blocks + 2 + 2  # around the blocks; and the last ones, each finer than before
        return layers * self.fold


X4PLUS = RRDBNetConfig()  # RealESRGAN_x4plus, RealESRNet_x4plus, ESRGAN's own RRDB_ESRGAN_x4, BSRGAN
X2PLUS = replace(X4PLUS, fold=2)  # RealESRGAN_x2plus
X4PLUS_ANIME = replace(X4PLUS, blocks=6)  # RealESRGAN_x4plus_anime_6B


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactConfig:
    """Shape of a Compact."""

    features: int = 64  # channels of every inner layer
    depth: int = 32  # inner layers
    factor: int = 4  # how many times larger the result is
    fold: int = 1  # nothing is folded

    @property
    def radius(self) -> int:
        """How many pixels away a pixel still matters, at most."""
        return self.depth + 2


GENERAL_X4V3 = CompactConfig()  # realesr-general-x4v3 and its wdn twin
ANIME_VIDEO_V3 = replace(GENERAL_X4V3, depth=16)  # realesr-animevideov3


class DenseBlock(nn.Module):
    """Five convolutions, each seeing the results of all before it; b c h w -> b c h w."""

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        features, growth = config.features, config.growth
        widths = [growth] * 4 + [features]
        self.layers = nn.ModuleList(
            nn.Conv2d(features + index * growth, width, 3, padding=1) for index, width in enumerate(widths)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        seen = x
        for layer in self.layers[:-1]:
            seen = torch.cat([seen, F.leaky_relu(layer(seen), SLOPE, inplace=True)], 1)
        return torch.add(x, self.layers[-1](seen), alpha=RESIDUAL)


class RRDB(nn.Module):
    """Three dense blocks as a residual of a residual, b c h w -> b c h w."""

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        self.dense = nn.Sequential(*(DenseBlock(config) for _ in range(3)))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.add(x, self.dense(x), alpha=RESIDUAL)


class RRDBNet(nn.Module):
    """Pixels b 3 h w of any size -> pixels b 3 (factor h) (factor w), which may leave [-1, 1] a little."""

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        self.config = config
        features = config.features
        self.first = nn.Conv2d(3 * config.fold**2, features, 3, padding=1)
        self.blocks = nn.Sequential(*(RRDB(config) for _ in range(config.blocks)))
        self.middle = nn.Conv2d(features, features, 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(features, features, 3, padding=1) for _ in range(config.doublings))
        self.high = nn.Conv2d(features, features, 3, padding=1)
        self.last = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 H W"]:
        height, width = pixels.shape[2:]
        fold, factor = self.config.fold, self.config.factor
        whole = F.pad(pixels, (0, -width % fold, 0, -height % fold), mode="replicate")
        x = rearrange((whole + 1) / 2, "b c (h p) (w q) -> b (c p q) h w", p=fold, q=fold)
        x = self.first(channels_last(x))
        x = x + self.middle(self.blocks(x))
        for layer in self.up:
            x = F.leaky_relu(layer(F.interpolate(x, scale_factor=2, mode="nearest")), SLOPE, inplace=True)
        x = self.last(F.leaky_relu(self.high(x), SLOPE, inplace=True))
        return torch.sub(2 * x[:, :, : factor * height, : factor * width], 1)


class Compact(nn.Module):
    """Pixels b 3 h w of any size -> pixels b 3 (factor h) (factor w), which may leave [-1, 1] a little."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        features = config.features
        self.first = nn.Conv2d(3, features, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(features, features, 3, padding=1) for _ in range(config.depth))
        self.slopes = nn.ParameterList(torch.full((features,), 0.25) for _ in range(config.depth + 1))
        self.last = nn.Conv2d(features, 3 * config.factor**2, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 H W"]:
        factor = self.config.factor
        small = (pixels + 1) / 2
        x = F.prelu(self.first(channels_last(small)), self.slopes[0])
        for layer, slope in zip(self.inner, self.slopes[1:], strict=True):
            x = F.prelu(layer(x), slope)
        detail = rearrange(self.last(x), "b (c p q) h w -> b c (h p) (w q)", p=factor, q=factor)
        nearest = F.interpolate(small, scale_factor=factor, mode="nearest")
        return torch.sub(2 * (nearest + detail), 1)
