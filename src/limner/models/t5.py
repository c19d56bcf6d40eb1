"""T5's encoder, version 1.1: what reads long prompts for SD3, FLUX and the pixel cascades (Raffel et al.
2020; gated feed-forward layers from Shazeer 2020).

A pre-norm transformer without biases. Where words stand is told by a learned number per head that is added to
the attention's logits, one for each bucket of distances and the same in all blocks.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limner.nn.norms import RMSNorm


@dataclass(frozen=True, kw_only=True, slots=True)
class T5Config:
    """Shape of an encoder."""

    vocabulary: int = 32_128  # rows of the embedding; some more than there are tokens
    width: int = 512  # channels of the token stream
    head_width: int = 64  # channels of a head; together they need not be as wide as the stream
    heads: int = 6  # attention heads
    depth: int = 8  # transformer blocks
    inner: int = 1024  # channels inside a feed-forward layer
    buckets: int = 32  # of distances between two tokens, half of them for each direction
    distance: int = 128  # tokens from which on all is equally far


T5_SMALL = T5Config()
T5_BASE = replace(T5_SMALL, width=768, heads=12, depth=12, inner=2048)
T5_XL = replace(T5_SMALL, width=2048, heads=32, depth=24, inner=5120)
T5_XXL = replace(T5_SMALL, width=4096, heads=64, depth=24, inner=10_240)  # of SD3, FLUX and IF


class Norm(RMSNorm):
    """As RMSNorm, in the type of what comes and out in that of its scale."""

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        normed = F.rms_norm(x, (x.shape[-1],), self.scale.to(x.dtype), eps=1e-6)
        return normed.to(self.scale.dtype)


class Block(nn.Module):
    """Attention, then a gated feed-forward layer, b n d -> b n d.

    Logits are not divided by sqrt(d). The last product is taken in float32 where the network has float16: the
    published XXL overflows there. From then on the stream is float32, and only what goes into a layer is not.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        width, joined = config.width, config.heads * config.head_width
        self.heads = config.heads
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.q, self.k, self.v = (nn.Linear(width, joined, bias=False) for _ in range(3))
        self.out = nn.Linear(joined, width, bias=False)
        self.gate, self.inner = (nn.Linear(width, config.inner, bias=False) for _ in range(2))
        self.outer = nn.Linear(config.inner, width, bias=False)

    def forward(self, x: Float[Tensor, "b n d"], bias: Float[Tensor, "#b h n n"]) -> Float[Tensor, "b n d"]:
        seen = self.norm1(x)
        q, k, v = (
            rearrange(part(seen), "b n (h d) -> b h n d", h=self.heads) for part in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        x = x + self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        seen = self.norm2(x)
        gate, inner = F.gelu(self.gate(seen), approximate="tanh"), self.inner(seen)
        if seen.dtype == torch.float16:
            return torch.add(x.float(), F.linear(gate.float() * inner.float(), self.outer.weight.float()))
        return torch.add(x, self.outer(gate * inner))


class T5Encoder(nn.Module):
    """Tokens -> context."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.bucket = nn.Embedding(config.buckets, config.heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = Norm(config.width)

    def forward(
        self,
        tokens: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"] | None = None,  # False where nobody shall look, as at padding; None: all
    ) -> Float[Tensor, "b n d"]:
        """The rows after the final norm, those of padding included, in the type of the weights."""
        x = self.token(tokens)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        near = buckets(places[None] - places[:, None], self.config.buckets, self.config.distance)
        bias = rearrange(self.bucket(near), "n m h -> 1 h n m").to(x.dtype)
        if mask is not None:
            bias = torch.where(rearrange(mask, "b m -> b 1 1 m"), bias, torch.finfo(x.dtype).min)
        for block in self.blocks:
            x = block(x, bias.contiguous())
        context: Tensor = self.norm(x)
        return context


def buckets(offset: Int[Tensor, "n m"], count: int, distance: int) -> Int[Tensor, "n m"]:
    """In which of `count` buckets a key lies that stands `offset` tokens to the right of its query.

    The upper half is for keys to the right. In either half the first distances have a bucket each; the rest
    shares them in equal steps of the logarithm up to `distance` (Raffel et al. 2020, section 2.1).
    """
    half, exact = count // 2, count // 4
    far = offset.abs()
    steps = torch.log(far.clamp(min=1) / exact) / math.log(distance / exact) * (half - exact)
    shared = (exact + steps.long()).clamp(max=half - 1)
    return (offset > 0).long() * half + torch.where(far < exact, far, shared)
