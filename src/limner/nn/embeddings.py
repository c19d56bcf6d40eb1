"""Embeddings of time and place."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def timestep_embedding(
    timestep: Float[Tensor, " b"], width: int, *, period: float = 10_000.0
) -> Float[Tensor, "b d"]:
    """Cosines, then sines, at width / 2 frequencies that fall from 1 towards 1 / period (Ho et al. 2020)."""
    half = width // 2
    frequency = torch.exp(-math.log(period) * torch.arange(half, device=timestep.device) / half)
    angle = timestep.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1)


def guidance_embedding(excess: Float[Tensor, " b"], width: int) -> Float[Tensor, "b d"]:
    """Sines, then cosines, of 1000 times what the scale of guidance is above 1, at width / 2 frequencies from
    1 to 1 / 10,000, both included: what guidance-distilled networks are told (Meng et al. 2023; Luo et al.
    2023, section 4.2)."""
    half = width // 2
    step = math.log(10_000.0) / (half - 1)
    frequency = torch.exp(-step * torch.arange(half, device=excess.device))
    angle = (excess.float() * 1000)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def positions_2d(height: int, width: int, channels: int) -> Float[Tensor, "n d"]:
    """Sine-cosine positions of a height x width grid in row order, half of the channels for each axis."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    along = [timestep_embedding(axis.flatten(), channels // 2, period=100.0) for axis in (y, x)]
    return torch.cat(along, 1)
