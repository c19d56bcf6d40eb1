"""ControlNet for the MMDiT: a few blocks of its own that look at a condition picture beside the latents.

Two kinds are published for diffusers. The first has joint blocks, which hear the text (InstantX for SD3
medium, six or twelve of them). The second, of Stability AI for SD3.5 large, has blocks of the picture alone
and cuts latents into patches by the weights of the network that it steers.
"""

from dataclasses import dataclass, replace

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from limner.models.mmdit import SD3_MEDIUM, SD35_LARGE, Control, MMDiTConfig, Patches, Vector
from limner.nn.joint import JointBlock, Stream


@dataclass(frozen=True, kw_only=True, slots=True)
class MMDiTControlConfig:
    """Shape of a control network."""

    network: MMDiTConfig  # as of the MMDiT it was made for, but its own depth
    joint: bool = True  # whether its blocks hear the text, and it knows how to cut patches
    zeros: bool = (
        True  # whether it is told zeros in place of the pooled text, and latents without their shift
    )


CONTROL_SD3_MEDIUM = MMDiTControlConfig(network=replace(SD3_MEDIUM, depth=6))  # canny, pose, tile
CONTROL_SD3_DEPTH = MMDiTControlConfig(network=replace(SD3_MEDIUM, depth=12))
CONTROL_SD35_LARGE = MMDiTControlConfig(
    network=replace(SD35_LARGE, depth=19, normed=False), joint=False, zeros=False
)


class MMDiTControl(nn.Module):
    """(x, timestep, context, pooled, condition) -> Control, handed to the MMDiT, alone or summed with
    others."""

    def __init__(self, config: MMDiTControlConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.network
        width, heads, normed = shape.width, shape.heads, shape.normed
        self.patches = Patches(shape, shape.latents) if config.joint else None
        self.condition = Patches(shape, shape.latents, placed=False)
        self.vector = Vector(shape)
        self.context = nn.Linear(shape.context, width) if config.joint else None
        self.blocks = nn.ModuleList(
            JointBlock(width, heads, normed=normed, dual=index < shape.dual)
            if config.joint
            else Stream(width, heads, normed=normed)
            for index in range(shape.depth)
        )
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(shape.depth))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        timestep: Float[Tensor, " b"],
        context: Float[Tensor, "b m k"],
        pooled: Float[Tensor, "b p"],
        condition: Float[Tensor, "#b c h w"],  # latents of the condition picture
        patches: Patches,  # those of the MMDiT, for networks that have none
        *,
        weight: float = 1.0,
    ) -> Control:
        """What to add to the MMDiT's tokens, times `weight`."""
        tokens = (self.patches or patches)(x) + self.condition(condition)
        vector = self.vector(timestep, pooled.new_zeros(pooled.shape) if self.config.zeros else pooled)
        text = None if self.context is None else self.context(context)
        found = []
        for block, out in zip(self.blocks, self.outs, strict=True):
            if text is None:
                tokens = block(tokens, vector)
            else:
                tokens, text = block(tokens, text, vector)
            found.append(out(tokens) * weight)
        return tuple(found)
