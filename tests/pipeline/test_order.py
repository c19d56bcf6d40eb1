"""What becomes of a request's pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from limner.errors import RequestError
from limner.pipeline.order import cut_out, order_of, size_of
from limner.pipeline.picture import Picture
from limner.pipeline.request import Control, Request, parse_sides
from limner.util.images import pixels_from_images

ALL = {"prompt": "a cat", "seed": 1, "steps": 4, "guidance": 5.0, "sampler": "ddim", "size": (32, 48)}


def mask(left: int, top: int, right: int, bottom: int) -> Picture:
    levels = np.zeros((32, 48), np.uint8)
    levels[top:bottom, left:right] = 255
    return Picture(Image.fromarray(levels))


def image() -> Picture:
    levels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    return Picture(Image.fromarray(levels))


def test_without_pictures_there_are_none() -> None:
    order = order_of(Request(**ALL))
    assert (order.image, order.mask, order.controls) == (None, None, ())
    assert size_of(Request(**(ALL | {"size": None})), (32, 48)) == (32, 48)


def test_a_mask_fades_outwards() -> None:
    request = Request(**ALL, image=image(), mask=mask(16, 8, 32, 24), feather=0)
    sharp = order_of(request).mask
    assert sharp is not None
    assert sharp.sum() == 16 * 16
    assert set(sharp.unique().tolist()) == {0.0, 1.0}
    soft = order_of(Request(**ALL, image=image(), mask=mask(16, 8, 32, 24), feather=8)).mask
    assert soft is not None
    assert (soft[sharp == 1] == 1).all()
    assert (soft[0, 0, 16, :8] == 0).all()
    row = soft[0, 0, 16, 8:17]
    assert (row.diff() >= 0).all()
    assert 0 < row[4] < 1


def test_what_is_transparent_in_a_mask_is_drawn() -> None:
    levels = np.full((32, 48, 4), 255, np.uint8)
    levels[:16, :, 3] = 0
    made = order_of(Request(**ALL, image=image(), mask=Picture(Image.fromarray(levels)), feather=0)).mask
    assert made is not None
    assert (made[0, 0, :16] == 1).all()
    assert (made[0, 0, 16:] == 0).all()


def test_drawing_on_around_a_picture() -> None:
    request = Request(**(ALL | {"size": None}), image=image(), extend=(8, 0, 4, 16), feather=0)
    assert size_of(request, (64, 64)) == (48, 60)
    order = order_of(Request(**(ALL | {"size": (48, 60)}), image=image(), extend=(8, 0, 4, 16), feather=0))
    assert order.image is not None
    assert order.mask is not None
    plain = order_of(Request(**ALL, image=image())).image
    assert plain is not None
    assert torch.equal(order.image[:, :, :32, 8:56], plain)
    assert torch.equal(order.image[:, :, 5, 0], plain[:, :, 5, 0])  # the edge goes on
    assert order.mask.sum() == 48 * 60 - 32 * 48
    assert (order.mask[0, 0, :32, 8:56] == 0).all()
    with pytest.raises(RequestError, match="extend leaves nothing"):
        order_of(Request(**ALL, image=image(), extend=(40, 0, 40, 0)))


def test_control_pictures_have_the_size_that_is_drawn() -> None:
    square = Picture(Image.new("RGB", (10, 10), "white"))
    order = order_of(Request(**ALL, controls=(Control(image=square, model="edges", weight=0.5),)))
    assert order.controls[0].pixels.shape == (1, 3, 32, 48)
    assert order.controls[0].weight == 0.5


def test_a_mask_that_marks_nothing() -> None:
    with pytest.raises(RequestError, match="marks nothing"):
        order_of(Request(**ALL, image=image(), mask=mask(0, 0, 0, 0)))


def test_what_is_kept_is_cut_out() -> None:
    order = order_of(Request(**ALL, image=image(), mask=mask(16, 8, 32, 24), feather=0))
    (cut,) = cut_out((Image.new("RGB", (48, 32), "red"),), order)
    assert cut.mode == "RGBA"
    assert cut.getpixel((20, 10)) == (255, 0, 0, 255)
    assert cut.getpixel((0, 0))[3] == 0


def test_sides() -> None:
    assert parse_sides("64, 0,32,8") == (64, 0, 32, 8)
    assert parse_sides("16") == (16, 16, 16, 16)
    for text in ("", "1,2", "a", "-1", "1,2,3,4,5", "1.5"):
        with pytest.raises(RequestError, match="LEFT,TOP,RIGHT,BOTTOM"):
            parse_sides(text)
    with pytest.raises(RequestError, match="give the image"):
        Request(prompt="a cat", extend=(8, 0, 0, 0))
    told = Request(prompt="a cat", image=image(), extend=(8, 0, 0, 0)).to_dict()
    assert told["extend"] == [8, 0, 0, 0]


def test_large_photographs_are_drawn_at_the_models_size() -> None:
    photo = Picture(Image.new("RGB", (400, 300)))
    assert size_of(Request(prompt="a cat", image=photo), (100, 100)) == (88, 112)
    assert size_of(Request(prompt="a cat", image=photo), (256, 256)) == (300, 400)
    kept = Request(prompt="a cat", image=photo, mask=Picture(Image.new("L", (400, 300), 255)))
    assert size_of(kept, (100, 100)) == (300, 400)
    assert size_of(Request(prompt="a cat", image=photo), (100, 100), 4) == (1200, 1600)  # of an upscaler


def test_a_mask_without_any_transparency_marks_by_its_colours() -> None:
    levels = np.full((32, 48, 4), 255, np.uint8)
    levels[16:, :, :3] = 0
    made = order_of(Request(**ALL, image=image(), mask=Picture(Image.fromarray(levels)), feather=0)).mask
    assert made is not None
    assert made.sum() == 16 * 48


@pytest.mark.parametrize(
    ("extend", "box"),
    [
        ((0, 0, 16, 0), (16, 0, 48, 32)),  # goes on at the right: what lies there stays
        ((16, 0, 0, 0), (0, 0, 32, 32)),
        ((8, 0, 8, 0), (8, 0, 40, 32)),
    ],
)
def test_where_there_is_no_room_what_lies_beside_stays(
    extend: tuple[int, int, int, int], box: tuple[int, int, int, int]
) -> None:
    picture = image()
    order = order_of(Request(**ALL, image=picture, extend=extend, feather=0))
    assert order.image is not None
    assert order.extend == extend
    kept = order.image[..., extend[0] : 48 - extend[2]]
    assert torch.equal(kept, pixels_from_images([picture.image.crop(box)]))


def test_models_of_squares_draw_a_square() -> None:
    photo = Picture(Image.new("RGB", (48, 32)))
    assert size_of(Request(prompt="a cat", image=photo), (64, 64), square=True) == (32, 32)
    longer = Request(prompt="a cat", image=photo, extend=(0, 40, 0, 0))
    assert size_of(longer, (64, 64), square=True) == (48, 48)
    assert size_of(Request(prompt="a cat"), (64, 64), square=True) == (64, 64)
