"""ControlNet for FLUX: a few blocks of its own that look at a condition picture beside the latents, in the
layout of diffusers (InstantX, Shakker Labs, Jasper)."""

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from limner.models.flux import FluxConfig, FluxControl, Trunk


class FluxControlNet(Trunk):
    """(x, t, text, condition) -> FluxControl, handed to the Flux, alone or summed with others."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__(config)
        width = config.width
        self.condition = nn.Linear(config.latents * config.patch**2, width)
        self.double_outs = nn.ModuleList(nn.Linear(width, width) for _ in range(config.double))
        self.single_outs = nn.ModuleList(nn.Linear(width, width) for _ in range(config.single))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        pooled: Float[Tensor, "b p"],
        condition: Float[Tensor, "#b c h w"],  # latents of the condition picture
        *,
        guidance: Float[Tensor, " b"] | None = None,
        weight: float = 1.0,
    ) -> FluxControl:
        """What to add to the Flux's tokens, times `weight`; the rest as for the Flux."""
        dtype = self.picture.weight.dtype
        vector, turn = self.vector(t, pooled, guidance), self.turn(x, context)
        rows = self.picture(self.pack(x).to(dtype)) + self.condition(self.pack(condition).to(dtype))
        text = self.text(context.to(dtype))
        double, single = [], []
        for block, out in zip(self.doubles, self.double_outs, strict=True):
            rows, text = block(rows, text, vector, turn)
            double.append(out(rows) * weight)
        both = torch.cat([text, rows], 1)
        for block, out in zip(self.singles, self.single_outs, strict=True):
            both = block(both, vector, turn)
            single.append(out(both[:, text.shape[1] :]) * weight)
        return FluxControl(tuple(double), tuple(single))
