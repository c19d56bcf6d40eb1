"""Scenes of the drawn world: what stands where, and the picture of it at any size.

A `Scenes` value is a batch of descriptions on one device; `render` draws it at 64, 128, 256 or 512 pixels,
always the same scene. Everything is batched: the only Python loops run over the five places of a scene, never
over pictures.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limner.data.world.art import LETTERS, Atlas
from limner.data.world.backgrounds import PALETTE, SETTINGS, paint
from limner.errors import DataError

COLOURS = tuple(PALETTE)  # the ten colours of GenEval
BACKGROUNDS = (*COLOURS, "gradient", *SETTINGS)
PLACES = 5  # objects in a scene, at most
SMALL, LARGE = 0.62, 1.18  # what the words for sizes make of an object's side
LIFT, SHRINK = 0.12, 0.8  # room for a word: an object moves up by this share of the canvas, its side shrinks
RELATIONS = ("left of", "right of", "above", "below")

# Layouts: name -> (centre x, centre y, side) per place, shares of the canvas.
LAYOUTS = {
    "one": ((0.50, 0.50, 0.72),),
    "row of two": ((0.26, 0.50, 0.45), (0.74, 0.50, 0.45)),
    "column of two": ((0.50, 0.26, 0.45), (0.50, 0.74, 0.45)),
    "triangle": ((0.27, 0.28, 0.42), (0.73, 0.28, 0.42), (0.50, 0.73, 0.42)),
    "peak": ((0.50, 0.27, 0.42), (0.27, 0.72, 0.42), (0.73, 0.72, 0.42)),
    "square": ((0.27, 0.27, 0.42), (0.73, 0.27, 0.42), (0.27, 0.73, 0.42), (0.73, 0.73, 0.42)),
    "two and three": (
        *((0.30, 0.28, 0.36), (0.70, 0.28, 0.36)),
        *((0.19, 0.73, 0.31), (0.50, 0.73, 0.31), (0.81, 0.73, 0.31)),
    ),
    "one over group of two": ((0.50, 0.25, 0.44), (0.27, 0.74, 0.42), (0.73, 0.74, 0.42)),
    "two over one": ((0.27, 0.26, 0.42), (0.73, 0.26, 0.42), (0.50, 0.75, 0.44)),
    "two beside one": ((0.26, 0.27, 0.42), (0.26, 0.73, 0.42), (0.74, 0.50, 0.45)),
    "one beside two": ((0.26, 0.50, 0.45), (0.74, 0.27, 0.42), (0.74, 0.73, 0.42)),
}
_LAYOUT_NAMES = tuple(LAYOUTS)

# Kinds of scene -> the layouts it may use. A scene has one or two groups; a group is `count` of one object.
KINDS: dict[str, tuple[str, ...]] = {
    "single": ("one",),
    "count": ("row of two", "column of two", "triangle", "peak", "square"),
    "pair": ("row of two", "column of two"),  # two objects, the caption says and
    "relation": ("row of two", "column of two"),  # two objects, the caption says where
    "group relation": ("one over group of two", "two over one", "two beside one", "one beside two"),
    "several": ("triangle", "peak", "square", "two and three"),  # three to five different objects
}
MIX = {"single": 0.26, "count": 0.20, "pair": 0.12, "relation": 0.30, "group relation": 0.05, "several": 0.07}


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """What the scenes of one training run are made of."""

    coloured: float = 0.3  # share of groups that are recoloured to one of the ten colours
    sized: float = 0.15  # share of groups with a size word
    word: float = 0.0  # share of scenes with a quoted word
    gradient: float = 0.1  # share of backgrounds that blend two colours
    setting: float = 0.2  # share of backgrounds that are drawn settings; the rest is one plain colour
    word_length: int = 6  # letters at most
    jitter: float = 0.04  # how far an object may stand off its place, along each axis; share of the canvas
    stretch: float = 0.1  # how much larger or smaller than ordinary an object may be, as a share of its side


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenes:
    """A batch of scene descriptions. Places that are empty have object -1."""

    kind: Int[Tensor, " b"]  # index into KINDS
    layout: Int[Tensor, " b"]  # index into LAYOUTS
    style: Int[Tensor, " b"]  # index into the atlas's styles
    object: Int[Tensor, "b k"]  # index into the atlas's objects
    colour: Int[Tensor, "b k"]  # index into COLOURS, -1 as drawn
    scale: Int[Tensor, "b k"]  # -1 small, 0 ordinary, 1 large
    centre: Float[Tensor, "b k 2"]  # x, y as shares of the canvas
    side: Float[Tensor, "b k"]  # share of the canvas
    background: Int[Tensor, " b"]  # 0 plain, 1 gradient, 2.. settings in the order of SETTINGS
    background_colour: Int[Tensor, "b 2"]  # indices into COLOURS
    texture: Float[Tensor, "b r"]  # the background's own random numbers in [0, 1)
    letters: Int[Tensor, "b w"]  # index into LETTERS, -1 none
    letter_colour: Int[Tensor, " b"]  # index into COLOURS

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, rows: Tensor | slice) -> "Scenes":
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class World:
    """The scene source: an atlas, the configuration, and the tables of what is held out."""

    def __init__(
        self, atlas: Atlas, config: WorldConfig = WorldConfig(), *, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.atlas = atlas.to(self.device)
        self.config = config
        names = atlas.objects
        # (objects, colours), and (objects, 2, objects) for "left of" and "above"
        self.held_out_colour = held_out(names, ("",), COLOURS)[:, 0].to(self.device)
        self.held_out_relation = held_out(names, ("left of", "above"), names).to(self.device)
        self._anchors = torch.full((len(LAYOUTS), PLACES, 3), -1.0, device=self.device)
        for row, places in enumerate(LAYOUTS.values()):
            self._anchors[row, : len(places)] = torch.tensor(places)
        self._luminance = self._mean_luminance()

    # -- sampling --------------------------------------------------------------------------------------------

    def sample(self, count: int, generator: torch.Generator, *, unseen: bool | None = False) -> Scenes:
        """Draw `count` scenes, none of which breaks the held-out rule; with `unseen=True`, all of them do,
        and with `unseen=None` the rule is not asked.

        Raises DataError when the atlas is too small for the rule to be kept.
        """
        scenes = self._draw(count, generator)
        for _ in range(200):
            wrong = self._repeats(scenes)
            if unseen is not None:
                wrong |= self.breaks_rule(scenes) != unseen
            rows = wrong.nonzero().squeeze(1)
            if len(rows) == 0:
                return scenes
            redrawn = self._draw(len(rows), generator)
            for f in fields(Scenes):
                getattr(scenes, f.name)[rows] = getattr(redrawn, f.name)
        wanted = f"{'break' if unseen else 'keep'} the held-out rule"
        raise DataError(f"{len(self.atlas.objects)} objects are too few for scenes that {wanted}; add some.")

    def _repeats(self, scenes: Scenes) -> Bool[Tensor, " b"]:
        """Whether two groups of a scene drew the same object."""
        group = self._groups(scenes.kind, scenes.layout)
        same = scenes.object[:, :, None] == scenes.object[:, None, :]
        other = group[:, :, None] != group[:, None, :]
        return (same & other & (scenes.object >= 0)[:, :, None]).any((1, 2))

    def breaks_rule(self, scenes: Scenes) -> Bool[Tensor, " b"]:
        """Whether a scene contains a held-out object x colour pair or object-relation-object pair."""
        present = scenes.object >= 0
        broken = (self.held_out_colour[scenes.object, scenes.colour] & present & (scenes.colour >= 0)).any(1)
        for i in range(PLACES):
            for j in range(i + 1, PLACES):
                a, b = scenes.object[:, i], scenes.object[:, j]
                step = scenes.centre[:, j] - scenes.centre[:, i]
                axis = (step[:, 1].abs() > step[:, 0].abs()).long()
                ahead = step.gather(1, axis[:, None]).squeeze(1) > 0  # a is left of (above) b
                first, second = torch.where(ahead, a, b), torch.where(ahead, b, a)
                related = present[:, i] & present[:, j] & (a != b)
                broken |= self.held_out_relation[first, axis, second] & related
        return broken

    def _draw(self, count: int, generator: torch.Generator) -> Scenes:
        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=generator.device).to(self.device)

        def integers(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=generator, device=generator.device).to(self.device)

        shares = torch.tensor(list(MIX.values()), device=generator.device)
        kind = torch.multinomial(shares, count, replacement=True, generator=generator).to(self.device)
        choice, layout = uniform(count), torch.zeros_like(kind)
        for index, layouts in enumerate(KINDS.values()):
            rows = torch.tensor([_LAYOUT_NAMES.index(name) for name in layouts], device=self.device)
            layout = torch.where(kind == index, rows[(choice * len(rows)).long()], layout)
        anchors = self._anchors[layout]  # (b, k, 3)
        present = anchors[..., 2] > 0

        group = self._groups(kind, layout)  # (b, k) which group a place belongs to
        objects = integers(len(self.atlas.objects), count, PLACES).gather(1, group)

        background_colour = integers(len(COLOURS), count, 2)
        same = background_colour[:, 0] == background_colour[:, 1]
        background_colour[:, 1] = (background_colour[:, 1] + same) % len(COLOURS)
        u = uniform(count)
        plain = 1 - self.config.gradient - self.config.setting
        setting = 2 + integers(len(SETTINGS), count)
        background = torch.where(u < plain, 0, torch.where(u < plain + self.config.gradient, 1, setting))

        colour = integers(len(COLOURS), count, PLACES)
        clash = (colour == background_colour[:, :1]) & (background < 2)[:, None]
        another = (colour + 1 + integers(len(COLOURS) - 1, count, PLACES)) % len(COLOURS)
        colour = torch.where(clash, another, colour)
        colour = torch.where(uniform(count, PLACES) < self.config.coloured, colour, -1).gather(1, group)
        scale = torch.where(uniform(count, PLACES) < self.config.sized, 2 * integers(2, count, PLACES) - 1, 0)
        scale = torch.where((kind <= 3)[:, None], scale, 0).gather(1, group)

        jitter = self.config.jitter * (2 * uniform(count, PLACES, 2) - 1)
        stretch = 1 + self.config.stretch * (2 * uniform(count, PLACES) - 1)
        stretch = stretch * torch.where(scale < 0, SMALL, torch.where(scale > 0, LARGE, 1.0))
        letters = torch.full((count, self.config.word_length), -1, device=self.device)
        if self.config.word > 0:
            length = 2 + integers(self.config.word_length - 1, count, 1)
            said = torch.arange(self.config.word_length, device=self.device) < length
            said &= uniform(count, 1) < self.config.word
            said &= (kind == 0)[:, None]  # a word stands below a single object, where there is room
            letters = torch.where(said, integers(len(LETTERS), count, self.config.word_length), -1)
        centre, side = anchors[..., :2] + jitter, anchors[..., 2] * stretch
        spelled = letters[:, 0] >= 0
        centre[..., 1] -= torch.where(spelled, LIFT, 0.0)[:, None]
        side = side * torch.where(spelled, SHRINK, 1.0)[:, None]
        return Scenes(
            kind=kind,
            layout=layout,
            style=integers(len(self.atlas.styles), count),
            object=torch.where(present, objects, -1),
            colour=torch.where(present, colour, -1),
            scale=torch.where(present, scale, 0),
            centre=centre,
            side=side,
            background=background,
            background_colour=background_colour,
            texture=uniform(count, 24),
            letters=letters,
            letter_colour=(background_colour[:, 0] + 1 + integers(len(COLOURS) - 1, count)) % len(COLOURS),
        )

    def _groups(self, kind: Tensor, layout: Tensor) -> Tensor:
        """Which object of the scene stands at each place: (b, k) in [0, k)."""
        places = torch.arange(PLACES, device=self.device).expand(len(kind), PLACES)
        names = list(KINDS)
        group = torch.where((kind == names.index("count"))[:, None], 0, places)
        first_alone = torch.tensor([name.startswith("one ") for name in _LAYOUT_NAMES], device=self.device)
        split = torch.where(first_alone[layout], 1, 2)[:, None]  # places before the split are the first group
        return torch.where((kind == names.index("group relation"))[:, None], (places >= split).long(), group)

    # -- drawing ---------------------------------------------------------------------------------------------

    def render(
        self, scenes: Scenes, size: int
    ) -> tuple[Float[Tensor, "b 3 size size"], Float[Tensor, "b k size size"]]:
        """Draw the scenes: pixels in [-1, 1], and how much of each pixel each place covers, in [0, 1]."""
        picture = paint(scenes.background, scenes.background_colour, scenes.texture, size)
        cover = picture.new_zeros(len(scenes), PLACES, size, size)
        for place in range(PLACES):
            rows = (scenes.object[:, place] >= 0).nonzero().squeeze(1)
            for tile_size, window, some in self._by_size(rows, scenes.side[rows, place] * size, size):
                tiles = self._tiles(scenes, some, place, tile_size)
                centre, side = scenes.centre[some, place], scenes.side[some, place]
                drawn, top, left = _place(tiles, centre, side, size, window)
                alpha, behind = drawn[:, 3:], 1 - drawn[:, 3:]
                pictures, covers = _windows(picture, window), _windows(cover, window)
                pictures[some, :, top, left] = pictures[some, :, top, left].mul_(behind).add_(drawn[:, :3])
                if place:
                    covers[some, :place, top, left] = covers[some, :place, top, left].mul_(behind)
                covers[some, place, top, left] = alpha[:, 0]
        self._write(picture, scenes, size)
        return picture.mul_(2).sub_(1), cover

    def _by_size(self, rows: Tensor, pixels: Tensor, size: int) -> Iterator[tuple[int, int, Tensor]]:
        """Split `rows` by how many pixels their drawings are wide: (tile size, window, rows of that size).

        A drawing takes the smallest stored tile that is at least as large; within a tile size two windows, so
        that a small drawing does not pay for the canvas around it.
        """
        tile_sizes = sorted(self.atlas.tiles)
        bounds = [bound for tile in tile_sizes for bound in (tile * 3 // 4, tile)]
        choice = torch.bucketize(pixels, torch.tensor(bounds, device=rows.device, dtype=pixels.dtype))
        for c in choice.unique().tolist():
            if c < len(bounds):
                yield tile_sizes[c // 2], min(size, bounds[c] + 1), rows[choice == c]
            else:  # larger than every tile
                yield tile_sizes[-1], size, rows[choice == c]

    def _tiles(self, scenes: Scenes, rows: Tensor, place: int, tile_size: int) -> Tensor:
        objects, styles = scenes.object[rows, place], scenes.style[rows]
        tiles = self.atlas.tiles[tile_size][styles, objects].float().div_(255)
        colour = scenes.colour[rows, place]
        tinted = (colour >= 0).nonzero().squeeze(1)
        if len(tinted):
            target = _palette(tiles.device)[colour[tinted]]
            tiles[tinted] = recolour(tiles[tinted], target, self._luminance[styles[tinted], objects[tinted]])
        return tiles

    def _mean_luminance(self) -> Tensor:
        tiles = self.atlas.tiles[min(self.atlas.tiles)].float()  # small tiles are enough for a mean
        weights = torch.tensor(LUMINANCE, device=self.device)
        total = torch.einsum("sochw,c->so", tiles[:, :, :3], weights)
        return total / tiles[:, :, 3].sum((2, 3)).clamp_min(1)

    def _write(self, picture: Tensor, scenes: Scenes, size: int) -> None:
        """Draw quoted words near the lower edge, letter by letter."""
        rows = (scenes.letters[:, 0] >= 0).nonzero().squeeze(1)
        if len(rows) == 0:
            return
        letters = scenes.letters[rows]
        said = letters >= 0
        centres, height = spelled(letters, self.atlas.advance)
        pixels = LETTER_HEIGHT * size
        tile_size = min((s for s in self.atlas.letters if s >= pixels), default=max(self.atlas.letters))
        window = min(size, math.ceil(pixels * (1 + 1 / tile_size)))
        colour = _palette(picture.device)[scenes.letter_colour[rows]]
        pictures = _windows(picture, window)
        for index in range(letters.shape[1]):
            some = said[:, index].nonzero().squeeze(1)
            if len(some) == 0:
                return
            ink = self.atlas.letters[tile_size][letters[some, index]].float()[:, None] / 255
            alpha, top, left = _place(ink, centres[some, index], height[some], size, window)
            at = (rows[some], slice(None), top, left)
            pictures[at] = pictures[at].lerp(colour[some, :, None, None], alpha)


LETTER_HEIGHT = 0.17  # of quoted words, share of the canvas, at most
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def spelled(
    letters: Int[Tensor, "n w"], advance: Float[Tensor, " l"]
) -> tuple[Float[Tensor, "n w 2"], Float[Tensor, " n"]]:
    """Where the letters of words stand, -1 being none: x, y of the centre of each letter's square tile, and
    its side, as shares of the canvas."""
    widths = advance[letters.clamp_min(0)] * (letters >= 0)  # in heights
    height = (0.9 / widths.sum(1)).clamp_max(LETTER_HEIGHT)  # long words shrink to the canvas
    steps = widths * height[:, None]
    x = 0.5 - steps.sum(1, keepdim=True) / 2 + steps.cumsum(1) - steps / 2
    return torch.stack([x, torch.full_like(x, 0.88)], -1), height


def _palette(device: torch.device) -> Float[Tensor, "10 3"]:
    return torch.tensor(list(PALETTE.values()), device=device) / 255


def recolour(
    tiles: Float[Tensor, "n 4 h w"], colour: Float[Tensor, "n 3"], mean: Float[Tensor, " n"]
) -> Float[Tensor, "n 4 h w"]:
    """Repaint premultiplied tiles in one hue: the drawing's light and shade, centred on `colour`.

    Luminance `mean` (of the whole drawing) becomes the colour itself; darker parts go towards black, lighter
    ones towards white, so outlines and highlights stay.
    """
    alpha = tiles[:, 3:]
    weights = torch.tensor(LUMINANCE, device=tiles.device)
    luminance = torch.einsum("nchw,c->nhw", tiles[:, :3], weights)[:, None] / alpha.clamp_min(1e-3)
    shade = (luminance - mean[:, None, None, None]).clamp(-0.55, 0.45)
    target = rearrange(colour, "n c -> n c 1 1")
    painted = torch.where(shade < 0, target * (1 + 1.4 * shade), target + (1 - target) * 1.1 * shade)
    return torch.cat([painted.clamp(0, 1) * alpha, alpha], 1)


def _windows(canvas: Float[Tensor, "b c h w"], window: int) -> Float[Tensor, "b c top left window window"]:
    """Every square window of a batch of canvases, as a view."""
    return canvas.unfold(2, window, 1).unfold(3, window, 1)


def _place(
    tiles: Float[Tensor, "n c s s"],
    centre: Float[Tensor, "n 2"],  # shares of the canvas
    side: Float[Tensor, " n"],  # share of the canvas
    size: int,
    window: int,  # pixels; at least side * size * (1 + 1 / s), for that is how far interpolation reaches
) -> tuple[Float[Tensor, "n c window window"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Draw each tile into the window around it on an empty canvas; also the window's top and left edge."""
    corner = (centre * size - window / 2 + 0.5).floor().clamp(0, size - window)
    steps = (torch.arange(window, device=tiles.device) + 0.5) / size
    offset = corner[:, :, None] / size + steps - centre[:, :, None]
    at = offset * (2 / side)[:, None, None]  # the tile spans [-1, 1]
    x, y = at[:, 0, None, :].expand(-1, window, -1), at[:, 1, :, None].expand(-1, -1, window)
    drawn = F.grid_sample(tiles, torch.stack([x, y], -1), "bilinear", "zeros", align_corners=False)
    left, top = corner.long().unbind(1)
    return drawn, top, left


def held_out(
    first: tuple[str, ...], relation: tuple[str, ...], second: tuple[str, ...]
) -> Bool[Tensor, "a r b"]:
    """The rule of what is never trained on: 5 % of all triples, by a hash of their names.

    A triple is held out when mix(h(first) + 3 h(relation) + 7 h(second)) is divisible by 20, where h is the
    8-byte BLAKE2b digest, mix is the finaliser of SplitMix64 (Steele et al. 2014) with shifts of 30, 30 and
    31, and every number is a signed one of 64 bits. Mirror images are one case: "a right of b" is looked up
    as "b left of a".
    """

    def hashes(names: tuple[str, ...]) -> Tensor:
        digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
        return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests])

    x = hashes(first)[:, None, None] + 3 * hashes(relation)[None, :, None] + 7 * hashes(second)[None, None, :]
    for multiplier in (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15):
        x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * multiplier
    return (x ^ ((x >> 31) & 0x1FFFFFFFF)).remainder(20) == 0  # the masks make the shifts unsigned
