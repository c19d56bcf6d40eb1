"""Batches for training out of pictures on the disk, each a function of its number and a seed.

Nothing depends on what was asked before: a run that goes on after a crash, and processes that share the
batches among them, see exactly what one process without a break would have seen. Reading ahead changes the
time that a batch takes, and nothing else.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from limner.data import buckets
from limner.data.buckets import BucketConfig
from limner.data.catalogue import Catalogue, catalogue
from limner.data.latents import EMPTY, Latents
from limner.data.order import Order
from limner.errors import DataError
from limner.util.images import dequantize
from limner.util.rng import mix

Sides = tuple[int, int]  # height and width, or top and left, in pixels
Levels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """Pictures on the disk, and how a run sees them. In brackets what kohya's trainers call it."""

    folder: str  # a packed set, a set, or a folder of pictures with .txt files
    size: int = 512  # of a square picture; those of other shapes have the same area (resolution)
    buckets: bool = True  # pictures keep about their shape; if not, all are cut square (enable_bucket)
    bucket_step: int = 64  # sides of buckets are multiples of it (bucket_reso_steps)
    bucket_min: int = 0  # shortest side of a bucket; 0 is half of `size` (min_bucket_reso)
    bucket_max: int = 0  # longest side of a bucket; 0 is twice `size` (max_bucket_reso)
    bucket_upscale: bool = True  # small pictures are made larger (not bucket_no_upscale)
    crop: str = "center"  # where a picture is cut that is longer than its bucket: center or random
    flip: bool = False  # mirror every second picture, at random (flip_aug)
    caption: str = ""  # of pictures that have none, such as DreamBooth's "a photo of sks dog" (class_tokens)
    drop_caption: float = 0.1  # share of captions that are left empty (caption_dropout_rate)
    long_captions: float = 0.0  # share of pictures told by their long caption, where they have one
    shuffle_caption: bool = False  # put the parts between commas in another order each time
    keep_tokens: int = 0  # parts at the start that stay when captions are shuffled
    latents: bool = False  # latents that were computed before, by the encoder of the run (cache_latents)
    order: int = 0  # seed of the order in which pictures come
    workers: int = 2  # threads that read ahead; 0: pictures are read when they are wanted

    def __post_init__(self) -> None:
        if not self.folder:
            raise ValueError("folder is empty: name the folder with the pictures")
        if self.crop not in ("center", "random"):
            raise ValueError(f"crop is center or random, got {self.crop!r}")
        for name in ("drop_caption", "long_captions"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {getattr(self, name)}")
        if self.keep_tokens < 0 or self.workers < 0:
            raise ValueError("keep_tokens and workers are at least 0")
        if self.latents and self.crop == "random":
            raise ValueError("computed latents are of the middle of each picture: crop is center with them")
        self.shapes  # noqa: B018 (raises for impossible buckets)

    @property
    def shapes(self) -> BucketConfig:
        """The buckets. Raises ValueError when there can be none."""
        return BucketConfig(
            size=self.size,
            step=self.bucket_step,
            shortest=self.bucket_min,
            longest=self.bucket_max,
            upscale=self.bucket_upscale,
            square=not self.buckets,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Loaded:
    """One batch, all of one bucket."""

    pixels: Float[Tensor, "b 3 h w"] | None  # [-1, 1]; None where latents take their place
    latents: Float[Tensor, "b c y x"] | None  # as the encoder gave them
    said: (
        dict[str, Tensor] | None
    )  # computed text embeddings of `captions`; None: the captions are to be said
    captions: list[str]
    keys: list[str]
    sizes: list[Sides]  # of the original pictures
    crops: list[Sides]  # top and left of the cut, in pixels of the picture as it was resized
    target: Sides  # of the bucket
    broken: list[
        tuple[str, str]
    ]  # pictures that could not be read and what was wrong; another took their place


class Loader:
    """Pictures of a folder in batches. Raises DataError when there are none, or latents do not fit."""

    def __init__(self, config: LoaderConfig, stamp: str = "") -> None:
        """`stamp`: the fingerprint of the run's encoder, for `config.latents`."""
        self.config = config
        self._begin(catalogue(Path(config.folder)))
        self.cache = None
        if config.latents:
            if self.data.packed is None:
                raise DataError(
                    f"{config.folder} is not packed, so it has no latents: use `limner data pack`"
                )
            self.cache = Latents.open(self.data.packed, stamp, config.shapes, flip=config.flip)
        self.readers = ThreadPoolExecutor(config.workers, "reading") if config.workers else None
        self.ahead: dict[int, Future[Levels]] = {}
        self.last = (0, -1)

    def leave_out(self, missing: Mapping[int, str]) -> None:
        """Go without these rows, {row: why}. Call it before the first batch. Raises DataError when none is
        left."""
        if missing:
            self._begin(self.data.without(missing))

    def _begin(self, data: Catalogue) -> None:
        config, self.data = self.config, data
        self.sides = buckets.assign(self.data.widths.tolist(), self.data.heights.tolist(), config.shapes)
        numbers = {side: number for number, side in enumerate(sorted(set(self.sides)))}
        held = np.array([numbers[side] for side in self.sides], np.int64)
        self.order = Order(held, self.data.repeats, config.order)

    def __len__(self) -> int:
        """Pictures in an epoch: each as often as it is repeated."""
        return self.order.pictures

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Key, and what was wrong, of pictures so broken that not even their size is known."""
        return self.data.left_out

    def batch(self, count: int, index: int, seed: int) -> Loaded:
        """The batch of `count` pictures before which there were `index` others.

        Which pictures it holds follows from `index` and the order's seed, so that an epoch is complete
        whatever the seeds; how they are cut, mirrored and told follows from (index, seed). Raises DataError
        when no picture of a bucket can be read, or computed latents are not whole.
        """
        rows = self.order.batch(count, index)
        if self.cache is None:
            self._read_ahead(rows, count, index)
        broken: list[tuple[str, str]] = []
        samples = [
            self._sample(row, Random(mix(seed, index, place)), broken) for place, row in enumerate(rows)
        ]
        pictures = torch.stack([sample.picture for sample in samples])
        said = [sample.said for sample in samples if sample.said]
        wide, high = self.sides[rows[0]]
        return Loaded(
            pixels=dequantize(pictures) if self.cache is None else None,
            latents=pictures if self.cache is not None else None,
            said={name: torch.stack([one[name] for one in said]) for name in said[0]}
            if len(said) == count
            else None,
            captions=[sample.caption for sample in samples],
            keys=[sample.key for sample in samples],
            sizes=[sample.size for sample in samples],
            crops=[sample.crop for sample in samples],
            target=(high, wide),
            broken=list(dict(broken).items()),
        )

    def close(self) -> None:
        """End the threads."""
        if self.readers is not None:
            self.readers.shutdown(wait=True, cancel_futures=True)

    def _sample(self, row: int, chance: Random, broken: list[tuple[str, str]]) -> "_Sample":
        """The picture of a row as it is shown this time, or the next one of its bucket that can be read."""
        flip, across, down = chance.random() < 0.5 and self.config.flip, chance.random(), chance.random()
        if self.config.crop == "center":
            across = down = 0.5
        row, picture = self._readable(row, flip, broken)
        key, size = self.data.text("key", row), (int(self.data.heights[row]), int(self.data.widths[row]))
        own = self.data.text("caption", row)
        caption, which = worded(
            own or self.config.caption, self.data.text("long_caption", row), self.config, chance
        )
        wide, high = self.sides[row]
        if self.cache is None:
            left, top = round((picture.shape[2] - wide) * across), round((picture.shape[1] - high) * down)
            cut = picture[:, top : top + high, left : left + wide]
            return _Sample(cut, None, caption, key, size, (top, left))
        said = None
        if self.cache.text and which is not None and (own or which != "caption"):
            said = self.cache.said(key, self.data.text("shard", row), which)
        placed = buckets.place((size[1], size[0]), (wide, high))
        left, top = placed.corner
        return _Sample(
            picture, said, caption, key, size, (top, placed.resized[0] - left - wide if flip else left)
        )

    def _readable(self, row: int, flip: bool, broken: list[tuple[str, str]]) -> tuple[int, Tensor]:
        """The first row that can be read, from `row` on, and its latents or its levels (3 h w)."""
        for other in chain((row,), self.order.others(row)):
            key = self.data.text("key", other)
            if self.cache is not None:
                if key not in self.cache.left_out:
                    return other, self.cache.take(key, self.data.text("shard", other), flipped=flip)
                broken.append((key, self.cache.left_out[key]))
                continue
            try:
                waiting = self.ahead.get(other)
                levels = self._read(other) if waiting is None else waiting.result()
            except DataError as error:
                broken.append((key, str(error)))
                continue
            shown = torch.from_numpy(levels)
            return other, rearrange(shown.flip(1) if flip else shown, "h w c -> c h w")
        name = buckets.name(self.sides[row])
        raise DataError(f"no picture of the bucket {name} can be read; the last one: {broken[-1][1]}")

    def _read(self, row: int) -> Levels:
        return np.array(buckets.cover(self.data.open(row), self.sides[row]))

    def _read_ahead(self, rows: list[int], count: int, index: int) -> None:
        """Have the threads read this batch and the one that is likely to follow: as far on as this is from
        the last, since a process may take every second batch only."""
        if self.readers is None:
            return
        before = self.last
        stride = index - before[1] if before[0] == count and index > before[1] else 1
        self.last = (count, index)
        wanted = dict.fromkeys([*rows, *self.order.batch(count, index + stride)])
        for row in self.ahead.keys() - wanted.keys():
            self.ahead[row].cancel()
        self.ahead = {row: self.ahead.get(row) or self.readers.submit(self._read, row) for row in wanted}


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    picture: Tensor  # 3 h w levels, or c y x latents
    said: dict[str, Tensor] | None
    caption: str
    key: str
    size: Sides
    crop: Sides


def worded(caption: str, long_caption: str, config: LoaderConfig, chance: Random) -> tuple[str, str | None]:
    """How a picture is told this time, and what that is among computed texts: "caption", "long" or "empty";
    None where its parts were put in another order.

    Parts are shuffled as kohya's trainers do it: split at commas, trimmed, all after the first `keep_tokens`
    in a random order, joined by ", ".
    """
    dropped = chance.random() < config.drop_caption
    long = chance.random() < config.long_captions
    text, which = (long_caption, "long") if long and long_caption else (caption, "caption")
    if dropped or not text:
        return "", EMPTY
    if not config.shuffle_caption:
        return text, which
    parts = [part.strip() for part in text.strip().split(",")]
    kept, rest = parts[: config.keep_tokens], parts[config.keep_tokens :]
    chance.shuffle(rest)
    return ", ".join(kept + rest), None
