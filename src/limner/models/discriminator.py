"""Discriminators: networks that tell drawn pictures from real ones, and so teach those that draw.

Both judge every place by itself. `PatchDiscriminator` (Isola et al. 2017, section 3.2.2; VQGAN, Esser et al.
2021) says it of overlapping patches, `UNetDiscriminator` (Schoenfeld et al. 2020; Real-ESRGAN, Wang et al.
2021, section 3.4) of every pixel. Neither remembers anything between calls, so that a checkpoint of their
parameters is all there is to them: the published ones keep running means of batches, or vectors of the power
iteration. Here groups are normalised in the place of batches, and spectral norms are found anew at each call.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SLOPE = 0.2  # of the leaky rectifiers
GROUP = 16  # channels that are normalised together, at most
SQUARINGS = 6  # of the matrix whose largest eigenvalue is wanted: as good as 64 rounds of the power iteration


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchConfig:
    """Shape of a PatchDiscriminator."""

    channels: int = 64  # of the first layer; they double up to eight times as many
    layers: int = 3  # that halve the picture; 3 see patches of 70 x 70 pixels

    def __post_init__(self) -> None:
        if self.channels < 1 or self.layers < 1:
            raise ValueError(f"channels and layers are at least 1, got {self.channels} and {self.layers}")

    @property
    def least(self) -> int:
        """Side of the smallest picture of which there is something to say."""
        return int(3 * 2**self.layers)


class PatchDiscriminator(nn.Module):
    """Pixels b 3 h w in [-1, 1] -> b 1 y x: above 0 where a patch looks real. Convolutions of 4 x 4."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * min(2**layer, 8) for layer in range(config.layers + 1)]
        self.first = nn.Conv2d(3, widths[0], 4, stride=2, padding=1)
        inner: list[nn.Module] = []
        for layer, (before, width) in enumerate(pairwise(widths), 1):
            stride = 2 if layer < config.layers else 1
            inner += [
                nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(max(1, width // GROUP), width),
                nn.LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*inner)
        self.last = nn.Conv2d(widths[-1], 1, 4, padding=1)
        for module in self.modules():  # as the paper has it (section 6.2)
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 y x"]:
        said: Tensor = self.last(self.layers(F.leaky_relu(self.first(pixels), SLOPE)))
        return said


class Bounded(nn.Conv2d):
    """A convolution whose weight is divided by its spectral norm (Miyato et al. 2018, equation 8), which
    therefore stretches nothing by more than the overlap of its kernels."""

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o y x"]:
        found: Tensor = self._conv_forward(x, self.weight / spectral_norm(self.weight), self.bias)
        return found


def spectral_norm(weight: Float[Tensor, "o *rest"]) -> Float[Tensor, ""]:
    """The largest singular value of a weight as a matrix of `o` rows, with its gradient (section 2.1).

    The power iteration of the paper goes on from step to step and remembers a vector for it; here the matrix
    W W^T is squared until one eigenvector is left.
    """
    rows = weight.flatten(1).float()
    rows = rows if rows.shape[0] <= rows.shape[1] else rows.mT
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        power = rows @ rows.mT
        for _ in range(SQUARINGS):
            power = power / power.diagonal().sum().clamp(min=1e-30)
            power = power @ power
        left = F.normalize(power[:, power.diagonal().argmax()], dim=0)
        right = F.normalize(left @ rows, dim=0)
    return (left @ rows @ right).clamp(min=1e-12)


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetDiscriminatorConfig:
    """Shape of a UNetDiscriminator. Sides of pictures are multiples of 8."""

    channels: int = 64  # at the size of the picture; twice as many whenever it is halved


class UNetDiscriminator(nn.Module):
    """Pixels b 3 h w in [-1, 1] -> b 1 h w: above 0 where a pixel looks real."""

    def __init__(self, config: UNetDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * 2**level for level in range(4)]
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Bounded(before, width, 4, stride=2, padding=1, bias=False) for before, width in pairwise(widths)
        )
        self.up = nn.ModuleList(
            Bounded(before, width, 3, padding=1, bias=False) for before, width in pairwise(widths[::-1])
        )
        self.high = nn.ModuleList(Bounded(widths[0], widths[0], 3, padding=1, bias=False) for _ in range(2))
        self.last = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        x = F.leaky_relu(self.first(pixels), SLOPE)
        kept = []
        for layer in self.down:
            kept.append(x)
            x = F.leaky_relu(layer(x), SLOPE)
        for layer in self.up:
            beside = kept.pop()
            x = F.interpolate(x, beside.shape[2:], mode="bilinear", align_corners=False)
            x = F.leaky_relu(layer(x), SLOPE) + beside
        for layer in self.high:
            x = F.leaky_relu(layer(x), SLOPE)
        said: Tensor = self.last(x)
        return said
