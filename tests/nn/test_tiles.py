"""Tiles together are the picture."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.tiles import tiled

RADIUS = 4  # of `looking`


def looking(x: Tensor) -> Tensor:
    """A network that looks four pixels around, enlarges twice, and does not care for zeros at edges."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), *(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))]
    for layer in layers:
        x = torch.relu(layer(x))
    return F.interpolate(nn.Conv2d(6, 3, 3, padding=1)(x), scale_factor=2, mode="nearest")


@pytest.mark.parametrize("size", [(9, 40), (40, 17), (33, 35), (12, 12), (16, 16), (1, 50)])
@pytest.mark.parametrize("fade", [0, 3])
@torch.no_grad()
def test_with_enough_margin_nothing_differs(size: tuple[int, int], fade: int) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    whole = looking(x)
    found = tiled(looking, x, tile=16, overlap=2 * RADIUS + fade, margin=RADIUS, out=2)
    assert found.shape == whole.shape
    assert (found - whole).abs().max() < 1e-6 * whole.abs().max()
    without = tiled(looking, x, tile=16, overlap=2 * RADIUS + fade, out=2)
    assert torch.equal(without, whole) == (max(size) <= 16)


@pytest.mark.parametrize("length", range(17, 60, 7))
def test_units_are_not_divided(length: int) -> None:
    """A network of squares of 2 x 2 pixels; an odd rest is cut off as the network does it."""
    seen: list[tuple[int, int]] = []

    def network(x: Tensor) -> Tensor:
        start = int(x[0, 0, 0, 0])
        seen.append((start, x.shape[3]))
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = torch.arange(length).float().expand(1, 3, 5, length)
    found = tiled(network, x, tile=8, overlap=4, margin=1, into=2, out=4)
    assert torch.allclose(found, network(x))
    seen.pop()  # of the line above
    tiles = sorted(set(seen))
    assert all(start % 2 == 0 for start, _ in tiles)
    assert all(wide == 16 or start + wide == length for start, wide in tiles)
    assert all(after - before <= 2 * (8 - 4) for (before, _), (after, _) in pairwise(tiles))


@pytest.mark.parametrize(
    "overlap, margin, said",
    [(8, 0, "overlap 8"), (-1, 0, "overlap -1"), (4, 3, "margin 3"), (4, -1, "margin")],
)
def test_tiles_that_cannot_be_are_refused(overlap: int, margin: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiled(looking, torch.zeros(1, 3, 20, 20), tile=8, overlap=overlap, margin=margin)
