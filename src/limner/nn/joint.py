"""The block of SD3 and FLUX: a stream of picture tokens and one of text tokens, each with weights of its own,
that look at themselves and at each other in one attention (MM-DiT, Esser et al. 2024, figure 2b).

A vector that sums up time and text shifts and scales what goes into each layer, and gates what comes out
(Peebles & Xie 2023).
"""

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from limner.nn.attention import attention, qk_norm
from limner.nn.norms import modulate

Heads = tuple[Tensor, Tensor, Tensor]  # queries, keys and values, b h n d
Turn = Callable[[Tensor], Tensor]  # queries or keys of all tokens, text first, as their places turn them


def layer_norm(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Without weights: modulation takes their place."""
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


class Modulation(nn.Module):
    """A vector b d -> `count` shifts, scales and gates, b 1 d each."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(width, count * width)

    def forward(self, vector: Float[Tensor, "b d"]) -> tuple[Tensor, ...]:
        rows: Tensor = rearrange(self.linear(F.silu(vector)), "b (count d) -> count b 1 d", count=self.count)
        return rows.unbind(0)


class Projections(nn.Module):
    """Queries, keys and values of one stream, and the way back."""

    def __init__(self, width: int, heads: int, *, normed: bool, back: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width) if back else None
        self.q_scale, self.k_scale = (
            nn.Parameter(torch.ones(width // heads)) if normed else None for _ in range(2)
        )

    def forward(self, x: Float[Tensor, "b n d"]) -> Heads:
        q, k, v = (
            rearrange(part(x), "b n (h d) -> b h n d", h=self.heads) for part in (self.q, self.k, self.v)
        )
        if self.q_scale is not None and self.k_scale is not None:
            q, k = qk_norm(q, self.q_scale), qk_norm(k, self.k_scale)
        return q, k, v


class Stream(nn.Module):
    """One stream's part of a block. On its own it is a transformer block that looks at itself only."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        normed: bool,  # whether queries and keys are normalised
        dual: bool = False,  # whether it looks at itself once more (SD3.5 medium)
        last: bool = False,  # whether it is only looked at, and ends here
    ) -> None:
        super().__init__()
        self.modulation = Modulation(width, 2 if last else 9 if dual else 6)
        self.attention = Projections(width, heads, normed=normed, back=not last)
        self.own = Projections(width, heads, normed=normed) if dual else None
        self.inner = None if last else nn.Linear(width, 4 * width)
        self.outer = None if last else nn.Linear(4 * width, width)

    def enter(self, x: Float[Tensor, "b n d"], said: tuple[Tensor, ...]) -> Heads:
        """Queries, keys and values; `said` comes from the modulation."""
        heads: Heads = self.attention(modulate(layer_norm(x), *said[:2]))
        return heads

    def leave(
        self, x: Float[Tensor, "b n d"], seen: Float[Tensor, "b n d"], said: tuple[Tensor, ...]
    ) -> Float[Tensor, "b n d"]:
        """The stream after the block; `seen` is what the attention found for it."""
        if self.attention.out is None or self.inner is None or self.outer is None:
            return x
        _, _, gate, shift, scale, mlp_gate, *more = said
        y = x + gate * self.attention.out(seen)
        if self.own is not None and self.own.out is not None:
            heads = self.own(modulate(layer_norm(x), *more[:2]))
            y = y + more[2] * self.own.out(attention(*heads))
        inner = F.gelu(self.inner(modulate(layer_norm(y), shift, scale)), approximate="tanh")
        return torch.addcmul(y, mlp_gate, self.outer(inner))

    def forward(self, x: Float[Tensor, "b n d"], vector: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        said = self.modulation(vector)
        return self.leave(x, attention(*self.enter(x, said)), said)


class JointBlock(nn.Module):
    """(x, context, vector) -> (x, context), both b n d."""

    def __init__(
        self, width: int, heads: int, *, normed: bool, dual: bool = False, last: bool = False
    ) -> None:
        super().__init__()
        self.picture = Stream(width, heads, normed=normed, dual=dual)
        self.text = Stream(width, heads, normed=normed, last=last)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m d"],
        vector: Float[Tensor, "b d"],
        turn: Turn | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        about_x, about_text = self.picture.modulation(vector), self.text.modulation(vector)
        of_text, of_x = self.text.enter(context, about_text), self.picture.enter(x, about_x)
        q, k, v = (torch.cat(both, 2) for both in zip(of_text, of_x, strict=True))
        if turn is not None:
            q, k = turn(q), turn(k)
        seen = attention(q, k, v)
        words = context.shape[1]
        return (
            self.picture.leave(x, seen[:, words:], about_x),
            self.text.leave(context, seen[:, :words], about_text),
        )
