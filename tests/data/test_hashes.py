import io
import time
import tracemalloc
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from limner.data.hashes import Index, difference, phash, same_tint, tint

Change = Callable[[Image.Image], Image.Image]


def jpeg(picture: Image.Image, quality: int = 50) -> Image.Image:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=quality)
    return Image.open(encoded).convert("RGB")


CHANGES: dict[str, Change] = {
    "half": lambda one: one.resize((one.width // 2, one.height // 2)),
    "twice": lambda one: one.resize((one.width * 2, one.height * 2)),
    "other shape": lambda one: one.resize((one.width, one.height * 2 // 3)),
    "jpeg": jpeg,
    "brighter": lambda one: ImageEnhance.Brightness(one).enhance(1.1),
    "darker": lambda one: ImageEnhance.Brightness(one).enhance(0.9),
    "all": lambda one: ImageEnhance.Brightness(jpeg(one.resize((130, 130)), 60)).enhance(0.94),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(scenes: list[Image.Image], change: str) -> None:
    changed = [CHANGES[change](scene) for scene in scenes]
    near = [
        difference(phash(one), phash(other)) <= 8 and same_tint(tint(one), tint(other))
        for one, other in zip(scenes, changed, strict=True)
    ]
    assert np.mean(near) >= 0.9


def test_other_drawings_are_not(scenes: list[Image.Image]) -> None:
    seen = [(phash(scene), tint(scene)) for scene in scenes]
    assert not any(
        difference(one[0], other[0]) <= 8 and same_tint(one[1], other[1])
        for one, other in combinations(seen, 2)
    )


def test_colours_tell_apart_what_brightness_cannot() -> None:
    """A red ground with a dark square and a green one of the same brightness."""
    red, green = Image.new("RGB", (64, 64), (200, 30, 30)), Image.new("RGB", (64, 64), (30, 117, 30))
    for picture in (red, green):
        picture.paste("black", (10, 20, 40, 44))
    assert difference(phash(red), phash(green)) <= 8
    assert not same_tint(tint(red), tint(green))


def test_mirrored_is_another_picture(scenes: list[Image.Image]) -> None:
    far = [difference(phash(one), phash(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT))) for one in scenes]
    assert np.median(far) > 16


@pytest.mark.parametrize("distance", [0, 3, 8, 16])
def test_the_index_finds_exactly_what_comparing_all_finds(distance: int) -> None:
    rng = np.random.default_rng(1)
    centres = rng.integers(0, 2**64, 20, dtype=np.uint64)
    hashes = []
    for _ in range(150):
        number = int(rng.choice(centres))
        for bit in rng.integers(0, 64, rng.integers(0, 12)).tolist():
            number ^= 1 << bit
        hashes.append(number)
    index = Index(distance)
    for place, number in enumerate(hashes):
        wanted = sorted(
            (difference(number, other), at)
            for at, other in enumerate(hashes[:place])
            if difference(number, other) <= distance
        )
        assert index.near(number) == wanted
        assert index.add(number) == place
    with pytest.raises(ValueError, match="from 0 to 16"):
        Index(17)


def test_memory_grows_with_the_hashes_and_not_with_the_pairs() -> None:
    """Two thousand nearly equal ones are two million pairs."""
    rng = np.random.default_rng(2)
    numbers = [1 << bit for bit in rng.integers(0, 64, 2000).tolist()]
    index = Index(8)
    tracemalloc.start()
    for number in numbers:
        index.add(number)
    held, _ = tracemalloc.get_traced_memory()
    assert len(index.near(0)) == 2000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2000 * 400
    assert peak < held + 2000 * 1000


@pytest.mark.slow
def test_a_hundred_thousand() -> None:
    numbers = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64).tolist()
    index = Index(8)
    start = time.monotonic()
    for number in numbers:
        index.near(number)
        index.add(number)
    assert time.monotonic() - start < 120
    assert all((0, place) in index.near(number) for place, number in enumerate(numbers[:100]))
