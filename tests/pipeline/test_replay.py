"""The same pixels again."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from limner.errors import RequestError
from limner.pipeline.postprocess import Record, save
from limner.pipeline.replay import difference, read_record, replay
from limner.pipeline.run import Pipeline, load


@pytest.fixture(scope="module")
def pipe(tiny: Path) -> Pipeline:
    return load(tiny, device="cpu")


def test_pictures_and_grids_come_again(pipe: Pipeline, tmp_path: Path) -> None:
    paths = pipe("a cat", seed=3, count=3, steps=3, sampler="euler_ancestral", negative_prompt="a dog").save(
        tmp_path
    )
    for path in paths:
        again = replay(path, pipe)
        assert again.same
        assert str(again) == "same pixels"
    assert replay(paths[1], pipe).result.seeds == (4,)
    assert replay(paths[3], pipe).result.seeds == (3, 4, 5)


def test_a_difference_is_measured(pipe: Pipeline, tmp_path: Path) -> None:
    path = pipe("a cat", seed=3, count=1, steps=2).save(tmp_path)[0]
    with Image.open(path) as image:
        touched = image.convert("RGB")
    red, green, blue = touched.getpixel((5, 6))  # type: ignore[misc]
    touched.putpixel((5, 6), ((red + 128) % 256, green, blue))
    record = read_record(path)
    other = replace(record, weights="another")
    again = replay(save(touched, tmp_path, record), pipe)
    assert (again.same, again.share, again.worst) == (False, 1 / 64**2, 128)
    assert str(again) == "different: 0.0% of the pixels, by at most 128 of 255"
    told = str(replay(save(touched, tmp_path, other), pipe))
    assert told.endswith(f"it was drawn by the weights another, these are {record.weights}")


def test_difference() -> None:
    white, black = Image.new("RGB", (2, 2), "white"), Image.new("RGB", (2, 2), "black")
    assert difference(white, white) == (0.0, 0)
    assert difference(white, black) == (1.0, 255)
    assert difference(white, Image.new("RGB", (2, 3), "white")) == (1.0, 255)


def test_foreign_files(pipe: Pipeline, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match="carries no Limner request"):
        replay(tmp_path / "a.png", pipe)


def test_a_record_without_a_seed_cannot_be_the_same_by_chance(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe("a cat", seed=3, count=1, steps=2)
    record = Record(request=replace(result.request, seed=4), weights=result.weights)
    assert not replay(save(result.images[0], tmp_path, record), pipe).same
