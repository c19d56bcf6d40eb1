"""Pictures made bad as the world makes them bad: what a blind upscaler learns to undo.

Real-ESRGAN's model of degradation (Wang et al. 2021, section 3): blur, resizing, noise and JPEG, all twice
over, with ringing (sinc filters) in between and at the end. Every picture takes another way through it, which
follows from its seed alone. Values are the published ones.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from limner.util.images import images_from_pixels, pixels_from_images
from limner.util.rng import mix

Picture = Float[Tensor, "1 3 _ _"]  # RGB in [0, 1]; sizes change on the way
MODES = ("area", "bilinear", "bicubic")
SIDES = range(7, 22, 2)  # of blur kernels, in pixels
KINDS = (  # of blur: shape and whether it is round; and how often
    *((("gaussian", True), 0.45), (("gaussian", False), 0.25)),
    *((("general", True), 0.12), (("general", False), 0.03)),
    *((("plateau", True), 0.12), (("plateau", False), 0.03)),
)
POWERS = {"gaussian": (1.0, 1.0), "general": (0.5, 4.0), "plateau": (1.0, 2.0)}  # of the squared distance


@dataclass(frozen=True, kw_only=True, slots=True)
class PassConfig:
    """One time through blur, resizing, noise and JPEG. Pairs are the ends of what is drawn uniformly."""

    blur: float = 1.0  # share of pictures that are blurred
    sinc: float = 0.1  # share of these whose blur rings
    deviation: tuple[float, float] = (0.2, 3.0)  # of the blur, in pixels
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)  # shares that grow, shrink and stay
    scale: tuple[float, float] = (0.15, 1.5)  # the sides by as much, around 1
    gaussian: float = 0.5  # share whose noise is Gaussian; the others' is Poisson's
    noise: tuple[float, float] = (1.0, 30.0)  # deviation of Gaussian noise, in levels of 255
    poisson: tuple[float, float] = (0.05, 3.0)  # strength of Poisson's
    grey: float = 0.4  # share whose noise is the same in all colours
    jpeg: tuple[float, float] = (30.0, 95.0)  # quality

    def __post_init__(self) -> None:
        for name in ("blur", "sinc", "gaussian", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {getattr(self, name)}")
        if abs(sum(self.resize) - 1) > 1e-6 or min(self.resize) < 0:
            raise ValueError(f"resize are three shares that add up to 1, got {list(self.resize)}")
        for name in ("deviation", "scale", "noise", "poisson", "jpeg"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name in ("deviation", "scale", "jpeg") and low == 0):
                raise ValueError(
                    f"{name} is a range of numbers above 0, the lower one first, got {[low, high]}"
                )
        if self.scale[0] > 1 or self.scale[1] < 1 or self.jpeg[1] > 100:
            raise ValueError("scale has 1 between its ends, and jpeg ends at 100")


SECOND = PassConfig(
    blur=0.8,
    deviation=(0.2, 1.5),
    resize=(0.3, 0.4, 0.3),
    scale=(0.3, 1.2),
    noise=(1.0, 25.0),
    poisson=(0.05, 2.5),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DegradeConfig:
    """The whole way."""

    first: PassConfig = field(default_factory=PassConfig)
    second: PassConfig = SECOND
    ring: float = 0.8  # share of pictures that a sinc filter goes over at the end


def degrade(
    pixels: Float[Tensor, "b 3 h w"], factor: int, seed: int, config: DegradeConfig
) -> Float[Tensor, "b 3 h2 w2"]:
    """Bad pictures a `factor`th as high and wide, in [-1, 1] in 255 steps, on the CPU. Sides of `pixels` are
    multiples of `factor`. Picture i depends on (seed, i) alone."""
    height, width = pixels.shape[2] // factor, pixels.shape[3] // factor
    worn = [
        _degraded((picture[None].cpu().float() + 1) / 2, (height, width), mix(seed, index), config)
        for index, picture in enumerate(pixels)
    ]
    return torch.cat(worn).mul(255).round().div(127.5).sub(1)


def sharpened(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pixels in [-1, 1] with half of what a wide blur takes away put on top, where that is more than 10
    levels of 255: what Real-ESRGAN learns to draw (section 3.5)."""
    x, kernel = (pixels + 1) / 2, _gaussian(51, 8.0).to(pixels)
    lost = x - _filtered(x, kernel)
    where = _filtered((lost.abs() * 255 > 10).to(x), kernel)
    return (where * (x + 0.5 * lost).clamp(0, 1) + (1 - where) * x) * 2 - 1


def _degraded(x: Picture, size: tuple[int, int], seed: int, config: DegradeConfig) -> Picture:
    chance, generator = Random(seed), torch.Generator().manual_seed(seed % 2**63)
    whole = (x.shape[2], x.shape[3])
    x = _resized(_blurred(x, config.first, chance), whole, config.first, chance)
    x = _noised(x, config.first, chance, generator)
    x = _jpeg(x, chance.uniform(*config.first.jpeg))
    x = _resized(_blurred(x, config.second, chance), size, config.second, chance)
    x = _noised(x, config.second, chance, generator)
    quality, rings, before = (
        chance.uniform(*config.second.jpeg),
        chance.random() < config.ring,
        chance.random(),
    )
    mode, kernel = chance.choice(MODES), _ring(chance)
    if before < 0.5:  # ringing of the last resize, then JPEG; or JPEG first (section 3.4)
        x = _to(x, size, mode)
        x = _filtered(x, kernel) if rings else x
        return _jpeg(x, quality).clamp(0, 1)
    x = _to(_jpeg(x, quality), size, mode)
    return (_filtered(x, kernel) if rings else x).clamp(0, 1)


def _blurred(x: Picture, config: PassConfig, chance: Random) -> Picture:
    if chance.random() >= config.blur:
        return x
    if chance.random() < config.sinc:
        return _filtered(x, _ring(chance))
    (shape, isotropic), side = chance.choices(*zip(*KINDS, strict=True))[0], chance.choice(SIDES)
    wide = chance.uniform(*config.deviation)
    tall = wide if isotropic else chance.uniform(*config.deviation)
    angle = 0.0 if isotropic else chance.uniform(-math.pi, math.pi)
    low, high = POWERS[shape]  # as often below 1 as above it
    power = chance.uniform(low, 1.0) if chance.random() < 0.5 else chance.uniform(1.0, high)
    return _filtered(x, blur(side, wide, tall, angle, power, plateau=shape == "plateau"))


def blur(
    side: int,
    wide: float,  # deviations along two axes at right angles, in pixels
    tall: float,
    angle: float,  # of the first, in radians
    power: float = 1.0,  # of the squared distance
    *,
    plateau: bool = False,
) -> Float[Tensor, "side side"]:
    """A kernel that adds up to 1: exp(-d^power / 2), or 1 / (1 + d^power), d the squared distance counted in
    deviations (section 3.1)."""
    places = torch.arange(side, dtype=torch.float32) - side // 2
    y, x = torch.meshgrid(places, places, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    distance = ((along / wide).square() + (across / tall).square()) ** power
    kernel = 1 / (1 + distance) if plateau else torch.exp(-distance / 2)
    return kernel / kernel.sum()


def sinc(side: int, cutoff: float) -> Float[Tensor, "side side"]:
    """What lets frequencies pass up to `cutoff`, in radians per pixel, the same in all directions (section
    3.4); it adds up to 1."""
    places = torch.arange(side, dtype=torch.float64) - side // 2
    y, x = torch.meshgrid(places, places, indexing="ij")
    radius = torch.hypot(x, y)
    ring = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1e-9))
    kernel = torch.where(radius > 0, ring, cutoff**2 / (4 * math.pi))
    return (kernel / kernel.sum()).float()


def _ring(chance: Random) -> Tensor:
    side = chance.choice(SIDES)
    return sinc(side, chance.uniform(math.pi / (3 if side < 13 else 5), math.pi))


def _gaussian(side: int, deviation: float) -> Float[Tensor, "side side"]:
    return blur(side, deviation, deviation, 0.0)


def _filtered(x: Float[Tensor, "b 3 h w"], kernel: Float[Tensor, "k k"]) -> Float[Tensor, "b 3 h w"]:
    """Each colour for itself; at the edges the picture is mirrored, or where it is too small, drawn out."""
    reach = kernel.shape[0] // 2
    mode = "reflect" if reach < min(x.shape[2:]) else "replicate"
    around = F.pad(x, (reach,) * 4, mode=mode)
    return F.conv2d(around, kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])


def _resized(x: Picture, size: tuple[int, int], config: PassConfig, chance: Random) -> Picture:
    """To `size`, times a random factor."""
    way = chance.choices(("grow", "shrink", "stay"), config.resize)[0]
    low, high = config.scale
    scale = {"grow": chance.uniform(1, high), "shrink": chance.uniform(low, 1), "stay": 1.0}[way]
    return _to(x, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), chance.choice(MODES))


def _to(x: Picture, size: Sequence[int], mode: str) -> Picture:
    size = (size[0], size[1])
    if tuple(x.shape[2:]) == size:
        return x
    if mode == "area":
        return F.interpolate(x, size, mode="area")
    return F.interpolate(x, size, mode=mode, align_corners=False)


def _noised(x: Picture, config: PassConfig, chance: Random, generator: torch.Generator) -> Picture:
    grey = chance.random() < config.grey
    if chance.random() < config.gaussian:
        shape = (1, 1 if grey else 3, *x.shape[2:])
        return (x + chance.uniform(*config.noise) / 255 * torch.randn(shape, generator=generator)).clamp(0, 1)
    strength = chance.uniform(*config.poisson)
    levels = x.clamp(0, 1).mul(255).round().div(255)
    if grey:
        weights = torch.tensor([0.299, 0.587, 0.114])
        levels = rearrange(torch.einsum("b c h w, c -> b h w", levels, weights), "b h w -> b 1 h w")
    grains = 2 ** math.ceil(math.log2(max(2, len(levels.mul(255).round().unique()))))
    noise = torch.poisson(levels * grains, generator=generator) / grains - levels
    return torch.clamp(x + strength * noise, 0, 1)


def _jpeg(x: Picture, quality: float) -> Picture:
    """There and back. Four pixels share a colour, as cameras do it."""
    file = io.BytesIO()
    images_from_pixels(x.clamp(0, 1) * 2 - 1)[0].save(file, "JPEG", quality=round(quality))
    with Image.open(file) as picture:
        return (pixels_from_images([picture]) + 1) / 2
