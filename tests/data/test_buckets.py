import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from limner.data.buckets import BucketConfig, assign, cover, name, place, sides
from limner.errors import DataError

SIDE = st.integers(1, 9000)


def test_buckets_of_512_are_those_that_kohya_users_know() -> None:
    low = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)]
    assert sides(BucketConfig()) == sorted([*low, (512, 512), *((h, w) for w, h in low)])


def test_buckets_of_sdxl_hold_those_of_its_paper_that_users_draw_with() -> None:
    listed = sides(BucketConfig(size=1024))
    for side in ((1024, 1024), (896, 1152), (832, 1216), (1216, 832), (768, 1344), (640, 1536), (512, 2048)):
        assert side in listed


@settings(max_examples=30, deadline=None)
@given(st.integers(64, 2048), st.sampled_from([8, 16, 32, 64]))
def test_buckets_stay_within_area_limits_and_step(size: int, step: int) -> None:
    config = BucketConfig(size=size, step=step)
    shortest, longest = config.limits
    listed = sides(config)
    assert len(listed) == len(set(listed)) > 0
    for width, height in listed:
        assert width * height <= size**2
        assert width % step == height % step == 0
        assert (height, width) in listed
        assert (width, height) == (size // step * step,) * 2 or shortest <= min(width, height)
        assert max(width, height) <= longest


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=20))
def test_no_bucket_is_nearer_in_aspect_and_turning_a_picture_turns_its_bucket(sizes: list) -> None:
    config = BucketConfig()
    widths, heights = zip(*sizes, strict=True)
    got = assign(widths, heights, config)
    for (width, height), bucket in zip(sizes, got, strict=True):
        distance = [abs(math.log(width / height) - math.log(w / h)) for w, h in sides(config)]
        assert abs(math.log(width / height) - math.log(bucket[0] / bucket[1])) <= min(distance) + 1e-8
    assert assign([100], [100], config) == [(512, 512)]
    assert assign([3000, 1000], [1000, 3000], config) == [(832, 256), (256, 832)]


@settings(max_examples=30, deadline=None)
@given(SIDE, SIDE)
def test_without_upscale_no_picture_grows_beyond_a_step(width: int, height: int) -> None:
    config = BucketConfig(size=256, step=32, upscale=False)
    ((wide, high),) = assign([width], [height], config)
    assert wide % 32 == high % 32 == 0
    assert wide <= max(32, width)
    assert high <= max(32, height)
    assert wide * high <= 256**2 or min(wide, high) == 32  # very long ones are kept at one step


def test_square_is_one_bucket() -> None:
    config = BucketConfig(size=100, square=True)
    assert sides(config) == [(100, 100)]
    assert assign([10, 4000], [4000, 10], config) == [(100, 100)] * 2


@settings(max_examples=30, deadline=None)
@given(SIDE, SIDE, st.sampled_from(sides(BucketConfig())), st.floats(0, 1), st.floats(0, 1))
def test_a_placed_picture_covers_its_bucket_and_touches_it(
    width: int, height: int, bucket: tuple, across: float, down: float
) -> None:
    placed = place((width, height), bucket, across, down)
    for resized, corner, side in zip(placed.resized, placed.corner, bucket, strict=True):
        assert 0 <= corner <= resized - side
    assert placed.resized[0] == bucket[0] or placed.resized[1] == bucket[1]


def test_cover_resizes_once_and_leaves_what_fits() -> None:
    picture = Image.new("RGB", (300, 100), "red")
    assert cover(picture, (64, 64)).size == (192, 64)
    assert cover(picture, (300, 64)) is picture
    assert name((832, 1216)) == "832x1216"


def test_the_cut_lies_where_it_was_asked_for() -> None:
    assert place((300, 100), (64, 64)).corner == (64, 0)
    assert place((300, 100), (64, 64), 0.0, 1.0).corner == (0, 0)
    assert place((300, 100), (64, 64), 1.0, 0.0).corner == (128, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 32},
        {"step": 0},
        {"shortest": 600, "longest": 300},
        {"size": 0},
        {"longest": -1},
        {"size": 10_000, "square": True},
        {"size": 4096, "step": 1},
        {"longest": 10**12},
    ],
)
def test_impossible_buckets_say_so(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"sides?|at least"):
        BucketConfig(**settings)


def test_a_picture_like_a_thread_is_not_blown_up() -> None:
    with pytest.raises(DataError, match="256x2560000 to cover 256x1024"):
        cover(Image.new("RGB", (1, 10_000)), (256, 1024))
