"""The same pixels again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner.errors import RequestError
from limner.pipeline.load import load
from limner.pipeline.postprocess import Record, save
from limner.pipeline.replay import difference, read_record, replay
from limner.pipeline.run import Pipeline


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


TOLD: dict[str, Any] = {
    "request": {
        "prompt": "a cat",
        "seed": 3,
        "steps": 2,
        "guidance": 2.0,
        "sampler": "euler",
        "size": [64, 64],
    },
    "weights": "0123456789",
    "grid": False,
    "version": "1",
}


def forged(folder: Path, text: str) -> Path:
    texts = PngInfo()
    texts.add_text("limner", text)
    path = folder / "a.png"
    Image.new("RGB", (2, 2)).save(path, pnginfo=texts)
    return path


def test_a_forged_file_that_says_everything_is_read(tmp_path: Path) -> None:
    record = read_record(forged(tmp_path, json.dumps(TOLD)))
    assert (record.request.seed, record.request.size, record.weights) == (3, (64, 64), "0123456789")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is damaged$"),
        (json.dumps(TOLD | {"request": {"prompt": "a cat", "steps": 0}}), "is damaged: steps is a whole"),
        (json.dumps(TOLD | {"request": {"prompt": "\ud800"}}), "is damaged: prompt is not Unicode"),
        (json.dumps(TOLD | {"request": {"seed": 3}}), "is damaged: a request needs a prompt"),
        (
            json.dumps(TOLD | {"request": {"prompt": "a cat", "seed": 3, "guidance": None}}),
            "does not say its steps, guidance, sampler, size$",
        ),
        (json.dumps(TOLD | {"request": TOLD["request"] | {"seed": None}}), "does not say its seed$"),
    ],
    ids=["nested", "steps", "surrogate", "prompt", "open", "seed"],
)
def test_forged_and_damaged_requests(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=rf"the Limner request in .*a\.png {message}"):
        read_record(forged(tmp_path, text))


def test_a_record_without_a_seed_cannot_be_the_same_by_chance(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe("a cat", seed=3, count=1, steps=2)
    record = Record(request=replace(result.request, seed=4), weights=result.weights)
    assert not replay(save(result.images[0], tmp_path, record), pipe).same
