"""Detector: finds what a picture shows by the centres of things, and says what, where and in which colour.

Anchor-free (Zhou et al. 2019, "Objects as Points"): one map says how much each cell of 4 x 4 pixels looks
like the centre of an object or of a quoted letter, others say the box around it, an embedding that is
compared with one learned prototype per class, and the colour. Two heads for the whole picture name its art
style and its background. Coarse maps are added back to fine ones (the U shape of Ronneberger et al. 2015), so
that a centre knows its surroundings. Used to judge pictures, never to draw them.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

STRIDE = 4  # pixels to a cell of the finest maps
GROUP = 8  # channels that are normalised together
MOST = 16  # detections in a picture, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """One thing found."""

    label: str  # the object's name, or a capital letter
    score: float  # chance that its centre is there, times the chance of its label; calibrated where it can be
    box: tuple[float, float, float, float]  # left, top, right, bottom as shares of the picture, in [0, 1]
    colour: str | None  # nearest of the ten colours; None: not judged


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seen:
    """What a picture shows."""

    objects: tuple[Detection, ...]  # best first
    letters: tuple[Detection, ...]  # from left to right
    style: str
    background: str  # a colour, gradient, or a setting
    features: Float[Tensor, " d"]  # mean of the layer that all heads read, for distances between sets


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """What a Detector can say; the tuples are in the order of its outputs."""

    objects: tuple[str, ...]
    letters: tuple[str, ...]
    colours: tuple[str, ...]
    styles: tuple[str, ...]
    backgrounds: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """What can stand at a centre: objects, then letters."""
        return self.objects + self.letters


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """Shape of a Detector."""

    size: int = 128  # side of the pictures it looks at, in pixels
    channels: int = 48  # of the finest maps, whose cells are 4 x 4 pixels
    growth: int = 32  # channels more, whenever the maps are halved
    levels: int = 4  # of maps, each half the size of the one before
    embedding: int = 64  # dimensions in which classes are told apart

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 8:
            raise ValueError(f"levels are 1 to 8, got {self.levels}")
        coarsest = STRIDE * 2 ** (self.levels - 1)
        if self.size < coarsest or self.size % coarsest:
            raise ValueError(f"size is a multiple of {coarsest}, got {self.size}")
        if self.channels < GROUP or self.channels % GROUP or self.growth % GROUP:
            raise ValueError(
                f"channels and growth are multiples of {GROUP}, got {self.channels} and {self.growth}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Makes a score the chance that a detection is right: sigmoid(slope logit(score) + shift) (Platt 1999).

    The order of scores stays as it is. The default changes nothing.
    """

    slope: float = 1.0  # above 0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and self.slope > 0 and math.isfinite(self.shift)):
            raise ValueError(f"slope is above 0, and both are finite, got {self.slope} and {self.shift}")

    def of(self, score: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Calibrated scores of raw ones, both in [0, 1]; 0, which is nothing found, stays 0."""
        if self == Calibration():
            return score
        logit = score.double().logit(eps=1e-9)
        return torch.where(score > 0, torch.sigmoid(self.slope * logit + self.shift), 0).to(score.dtype)


class Maps(NamedTuple):
    """What the network says about a batch, before anything is decided."""

    centre: Float[Tensor, "b h w"]  # logit of a centre in this cell
    offset: Float[Tensor, "b 2 h w"]  # x, y of the centre within its cell, in cells
    extent: Float[Tensor, "b 2 h w"]  # width, height of the box, in cells
    colour: Float[Tensor, "b c h w"]  # logits of the colours
    embedding: Float[Tensor, "b d h w"]  # for `Detector.classify`
    style: Float[Tensor, "b s"]  # logits of the styles
    background: Float[Tensor, "b g"]  # logits of the backgrounds
    features: Float[Tensor, "b f"]


class Residual(nn.Module):
    """x + several times (normalise, SiLU, convolve 3 x 3), as in He et al. 2016 ("Identity mappings")."""

    def __init__(self, channels: int, convolutions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.add(x, self.inner(x))


class Detector(nn.Module):
    """pixels b 3 size size in [-1, 1] -> Maps of size / 4; `detect` says what they mean."""

    def __init__(self, config: DetectorConfig, names: Names) -> None:
        super().__init__()
        self.config, self.names = config, names
        self.calibration = Calibration()  # of the scores that `read` gives
        channels = config.channels
        widths = [channels + config.growth * level for level in range(config.levels)]
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 2, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
        )
        self.encode = nn.ModuleList(Residual(width, 2) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decode = nn.ModuleList(Residual(width, 1) for width in widths[:-1])
        self.hidden = nn.Sequential(
            norm(channels), nn.SiLU(), nn.Conv2d(channels, 4 * channels, 1), nn.SiLU()
        )
        # every head is one linear map of `hidden`
        self.place = nn.Conv2d(4 * channels, 5, 1)  # centre, offset, extent
        self.colour = nn.Conv2d(4 * channels, len(names.colours), 1)
        self.embedding = nn.Conv2d(4 * channels, config.embedding, 1)
        # what a thing is shows in coarse maps, too: they are wider, and see all of it
        self.coarse = nn.ModuleList(nn.Conv2d(width, config.embedding, 1) for width in widths[1:])
        self.style = nn.Linear(4 * channels, len(names.styles))
        self.background = nn.Linear(4 * channels, len(names.backgrounds))
        self.prototypes = nn.Parameter(torch.zeros(len(names.classes), config.embedding))
        self.sharpness = nn.Parameter(torch.zeros(()))  # logarithm of the inverse temperature of the classes

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Set every weight: He et al. 2015; branches and heads start small, and centres are rare."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, generator=generator)
                nn.init.zeros_(module.get_parameter("bias"))
            elif isinstance(module, nn.GroupNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, Residual):
                    module.inner[-1].get_parameter("weight").mul_(0.2)
            for head in (self.place, self.colour, self.style, self.background):
                head.weight.mul_(0.1)
            # at first, one cell in a hundred is taken for a centre (Lin et al. 2017, section 3.3)
            self.place.get_parameter("bias")[0] = -math.log(99)
        nn.init.normal_(self.prototypes, generator=generator)
        nn.init.constant_(self.sharpness, math.log(1 / 0.07))  # Radford et al. 2021, 2.5

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Maps:
        x, skips = self.stem(pixels), []
        for level, block in enumerate(self.encode):
            x = block(self.down[level - 1](x) if level else x)
            skips.append(x)
        embedding: Tensor | None = None
        for level in reversed(range(len(self.decode))):
            seen = self.coarse[level](x)
            embedding = twice(seen if embedding is None else embedding + seen)
            x = self.decode[level](skips[level] + twice(self.up[level](x)))
        hidden = self.hidden(x)
        said = self.embedding(hidden)
        features = hidden.mean((2, 3))
        centre, offset, extent = self.place(hidden).split((1, 2, 2), 1)
        return Maps(
            centre=centre.squeeze(1),
            offset=offset,
            extent=extent,
            colour=self.colour(hidden),
            embedding=said if embedding is None else said + embedding,
            style=self.style(features),
            background=self.background(features),
            features=features,
        )

    def classify(self, embedding: Float[Tensor, "*n d"]) -> Float[Tensor, "*n classes"]:
        """Logits of the classes: cosines with their prototypes over a temperature, learned, 0.01 at least."""
        cosine = F.normalize(embedding.float(), dim=-1) @ F.normalize(self.prototypes, dim=-1).mT
        return self.sharpness.clamp(max=math.log(100)).exp() * cosine

    @torch.no_grad()
    def detect(self, pixels: Float[Tensor, "b 3 h w"], *, threshold: float = 0.3) -> list[Seen]:
        """What each picture shows; pictures of another size are resized to the one it looks at.

        At most 16 things whose score is above `threshold`.
        """
        return self.read(self(resize(pixels, self.config.size)), threshold)

    def read(self, maps: Maps, threshold: float) -> list[Seen]:
        """`detect`, from the maps on."""
        chance, cell = peaks(maps.centre)
        likely, kind = self.classify(at(maps.embedding, cell)).softmax(-1).max(-1)
        score, best = (chance * likely).sort(descending=True, stable=True)
        rows = torch.cat(
            [
                self.calibration.of(score)[..., None],
                boxes(maps, cell).gather(1, best[..., None].expand(-1, -1, 4)),
                kind.gather(1, best)[..., None],
                at(maps.colour, cell).argmax(-1).gather(1, best)[..., None],
            ],
            -1,
        ).tolist()
        styles, backgrounds = maps.style.argmax(1).tolist(), maps.background.argmax(1).tolist()
        seen, names = [], self.names
        for things, style, background, features in zip(rows, styles, backgrounds, maps.features, strict=True):
            found = [
                Detection(
                    label=names.classes[int(kind)],
                    score=score,
                    box=(left, top, right, bottom),
                    colour=names.colours[int(colour)],
                )
                for score, left, top, right, bottom, kind, colour in things
                if score > threshold
            ]
            letters = [thing for thing in found if thing.label in names.letters]
            seen.append(
                Seen(
                    objects=tuple(thing for thing in found if thing.label not in names.letters),
                    letters=tuple(sorted(letters, key=lambda thing: thing.box[0] + thing.box[2])),
                    style=names.styles[style],
                    background=names.backgrounds[background],
                    features=features,
                )
            )
        return seen


def twice(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Each cell as four."""
    return F.interpolate(maps, scale_factor=2.0, mode="nearest")


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu & He 2018): like batch normalisation, but no picture depends on another."""
    return nn.GroupNorm(channels // GROUP, channels)


def resize(pixels: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 side side"]:
    """Pictures of another size, smoothed where they shrink; those of this size as they are."""
    if pixels.shape[2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)


def peaks(centre: Float[Tensor, "b h w"]) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Chances of the cells that no neighbour exceeds, at most 16, best first; and which cells they are."""
    chance = centre.float().sigmoid()
    highest = F.max_pool2d(chance[:, None], 3, stride=1, padding=1)[:, 0]
    kept = torch.where(chance == highest, chance, 0).flatten(1)
    top = kept.topk(min(MOST, kept.shape[1]))
    return top.values, top.indices


def at(maps: Float[Tensor, "b c h w"], cell: Int[Tensor, "b k"]) -> Float[Tensor, "b k c"]:
    """What the maps say in the given cells."""
    return maps.flatten(2).gather(2, cell[:, None].expand(-1, maps.shape[1], -1)).mT


def boxes(maps: Maps, cell: Int[Tensor, "b k"]) -> Float[Tensor, "b k 4"]:
    """Left, top, right, bottom around the centres in the given cells, as shares of the picture."""
    height, width = maps.centre.shape[1:]
    corner = torch.stack([cell % width, cell // width], -1)
    grid = corner.new_tensor([width, height])
    centre = (corner + at(maps.offset, cell).float()) / grid
    half = at(maps.extent, cell).float().clamp_min(0) / grid / 2
    return torch.cat([centre - half, centre + half], -1).clamp(0, 1)
