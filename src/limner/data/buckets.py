"""Aspect buckets: pictures of many shapes trained at about one area, so that little is cut off.

A batch holds pictures of one bucket. What a picture was before (its size) and what was cut (the corner of
the crop) is kept, for SDXL is told both (Podell et al. 2023, sections 2.2 and 2.3; buckets: appendix I).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from limner.data.pictures import LARGEST
from limner.errors import DataError

MOST = 2_048  # steps of a side
Side = tuple[int, int]  # width and height in pixels, as buckets are named: "832x1216"


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketConfig:
    """Which buckets there are. In brackets what kohya's trainers call it."""

    size: int = 512  # a bucket's area is at most that of a square with this side (resolution)
    step: int = 64  # sides are multiples of this many pixels (bucket_reso_steps)
    shortest: int = 0  # of a side; 0 is half of `size` (min_bucket_reso)
    longest: int = 0  # of a side; 0 is twice `size` (max_bucket_reso)
    upscale: bool = True  # small pictures are made larger; if not, each gets its own size (bucket_no_upscale)
    square: bool = False  # a single bucket of size x size, whatever the shape (no enable_bucket)

    def __post_init__(self) -> None:
        if self.step < 1 or self.size < 1:
            raise ValueError(f"the size and the step of buckets are at least 1, got {self.size}, {self.step}")
        if self.size**2 > LARGEST or (self.limits[1] > MOST * self.step and not self.square):
            raise ValueError(
                f"buckets of side {max(self.size, self.longest)} in steps of {self.step} are too many or too "
                f"large: the area is at most {LARGEST / 1e6:g} million pixels, and the longest side "
                f"{MOST} steps"
            )
        if self.size < self.step and not self.square:
            raise ValueError(f"buckets of area {self.size}² have no side of {self.step}; give a smaller step")
        if self.shortest < 0 or self.longest < 0 or self.limits[0] > self.limits[1]:
            raise ValueError(f"no side lies between {self.shortest} and {self.longest} pixels")

    @property
    def limits(self) -> tuple[int, int]:
        """The shortest and the longest side that a bucket may have, in multiples of the step."""
        shortest = max(1, math.ceil((self.shortest or self.size // 2) / self.step)) * self.step
        return shortest, (self.longest or self.size * 2) // self.step * self.step


@dataclass(frozen=True, slots=True)
class Placed:
    """How a picture comes to the size of its bucket: resized to cover it, then cut."""

    resized: Side  # at least the bucket, on both sides
    corner: Side  # left and top of the cut, in pixels of the resized picture


def sides(config: BucketConfig) -> list[Side]:
    """All buckets, sorted: for each width the tallest that stays within the area, and both turned.

    For 512 and the defaults these are kohya's, from 256x1024 over 512x512 to 1024x256.
    """
    if config.square:
        return [(config.size, config.size)]
    area = config.size**2
    shortest, longest = config.limits
    square = config.size // config.step * config.step
    found = {(square, square)}
    for width in range(shortest, longest + 1, config.step):
        height = min(longest, area // width // config.step * config.step)
        if height >= shortest:
            found |= {(width, height), (height, width)}
    return sorted(found)


def assign(widths: Sequence[int], heights: Sequence[int], config: BucketConfig) -> list[Side]:
    """The bucket of each picture: the one whose aspect is nearest as a ratio, so that 2:1 and 1:2 are alike.

    Between two of one aspect the larger is taken. Without `upscale`, pictures of too many pixels are thought
    smaller first, and each gets the largest bucket that it fills; at least one step on each side, so that
    pictures below a step are made larger even then.
    """
    width, height = np.asarray(widths, np.float64), np.asarray(heights, np.float64)
    if not config.upscale and not config.square:
        shrink = np.minimum(1.0, config.size / np.sqrt(width * height))
        cut = [
            np.maximum(1, np.floor(side * shrink / config.step + 1e-9)).astype(int) * config.step
            for side in (width, height)
        ]
        return list(zip(cut[0].tolist(), cut[1].tolist(), strict=True))
    listed = sorted(sides(config), key=lambda side: -side[0] * side[1])  # argmin takes the first of equals
    aspects = np.array([math.log(w / h) for w, h in listed])
    nearest: list[int] = []
    for at in range(0, len(width), 4096):  # a table of all pictures by all buckets would be large
        aspect = np.log(width[at : at + 4096] / height[at : at + 4096])
        nearest += np.abs(aspect[:, None] - aspects).round(9).argmin(1).tolist()
    return [listed[index] for index in nearest]


def place(size: Side, bucket: Side, across: float = 0.5, down: float = 0.5) -> Placed:
    """Cover `bucket` by a picture of `size`, cut at a share [0, 1] of what is left over; 0.5: the middle."""
    (width, height), (wide, high) = size, bucket
    scale = max(wide / width, high / height)
    resized = (max(wide, round(width * scale)), max(high, round(height * scale)))
    corner = (round((resized[0] - wide) * across), round((resized[1] - high) * down))
    return Placed(resized, corner)


def cover(picture: Image.Image, bucket: Side) -> Image.Image:
    """The whole picture, resized (Lanczos) to cover its bucket with as little as possible left over. Raises
    DataError when it is so narrow that more than 89 million pixels would come of it."""
    resized = place(picture.size, bucket).resized
    if resized == picture.size:
        return picture
    if resized[0] * resized[1] > LARGEST:
        raise DataError(
            f"a picture of {name(picture.size)} would be made {name(resized)} to cover {name(bucket)}; "
            "leave such narrow ones out with `limner data filter --aspect`"
        )
    return picture.resize(resized, Image.Resampling.LANCZOS, reducing_gap=3.0)


def name(bucket: Side) -> str:
    """As users write it: width x height."""
    return f"{bucket[0]}x{bucket[1]}"
