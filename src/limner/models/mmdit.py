"""MMDiT, the transformer of Stable Diffusion 3 and 3.5 (Esser et al. 2024).

Latents are cut into patches, which keep weights of their own beside the text's in all blocks (`nn.joint`).
The text comes twice: as context, token by token, and pooled, added to the time. What the versions do
differently are values: 3.5 normalises queries and keys, and 3.5 medium looks at the picture alone once more
in its first blocks.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from limner.errors import RequestError
from limner.nn.embeddings import timestep_embedding
from limner.nn.joint import JointBlock, Modulation, layer_norm
from limner.nn.norms import modulate


@dataclass(frozen=True, kw_only=True, slots=True)
class MMDiTConfig:
    """Shape of an MMDiT."""

    latents: int = 16  # channels of the latents
    patch: int = 2  # side of a patch in latents
    depth: int = 24  # blocks
    heads: int = 24  # attention heads
    head_width: int = 64  # channels of a head
    context: int = 4096  # channels of the context
    pooled: int = 2048  # channels of the pooled text
    positions: int = 192  # side of the table of positions, in patches
    normed: bool = False  # whether queries and keys are normalised
    dual: int = 0  # so many of the first blocks look at the picture alone once more
    time_channels: int = 256  # of the sines and cosines of the time

    @property
    def width(self) -> int:
        """Channels of the token streams."""
        return self.heads * self.head_width


SD3_MEDIUM = MMDiTConfig()
SD35_MEDIUM = replace(SD3_MEDIUM, positions=384, normed=True, dual=13)
SD35_LARGE = replace(SD3_MEDIUM, depth=38, heads=38, normed=True)  # and Turbo

Control = tuple[Float[Tensor, "b n d"], ...]  # added to the picture's tokens, shared out evenly over blocks


class Patches(nn.Module):
    """Latents b c h w -> tokens b n d, with their places in a picture if there is a table of them."""

    def __init__(self, config: MMDiTConfig, channels: int, *, placed: bool = True) -> None:
        super().__init__()
        self.side = config.positions
        self.linear = nn.Conv2d(channels, config.width, config.patch, stride=config.patch)
        self.position = nn.Parameter(torch.zeros(1, self.side**2, config.width)) if placed else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Raises RequestError for pictures that are larger than the table."""
        cells = self.linear(x)
        height, width = cells.shape[2:]
        tokens: Tensor = rearrange(cells, "b d h w -> b (h w) d")
        if self.position is None:
            return tokens
        if max(height, width) > self.side:
            raise RequestError(
                f"a picture of {width} x {height} patches is larger than the {self.side} x {self.side} that "
                "this model knows places for; draw smaller"
            )
        top, left = (self.side - height) // 2, (self.side - width) // 2  # the middle of the table
        table = rearrange(self.position, "1 (h w) d -> 1 h w d", h=self.side)
        middle = table[:, top : top + height, left : left + width]
        return tokens + rearrange(middle, "1 h w d -> 1 (h w) d")


class Vector(nn.Module):
    """Time and pooled text in one vector, b d."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width = config.width
        self.channels = config.time_channels
        self.time = nn.Sequential(nn.Linear(self.channels, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled = nn.Sequential(nn.Linear(config.pooled, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Float[Tensor, " b"], pooled: Float[Tensor, "b p"]) -> Float[Tensor, "b d"]:
        waves = timestep_embedding(timestep, self.channels).to(pooled.dtype)
        return torch.add(self.time(waves), self.pooled(pooled))


class MMDiT(nn.Module):
    """(x, timestep, context, pooled) -> the velocity eps - x0. Height and width are multiples of `patch`."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch
        self.patches = Patches(config, config.latents)
        self.vector = Vector(config)
        self.context = nn.Linear(config.context, width)
        self.blocks = nn.ModuleList(
            JointBlock(
                width,
                config.heads,
                normed=config.normed,
                dual=index < config.dual,
                last=index == config.depth - 1,
            )
            for index in range(config.depth)
        )
        self.modulation = Modulation(width, 2)
        self.last = nn.Linear(width, patch * patch * config.latents)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        timestep: Float[Tensor, " b"],  # 1000 t
        context: Float[Tensor, "b m k"],
        pooled: Float[Tensor, "b p"],
        *,
        control: Control = (),  # from an MMDiTControl
        skip: Collection[int] = (),  # blocks to leave out, counted from 0
    ) -> Float[Tensor, "b c h w"]:
        """Raises RequestError as `Patches` does."""
        depth, patch = self.config.depth, self.config.patch
        tokens, vector, text = self.patches(x), self.vector(timestep, pooled), self.context(context)
        for index, block in enumerate(self.blocks):
            if index not in skip:
                tokens, text = block(tokens, text, vector)
            if control and index < depth - 1:
                tokens = tokens + control[index * len(control) // depth]
        cells = self.last(modulate(layer_norm(tokens), *self.modulation(vector)))
        height = x.shape[2] // patch
        pattern = "b (h w) (p q c) -> b c (h p) (w q)"
        velocity: Tensor = rearrange(cells, pattern, h=height, p=patch, q=patch)
        return velocity
