"""ControlNet: a copy of the U-Net's way down that looks at a condition picture (Zhang et al. 2023).

Edges, depth, a pose: what the copy makes of it is added to the U-Net through convolutions that are zero at
the start of training, so that training begins with the U-Net unchanged.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limner.models.unet import SD15, SD21, SDXL, Added, Control, Encoder, KeysValues, UNetConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlNetConfig:
    """Shape of a ControlNet."""

    unet: UNetConfig  # the U-Net it was made for
    inputs: int = 3  # channels of the condition picture
    channels: tuple[int, ...] = (16, 32, 96, 256)  # of its embedding; each after the first halves the size


CONTROLNET_SD15 = ControlNetConfig(unet=SD15)
CONTROLNET_SD21 = ControlNetConfig(unet=SD21)
CONTROLNET_SDXL = ControlNetConfig(unet=SDXL)


class ConditionEmbedding(nn.Module):
    """The condition picture at the size of the latents: b 3 8h 8w -> b c h w."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        channels = config.channels
        self.first = nn.Conv2d(config.inputs, channels[0], 3, padding=1)
        self.inner = nn.ModuleList()
        for width, wider in pairwise(channels):
            self.inner.append(nn.Conv2d(width, width, 3, padding=1))
            self.inner.append(nn.Conv2d(width, wider, 3, stride=2, padding=1))
        self.last = nn.Conv2d(channels[-1], config.unet.channels[0], 3, padding=1)

    def forward(self, condition: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        x = F.silu(self.first(condition))
        for layer in self.inner:
            x = F.silu(layer(x))
        embedded: Tensor = self.last(x)
        return embedded


class ControlNet(Encoder):
    """(x, timestep, context, condition) -> Control, handed to the U-Net, alone or summed with others."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config.unet)
        self.condition = ConditionEmbedding(config)
        self.down_out = nn.ModuleList(nn.Conv2d(channels, channels, 1) for channels in self.kept)
        self.middle_out = nn.Conv2d(self.kept[-1], self.kept[-1], 1)

    def look(self, condition: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The embedded condition picture, the same for all steps. Its values lie in [0, 1], unlike `pixels`;
        its height and width are eight times those of the latents."""
        embedded: Tensor = self.condition(condition)
        return embedded

    def forward(
        self,
        x: Float[Tensor, "b i h w"],
        timestep: Float[Tensor, " b"],
        context: Float[Tensor, "b n d"] | tuple[KeysValues, ...],
        seen: Float[Tensor, "#b c h w"],
        *,
        added: Added | None = None,
        weight: float = 1.0,
    ) -> Control:
        """What to add to the U-Net, times `weight`. `seen` comes from `look`; the rest is what the U-Net is
        given too (see `UNet.forward`), but `context` as keys and values has to come from this network."""
        time = self.embed(timestep, added, x.dtype)
        x, kept = self.descend(self.first(x) + seen, time, self.text(context))
        down = (layer(one) * weight for layer, one in zip(self.down_out, kept, strict=True))
        return Control(tuple(down), self.middle_out(x) * weight)
