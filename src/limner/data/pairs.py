"""Pairs of pictures for one prompt, of which people like one better: what a model learns taste from.

    folder     NAME_w.png, NAME_l.png    the winner and the loser; their prompt in NAME.txt or NAME_w.txt
    parquet    columns winner, loser, caption; pictures by paths, from the file's own folder on

A pair is seen once an epoch. Which pairs a batch holds follows from its number alone, as in `loader.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from limner.data.buckets import cover
from limner.data.order import Order
from limner.data.pictures import open_picture
from limner.errors import DataError
from limner.util.images import pixels_from_images
from limner.util.rng import mix

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
COLUMNS = ("winner", "loser", "caption")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsConfig:
    """Where pairs lie, and how a run sees them. In brackets what diffusers' example calls it."""

    folder: str  # a folder of pairs, or a parquet file
    size: int = 512  # side of the squares that are cut out of the middle (resolution)
    flip: bool = False  # mirror every second pair, at random (random_hflip)
    order: int = 0  # seed of the order in which pairs come

    def __post_init__(self) -> None:
        if not self.folder:
            raise ValueError("folder is empty: name the folder or the parquet file of the pairs")
        if self.size < 8:
            raise ValueError(f"size is at least 8, got {self.size}")


class Pair(NamedTuple):
    """Two pictures for one prompt."""

    winner: Path
    loser: Path
    caption: str


@dataclass(frozen=True, slots=True, eq=False)
class Paired:
    """One batch."""

    winners: Float[Tensor, "b 3 s s"]  # [-1, 1]
    losers: Float[Tensor, "b 3 s s"]
    captions: list[str]
    broken: list[tuple[str, str]]  # pairs that could not be read and why; another took their place


class Pairs:
    """The pairs of a folder or file in batches. Raises DataError where there are none."""

    def __init__(self, config: PairsConfig) -> None:
        self.config = config
        self.pairs = list(found(Path(config.folder).expanduser()))
        if not self.pairs:
            raise DataError(
                f"{config.folder} holds no pairs: give NAME_w.png and NAME_l.png with NAME.txt, or a "
                f"parquet file with the columns {', '.join(COLUMNS)}"
            )
        count = len(self.pairs)
        self.order = Order(np.zeros(count, np.int64), np.ones(count, np.int64), config.order)

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, count: int, index: int, seed: int) -> Paired:
        """The batch of `count` pairs before which there were `index` others. Raises DataError when no pair
        can be read."""
        broken: list[tuple[str, str]] = []
        read = [
            self._readable(row, Random(mix(seed, index, place)), broken)
            for place, row in enumerate(self.order.batch(count, index))
        ]
        winners, losers, captions = zip(*read, strict=True)
        return Paired(
            pixels_from_images(winners),
            pixels_from_images(losers),
            list(captions),
            list(dict(broken).items()),
        )

    def _readable(
        self, row: int, chance: Random, broken: list[tuple[str, str]]
    ) -> tuple[Image.Image, Image.Image, str]:
        mirrored = self.config.flip and chance.random() < 0.5
        for other in chain((row,), self.order.others(row)):
            pair = self.pairs[other]
            try:
                winner, loser = (self._read(path, mirrored) for path in pair[:2])
            except DataError as error:
                broken.append((pair.winner.name, str(error)))
                continue
            return winner, loser, pair.caption
        raise DataError(f"no pair of {self.config.folder} can be read; the last one: {broken[-1][1]}")

    def _read(self, path: Path, mirrored: bool) -> Image.Image:
        side = self.config.size
        picture = cover(open_picture(str(path)), (side, side))
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        cut = picture.crop((left, top, left + side, top + side))
        return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else cut


def found(where: Path) -> Iterator[Pair]:
    """The pairs at `where`, by name or in the file's order. Raises DataError for half a pair, and for a file
    that is none."""
    if where.is_dir():
        yield from _named(where)
    elif where.suffix == ".parquet":
        yield from _listed(where)
    else:
        raise DataError(f"{where} is neither a folder of pairs nor a .parquet file")


def _named(folder: Path) -> Iterator[Pair]:
    pictures = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS}
    for stem, winner in pictures.items():
        if not stem.endswith("_w"):
            continue
        name = stem.removesuffix("_w")
        if (loser := pictures.get(f"{name}_l")) is None:
            raise DataError(f"{winner} won against nobody: {name}_l is not there")
        texts = (folder / f"{name}.txt", folder / f"{stem}.txt")
        text = next((path for path in texts if path.is_file()), None)
        try:
            yield Pair(winner, loser, "" if text is None else text.read_text("utf-8").strip())
        except UnicodeDecodeError:
            raise DataError(f"{text} is no text in UTF-8") from None
    if alone := [s for s in pictures if s.endswith("_l") and s.removesuffix("_l") + "_w" not in pictures]:
        raise DataError(
            f"{folder / alone[0]} lost against nobody: {alone[0].removesuffix('_l')}_w is not there"
        )


def _listed(path: Path) -> Iterator[Pair]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        table = pq.read_table(path, columns=list(COLUMNS))
    except (OSError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise DataError(f"cannot read pairs from {path}: {str(error).splitlines()[0]}") from None
    if absent := [name for name in COLUMNS if name not in table.column_names]:
        raise DataError(f"{path} has no column {', '.join(absent)}")
    for row in table.to_pylist():
        winner, loser, caption = (row[name] for name in COLUMNS)
        if not isinstance(winner, str) or not isinstance(loser, str):
            raise DataError(f"{path}: winner and loser are paths of pictures, got {winner!r} and {loser!r}")
        yield Pair(path.parent / winner, path.parent / loser, str(caption or ""))
