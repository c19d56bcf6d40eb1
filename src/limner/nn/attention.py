"""Attention, one function for every network."""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    *,
    mask: Bool[Tensor, "b m"] | None = None,  # True where a key may be seen; None shows all
    causal: bool = False,  # row i sees the keys up to i only; not together with a mask
) -> Float[Tensor, "b n hd"]:
    """softmax(q k^T / sqrt(d)) v, heads joined again (Vaswani et al. 2017, eq. 1)."""
    bias = None if mask is None else mask[:, None, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)
    return rearrange(mixed, "b h n d -> b n (h d)")


def qk_norm(x: Float[Tensor, "b h n d"], scale: Float[Tensor, " d"]) -> Float[Tensor, "b h n d"]:
    """RMS-normalise queries or keys, so that attention logits stay bounded (Henry et al. 2020)."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-6) * scale
