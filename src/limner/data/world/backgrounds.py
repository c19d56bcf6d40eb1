"""Backgrounds: ten plain colours, gradients between two of them, and nine drawn settings.

Every painter works on coordinates in [0, 1], so a background is the same picture at every size; edges are
softened over one pixel. Colours are RGB in [0, 1] until `World.render` turns the finished picture into
pixels.
"""

import math
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

PALETTE = {  # the ten colours of GenEval, as we paint them (RGB)
    "red": (222, 45, 48),
    "orange": (247, 140, 33),
    "yellow": (253, 214, 54),
    "green": (58, 168, 76),
    "blue": (52, 112, 220),
    "purple": (136, 74, 182),
    "pink": (247, 143, 187),
    "brown": (136, 87, 54),
    "black": (32, 32, 36),
    "white": (246, 246, 246),
}

# (x, y: 1 size size, texture: n 24) -> rgb n 3 size size
Painter = Callable[[Tensor, Tensor, Tensor], Tensor]


def paint(
    kind: Int[Tensor, " b"], colours: Int[Tensor, "b 2"], texture: Float[Tensor, "b r"], size: int
) -> Float[Tensor, "b 3 size size"]:
    """One background per row, RGB in [0, 1]; `kind` is 0 plain, 1 gradient, 2.. an index into SETTINGS."""
    device = texture.device
    palette = torch.tensor(list(PALETTE.values()), device=device) / 255
    at = (torch.arange(size, device=device) + 0.5) / size
    y, x = at[:, None].expand(size, size)[None], at[None, :].expand(size, size)[None]
    picture = palette[colours[:, 0]][:, :, None, None].repeat(1, 1, size, size)
    rows = (kind == 1).nonzero().squeeze(1)
    if len(rows):
        angle = texture[rows, 0, None, None] * 2 * math.pi
        along = ((x - 0.5) * angle.cos() + (y - 0.5) * angle.sin() + 0.5).clamp(0, 1)[:, None]
        second = palette[colours[rows, 1]][:, :, None, None]
        picture[rows] = picture[rows].lerp(second.expand(-1, -1, size, size), along)
    for index, painter in enumerate(SETTINGS.values()):
        rows = (kind == 2 + index).nonzero().squeeze(1)
        if len(rows):
            picture[rows] = painter(x, y, texture[rows])
    return picture


def _rgb(*rgb: int) -> Tensor:
    return torch.tensor(rgb).view(3, 1, 1) / 255


def _vertical(y: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    """A vertical blend, 1 3 size size."""
    return top.to(y.device).lerp(bottom.to(y.device), y[:, None])


def _over(picture: Tensor, colour: Tensor, amount: Tensor) -> Tensor:
    """Lay `colour` (3 1 1 or n 3 size size) over the picture where amount (n size size) is 1."""
    return picture + (colour.to(picture.device) - picture) * amount[:, None]


def _below(x: Tensor, y: Tensor, level: Tensor, swing: float, waves: float, phase: Tensor) -> Tensor:
    """1 below a wavy line at height `level` (n), else 0, softened over a pixel: n size size."""
    line = level[:, None, None] + swing * torch.sin(2 * math.pi * (waves * x + phase[:, None, None]))
    return ((y - line) * y.shape[-1] + 0.5).clamp(0, 1)


def _dots(x: Tensor, y: Tensor, places: Tensor, radius: float | Tensor, flat: float = 1.0) -> Tensor:
    """Soft round spots at places (n, m, 2): n size size in [0, 1]; flat < 1 squeezes them vertically."""
    dx = x[:, None] - places[..., 0, None, None]
    dy = (y[:, None] - places[..., 1, None, None]) / flat
    distance = (dx.square() + dy.square()).sqrt()
    return ((radius - distance) * y.shape[-1] + 0.5).clamp(0, 1).amax(1)


def _points(texture: Tensor, start: int, count: int) -> Tensor:
    return rearrange(texture[:, start : start + 2 * count], "n (m two) -> n m two", two=2)


def _clouds(x: Tensor, y: Tensor, texture: Tensor, height: float) -> Tensor:
    """Three puffs per cloud, three clouds, in the upper part of the picture."""
    middle = _points(texture, 4, 3) * torch.tensor([1.0, height], device=texture.device)
    puffs = torch.tensor([[-0.07, 0.015], [0.0, -0.015], [0.07, 0.015]], device=texture.device)
    places = rearrange(middle[:, :, None] + puffs, "n m p two -> n (m p) two")
    return _dots(x, y, places, 0.075, flat=0.6)


def _sky(x: Tensor, y: Tensor, texture: Tensor) -> Tensor:
    blue = _vertical(y, _rgb(96, 170, 240), _rgb(190, 226, 250)).expand(len(texture), -1, -1, -1)
    return _over(blue, _rgb(252, 253, 255), 0.9 * _clouds(x, y, texture, 1.0))


def _night(x: Tensor, y: Tensor, texture: Tensor) -> Tensor:
    dark = _vertical(y, _rgb(12, 20, 62), _rgb(44, 62, 122)).expand(len(texture), -1, -1, -1)
    return _over(dark, _rgb(250, 244, 200), _dots(x, y, _points(texture, 2, 11), 0.012))


def _space(x: Tensor, y: Tensor, texture: Tensor) -> Tensor:
    black = _vertical(y, _rgb(10, 8, 22), _rgb(18, 10, 36)).expand(len(texture), -1, -1, -1)
    cloud = _points(texture, 0, 1)
    dx, dy = x - cloud[:, 0, 0, None, None], y - cloud[:, 0, 1, None, None]
    nebula = _over(black, _rgb(104, 46, 140), 0.7 * (-9 * (dx.square() + dy.square())).exp())
    return _over(nebula, _rgb(255, 255, 255), _dots(x, y, _points(texture, 2, 11), 0.010))


def _sea(x: Tensor, y: Tensor, texture: Tensor) -> Tensor:
    air = _vertical(y, _rgb(150, 206, 246), _rgb(226, 242, 252)).expand(len(texture), -1, -1, -1)
    level = 0.40 + 0.08 * texture[:, 0]
    water = _over(air, _rgb(36, 112, 184), _below(x, y, level, 0.008, 5.0, texture[:, 1]))
    return _over(water, _rgb(24, 88, 158), _below(x, y, level + 0.25, 0.012, 3.0, texture[:, 2]))


def _beach(x: Tensor, y: Tensor, texture: Tensor) -> Tensor:
    air = _vertical(y, _rgb(120, 196, 246), _rgb(226, 242, 252)).expand(len(texture), -1, -1, -1)
    level = 0.34 + 0.06 * texture[:, 0]
    water = _over(air, _rgb(46, 148, 200), _below(x, y, level, 0.0, 1.0, texture[:, 1]))
    return _over(water, _rgb(240, 214, 156), _below(x, y, level + 0.2, 0.02, 1.5, texture[:, 2]))


def _grass(x: Tensor, y: Tensor, texture: Tensor) -> Tensor:
    air = _vertical(y, _rgb(134, 200, 246), _rgb(216, 238, 250)).expand(len(texture), -1, -1, -1)
    level = 0.44 + 0.08 * texture[:, 0]
    hills = _over(air, _rgb(132, 196, 92), _below(x, y, level, 0.04, 1.0, texture[:, 1]))
    return _over(hills, _rgb(96, 170, 70), _below(x, y, level + 0.22, 0.03, 1.3, texture[:, 2]))


def _snow(x: Tensor, y: Tensor, texture: Tensor) -> Tensor:
    air = _vertical(y, _rgb(150, 178, 208), _rgb(206, 222, 236)).expand(len(texture), -1, -1, -1)
    level = 0.52 + 0.08 * texture[:, 0]
    ground = _over(air, _rgb(244, 248, 252), _below(x, y, level, 0.03, 1.0, texture[:, 1]))
    return _over(ground, _rgb(252, 254, 255), _dots(x, y, _points(texture, 2, 11), 0.014))


def _desert(x: Tensor, y: Tensor, texture: Tensor) -> Tensor:
    air = _vertical(y, _rgb(250, 190, 120), _rgb(254, 228, 178)).expand(len(texture), -1, -1, -1)
    level = 0.48 + 0.08 * texture[:, 0]
    dunes = _over(air, _rgb(226, 166, 94), _below(x, y, level, 0.06, 1.0, texture[:, 1]))
    return _over(dunes, _rgb(204, 140, 72), _below(x, y, level + 0.2, 0.05, 1.4, texture[:, 2]))


def _room(x: Tensor, y: Tensor, texture: Tensor) -> Tensor:
    wall = _vertical(y, _rgb(232, 222, 206), _rgb(240, 232, 218)).expand(len(texture), -1, -1, -1)
    level = 0.66 + 0.06 * texture[:, 0]
    floor = _over(wall, _rgb(250, 250, 248), _below(x, y, level - 0.03, 0.0, 1.0, texture[:, 1]))
    floor = _over(floor, _rgb(176, 122, 78), _below(x, y, level, 0.0, 1.0, texture[:, 1]))
    left = 0.12 + 0.5 * texture[:, 3, None, None]
    inside = torch.minimum(torch.minimum(x - left, left + 0.26 - x), torch.minimum(y - 0.1, 0.4 - y))
    window = (inside * y.shape[-1] + 0.5).clamp(0, 1)
    return _over(floor, _rgb(176, 214, 240), window)


SETTINGS: dict[str, Painter] = {
    "sky": _sky,
    "night": _night,
    "space": _space,
    "sea": _sea,
    "beach": _beach,
    "grass": _grass,
    "snow": _snow,
    "desert": _desert,
    "room": _room,
}
