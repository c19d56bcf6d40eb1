"""Between two vectors, along the sphere."""

import torch
from jaxtyping import Float
from torch import Tensor

STRAIGHT = 0.9995  # cosine from which, and below minus which, the arc cannot be told from the chord


def slerp(one: Float[Tensor, "*b d"], other: Float[Tensor, "*b d"], share: float) -> Float[Tensor, "*b d"]:
    """(sin((1 - share) w) one + sin(share w) other) / sin(w), w the angle between them (Shoemake 1985).

    `share` 0 is exactly `one`, 1 exactly `other`. Each row by itself, in float32; of rows that differ in
    length the length changes, too. Where w is 0 or half a turn there is no one arc, and the way is straight.
    """
    a, b = one.float(), other.float()
    lengths = (a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True)).clamp(min=1e-20)
    cosine = ((a * b).sum(-1, keepdim=True) / lengths).clamp(-1, 1)
    angle = cosine.acos()
    straight = (cosine.abs() > STRAIGHT) | (share in (0, 1))
    sine = torch.where(straight, 1.0, angle.sin())
    arc = ((1 - share) * angle).sin() / sine * a + (share * angle).sin() / sine * b
    return torch.where(straight, (1 - share) * a + share * b, arc).to(one.dtype)
