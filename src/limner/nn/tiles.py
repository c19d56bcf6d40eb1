"""Pictures too large for a network at once, in tiles that overlap."""

import math
from collections.abc import Callable
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor


def tiled(
    run: Callable[[Tensor], Tensor],
    x: Float[Tensor, "b c h w"],
    *,
    tile: int,  # side of a tile
    overlap: int,  # what neighbours share at least
    margin: int = 0,  # of that, what each tile leaves to its neighbour
    into: int = 1,  # width of one unit in x; tile, overlap and margin are counted in units
    out: int = 1,  # width of one unit in the result
) -> Float[Tensor, "b d H W"]:
    """`run` over tiles, so that memory beyond the picture's own does not grow with its size.

    A tile does not know its surroundings. Where nothing in `run` looks farther than `margin`, the result is
    that of the whole picture but for rounding; otherwise neighbours fade into each other over the rest of the
    overlap. What fits into one tile is the same. Raises ValueError when the overlap leaves a tile nothing of
    its own, or the margins leave nothing of the overlap.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} is not between 0 and tile {tile}")
    if not 0 <= 2 * margin <= overlap:
        raise ValueError(f"margin {margin} is not between 0 and half of the overlap {overlap}")
    height, width = -(-x.shape[2] // into), -(-x.shape[3] // into)
    if max(height, width) <= tile:
        return run(x)
    total = weights = x.new_zeros(())
    for (top, high), (left, wide) in product(_places(height, tile, overlap), _places(width, tile, overlap)):
        piece = run(x[:, :, top * into : (top + high) * into, left * into : (left + wide) * into])
        if not total.ndim:
            total = piece.new_zeros(*piece.shape[:2], height * out, width * out, dtype=torch.float32)
            weights = total.new_zeros(total.shape[2:])
        ramps = (
            _ramp(piece.shape[axis], first, last, margin * out, (overlap - 2 * margin) * out, total)
            for axis, first, last in (
                (2, top == 0, top + high == height),
                (3, left == 0, left + wide == width),
            )
        )
        weight = torch.outer(*ramps)
        rows = slice(top * out, top * out + piece.shape[2])
        columns = slice(left * out, left * out + piece.shape[3])
        total[:, :, rows, columns] += piece * weight
        weights[rows, columns] += weight
    ends = x.shape[2] * out // into, x.shape[3] * out // into  # the last unit may be cut
    return total.div_(weights.clamp_(min=1e-6))[:, :, : ends[0], : ends[1]].to(x.dtype)


def _places(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles begin and how long they are, so that they cover `length` evenly and share `overlap`."""
    gaps = math.ceil(max(length - tile, 0) / (tile - overlap))
    starts = [round(index * (length - tile) / gaps) for index in range(gaps + 1)] if gaps else [0]
    return [(start, min(tile, length)) for start in starts]


def _ramp(side: int, first: bool, last: bool, margin: int, over: int, like: Tensor) -> Float[Tensor, " s"]:
    """Weights of a tile along one axis: none in the margin, up over `over` numbers, one, and down again; at
    the picture's own edges one throughout."""
    near = torch.arange(1, side + 1, device=like.device).sub(margin).div(over + 1).clamp(0, 1)
    ones = torch.ones_like(near)
    return torch.minimum(ones if first else near, ones if last else near.flip(0))
