"""Folders of small pictures, whole and hostile."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.data.records import DataSet, Record
from limner.data.steps import write
from limner.data.world.art import load_atlas
from limner.data.world.scene import World, WorldConfig
from limner.util.images import images_from_pixels


@pytest.fixture
def paint() -> Callable[..., Path]:
    """A function that writes a picture of smooth noise: paint(path, width, height, seed)."""

    def write(path: Path, width: int = 32, height: int = 24, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC).save(path)
        return path

    return write


@pytest.fixture
def huge_png() -> bytes:
    """A few hundred bytes that promise 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


@pytest.fixture
def set_of(tmp_path: Path) -> Callable[..., DataSet]:
    """A function that makes a set of pictures by their keys: set_of({key: picture}, {key: caption})."""

    def make(
        pictures: dict[str, Image.Image], captions: dict[str, str] | None = None, name: str = "set"
    ) -> DataSet:
        folder = tmp_path / f"{name}-pictures"
        folder.mkdir()
        for key, picture in pictures.items():
            picture.save(folder / f"{key}.png")
        records = [
            Record(
                key=key,
                picture=str(folder / f"{key}.png"),
                width=picture.width,
                height=picture.height,
                caption=(captions or {}).get(key, ""),
            )
            for key, picture in pictures.items()
        ]
        data = DataSet.create(tmp_path / name)
        list(write(data, "import", {}, records))
        return data

    return make


@pytest.fixture(scope="session")
def scenes(atlas_folder: Path) -> list[Image.Image]:
    """Twenty-four scenes of the drawn world, 192 pixels wide and high, without words in them."""
    world = World(load_atlas(atlas_folder), WorldConfig(word=0.0))
    pixels, _ = world.render(world.sample(24, torch.Generator().manual_seed(0)), 192)
    return images_from_pixels(pixels)
