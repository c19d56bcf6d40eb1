"""Pictures as vectors that lie close when the pictures are alike: from a file that the user's own model made,
from a CLIP, or from the descriptors that need no network."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from limner.data.descriptors import describe
from limner.data.pictures import LARGEST, PictureError, open_picture
from limner.data.records import Record, Reject
from limner.data.steps import Outcome
from limner.errors import DataError, WeightsError

FACT = "embedding"  # what the fact is called that holds one
LOOKS = "looks"  # the source that needs no model
BATCH = 16  # pictures that a network is shown at once
SIDE = 1024  # pixels of the longer side that it is shown, at most, before its own preparation
Vectors = npt.NDArray[np.float32]  # n d


@dataclass(frozen=True, kw_only=True, slots=True)
class Embed:
    """A step that notes each picture's vector as the fact `embedding`. What cannot be read is left out."""

    name: ClassVar[str] = "embed"
    source: str = LOOKS  # "looks"; a .parquet of keys and embeddings; a CLIP, as `load_tower` takes it
    largest: int = LARGEST  # pixels of a picture, at most
    stamp: str = ""  # `stamp_of` the source: kept with the settings, so that a change of it is seen

    def part(self, records: list[Record]) -> Outcome:
        """Raises DataError where the file lacks a picture or holds no vectors, WeightsError where the model
        cannot be loaded."""
        if self.source.endswith(".parquet"):
            rows = read_vectors(Path(self.source), [record.key for record in records])
            return Outcome(kept=[_with(*pair) for pair in zip(records, rows, strict=True)])
        tower = describe_all if self.source == LOOKS else load_tower(self.source)
        kept: list[Record] = []
        rejects: list[Reject] = []
        for first in range(0, len(records), BATCH):
            shown: list[Record] = []
            pictures: list[Image.Image] = []
            for record in records[first : first + BATCH]:
                try:
                    picture = open_picture(record.picture, largest=self.largest)
                except PictureError as error:
                    told = str(error)
                    rejects.append(
                        Reject(key=record.key, picture=record.picture, reason=error.reason, detail=told)
                    )
                else:
                    shown.append(replace(record, width=picture.width, height=picture.height))
                    picture.thumbnail((SIDE, SIDE))  # a batch of the largest would fill the memory
                    pictures.append(picture)
            if pictures:
                kept += [_with(*pair) for pair in zip(shown, tower(pictures), strict=True)]
        return Outcome(kept=kept, rejects=rejects)


def stamp_of(path: Path) -> str:
    """A short hash of how long a file is, or each file of a folder, and when it was written; "" for what is
    not there."""
    if not path.exists():
        return ""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    told = [(str(one.relative_to(path)), (there := one.stat()).st_size, there.st_mtime_ns) for one in files]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]


def encode(vector: npt.NDArray[np.floating]) -> str:
    """Of length 1, in half precision, as the letters of base64. Raises DataError when it is nothing, or not
    finite."""
    vector = vector.astype(np.float64)
    length = np.linalg.norm(vector)
    if not np.isfinite(length) or length == 0:
        raise DataError("an embedding is zero or not finite; was it made in half precision?")
    return base64.b64encode((vector / length).astype("<f2").tobytes()).decode()


def decode(text: str) -> npt.NDArray[np.float32]:
    """What `encode` was given, of length 1 within a thousandth. Raises DataError."""
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float32)
    except ValueError as error:
        raise DataError(f"this is no embedding: {error}; take the step `embed` again") from None


def describe_all(pictures: Sequence[Image.Image]) -> Vectors:
    """The descriptors of pictures, a row each."""
    return np.stack([describe(picture) for picture in pictures])


def read_vectors(path: Path, keys: Sequence[str]) -> Vectors:
    """The rows of a parquet file with the columns `key` and `embedding` (lists of numbers, all of one length)
    for these keys, in their order. Only the row groups that hold them are read. Raises DataError."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        found: dict[str, npt.NDArray[np.float32]] = {}
        with pq.ParquetFile(path) as file:
            wanted = pa.array(keys, pa.string())
            for group in range(file.num_row_groups):
                named = file.read_row_group(group, columns=["key"])["key"].cast(pa.string())
                mask = pc.is_in(named, value_set=wanted)
                if not pc.any(mask).as_py():
                    continue
                table = file.read_row_group(group, columns=["key", FACT]).filter(mask)
                vectors = [np.asarray(row, np.float32) for row in table[FACT].to_pylist()]
                found |= dict(zip(table["key"].cast(pa.string()).to_pylist(), vectors, strict=True))
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} holds no embeddings: {error}. It is a parquet file with the columns key and {FACT}"
        ) from None
    if missing := [key for key in keys if key not in found]:
        raise DataError(
            f"{path} has no embedding of {missing[0]!r} and {len(missing) - 1} more of {len(keys)} pictures; "
            "embed what the set holds now"
        )
    lengths = {row.shape for row in found.values()}
    if len(lengths) > 1 or any(len(shape) != 1 for shape in lengths):
        raise DataError(f"{path} has embeddings of several lengths: {sorted(lengths)}")
    return np.stack([found[key] for key in keys])


@lru_cache(1)
def load_tower(source: str) -> Callable[[Sequence[Image.Image]], Vectors]:
    """A CLIP's picture tower: weights.safetensors of a [clip] run; a folder as transformers writes a CLIP, or
    one with an image_encoder in it; a hub id of such a model. Raises WeightsError."""
    import torch

    from limner.models.clip import CLIPVision, clip_pixels
    from limner.util.images import pixels_from_images
    from limner.weights import clip, dalle, hub

    path = Path(source)
    if path.suffix == ".safetensors":
        contrast = dalle.load_contrast(path)[0]
        size = (contrast.config.size, contrast.config.size)

        @torch.inference_mode()
        def own(pictures: Sequence[Image.Image]) -> Vectors:
            small = [picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures]
            seen: torch.Tensor = contrast.vision(pixels_from_images(small)).projected
            return seen.numpy()

        return own
    folder = hub.fetch(source) if hub.is_id(source) else path
    network: CLIPVision
    if (folder / "image_encoder").is_dir():
        network = clip.load_vision(folder / "image_encoder")
    elif (folder / "config.json").is_file():
        network = clip.load(folder).vision
    else:
        raise WeightsError(
            f"{source} is no CLIP: a .safetensors of a [clip] run, a folder with its config.json, or one "
            "with an image_encoder"
        )

    @torch.inference_mode()
    def published(pictures: Sequence[Image.Image]) -> Vectors:
        prepared = [clip_pixels(pixels_from_images([one]), network.config.size) for one in pictures]
        seen: torch.Tensor = network(torch.cat(prepared)).projected
        return seen.numpy()

    return published


def _with(record: Record, vector: npt.NDArray[np.float32]) -> Record:
    return replace(record, facts=record.facts | {FACT: encode(vector)})
