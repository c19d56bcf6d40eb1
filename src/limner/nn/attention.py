"""Attention, one function for every network, by the quickest way for the device, the shape and the type.

That is torch's `scaled_dot_product_attention` but for two cases, both on the CPU with no gradients wanted:

- float32 and few keys, as with text: whole matrices. One core with AVX512, 8 heads, 77 keys, ms:
      4096 queries of 40 channels 23.6 -> 16.5; 1024 of 80 7.9 -> 4.2; 10 heads, 4096 of 64 36 -> 24
  (154 keys and more: torch's is twice as fast). With as many keys as queries torch's is faster in float32 on
  such a core, rows in blocks of 64 to 1,024 or not: 4096 of 40 152 -> 177; 1024 of 80 55 -> 61.
- bfloat16 and many keys: head after head in blocks of rows, channels filled up to a multiple of 32. Two cores
  of Zen 5, GFLOP/s: torch's 149 to 180; the products alone 239 (40 channels), 439 (80) and 398 (160).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

FEW, MANY = 96, 512  # keys up to which, and from which on, torch's way is left on the CPU
ROWS = 512  # queries at once where there are many keys
UNIT = 32  # channels that bfloat16 units take at once


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    *,
    mask: Bool[Tensor, "b m"] | None = None,  # True where a key may be seen; None shows all
    causal: bool = False,  # row i sees the keys up to i only; not together with a mask
) -> Float[Tensor, "b n hd"]:
    """softmax(q k^T / sqrt(d)) v, heads joined again (Vaswani et al. 2017, eq. 1)."""
    if mask is None and not causal and q.device.type == "cpu" and not torch.is_grad_enabled():
        if q.dtype == torch.float32 and k.shape[2] <= FEW <= q.shape[2]:
            return rearrange(_whole(q, k * q.shape[-1] ** -0.5, v), "b h n d -> b n (h d)")
        if q.dtype == torch.bfloat16 and k.shape[2] >= MANY:
            return _in_blocks(q, k * q.shape[-1] ** -0.5, v)
    bias = None if mask is None else mask[:, None, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)
    return rearrange(mixed, "b h n d -> b n (h d)")


def _whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula as it stands; the keys carry the scale, since they are fewer."""
    return (q @ k.mT).softmax(-1) @ v


def _in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    width = q.shape[-1]
    fill = (0, -width % UNIT)
    mixed = q.new_empty(q.shape[0], q.shape[2], q.shape[1], width)
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys, values = F.pad(k[row, head], fill), F.pad(v[row, head], fill)
            for start in range(0, q.shape[2], ROWS):
                some = F.pad(q[row, head, start : start + ROWS], fill)
                mixed[row, start : start + ROWS, head] = _whole(some, keys, values)[:, :width]
    return rearrange(mixed, "b n h d -> b n (h d)")


def qk_norm(x: Float[Tensor, "b h n d"], scale: Float[Tensor, " d"]) -> Float[Tensor, "b h n d"]:
    """RMS-normalise queries or keys, so that attention logits stay bounded (Henry et al. 2020)."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-6) * scale
