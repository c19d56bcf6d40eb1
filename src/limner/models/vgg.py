"""The convolutions of VGG (Simonyan & Zisserman 2015, table 1, D and E), by which pictures are compared.

Two pictures look alike where they look alike to a network that names things (Johnson et al. 2016). Weights
are the user's: those that torchvision publishes, as a safetensors file.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures in [0, 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class VGGConfig:
    """Shape of a VGG."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels of each level, the finest first
    layers: tuple[int, ...] = (2, 2, 3, 3, 3)  # convolutions of each level

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """Where torchvision counts them in its row of convolutions, rectifiers and poolings, by level."""
        places, at = [], 0
        for count in self.layers:
            places.append(tuple(range(at, at + 2 * count, 2)))
            at += 2 * count + 1
        return tuple(places)


VGG16 = VGGConfig()
VGG19 = VGGConfig(layers=(2, 2, 4, 4, 4))


class VGG(nn.Module):
    """Pixels b 3 h w in [-1, 1] -> what the last convolution of each level finds, before its rectifier."""

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        self.config = config
        before = 3
        self.levels = nn.ModuleList()
        for width, count in zip(config.widths, config.layers, strict=True):
            inputs = (before, *[width] * (count - 1))
            self.levels.append(nn.ModuleList(nn.Conv2d(each, width, 3, padding=1) for each in inputs))
            before = width

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        mean, deviation = (
            torch.tensor(values, device=pixels.device, dtype=pixels.dtype)[:, None, None]
            for values in (MEAN, DEVIATION)
        )
        x, found = ((pixels + 1) / 2 - mean) / deviation, []
        for index, level in enumerate(self.levels):
            assert isinstance(level, nn.ModuleList)
            x = F.max_pool2d(F.relu(x), 2) if index else x
            for number, layer in enumerate(level):
                x = layer(F.relu(x) if number else x)
            found.append(x)
        return found
