"""VQ-VAE of two levels: a picture as a small grid of coarse codes and four times as many fine ones.

Coarse codes say what is where, fine ones how it looks there; the fine encoder sees what the coarse codes
already tell, so that it need not repeat it (Razavi et al. 2019, "VQ-VAE-2", algorithm 1 and figure 2).
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from limner.nn.quantize import Quantized, VectorQuantizer
from limner.nn.resnet import Downsample, ResBlock, Upsample

GROUPS = 8  # of every normalisation


@dataclass(frozen=True, kw_only=True, slots=True)
class VQVAEConfig:
    """Shape of a VQVAE."""

    size: int = 32  # side of the picture in pixels
    halvings: int = 2  # of the side, from pixels to fine codes; the coarse ones lie one halving further
    channels: int = 96  # of every inner layer
    depth: int = 2  # residual blocks at each place
    coarse_codes: int = 512  # in the coarse list
    fine_codes: int = 512  # in the fine list
    code_width: int = 16  # channels of a code

    def __post_init__(self) -> None:
        if self.halvings < 1 or self.size % 2 ** (self.halvings + 1):
            raise ValueError(
                f"halvings is at least 1 and size a multiple of 2^(halvings + 1), got {self.halvings} and "
                f"{self.size}"
            )
        if self.channels % GROUPS:
            raise ValueError(f"channels {self.channels} is not a multiple of {GROUPS}")

    @property
    def fine(self) -> int:
        """Side of the grid of fine codes; that of the coarse ones is half of it."""
        return self.size // (1 << self.halvings)


class VQVAE(nn.Module):
    """pixels b 3 size size in [-1, 1] <-> coarse codes b h w and fine codes b 2h 2w."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        channels, width = config.channels, config.code_width

        def blocks() -> nn.Sequential:
            return nn.Sequential(*(ResBlock(channels, channels, groups=GROUPS) for _ in range(config.depth)))

        halving: list[nn.Module] = []
        for index in range(config.halvings):
            inputs = channels if index else 12
            halving += [
                nn.PixelUnshuffle(2) if index == 0 else Downsample(channels),
                nn.Conv2d(inputs, channels, 3, padding=1),
                nn.SiLU(),
            ]
        self.encoder = nn.Sequential(*halving, blocks())
        self.further = nn.Sequential(Downsample(channels), blocks())
        self.to_coarse = nn.Conv2d(channels, width, 1)
        self.coarse = VectorQuantizer(config.coarse_codes, width)
        self.told = nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), blocks(), Upsample(channels))
        self.to_fine = nn.Conv2d(2 * channels, width, 1)
        self.fine = VectorQuantizer(config.fine_codes, width)
        self.from_codes = nn.Conv2d(channels + width, channels, 3, padding=1)
        doubling: list[nn.Module] = [blocks()]
        for _ in range(config.halvings - 1):
            doubling += [Upsample(channels), ResBlock(channels, channels, groups=GROUPS)]
        self.decoder = nn.Sequential(*doubling, nn.SiLU())
        self.last = nn.Conv2d(channels, 12, 3, padding=1)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Set every weight: He et al. 2015, residual branches nearly silent, a grey picture at first."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
                nn.init.zeros_(module.get_parameter("bias"))
            elif isinstance(module, nn.GroupNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, VectorQuantizer):
                module.initialize(generator)
        for module in self.modules():
            if isinstance(module, ResBlock):
                with torch.no_grad():
                    module.conv2.weight.mul_(0.1)
        nn.init.zeros_(self.last.weight)

    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> tuple[Int[Tensor, "b h w"], Int[Tensor, "b H W"]]:
        """(coarse, fine) codes of pictures."""
        coarse, fine = self.quantize(pixels)[:2]
        return coarse.tokens, fine.tokens

    def quantize(
        self, pixels: Float[Tensor, "b 3 s s"]
    ) -> tuple[Quantized, Quantized, Float[Tensor, "b d h w"], Float[Tensor, "b d H W"]]:
        """Both levels quantised, and the features that were: coarse, fine, coarse features, fine ones."""
        seen = self.encoder(pixels)
        z = self.to_coarse(self.further(seen))
        coarse = self.coarse(z)
        z_fine = self.to_fine(torch.cat([self.told(coarse.q), seen], 1))
        return coarse, self.fine(z_fine), z, z_fine

    def decode(self, coarse: Int[Tensor, "b h w"], fine: Int[Tensor, "b H W"]) -> Float[Tensor, "b 3 s s"]:
        """The picture of codes; -1 is a code that is not known yet."""
        return self.draw(self.coarse.look_up(coarse), self.fine.look_up(fine))

    def draw(
        self, coarse: Float[Tensor, "b d h w"], fine: Float[Tensor, "b d H W"]
    ) -> Float[Tensor, "b 3 s s"]:
        """The picture of quantised features."""
        x = self.decoder(self.from_codes(torch.cat([self.told(coarse), fine], 1)))
        return F.pixel_shuffle(self.last(x), 2)


def joined(coarse: Int[Tensor, "b h w"], fine: Int[Tensor, "b H W"]) -> Int[Tensor, "b n"]:
    """Both grids as one row of codes: coarse ones first, each in reading order."""
    return torch.cat([rearrange(grid, "b h w -> b (h w)") for grid in (coarse, fine)], 1)


def parted(codes: Int[Tensor, "b m"], side: int) -> tuple[Int[Tensor, "b h w"], Int[Tensor, "b H W"]]:
    """The two grids of a row of codes, the coarse one of `side` x `side`; -1 where the row is not that long
    yet."""
    whole = F.pad(codes, (0, 5 * side**2 - codes.shape[1]), value=-1)
    return (
        rearrange(whole[:, : side**2], "b (h w) -> b h w", h=side),
        rearrange(whole[:, side**2 :], "b (h w) -> b h w", h=2 * side),
    )
