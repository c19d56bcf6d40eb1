"""Normalisation, modulation and the gated feed-forward layer."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis (Zhang & Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (x.shape[-1],), self.scale, eps=1e-6)


class SwiGLU(nn.Module):
    """silu(x W) * (x V) through a third matrix (Shazeer 2020); 8/3 of the width, rounded up to 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = -(-8 * width // (3 * 64)) * 64
        self.inner = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        gate, value = self.inner(x).chunk(2, -1)
        projected: Tensor = self.out(F.silu(gate) * value)
        return projected


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
) -> Float[Tensor, "b n d"]:
    """Adaptive normalisation: x (1 + scale) + shift (Peebles & Xie 2023, "adaLN")."""
    return torch.addcmul(shift, x, 1 + scale)
