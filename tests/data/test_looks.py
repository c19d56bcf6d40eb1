import numpy as np
import pytest
from PIL import Image, ImageFilter

from limner.data.looks import SIDE, aspect, entropy, sharpness, small_grey


def test_the_copy_is_small_grey_and_never_enlarged() -> None:
    assert small_grey(Image.new("RGB", (1000, 500), "red")).shape == (SIDE // 2, SIDE)
    assert small_grey(Image.new("RGB", (30, 50))).shape == (50, 30)
    assert small_grey(Image.new("RGB", (4000, 1))).shape == (1, SIDE)


def test_blurring_takes_sharpness_and_only_blurring_does(scenes: list[Image.Image]) -> None:
    seen = np.array(
        [
            [sharpness(small_grey(scene.filter(ImageFilter.GaussianBlur(radius)))) for scene in scenes]
            for radius in (0, 1, 2, 4)
        ]
    )
    assert (seen[0] > 3).mean() > 0.9
    assert (seen[3] < 3).mean() > 0.9
    median = np.median(seen, 1)
    assert (median[:-1] > 1.5 * median[1:]).all()
    checks = np.indices((8, 8)).sum(0) % 2 * 255
    assert sharpness(checks.astype(np.uint8)) == pytest.approx((8 * 127.5) ** 2)  # of plus and minus 1020
    assert sharpness(np.zeros((2, 9), np.uint8)) == 0


def test_entropy_is_of_the_levels() -> None:
    assert entropy(np.full((5, 5), 7, np.uint8)) == 0
    assert entropy(np.arange(256, dtype=np.uint8).reshape(16, 16)) == pytest.approx(8)
    assert entropy(np.array([[0, 0, 9, 9]], np.uint8)) == pytest.approx(1)


def test_aspect_does_not_care_which_way() -> None:
    assert aspect(300, 100) == aspect(100, 300) == 3
    assert aspect(5, 0) == 5
