"""The guess at text is measured on drawn scenes, with and without lines of text laid over them."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from limner.data.lettering import text_share

WORDS = ["Copyright", "stock", "photo", "SALE", "today", "when", "you", "finally", "find", "Monday", "best"]


def lettered(
    scene: Image.Image, size: int, seed: int, colours: tuple[str, str] = ("white", "black")
) -> float:
    """Lay two lines on the scene, in place; the share of the picture that they cover."""
    rng = random.Random(seed)
    pen, font = ImageDraw.Draw(scene), ImageFont.load_default(size)
    y, area = rng.randint(2, scene.height - 3 * size), 0.0
    for _ in range(2):
        line = " ".join(rng.sample(WORDS, 3))
        pen.text((4, y), line, font=font, fill=colours[0], stroke_width=1, stroke_fill=colours[1])
        left, top, right, bottom = pen.textbbox((4, y), line, font=font)
        area += (min(right, scene.width) - left) * (bottom - top)
        y += round(1.3 * size)
    return area / (scene.width * scene.height)


def test_text_is_found_on_most_scenes_and_on_few_without(scenes: list[Image.Image]) -> None:
    without = [text_share(scene) for scene in scenes]
    laid = [scene.copy() for scene in scenes]
    true = [lettered(scene, 12 + seed % 10, seed) for seed, scene in enumerate(laid)]
    found = [text_share(scene) for scene in laid]
    assert np.mean([share > 0.01 for share in without]) <= 0.05
    assert np.mean([share > 0.01 for share in found]) >= 0.8
    assert 0.3 < np.sum(found) / np.sum(true) < 1.2


@pytest.mark.parametrize("colours", [("white", "black"), ("black", "white"), ("yellow", "black")])
def test_the_share_is_the_area_of_the_lines(colours: tuple[str, str]) -> None:
    page = Image.new("RGB", (400, 300), "#6080a0")
    true = lettered(page, 20, 0, colours)
    assert text_share(page) == pytest.approx(true, rel=0.45)


def test_what_is_no_text() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    checks = Image.fromarray((np.indices((160, 160)) // 20).sum(0).astype(np.uint8) % 2 * 255)
    assert text_share(noise) < 0.03
    for picture in (checks, Image.new("RGB", (64, 64), "red"), Image.new("RGB", (300, 4))):
        assert text_share(picture) == 0


def test_what_it_cannot_see(scenes: list[Image.Image]) -> None:
    """The limits that the documentation names: text turned upright, and a single large letter."""
    page = Image.new("RGB", (300, 300), "grey")
    lettered(page, 20, 0)
    assert text_share(page) > 0.02
    assert text_share(page.rotate(90)) < 0.01
    ImageDraw.Draw(letter := Image.new("RGB", (300, 300), "grey")).text(
        (40, 0), "A", font=ImageFont.load_default(260), fill="white"
    )
    assert text_share(letter) == 0
