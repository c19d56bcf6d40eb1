"""Convolutional blocks that the U-Nets and the autoencoders share."""

import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limner.nn.convolution import Conv2d


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))), after He et al. 2016 and Ho et al. 2020, appendix B.

    x is b i h w, the result b o h w; a 1x1 convolution carries x over where i and o differ. `time` is the
    embedded timestep, its silu already taken, since all blocks share it.
    """

    def __init__(
        self,
        inputs: int,  # channels of x
        outputs: int,  # channels of the result
        *,
        time: int | None = None,  # width of the embedded timestep; None where there is none (autoencoders)
        groups: int = 32,  # of the normalisation
        eps: float = 1e-5,  # of the normalisation; the autoencoders use 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps)
        self.conv1 = Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs) if time else None
        self.norm2 = nn.GroupNorm(groups, outputs, eps)
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1)
        self.skip = Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b i h w"], time: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, "b o h w"]:
        inner: Tensor = self.conv1(F.silu(self.norm1(x), inplace=True))
        if self.time is not None:
            inner += self.time(time)[:, :, None, None]
        inner = self.conv2(F.silu(self.norm2(inner), inplace=True))
        inner += self.skip(x)
        return inner


class Downsample(nn.Module):
    """Halves height and width, rounding up, by a 3x3 convolution of stride 2: b c h w -> b c h/2 w/2."""

    def __init__(self, channels: int, *, centred: bool = True) -> None:
        """`centred` pads a pixel on every side (U-Nets), otherwise at the bottom and right (autoencoders)."""
        super().__init__()
        self.centred = centred
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1 if centred else 0)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        halved: Tensor = self.conv(x if self.centred else F.pad(x, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Nearest pixels, then a 3x3 convolution: b c h w -> b c 2h 2w, or to `size` = (height, width)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "b c h w"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "b c H W"]:
        size = size or (2 * x.shape[2], 2 * x.shape[3])
        enlarged: Tensor = self.conv(F.interpolate(x, size, mode="nearest"))
        return enlarged
