"""From logits to a token: guidance, temperature, what is left out, and the number that decides."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a token is chosen among the likely ones."""

    temperature: float = 1.0  # above 0; the lower, the surer
    top_k: int = 0  # only so many of the likeliest; 0: all
    top_p: float = 1.0  # only the likeliest that together have this share (Holtzman et al. 2020)


def guided(cond: Float[Tensor, "b k"], uncond: Float[Tensor, "b k"], scale: float) -> Float[Tensor, "b k"]:
    """uncond + scale (cond - uncond): classifier-free guidance on logits (Gafni et al. 2022, "Make-A-Scene").
    In probabilities that is p_uncond (p_cond / p_uncond)^scale, brought to a sum of 1."""
    return uncond + scale * (cond - uncond)


def chances(logits: Float[Tensor, "b k"], sampling: Sampling = Sampling()) -> Float[Tensor, "b k"]:
    """What is sampled from, in float64: softmax(logits / sampling.temperature), the unlikely left out."""
    p = (logits.double() / sampling.temperature).softmax(-1)
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < sampling.top_p  # the likeliest always is
    if sampling.top_k:
        kept[:, sampling.top_k :] = False
    p = p * torch.zeros_like(kept).scatter(-1, order, kept)
    return p / p.sum(-1, keepdim=True)


def choose(p: Float[Tensor, "b k"], u: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The token at share `u` in [0, 1] of the summed chances: one random number decides one token, whatever
    is drawn beside it."""
    total = p.cumsum(-1)
    found = torch.searchsorted(total, u.to(total)[:, None] * total[:, -1:], right=True)[:, 0]
    last = (p > 0).int().cumsum(-1).argmax(-1)  # u = 1 would be one past what has a chance
    return torch.minimum(found, last)
