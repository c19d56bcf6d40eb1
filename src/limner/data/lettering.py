"""How much of a picture is covered by text, by the looks of it and without reading.

Letters are small spots, thinner than STROKE pixels, that stand out from what is around them in one tone, next
to each other on one line, with little else between them. What follows from that:

seen       printed letters of alphabets whose letters stand apart, level, from about 6 pixels to a quarter of
           the copy high, four or more in a row
not seen   script, Chinese or Arabic, turned or curved lines, single large letters, faint watermarks, text in
           the brightness of its ground, and text over gravel or leaves, which the rule against clutter drops
mistaken   rows of equal small things, such as windows or fence posts

On 100 drawn scenes with one to three lines laid over them 82 were found (more than 0.01 of the picture), of
the same without fewer than 5; of 69 photographs with small lines 39, of 23 without none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from limner.data.looks import small_grey

SIDE = 384  # pixels of the longer side of the copy that is looked at
STROKE = 13  # pixels; thinner spots may be strokes
CONTRAST = 40  # levels that a stroke stands out by at least
HALF = 0.6  # of the strongest contrast nearby, which a stroke keeps: antialiased rims do not count
TONES = 24  # levels between neighbouring letters, at most
LETTERS = 4  # of a line at least
CLUTTER = 1.6  # spots in a line's box for each of its letters, at most
MOST = 3_000  # spots that are looked at, the largest

Numbers = npt.NDArray[Any]


def text_share(picture: Image.Image) -> float:
    """Share of the picture's area in the boxes of its lines of text, 0 to 1."""
    grey = small_grey(picture, SIDE)
    if min(grey.shape) < STROKE:
        return 0.0
    covered = np.zeros(grey.shape, bool)
    levels = grey.astype(np.int16)
    bright = levels - _square(_square(grey, np.minimum), np.maximum)  # white top-hat
    dark = _square(_square(grey, np.maximum), np.minimum).astype(np.int16) - levels
    for contrast in (bright, dark):
        mask = (contrast > CONTRAST) & (contrast > HALF * _square(contrast, np.maximum))
        for top, bottom, left, right in _lines(levels, mask):
            covered[top:bottom, left:right] = True
    return float(covered.mean())


@dataclass(frozen=True, slots=True)
class _Spots:
    """Connected spots of a mask; one row each."""

    top: Numbers
    bottom: Numbers
    left: Numbers
    right: Numbers
    area: Numbers
    tone: Numbers  # mean level
    spread: Numbers  # standard deviation of the levels

    def take(self, rows: Numbers) -> "_Spots":
        """Only these."""
        return _Spots(
            self.top[rows],
            self.bottom[rows],
            self.left[rows],
            self.right[rows],
            self.area[rows],
            self.tone[rows],
            self.spread[rows],
        )


def _lines(levels: Numbers, mask: Numbers) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of what looks like lines of text: top, bottom, left, right."""
    spots = _spots(levels, mask)
    height, width = spots.bottom - spots.top, spots.right - spots.left
    like = (height >= 5) & (height <= levels.shape[0] // 4) & (width <= 3 * height)
    like &= (spots.area >= 0.12 * height * width) & (spots.spread < 50)
    rows = np.flatnonzero(like)
    rows = rows[np.argsort(-spots.area[rows], kind="stable")][:MOST]
    letters = spots.take(rows[np.argsort(spots.left[rows], kind="stable")])
    first, second = _beside(letters)
    line_of = _joined(len(letters.left), first, second)
    seen = spots.area >= 6
    across, down = (spots.left + spots.right)[seen] / 2, (spots.top + spots.bottom)[seen] / 2
    for line in np.flatnonzero(np.bincount(line_of) >= LETTERS) if len(line_of) else ():
        one = letters.take(np.flatnonzero(line_of == line))
        tall = one.bottom - one.top
        size = float(np.median(tall))
        top, bottom, left, right = one.top.min(), one.bottom.max(), one.left.min(), one.right.max()
        uneven = float(np.median(np.abs(one.bottom - np.median(one.bottom))))
        filled = (one.right - one.left).sum() / (right - left)
        inside = (across > left) & (across < right) & (down > top - size / 2) & (down < bottom + size / 2)
        if (
            uneven <= 0.12 * size
            and right - left >= 2 * size
            and bottom - top <= 2.2 * np.percentile(tall, 90)
            and 0.35 < filled < 1.3
            and one.tone.std() < 15
            and inside.sum() <= CLUTTER * len(tall)
        ):
            yield int(top), int(bottom), int(left), int(right)


def _beside(one: _Spots) -> tuple[Numbers, Numbers]:
    """Pairs of spots that could be neighbouring letters of one line."""
    height = one.bottom - one.top
    small = np.minimum(height[:, None], height[None])
    large = np.maximum(height[:, None], height[None])
    gap = one.left[None] - one.right[:, None]
    rise = np.abs(one.bottom[:, None] - one.bottom[None])
    slack = np.maximum(1, 0.12 * large)
    level = (rise <= slack) | ((np.abs(one.top[:, None] - one.top[None]) <= slack) & (rise <= 0.45 * large))
    near = (gap < 0.9 * large) & (gap > -0.3 * small) & (one.left[None] > one.left[:, None])
    near &= level & (large <= 2.2 * small) & (np.abs(one.tone[:, None] - one.tone[None]) < TONES)
    first, second = np.nonzero(near)
    return first, second


def _spots(levels: Numbers, mask: Numbers) -> _Spots:
    """Label by runs: those of neighbouring rows that touch, also at a corner, are one spot."""
    wide = mask.shape[1] + 2
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    row, start = np.nonzero(edges == 1)
    _, stop = np.nonzero(edges == -1)
    at = row * wide
    low = np.searchsorted(at + stop, at - wide + start, "left")
    count = np.maximum(0, np.searchsorted(at + start, at - wide + stop, "right") - low)
    first = np.repeat(np.arange(len(row)), count)
    second = np.repeat(low - count.cumsum() + count, count) + np.arange(count.sum())
    label = _joined(len(row), first, second)
    number = int(label.max()) + 1 if len(label) else 0
    top, left = np.full(number, mask.shape[0]), np.full(number, mask.shape[1])
    bottom, right = np.zeros(number, int), np.zeros(number, int)
    np.minimum.at(top, label, row)
    np.maximum.at(bottom, label, row + 1)
    np.minimum.at(left, label, start)
    np.maximum.at(right, label, stop)
    area = np.bincount(label, stop - start, number)

    def mean(values: Numbers) -> Numbers:
        sums = np.pad(values.astype(np.int64), ((0, 0), (1, 0))).cumsum(1)
        total: Numbers = np.bincount(label, sums[row, stop] - sums[row, start], number) / np.maximum(1, area)
        return total

    inside = np.where(mask, levels, 0).astype(np.int64)
    tone = mean(inside)
    spread = np.sqrt(np.maximum(0, mean(inside**2) - tone**2))
    return _Spots(top, bottom, left, right, area, tone, spread)


def _joined(count: int, first: Numbers, second: Numbers) -> Numbers:
    """Which of the connected groups each of `count` things is in, by its pairs."""
    label = np.arange(count)
    while True:
        lower = np.minimum(label[first], label[second])
        new = label.copy()
        for ends in (first, second, label[first], label[second]):
            np.minimum.at(new, ends, lower)
        new = new[new]
        if np.array_equal(new, label):
            return np.unique(label, return_inverse=True)[1]
        label = new


def _square(values: Numbers, least: np.ufunc) -> Numbers:
    """The least (or greatest) value in the square of STROKE pixels around each pixel."""
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (STROKE // 2, STROKE // 2)
        values = np.moveaxis(np.pad(values, padding, mode="edge"), axis, 0)
        span = 1
        while 2 * span <= STROKE:
            values, span = least(values[:-span], values[span:]), 2 * span
        values = least(values[: span - STROKE], values[STROKE - span :])
        values = np.moveaxis(values, 0, axis)
    return values
