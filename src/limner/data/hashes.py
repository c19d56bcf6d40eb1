"""Perceptual hashes, and how pictures with nearly the same one are found among many.

64 bits say how light and dark lie in a picture (Zauner 2010, "pHash"), and a tint of 6 x 6 mean colours says
what the bits cannot: a red apple and a green one may share them. Resizing, JPEG and a small change of
brightness leave both nearly as they are. Crops, mirrored and turned pictures are other pictures here.
"""

from array import array
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 32  # pixels of the grey copy whose frequencies are looked at
LOW = 8  # lowest frequencies in each direction
BITS = LOW * LOW
CELLS = 6  # of a tint in each direction
TINT_SLACK = 20.0  # levels that a cell of a tint may be off, after the change of brightness
BRIGHTER = 1.25  # times, at most, that a duplicate may be
FURTHEST = 16  # bits of difference that are still searched for

Tint = npt.NDArray[np.uint8]  # CELLS CELLS 3


def phash(picture: Image.Image) -> int:
    """64 bits: which of the 8 x 8 lowest frequencies of a 32 x 32 grey copy are above their median, row by
    row, the first bit the highest. The library ImageHash gives the same number, up to ties."""
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    low = (_cosines() @ grey @ _cosines().T)[:LOW, :LOW]
    number = 0
    for bit in (low > np.median(low)).ravel():
        number = number << 1 | int(bit)
    return number


def tint(picture: Image.Image) -> Tint:
    """Mean colours of 6 x 6 cells, 8 bits each."""
    return np.asarray(picture.convert("RGB").resize((CELLS, CELLS), Image.Resampling.BOX))


def same_tint(one: Tint, other: Tint) -> bool:
    """Whether two tints differ by a change of brightness only, and by little else."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    gain = float(np.clip((a * b).sum() / max(1.0, (a * a).sum()), 1 / BRIGHTER, BRIGHTER))
    return bool(np.abs(np.minimum(gain * a, 255) - b).max() <= TINT_SLACK)


def difference(one: int, other: int) -> int:
    """Bits in which two hashes differ, 0 to 64."""
    return (one ^ other).bit_count()


class Index:
    """Hashes, and which of them are within `distance` bits of another.

    The bits are cut into distance + 1 bands; two hashes within the distance agree in one band at least
    (Norouzi et al. 2012, "multi-index hashing"), so only those are compared. Memory is `distance` + 3 numbers
    for each hash; nothing grows with the number of pairs.
    """

    def __init__(self, distance: int) -> None:
        """Raises ValueError when the distance is not from 0 to FURTHEST."""
        if not 0 <= distance <= FURTHEST:
            raise ValueError(f"a distance is from 0 to {FURTHEST} bits, got {distance}")
        self.distance = distance
        edges = [round(BITS * band / (distance + 1)) for band in range(distance + 2)]
        self._cuts = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._bands: list[dict[int, array[int]]] = [{} for _ in self._cuts]
        self._hashes = np.zeros(1024, np.uint64)
        self._count = 0

    def add(self, number: int) -> int:
        """Put a hash in; its place, counted from 0."""
        if self._count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[self._count] = number
        for band, (low, mask) in zip(self._bands, self._cuts, strict=True):
            band.setdefault(number >> low & mask, array("L")).append(self._count)
        self._count += 1
        return self._count - 1

    def near(self, number: int) -> list[tuple[int, int]]:
        """(distance, place) of every hash within the distance, nearest first, then by place."""
        held = [
            np.frombuffer(places, dtype=f"u{places.itemsize}")
            for band, (low, mask) in zip(self._bands, self._cuts, strict=True)
            if (places := band.get(number >> low & mask)) is not None
        ]
        if not held:
            return []
        found = np.concatenate(held)
        del held  # an array that is looked at cannot grow
        off = np.bitwise_count(self._hashes[found] ^ np.uint64(number))
        close = off <= self.distance
        return sorted({*zip(off[close].tolist(), found[close].tolist(), strict=True)})


@cache
def _cosines() -> npt.NDArray[np.float64]:
    """The matrix of the discrete cosine transform of SIDE values (DCT-II)."""
    frequency, place = np.arange(SIDE)[:, None], np.arange(SIDE)[None]
    matrix: npt.NDArray[np.float64] = 2 * np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))
    return matrix
