"""Latents and text embeddings computed once, before training, and kept beside the shards they were made from.

    SET/packed/latents/shard-00000.safetensors   KEY/latents, KEY/flipped, KEY/caption/NAME, KEY/long/NAME
    SET/packed/latents/empty.safetensors         empty/NAME: what a dropped caption is told as
    SET/packed/latents/latents.json              of which encoder, pictures and buckets they are; written last

They are good for one encoder, one packing and one choice of buckets, all of which is asked before they are
used. Pictures are cut in the middle.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limner.data import buckets, pack
from limner.data.catalogue import Catalogue, catalogue
from limner.data.records import write_whole
from limner.data.steps import Progress, locked
from limner.errors import DataError
from limner.util.images import pixels_from_images
from limner.weights import files

FORMAT = "limner latents 1"
FOLDER = "latents"
TOLD = "latents.json"
EMPTY = "empty"
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
OPEN = 32  # files that are kept open, at most
AGAIN = "compute them again: limner data pack SET --latents MODEL"


@runtime_checkable
class Encoder(Protocol):
    """The frozen networks that make latents and text embeddings."""

    @property
    def stamp(self) -> str:
        """Short hash of them and their settings."""

    def latents(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c y x"]:
        """Latents of pixels in [-1, 1]."""

    def say(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """What the network is told of captions, by name; a row each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentsConfig:
    """What is kept, and how."""

    buckets: buckets.BucketConfig  # as the run that uses them will have them
    flip: bool = False  # mirrored pictures, too
    text: bool = True  # text embeddings, too
    type: str = "float16"  # of the numbers: float32, float16 or bfloat16
    batch: int = 4  # pictures that are encoded at once

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise DataError(f"latents are kept as {', '.join(TYPES)}, got {self.type!r}")
        if self.batch < 1:
            raise DataError(f"at least one picture is encoded at once, got {self.batch}")


def encode(packed: Path, encoder: Encoder, config: LatentsConfig) -> Iterator[Progress]:
    """Compute what `config` asks for of a packed set; gives how far it is after each shard.

    Cut short, it goes on with the shards that are missing; what was there before stays until all is done.
    Pictures that cannot be read are left out and named in latents.json. Raises DataError when the set is not
    packed, when a number does not fit into the type, when another process works on it, and when the disk is
    full.
    """
    inside = (packed.absolute().parent / "set.json").exists() and not (packed / "set.json").exists()
    home = packed.absolute().parent if inside else packed
    with locked(home) if home.is_dir() else nullcontext():
        pack.mend(packed)
        yield from _encode(packed, encoder, config)


def _encode(packed: Path, encoder: Encoder, config: LatentsConfig) -> Iterator[Progress]:
    data = catalogue(packed)
    if data.packed is None:
        raise DataError(f"{packed} is not packed; do so first with `limner data pack`")
    place = data.packed / FOLDER
    fresh = place.with_name(f"{FOLDER}.partial")
    pack.mend(place, TOLD)
    made_of = _made_of(data.packed, encoder.stamp, config)
    if _told(place) == made_of:
        yield Progress(name="latents", done=len(data), total=len(data), kept=len(data))
        return
    sign = {"made_of": json.dumps(made_of, sort_keys=True)}
    left_out: dict[str, str] = {}
    done = 0
    shards = np.asarray(data.table.column("shard").to_pylist())
    if config.text:
        empty = _said(encoder, [""])[0].items()
        _save({f"{EMPTY}/{name}": row.detach().clone() for name, row in empty}, fresh, EMPTY, sign)
    for shard in dict.fromkeys(shards.tolist()):
        rows = np.flatnonzero(shards == shard).tolist()
        stem = Path(shard).stem
        missing = _left_out(fresh / f"{stem}.safetensors", sign)
        if missing is None:
            tensors, missing = _shard(data, rows, encoder, config)
            _save(tensors, fresh, stem, sign | {"left_out": json.dumps(missing)})
        left_out |= missing
        done += len(rows)
        reasons = {"broken": len(left_out)} if left_out else {}
        yield Progress(name="latents", done=done, total=len(data), kept=done - len(left_out), rejects=reasons)
    table = {"made_of": made_of, "left_out": left_out}
    write_whole(fresh / TOLD, json.dumps(table, indent=1, ensure_ascii=False).encode())
    pack.swap(fresh, place)


class Latents:
    """Computed latents, to be read by key."""

    def __init__(self, folder: Path, left_out: Mapping[str, str], *, text: bool) -> None:
        self.folder, self.left_out, self.text = folder, left_out, text
        self.files: OrderedDict[str, Any] = OrderedDict()

    @classmethod
    def open(cls, packed: Path, stamp: str, config: buckets.BucketConfig, *, flip: bool = False) -> "Latents":
        """Those beside a packed set, if they are of the encoder with `stamp`, of this packing and of these
        buckets, and hold mirrored pictures where `flip` wants some. Raises DataError and says what differs.
        """
        place = pack.whole(packed / FOLDER, TOLD)
        there = _told(place)
        if there is None:
            raise DataError(
                f"no latents were computed for {packed}; do so with `limner data pack SET --latents MODEL`"
            )
        wanted = _made_of(packed, stamp, LatentsConfig(buckets=config))
        kinds = {"stamp": "another encoder", "pack": "another packing", "buckets": "other buckets"}
        for name, what in kinds.items():
            if there.get(name) != wanted[name]:
                raise DataError(
                    f"the latents in {place} are stale: they are of {what} ({there.get(name)}, this run has "
                    f"{wanted[name]}); {AGAIN}"
                )
        if flip and not there.get("flip"):
            raise DataError(
                f"the latents in {place} hold no mirrored pictures; do without flip or {AGAIN} --flip"
            )
        left_out = json.loads((place / TOLD).read_bytes())["left_out"]
        return cls(place, left_out, text=bool(there.get("text")))

    def take(self, key: str, shard: str, *, flipped: bool = False) -> Float[Tensor, "c y x"]:
        """The latents of one picture, in float32. Raises DataError when they or their file are missing."""
        return self._tensor(Path(shard).stem, f"{key}/{'flipped' if flipped else 'latents'}").float()

    def said(self, key: str, shard: str, which: str) -> dict[str, Tensor]:
        """What the network is told of a caption, as it was kept: `which` is caption, long or
        empty. Raises DataError as `take` does."""
        stem, start = (EMPTY, f"{EMPTY}/") if which == EMPTY else (Path(shard).stem, f"{key}/{which}/")
        held: list[str] = self._file(stem).keys()
        names = [name for name in held if name.startswith(start)]
        if not names:
            raise self._lacking(stem, start)
        return {name.removeprefix(start): self._tensor(stem, name) for name in names}

    def _tensor(self, stem: str, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file(stem).get_tensor(name)
        except SafetensorError:
            raise self._lacking(stem, name) from None
        return tensor

    def _lacking(self, stem: str, name: str) -> DataError:
        return DataError(f"{self.folder / stem}.safetensors does not hold {name!r}; {AGAIN}")

    def _file(self, stem: str) -> Any:
        if stem not in self.files:
            path = self.folder / f"{stem}.safetensors"
            try:
                self.files[stem] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise DataError(f"{path} is missing or not whole ({error}); {AGAIN}") from None
            if len(self.files) > OPEN:
                self.files.popitem(last=False)
        self.files.move_to_end(stem)
        return self.files[stem]


def _shard(
    data: Catalogue, rows: Sequence[int], encoder: Encoder, config: LatentsConfig
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Everything of one shard, bucket by bucket; and the pictures that could not be read."""
    sides = buckets.assign(data.widths[rows].tolist(), data.heights[rows].tolist(), config.buckets)
    tensors: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    ordered = sorted(zip(sides, rows, strict=True))
    for bucket, group in groupby(ordered, key=lambda pair: pair[0]):
        members = [row for _, row in group]
        for at in range(0, len(members), config.batch):
            keys, images = [], []
            for row in members[at : at + config.batch]:
                key = data.text("key", row)
                try:
                    images.append(middle(data.open(row), bucket))
                except DataError as error:
                    left_out[key] = str(error)
                    continue
                keys.append((key, row))
            if not keys:
                continue
            pixels = pixels_from_images(images)
            for name, batch in (
                ("latents", pixels),
                *((("flipped", pixels.flip(-1)),) if config.flip else ()),
            ):
                for (key, _), latent in zip(keys, encoder.latents(batch), strict=True):
                    tensors[f"{key}/{name}"] = _kept(latent, config.type, key)
            if config.text:
                _texts(tensors, data, keys, encoder, config)
    return tensors, left_out


def _texts(
    tensors: dict[str, Tensor],
    data: Catalogue,
    keys: Sequence[tuple[str, int]],
    encoder: Encoder,
    config: LatentsConfig,
) -> None:
    for which, column in (("caption", "caption"), ("long", "long_caption")):
        told = [(key, text) for key, row in keys if (text := data.text(column, row))]
        if not told:
            continue
        for (key, _), said in zip(told, _said(encoder, [text for _, text in told]), strict=True):
            for name, row in said.items():
                tensors[f"{key}/{which}/{name}"] = _kept(row, config.type, key)


def middle(picture: Any, bucket: buckets.Side) -> Any:
    """The picture (PIL), resized to cover its bucket and cut in the middle."""
    placed = buckets.place(picture.size, bucket)
    left, top = placed.corner
    return buckets.cover(picture, bucket).crop((left, top, left + bucket[0], top + bucket[1]))


def _said(encoder: Encoder, captions: Sequence[str]) -> list[dict[str, Tensor]]:
    said = encoder.say(captions)
    return [{name: tensor[row] for name, tensor in said.items()} for row in range(len(captions))]


def _kept(tensor: Tensor, kind: str, key: str) -> Tensor:
    """One row of a batch as it is kept, in memory of its own: a part of the batch would keep all of it."""
    kept = TYPES[kind] if tensor.is_floating_point() else tensor.dtype
    small = tensor.detach().to("cpu", kept, copy=True, memory_format=torch.contiguous_format)
    if not tensor.is_floating_point():
        return small
    if not bool(torch.isfinite(small).all()):
        raise DataError(f"what the encoder makes of {key} does not fit into {kind}; keep it as float32")
    return small


def _save(tensors: Mapping[str, Tensor], folder: Path, stem: str, sign: Mapping[str, str]) -> None:
    path = folder / f"{stem}.safetensors"
    try:
        files.save(tensors, path, sign)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write {path}: {error}; make room, then give the same command again, and it goes on"
        ) from None


def _left_out(path: Path, sign: Mapping[str, str]) -> dict[str, str] | None:
    """What was left out of a shard that an earlier run has finished; None if it has not."""
    try:
        with safe_open(path, "pt") as file:
            there = file.metadata()
    except (OSError, SafetensorError):
        return None
    if there.get("made_of") != sign["made_of"]:
        return None
    missing: dict[str, str] = json.loads(there["left_out"])
    return missing


def _told(place: Path) -> dict[str, object] | None:
    """What finished latents are made of; None where there are none."""
    try:
        table: dict[str, object] = json.loads((place / TOLD).read_bytes())["made_of"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place / TOLD} is broken ({error}); remove {place} and {AGAIN}") from None
    return table


def _made_of(packed: Path, stamp: str, config: LatentsConfig) -> dict[str, object]:
    try:
        index = hashlib.sha256((packed / pack.INDEX).read_bytes()).hexdigest()[:10]
    except OSError as error:
        raise DataError(f"cannot read {packed / pack.INDEX}: {error.strerror}") from None
    return {
        "format": FORMAT,
        "stamp": stamp,
        "pack": index,
        "buckets": asdict(config.buckets),
        "flip": config.flip,
        "text": config.text,
        "type": config.type,
    }
