"""Vector quantisation: continuous features to the nearest of a list of codes, and back.

Codes are not moved by gradients but are running means of the features that chose them (van den Oord et al.
2017, appendix A.1); a code that nothing chooses any more is put where some feature of the batch lies.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """What came of quantising a batch of features."""

    q: Float[Tensor, "b d h w"]  # the chosen codes; gradients pass straight through to the features
    tokens: Int[Tensor, "b h w"]  # which ones
    commitment: Float[Tensor, ""]  # mean squared distance of the features from their codes


class VectorQuantizer(nn.Module):
    """A list of codes. `codes` and `use` are parameters, so that they are averaged, saved and resumed as all
    weights are, but no optimiser touches them: they change by `learn` alone."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(count, width), requires_grad=False)
        self.use = nn.Parameter(torch.ones(count), requires_grad=False)  # 1 is a fair share of the features

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Codes at random, all of them as if hardly used, so that the first features decide where they go."""
        nn.init.normal_(self.codes, std=0.5, generator=generator)
        nn.init.constant_(self.use, 0.1)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        """Each feature by its nearest code, in float32 under any autocast: bfloat16 confuses neighbours."""
        rows = rearrange(z.detach(), "b d h w -> b h w d").float()
        with torch.autocast(z.device.type, enabled=False):
            # |z - e|^2 = |z|^2 - 2 z e + |e|^2, and the first is the same for all codes
            distance = self.codes.square().sum(1) - 2 * rows @ self.codes.mT
        tokens = distance.argmin(-1)
        chosen = self.look_up(tokens)
        q = z + (chosen - z).detach()  # straight-through (van den Oord et al. 2017, section 3.2)
        return Quantized(q, tokens, F.mse_loss(z.float(), chosen))

    def look_up(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The codes of tokens; -1, a code that is not known yet, is the mean of all."""
        codes = torch.cat([self.codes, self.codes.mean(0, keepdim=True)])
        return rearrange(codes[tokens], "b h w d -> b d h w")  # -1 is the last row

    @torch.no_grad()
    def learn(
        self,
        z: Float[Tensor, "b d h w"],
        tokens: Int[Tensor, "b h w"],
        revive: Float[Tensor, " k"],  # in [0, 1), one for each code: which feature takes its place if it dies
        *,
        decay: float,  # of the running means, per batch
        least: float,  # share of a fair share below which a code is dead
    ) -> None:
        """Move every code towards the mean of the features that chose it.

        With N the running count and m the running sum of a code's features, N' = decay N + (1 - decay) n and
        e' = m' / N' (van den Oord et al. 2017, eqs. 6 to 8), which is e + (1 - decay) (sum - n e) / N'. A
        batch with a feature that is not finite changes nothing.
        """
        rows = rearrange(z.detach(), "b d h w -> (b h w) d").float()
        finite = rows.isfinite().all()
        rows = rows.nan_to_num(0, 0, 0)
        flat = tokens.flatten()
        fair = len(self.codes) / len(rows)  # counts as multiples of a fair share
        count = torch.zeros_like(self.use).index_add_(0, flat, torch.ones_like(rows[:, 0])) * fair
        total = torch.zeros_like(self.codes).index_add_(0, flat, rows) * fair
        use = decay * self.use + (1 - decay) * count
        moved = (
            self.codes + (1 - decay) * (total - count[:, None] * self.codes) / use.clamp_min(1e-6)[:, None]
        )
        dead = use < least
        reborn = rows[(revive * len(rows)).long().clamp_max(len(rows) - 1)]
        moved = torch.where(dead[:, None], reborn, moved)
        use = torch.where(dead, 4 * least, use)  # time to be chosen before it is looked at again
        self.codes.copy_(torch.where(finite, moved, self.codes))
        self.use.copy_(torch.where(finite, use, self.use))


def perplexity(tokens: Int[Tensor, "b h w"], count: int) -> Float[Tensor, ""]:
    """How many codes would be as surprising if all were equally frequent: exp of their entropy, 1 to
    `count`."""
    counted = torch.zeros(count, device=tokens.device)
    share = counted.index_add_(0, tokens.flatten(), torch.ones(tokens.numel(), device=tokens.device))
    share = share / tokens.numel()
    return torch.exp(torch.special.entr(share).sum())
