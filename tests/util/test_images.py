import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from limner.errors import LimnerError, RequestError
from limner.util.images import dequantize, images_from_pixels, pixels_from_images, quantize, sheet


def _noise(count: int, height: int, width: int) -> list[Image.Image]:
    levels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(level) for level in levels]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_256_levels_survive_the_round_trip(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    pixels = dequantize(levels)
    assert pixels.dtype == torch.float32
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert torch.equal(quantize(pixels.to(dtype)), levels)


@given(st.floats(-3, 3, width=32))
def test_quantize_takes_the_nearest_level(value: float) -> None:
    level = int(quantize(torch.full((1, 1, 1), value)))
    exact = min(max((value + 1) * 127.5, 0), 255)
    assert abs(level - exact) <= 0.5 + 1e-4


def test_images_survive_the_round_trip() -> None:
    images = _noise(3, 5, 7)
    pixels = pixels_from_images(images)
    assert pixels.shape == (3, 3, 5, 7)
    for before, after in zip(images, images_from_pixels(pixels), strict=True):
        assert before.tobytes() == after.tobytes()


def test_rows_columns_and_channels_keep_their_places() -> None:
    pixels = torch.full((1, 3, 4, 6), -1.0)
    pixels[0, 0, 1, 5] = 1  # red, second row, last column
    [image] = images_from_pixels(pixels)
    assert image.size == (6, 4)
    assert image.getpixel((5, 1)) == (255, 0, 0)
    assert image.getpixel((1, 3)) == (0, 0, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_are_said_not_drawn(value: float) -> None:
    pixels = torch.zeros(1, 3, 2, 2)
    pixels[0, 1, 0, 0] = value
    with pytest.raises(LimnerError, match="1 of 12 pixel values"):
        images_from_pixels(pixels)


def test_other_modes_become_rgb_on_white() -> None:
    glass = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    grey = Image.new("L", (2, 2), 255)
    palette = Image.new("RGB", (2, 2), "white").convert("P")
    pixels = pixels_from_images([glass, grey, palette])
    assert torch.equal(pixels, torch.ones(3, 3, 2, 2))


def test_batches_need_one_size() -> None:
    with pytest.raises(RequestError, match="2x2, 3x2"):
        pixels_from_images([Image.new("RGB", (2, 2)), Image.new("RGB", (3, 2))])
    with pytest.raises(RequestError, match="no picture"):
        pixels_from_images([])


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (2, (2, 1)), (4, (2, 2)), (5, (3, 2))])
def test_sheet_is_as_square_as_it_can_be(count: int, grid: tuple[int, int]) -> None:
    page = sheet([Image.new("RGB", (8, 6))] * count, gap=1)
    assert page.size == (grid[0] * 9 + 1, grid[1] * 7 + 1)


def test_sheet_shows_pictures_in_reading_order() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    page = sheet(
        [Image.new("RGB", (4, 4), colour) for colour in colours], columns=2, gap=2, background="black"
    )
    assert [page.getpixel(place) for place in [(3, 3), (9, 3), (3, 9), (9, 9)]] == [*colours, (0, 0, 0)]
    assert page.getpixel((0, 0)) == (0, 0, 0)


def test_small_pictures_stand_in_the_middle_of_their_cell() -> None:
    page = sheet([Image.new("RGB", (6, 6), "black"), Image.new("RGB", (2, 2), "red")], columns=2, gap=0)
    assert page.getpixel((8, 2)) == (255, 0, 0)
    assert page.getpixel((6, 0)) == (255, 255, 255)


def test_sheet_refuses_nothing() -> None:
    with pytest.raises(RequestError, match="got none"):
        sheet([])
    with pytest.raises(RequestError, match="column"):
        sheet([Image.new("RGB", (2, 2))], columns=0)
