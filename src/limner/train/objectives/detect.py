"""Objective: learn to see what a scene of the drawn world shows.

The detector learns from composed scenes alone, worn in ways that any picture may be worn. It never sees what
a generator drew: else it would learn to forgive the faults that it is there to find. Scenes that generators
must not learn from (`held_out`) are not kept from it, so that it is no worse where they are tested.

Colour is asked as GenEval asks it, which of ten; so it is learnt only from what has one of the ten:
recoloured objects and letters. For objects as they were drawn the answer is neither trained nor judged.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from limner.data.world import source
from limner.data.world.art import LETTERS
from limner.data.world.scene import BACKGROUNDS, COLOURS, Scenes, World, WorldConfig, spelled
from limner.models.detector import STRIDE, Detector, DetectorConfig, Names, Seen, at, resize
from limner.train.objectives.upscale import blur
from limner.util.images import images_from_pixels, sheet
from limner.weights.detector import JUDGE, REWARD

RECTANGLES = 2  # that may hide parts of a picture


@dataclass(frozen=True, kw_only=True, slots=True)
class WearConfig:
    """How pictures are spoilt. Each kind of wear falls on `chance` of them, between nothing and the most."""

    chance: float = 0.4  # of each kind of wear, independently
    blur: float = 1.5  # standard deviation in pixels, at most
    noise: float = 0.2  # standard deviation at most (pixels are in [-1, 1])
    contrast: float = 0.3  # gain within 1 -+ this, then a shift within -+ half of this
    quantisation: float = 2.0  # steps at most, as multiples of the JPEG table (1: quality 50, 2: quality 25)
    occlusion: float = 0.3  # sides of the two rectangles at most, as shares of the picture
    hidden: float = 0.7  # what rectangles cover more than this share of is no longer asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectConfig:
    """What is to be seen, how it is worn, and what errors cost."""

    data: source.DrawnConfig = field(default_factory=source.DrawnConfig)
    world: WorldConfig = field(default_factory=lambda: WorldConfig(word=0.3))  # without words, no letters
    wear: WearConfig = field(default_factory=WearConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    sides: tuple[int, ...] = (48, 64, 96, 128, 192)  # pixels scenes are drawn at, before they are resized
    mosaic: float = 0.5  # share of pictures that show four scenes: more to learn from at the same price
    offset_weight: float = 1.0  # of an error of one cell in the centre
    extent_weight: float = 0.1  # of an error of one cell in the width or height
    class_weight: float = 1.0
    colour_weight: float = 0.5
    picture_weight: float = 0.25  # of the style, and of the background
    role: str = JUDGE  # judge: evaluates, and trains nothing; reward: trains generators, and never evaluates

    def __post_init__(self) -> None:
        if self.role not in (JUDGE, REWARD):
            raise ValueError(f"role is {JUDGE} or {REWARD}, got {self.role!r}")
        if self.world.word <= 0:
            raise ValueError("letters are learnt from words, so detect.world.word is above 0")
        if not 0 <= self.mosaic <= 1:
            raise ValueError(f"mosaic is a share from 0 to 1, got {self.mosaic}")
        if not self.sides or min(self.sides) < 1:
            raise ValueError(f"sides are one or more numbers of pixels, got {list(self.sides)}")


class Batch(NamedTuple):
    """One step's pictures and what they show. There is room for n things in each; -1 says: nothing here."""

    pixels: Float[Tensor, "b 3 size size"]
    boxes: Float[Tensor, "b n 4"]  # left, top, right, bottom of the ink, as shares of the picture
    kinds: Int[Tensor, "b n"]  # index into Names.classes
    colours: Int[Tensor, "b n"]  # index into COLOURS; -1 also for what is as drawn
    style: Int[Tensor, " b"]  # -1 where a picture shows several scenes
    background: Int[Tensor, " b"]  # index into BACKGROUNDS; -1 likewise


class Detect:
    """The objective: `batch` composes and wears scenes, `loss` compares what was seen, `draw` shows boxes."""

    def __init__(self, config: DetectConfig, device: torch.device) -> None:
        atlas, _ = source.load(config.data, sizes=(16, 32, 64, 128))
        self.config = config
        self.world = World(atlas, config.world, device=device)
        self.ink = ink(self.world.atlas.tiles[128][:, :, 3])
        self.letter_ink = ink(self.world.atlas.letters[128])
        self.names = Names(
            objects=atlas.objects,
            letters=tuple(LETTERS),
            colours=COLOURS,
            styles=atlas.styles,
            backgrounds=BACKGROUNDS,
        )
        # a third faster on a processor: its convolutions want the channels of a pixel side by side
        self.model = Detector(config.model, self.names).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch knows it

    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Compose `count` pictures. Everything comes from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        four = round(self.config.mosaic * count)
        kinds = ((self._mosaics, four), (self._alone, count - four))
        parts = [compose(number, generator) for compose, number in kinds if number]
        whole = Batch(*(torch.cat(same) for same in zip(*parts, strict=True)))
        pixels, rectangles = wear(whole.pixels, self.config.wear, generator)
        gone = covered(whole.boxes, rectangles) > self.config.wear.hidden
        return whole._replace(
            pixels=pixels, kinds=whole.kinds.where(~gone, -1), colours=whole.colours.where(~gone, -1)
        )

    def _alone(self, count: int, generator: torch.Generator) -> Batch:
        """Scenes that fill the picture, each drawn at a side of its own. There is room for four of them."""
        config, size = self.config, self.config.model.size
        scenes = self.world.sample(count, generator, unseen=None)
        choice = torch.randint(len(config.sides), (count,), generator=generator).to(self.world.device)
        pixels = torch.zeros(count, 3, size, size, device=self.world.device)
        for index, side in enumerate(config.sides):
            rows = (choice == index).nonzero().squeeze(1)
            if len(rows):
                drawn, _ = self.world.render(scenes[rows], side)
                pixels[rows] = resize(drawn, size)
        boxes, kinds, colours = self.things(scenes)
        room = 3 * kinds.shape[1]
        return Batch(
            pixels=pixels,
            boxes=F.pad(boxes, (0, 0, 0, room)),
            kinds=F.pad(kinds, (0, room), value=-1),
            colours=F.pad(colours, (0, room), value=-1),
            style=scenes.style,
            background=background(scenes),
        )

    def _mosaics(self, count: int, generator: torch.Generator) -> Batch:
        """Two by two scenes in each picture (Bochkovskiy et al. 2020, "YOLOv4")."""
        scenes = self.world.sample(4 * count, generator, unseen=None)
        drawn, _ = self.world.render(scenes, self.config.model.size // 2)
        boxes, kinds, colours = self.things(scenes)
        corners = boxes.new_tensor([[0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1]])
        boxes = (boxes + corners.repeat(count, 1)[:, None]) / 2
        return Batch(
            pixels=rearrange(drawn, "(b i j) c h w -> b c (i h) (j w)", i=2, j=2),
            boxes=rearrange(boxes, "(b four) n d -> b (four n) d", four=4),
            kinds=rearrange(kinds, "(b four) n -> b (four n)", four=4),
            colours=rearrange(colours, "(b four) n -> b (four n)", four=4),
            style=scenes.style.new_full((count,), -1),
            background=scenes.background.new_full((count,), -1),
        )

    def things(self, scenes: Scenes) -> tuple[Float[Tensor, "b n 4"], Int[Tensor, "b n"], Int[Tensor, "b n"]]:
        """Boxes, classes and colours of the objects, then of the letters."""
        letters, said = scenes.letters.clamp_min(0), scenes.letters >= 0
        centres, height = spelled(scenes.letters, self.world.atlas.advance)
        tile = torch.cat([self.ink[scenes.style[:, None], scenes.object], self.letter_ink[letters]], 1)
        centre = torch.cat([scenes.centre, centres], 1)
        side = torch.cat([scenes.side, height[:, None].expand_as(letters)], 1)
        boxes = centre.repeat(1, 1, 2) + side[..., None] * (tile - 0.5)
        spelt = torch.where(said, letters + len(self.names.objects), -1)
        inks = torch.where(said, scenes.letter_colour[:, None], -1)
        kinds, colours = torch.cat([scenes.object, spelt], 1), torch.cat([scenes.colour, inks], 1)
        return boxes.clamp(0, 1), kinds, colours

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Focal loss of the centres, L1 of places and extents, cross-entropy of all that has a name."""
        config = self.config
        maps = self.model(batch.pixels)
        goal = targets(batch.boxes, batch.kinds, config.model.size // STRIDE)
        there = batch.kinds >= 0
        count = there.sum().clamp_min(1)

        def apart(said: Tensor, wanted: Tensor) -> Tensor:  # both b n 2
            return ((said.float() - wanted).abs().sum(-1) * there).sum() / count

        kinds = self.model.classify(at(maps.embedding, goal.cell))
        picture = named(maps.style, batch.style) + named(maps.background, batch.background)
        return {
            "centre": focal(maps.centre, goal.heat) / count,
            "offset": config.offset_weight * apart(at(maps.offset, goal.cell), goal.offset),
            "extent": config.extent_weight * apart(at(maps.extent, goal.cell), goal.extent),
            "class": config.class_weight * named(kinds, batch.kinds),
            "colour": config.colour_weight * named(at(maps.colour, goal.cell), batch.colours),
            "picture": config.picture_weight * picture,
        }

    def published(self) -> set[str]:
        """All parameters."""
        return {name for name, _ in self.model.named_parameters()}

    def header(self) -> dict[str, str]:
        """Network shape, everything it can say, and the art it learned from."""
        told = {"network": {"Detector": asdict(self.config.model)}, "role": self.config.role}
        told |= asdict(self.names)
        return {
            key: json.dumps(value) for key, value in (told | {"sources": self.world.atlas.sources}).items()
        }

    def draw(self, model: Detector) -> Image.Image:
        """Twelve worn scenes, twice as large, with what `model` sees in them."""
        batch = self.batch(12, 0)
        pictures = images_from_pixels(batch.pixels)
        seen = model.detect(batch.pixels)
        return sheet([marked(picture, one) for picture, one in zip(pictures, seen, strict=True)], columns=4)


# -- what is to be said --------------------------------------------------------------------------------------


class Targets(NamedTuple):
    """What the maps should say about the n things of each picture."""

    heat: Float[Tensor, "b h w"]  # 1 in the cell of a centre, less around it, 0 far away
    cell: Int[Tensor, "b n"]  # of the centre, in reading order
    offset: Float[Tensor, "b n 2"]  # x, y of the centre within its cell, in cells
    extent: Float[Tensor, "b n 2"]  # width, height, in cells


def targets(boxes: Float[Tensor, "b n 4"], kinds: Int[Tensor, "b n"], side: int) -> Targets:
    """Boxes as maps of side x side cells. Heat falls off as a Gaussian around the cell of each centre,
    a third of `slack` wide, and takes the larger value where two meet (Zhou et al. 2019, section 3)."""
    left_top, right_bottom = (boxes * side).chunk(2, -1)
    centre, extent = (left_top + right_bottom) / 2, right_bottom - left_top
    corner = centre.floor().clamp(0, side - 1)
    width = (slack(extent) / 3).clamp_min(0.3)[..., None]
    away = torch.arange(side, device=boxes.device) - corner[..., None]  # b n 2 side
    x, y = torch.exp(-away.square() / (2 * width.square()[..., None])).unbind(2)
    heat = (y[..., None] * x[..., None, :] * (kinds >= 0)[..., None, None]).amax(1)
    cell = (corner[..., 1] * side + corner[..., 0]).long()
    return Targets(heat=heat, cell=cell, offset=centre - corner, extent=extent)


def slack(extent: Float[Tensor, "b n 2"], overlap: float = 0.7) -> Float[Tensor, "b n"]:
    """How far a box of this width and height may move along both axes and still keep an intersection over
    union of `overlap` with itself: (w - r)(h - r) = w h 2 overlap / (1 + overlap), solved for r."""
    total, area = extent.sum(-1), extent.prod(-1)
    lost = area * (1 - 2 * overlap / (1 + overlap))
    return (total - (total.square() - 4 * lost).clamp_min(0).sqrt()) / 2


def background(scenes: Scenes) -> Int[Tensor, " b"]:
    """Index into BACKGROUNDS."""
    plain = scenes.background_colour[:, 0]
    return torch.where(scenes.background == 0, plain, len(COLOURS) - 1 + scenes.background)


def ink(alpha: UInt8[Tensor, "*n h w"]) -> Float[Tensor, "*n 4"]:
    """The box around what a tile shows (where a quarter opaque): left, top, right, bottom, as its shares."""

    def ends(lit: Bool[Tensor, "*n s"]) -> tuple[Tensor, Tensor]:
        length = lit.shape[-1]
        return lit.int().argmax(-1) / length, 1 - lit.flip(-1).int().argmax(-1) / length

    shown = alpha > 63
    (left, right), (top, bottom) = ends(shown.any(-2)), ends(shown.any(-1))
    return torch.stack([left, top, right, bottom], -1)


# -- what errors cost ----------------------------------------------------------------------------------------


def focal(logits: Float[Tensor, "b h w"], heat: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Penalty-reduced focal loss, summed (Zhou et al. 2019, equation 1, with alpha = 2 and beta = 4)."""
    logits = logits.float()
    chance = logits.sigmoid()
    found = (1 - chance).square() * F.logsigmoid(logits)
    empty = (1 - heat) ** 4 * chance.square() * F.logsigmoid(-logits)
    return -torch.where(heat == 1, found, empty).sum()


def named(logits: Float[Tensor, "*n c"], wanted: Int[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over what has a name, which is not -1; 0 where nothing has."""
    rows = logits.float().flatten(0, -2)
    total = F.cross_entropy(rows, wanted.flatten(), ignore_index=-1, reduction="sum")
    return total / (wanted >= 0).sum().clamp_min(1)


# -- wear ----------------------------------------------------------------------------------------------------


def wear(
    pixels: Float[Tensor, "b 3 s s"], config: WearConfig, generator: torch.Generator
) -> tuple[Float[Tensor, "b 3 s s"], Float[Tensor, "b r 4"]]:
    """Spoil each picture in its own way, within [-1, 1]; and the rectangles (shares) that hide some of it."""
    count, device = len(pixels), pixels.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device)

    # kinds of wear x pictures, 0 where a kind spares a picture
    strength = uniform(5, count) * (uniform(5, count) < config.chance)
    sides = config.occlusion * (strength[0] > 0)[:, None, None] * uniform(count, RECTANGLES, 2)
    left_top = uniform(count, RECTANGLES, 2) * (1 - sides)
    rectangles = torch.cat([left_top, left_top + sides], -1)
    pixels = hide(pixels, rectangles, 2 * uniform(count, RECTANGLES, 3) - 1)
    gain, shift = config.contrast * strength[1] * (2 * uniform(2, count) - 1)
    pixels = pixels * (1 + gain)[:, None, None, None] + shift[:, None, None, None] / 2
    pixels = blur(pixels, config.blur * strength[2])
    grain = torch.randn(pixels.shape, generator=generator).to(device)
    pixels = pixels + (config.noise * strength[3])[:, None, None, None] * grain
    return quantise(pixels.clamp(-1, 1), config.quantisation * strength[4]).clamp(-1, 1), rectangles


def hide(
    pixels: Float[Tensor, "b 3 h w"], rectangles: Float[Tensor, "b r 4"], paint: Float[Tensor, "b r 3"]
) -> Float[Tensor, "b 3 h w"]:
    """Paint rectangles, given as shares, over the pixels whose centres lie in them."""
    height, width = pixels.shape[2:]
    y = (torch.arange(height, device=pixels.device) + 0.5) / height
    x = (torch.arange(width, device=pixels.device) + 0.5) / width
    for box, colour in zip(rectangles.unbind(1), paint.unbind(1), strict=True):
        left, top, right, bottom = box[..., None].unbind(1)
        inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]
        pixels = torch.where(inside[:, None], colour[:, :, None, None], pixels)
    return pixels


def covered(boxes: Float[Tensor, "b n 4"], rectangles: Float[Tensor, "b r 4"]) -> Float[Tensor, "b n"]:
    """Which share of each box the rectangles cover; what two of them cover counts twice."""
    one, other = boxes[:, :, None], rectangles[:, None]
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return (high - low).clamp_min(0).prod(-1).sum(-1) / area.clamp_min(1e-9)


JPEG_TABLE = (  # ITU-T T.81 (1992), table K.1: steps of 8 x 8 luminance coefficients, in 8-bit levels
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)


def quantise(pixels: Float[Tensor, "b 3 h w"], steps: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Round cosine coefficients of 8 x 8 blocks to multiples of `steps` times JPEG_TABLE, in each channel of
    RGB; 0 leaves a picture as it is. JPEG itself would first turn to luminance and chroma."""
    place = torch.arange(8, device=pixels.device)
    basis = torch.cos(math.pi / 8 * place[:, None] * (place + 0.5)) / 2  # DCT-II: coefficient x place
    basis[0] /= math.sqrt(2)
    table = torch.tensor(JPEG_TABLE, device=pixels.device).view(8, 8) / 127.5  # in pixels
    blocks = rearrange(pixels, "b c (h p) (w q) -> b c h w p q", p=8, q=8)
    step = steps.clamp_min(1e-6)[:, None, None, None, None, None] * table
    rounded = (basis @ blocks @ basis.mT / step).round() * step
    back = rearrange(basis.mT @ rounded @ basis, "b c h w p q -> b c (h p) (w q)")
    return torch.where(steps[:, None, None, None] > 0, back, pixels)


def marked(picture: Image.Image, seen: Seen) -> Image.Image:
    """A picture twice as large, with boxes, what is in them, and the whole picture's style and background."""
    shown = picture.resize((2 * picture.width, 2 * picture.height))
    pen = ImageDraw.Draw(shown)
    for thing in seen.objects + seen.letters:
        left, top, right, bottom = (share * shown.width for share in thing.box)
        pen.rectangle((left, top, right, bottom), outline="lime")
        what = thing.label if thing in seen.letters else f"{thing.label} {thing.score:.2f} {thing.colour}"
        pen.text((left + 2, top), what, fill="white", stroke_width=1, stroke_fill="black")
    word = "".join(letter.label for letter in seen.letters)
    about = f"{seen.style}, {seen.background} {word}"
    pen.text((2, shown.height - 12), about, fill="white", stroke_width=1, stroke_fill="black")
    return shown
