"""The drawn world as files: pictures and their captions in a folder, as if somebody had collected them."""

from collections.abc import Iterator
from pathlib import Path

import torch

from limner.data.world.art import SIZES
from limner.data.world.caption import Captioner
from limner.data.world.scene import World, WorldConfig
from limner.data.world.source import DrawnConfig, load
from limner.errors import DataError
from limner.util.images import images_from_pixels
from limner.util.rng import mix

BATCH = 64  # pictures drawn at a time
SMALLEST, LARGEST = 16, 1024  # pixels of a side


def draw(
    folder: Path,
    *,
    count: int,
    size: int,  # pixels of a side
    seed: int = 0,
    source: DrawnConfig = DrawnConfig(),
    world: WorldConfig = WorldConfig(),
) -> Iterator[int]:
    """Draw `count` scenes into `folder`, 000000.png with its caption in 000000.txt and so on; yields how many
    are done. Which scene a number shows follows from the seed alone, however many are drawn.

    Raises DataError when the folder has files already or cannot be written, for a size or a count that makes
    no sense, and when the atlas is missing.
    """
    if not SMALLEST <= size <= LARGEST:
        raise DataError(f"the drawn world has sides of {SMALLEST} to {LARGEST} pixels, got {size}")
    if count < 1:
        raise DataError(f"at least one picture must be drawn, got {count}")
    larger = [stored for stored in SIZES if stored >= size]
    atlas, nouns = load(source, sizes=tuple(s for s in SIZES if s <= min(larger, default=max(SIZES))))
    scenery, captioner = World(atlas, world), Captioner(atlas, nouns)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise DataError(f"{folder} is not empty; choose another folder")
        for start in range(0, count, BATCH):
            own = mix(seed, start // BATCH)
            scenes = scenery.sample(BATCH, torch.Generator().manual_seed(own))
            wanted = min(BATCH, count - start)
            pictures = images_from_pixels(scenery.render(scenes[:wanted], size)[0])
            captions = captioner.captions(scenes[:wanted], own)
            for number, (picture, (caption, _)) in enumerate(zip(pictures, captions, strict=True), start):
                picture.save(folder / f"{number:06d}.png")
                (folder / f"{number:06d}.txt").write_text(caption + "\n", encoding="utf-8")
            yield start + wanted
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror}") from None
