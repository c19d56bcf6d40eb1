from collections import Counter
from itertools import permutations
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from limner.data import steps
from limner.data.buckets import cover
from limner.data.loader import Loaded, Loader, LoaderConfig, worded
from limner.data.pack import Pack, pack
from limner.data.records import DataSet, Record
from limner.errors import DataError
from limner.util.images import pixels_from_images

SIZES = ((64, 64), (128, 64), (64, 130), (70, 64), (40, 80), (66, 60), (100, 50))


def picture(path: Path, size: tuple[int, int], number: int) -> None:
    levels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photos of one dog, two of them with captions, as DreamBooth's users have them."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        picture(folder / f"dog{number}.png", size, number)
    (folder / "dog0.txt").write_text("a dog, sitting, on grass\n")
    (folder / "dog1.txt").write_text("a dog, at night")
    return folder


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = DataSet.create(tmp_path_factory.mktemp("made") / "set")
    records = [
        Record(
            key=f"dog{number}",
            picture=str(photos / f"dog{number}.png"),
            width=size[0],
            height=size[1],
            caption=f"a dog, number {number}",
            long_caption=f"a long tale of dog {number}",
            repeats=1 + number % 3,
        )
        for number, size in enumerate(SIZES)
    ]
    for _ in (*steps.write(data, "found", {}, records), *pack(data, Pack(size=64, bucket_step=16))):
        pass
    return data.folder


def loader(folder: Path, **settings: object) -> Loader:
    values = {"size": 64, "bucket_step": 16, "drop_caption": 0.0, "workers": 0, **settings}
    return Loader(LoaderConfig(folder=str(folder), **values))  # type: ignore[arg-type]


def same(one: Loaded, other: Loaded) -> bool:
    assert one.pixels is not None
    assert other.pixels is not None
    told = [(x.keys, x.captions, x.sizes, x.crops, x.target, x.broken) for x in (one, other)]
    return told[0] == told[1] and torch.equal(one.pixels, other.pixels)


def test_a_folder_of_photos_works_at_once(photos: Path) -> None:
    data = loader(photos, caption="a photo of sks dog")
    seen = {}
    for index in range(21):
        batch = data.batch(2, index, seed=1)
        assert batch.pixels is not None
        assert batch.pixels.shape == (2, 3, *batch.target)
        assert batch.latents is batch.said is None
        assert -1 <= batch.pixels.min() < batch.pixels.max() <= 1
        seen |= dict(zip(batch.keys, batch.captions, strict=True))
    assert seen == {
        "dog0": "a dog, sitting, on grass",
        "dog1": "a dog, at night",
        **{f"dog{n}": "a photo of sks dog" for n in range(2, 7)},
    }
    assert len(data) == 7
    assert data.left_out == ()


def test_kohyas_folders_say_repeats_and_caption(tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / "3_sks dog" / f"{number}.png", (64, 64), number)
    picture(tmp_path / "1_dog" / "x.jpg", (64, 64), 9)
    data = loader(tmp_path)
    assert len(data) == 7
    batches = [data.batch(7, index, 0) for index in range(3)]
    for batch in batches:
        assert sorted(Counter(batch.keys).values()) == [1, 3, 3]
        assert Counter(batch.captions) == {"sks dog": 6, "dog": 1}


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**63), st.integers(0, 5))
def test_every_record_is_shown_as_often_as_it_is_repeated(
    packed: Path, count: int, seed: int, order: int
) -> None:
    data = loader(packed, order=order, crop="random", flip=True)
    data._readable = lambda row, flip, broken: (row, torch.zeros(3, 200, 200, dtype=torch.uint8))  # type: ignore[method-assign]
    epochs = data.order.epochs(count)
    seen: Counter[str] = Counter()
    for index in range(epochs * len(data) // count):
        batch = data.batch(count, index, seed + index)  # a seed of its own each, as training has it
        seen.update(batch.keys)
        assert len({data.sides[int(key[3:])] for key in batch.keys}) == 1
    assert seen == {f"dog{number}": epochs * (1 + number % 3) for number in range(7)}


@settings(max_examples=12, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=6
    ),
    workers=st.integers(0, 2),
)
def test_a_batch_follows_from_its_number_and_seed_alone(
    packed: Path, asked: list[tuple[int, int, int]], workers: int
) -> None:
    used = loader(packed, crop="random", flip=True, drop_caption=0.3, long_captions=0.5, workers=workers)
    fresh = loader(packed, crop="random", flip=True, drop_caption=0.3, long_captions=0.5)
    try:
        got = [used.batch(*one) for one in asked]
        for one, batch in reversed(list(zip(asked, got, strict=True))):
            assert same(batch, fresh.batch(*one))
    finally:
        used.close()


def test_processes_that_share_the_batches_see_what_one_sees(packed: Path) -> None:
    settings = {"crop": "random", "workers": 2}
    alone, first, second = (loader(packed, **settings) for _ in range(3))
    for index in range(12):
        assert same(alone.batch(2, index, 7), (first, second)[index % 2].batch(2, index, 7))
    assert first.ahead.keys() == set(alone.order.batch(2, 10)) | set(
        alone.order.batch(2, 12)
    )  # what it reads next
    for one in (alone, first, second):
        one.close()


def test_a_packed_set_and_its_pictures_give_the_same(packed: Path, photos: Path) -> None:
    one, other = loader(packed), loader(photos)
    for index in range(6):
        a, b = one.batch(1, index, 0), other.batch(1, index, 0)
        assert a.pixels is not None
        (row,) = (int(key[3:]) for key in a.keys)
        image = Image.open(photos / f"dog{row}.png")
        high, wide = a.target
        (top, left), whole = a.crops[0], cover(image, (wide, high))
        assert torch.equal(a.pixels, pixels_from_images([whole.crop((left, top, left + wide, top + high))]))
        assert a.sizes == [(image.height, image.width)]
        assert b.pixels is not None
        assert b.pixels.shape[0] == 1


def test_mirrored_and_cut_pictures_say_where_they_were_cut(photos: Path) -> None:
    data = loader(photos, crop="random", flip=True, buckets=False)
    mirrored = set()
    for seed in range(12):
        batch = data.batch(1, 3, seed)
        assert batch.pixels is not None
        image = cover(Image.open(photos / f"{batch.keys[0]}.png"), (64, 64))
        (top, left), found = batch.crops[0], []
        for flip in (False, True):
            shown = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
            cut = pixels_from_images([shown.crop((left, top, left + 64, top + 64))])
            if torch.equal(cut, batch.pixels):
                found.append(flip)
        assert len(found) == 1
        mirrored |= set(found)
    assert mirrored == {False, True}


def test_broken_pictures_are_replaced_counted_and_named(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"p{number}.png", (64, 64), number)
    torn = tmp_path / "p1.png"
    torn.write_bytes(torn.read_bytes()[:900])  # its head is whole, so its size is known
    (tmp_path / "p4.png").write_bytes(b"no picture at all")
    for workers in (0, 1):
        data = loader(tmp_path, workers=workers)
        assert [key for key, _ in data.left_out] == ["p4"]
        batch = data.batch(4, 0, 0)
        assert sorted(batch.keys) == ["p0", "p2", "p2", "p3"]  # p2 comes after p1
        ((key, why),) = batch.broken
        assert key == "p1"
        assert "p1.png cannot be decoded" in why
        data.close()
    for number in (0, 2, 3):
        (tmp_path / f"p{number}.png").unlink()
    data = loader(tmp_path)
    with pytest.raises(DataError, match="no picture of the bucket 64x64 can be read"):
        data.batch(2, 0, 0)


def test_a_folder_without_pictures_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="picture"):
        loader(tmp_path)
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(
        DataError, match=r"no picture .* to train with; 1 could not be read, such as: .*x\.png"
    ):
        loader(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        loader(tmp_path / "nowhere")


CONFIG = LoaderConfig(folder="x", drop_caption=0.0)


def test_captions_are_dropped_and_told_at_length_in_their_shares() -> None:
    config = LoaderConfig(folder="x", drop_caption=0.1, long_captions=0.25)
    chance = Random(0)
    told = Counter(worded("short", "long one", config, chance) for _ in range(4000))
    assert told.keys() == {("", "empty"), ("short", "caption"), ("long one", "long")}
    assert told["", "empty"] / 4000 == pytest.approx(0.1, abs=0.02)
    assert told["long one", "long"] / 4000 == pytest.approx(0.9 * 0.25, abs=0.03)
    only_short = {worded("short", "", config, chance)[0] for _ in range(100)}
    assert only_short == {"short", ""}


def test_captions_are_shuffled_as_kohya_does_it() -> None:
    config = LoaderConfig(folder="x", drop_caption=0.0, shuffle_caption=True, keep_tokens=2)
    text = "sks dog ,  a dog,one,two, three "
    told = {worded(text, "", config, Random(seed))[0] for seed in range(60)}
    tails = [", ".join(tail) for tail in permutations(("one", "two", "three"))]
    assert told == {f"sks dog, a dog, {tail}" for tail in tails}
    assert worded(text, "", CONFIG, Random(0)) == (text, "caption")
    assert worded("", "", CONFIG, Random(0)) == ("", "empty")


def test_nothing_draws_from_a_common_source_of_chance(packed: Path) -> None:
    data = loader(packed, crop="random", drop_caption=0.5)
    before = (np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    data.batch(3, 0, 0)
    assert np.random.get_state()[1].tolist() == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"folder": ""}, "folder is empty"),
        ({"crop": "left"}, "center or random"),
        ({"drop_caption": 1.5}, "from 0 to 1"),
        ({"long_captions": -0.1}, "from 0 to 1"),
        ({"workers": -1}, "at least 0"),
        ({"latents": True, "crop": "random"}, "crop is center"),
        ({"size": 32}, "smaller step"),
    ],
)
def test_settings_that_cannot_be(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LoaderConfig(**{"folder": "x", **settings})
