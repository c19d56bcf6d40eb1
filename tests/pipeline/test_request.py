"""Requests: what is one, and what is said about what is none."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from limner.errors import RequestError
from limner.pipeline.picture import Picture
from limner.pipeline.request import ALIASES, Control, Request, parse_size


def test_defaults_leave_choices_open() -> None:
    request = Request(prompt="a cat")
    assert (request.count, request.negative_prompt) == (4, "")
    assert {getattr(request, name) for name in ("seed", "steps", "guidance", "sampler", "size", "model")} == {
        None
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": 3}, "prompt is text, got 3"),
        ({"prompt": "a" * 10_001}, "10001 characters; 10000 is the most"),
        ({"negative_prompt": None}, "negative_prompt is text"),
        ({"count": 0}, "count is a whole number from 1 to 64, got 0"),
        ({"count": 65}, "count"),
        ({"count": True}, "count"),
        ({"count": 2.0}, "count"),
        ({"seed": -1}, "seed is a whole number from 0"),
        ({"seed": 2**63 - 3, "count": 4}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"steps": 0}, "steps is a whole number from 1 to 1000, got 0"),
        ({"steps": -5}, "got -5"),
        ({"steps": 1001}, "steps"),
        ({"guidance": -0.1}, "guidance is a number from 0 to 30, got -0.1"),
        ({"guidance": 31}, "guidance"),
        ({"guidance": math.nan}, "guidance"),
        ({"guidance": math.inf}, "guidance"),
        ({"guidance": True}, "guidance"),
        ({"guidance": "3"}, "guidance"),
        ({"sampler": "dpmp_2m"}, 'no sampler "dpmp_2m"; did you mean "dpmpp_2m"'),
        ({"sampler": "qqqq"}, 'no sampler "qqqq"; known: ddim, ddpm, euler,'),
        ({"sampler": 3}, "sampler is a name"),
        ({"style": 3}, "style is a name"),
        *(
            ({name: "ab\udcff"}, f"{name} is not Unicode at character 2; type it in UTF-8")
            for name in ("prompt", "negative_prompt", "sampler", "style", "model")
        ),
        ({"size": 192}, r"size is \(height, width\)"),
        ({"size": (192,)}, r"size is \(height, width\)"),
        ({"size": (192, 8)}, "width is a whole number from 16 to 8192, got 8"),
        ({"size": (99999, 192)}, "height"),
    ],
)
def test_what_is_no_request(change: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request.from_dict({"prompt": "a cat", **change})


@pytest.mark.parametrize(("seed", "count"), [(0, 64), (2**63 - 4, 4)])
def test_the_edges_are_inside(seed: int, count: int) -> None:
    assert Request(prompt="", seed=seed, count=count, steps=1000, guidance=30.0, size=(16, 8192)).seed == seed


def test_dict_round_trip_through_json() -> None:
    request = Request(
        prompt="ein Löwe",
        negative_prompt="a dog",
        seed=7,
        count=2,
        steps=9,
        guidance=2.5,
        sampler="heun",
        size=(64, 96),
        style="flat",
        model="mini",
    )
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    assert Request.from_dict(Request(prompt="x").to_dict()) == Request(prompt="x")


def test_whole_guidance_becomes_a_float() -> None:
    assert type(Request.from_dict({"prompt": "a", "guidance": 2}).guidance) is float


def test_aliases() -> None:
    said = {"prompt": "a cat", "num_inference_steps": 5, "guidance_scale": 2.0, "n": 3, "size": "96x64"}
    assert Request.from_dict(said) == Request(prompt="a cat", steps=5, guidance=2.0, count=3, size=(64, 96))
    assert Request.from_dict({"prompt": "a cat", "num_images_per_prompt": 2}).count == 2
    assert set(ALIASES.values()) <= set(Request.__dataclass_fields__)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "needs a prompt"),
        ({"prompt": "a", "step": 3}, 'has no "step"; did you mean "steps"'),
        ({"prompt": "a", "guidance_scal": 3}, 'did you mean "guidance_scale"'),
        ({"prompt": "a", "zzz": 3}, "known: prompt, negative_prompt, seed"),
        ({"prompt": "a", "steps": 3, "num_inference_steps": 4}, '"steps" is given twice'),
        ({"prompt": "a", 3: 4}, 'has no "3"; known: prompt'),
        ("a cat", "a request is a mapping such as {'prompt': 'a cat'}, got 'a cat'"),
        ([["prompt", "a cat"]], "a request is a mapping"),
        (None, "a request is a mapping"),
    ],
)
def test_from_dict_is_strict(data: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request.from_dict(data)


@pytest.mark.parametrize(
    ("text", "size"), [("192", (192, 192)), ("640x480", (480, 640)), (" 64 X 32 ", (32, 64)), ("2×3", (3, 2))]
)
def test_sizes_as_people_write_them(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "192x", "-64", "1000000", "1.5", "1x2x3", "big", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(RequestError, match=r"a size is a side such as 192 .*, each 16 to 8192 pixels, got"):
        parse_size(text)


def _picture(colour: str = "red") -> Picture:
    return Picture(Image.new("RGB", (4, 4), colour))


def test_what_only_some_models_can_do_is_told_only_where_it_was_asked_for(tmp_path: Path) -> None:
    assert "grid" not in Request(prompt="a cat").to_dict()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    Image.new("L", (4, 4), 255).save(tmp_path / "mask.png")
    red, mask = Picture.open(tmp_path / "red.png"), Picture.open(tmp_path / "mask.png")
    request = Request(
        prompt="a cat",
        grid="karras",
        image=red,
        strength=0.5,
        mask=mask,
        controls=(Control(image=red, model="edges.safetensors", weight=0.5, end=0.75),),
        enlarge=2.0,
        clip_skip=2,
        tiling=True,
    )
    told = json.loads(json.dumps(request.to_dict()))
    assert Request.from_dict(told) == request
    assert told["image"]["file"] == str(tmp_path / "red.png")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"grid": "carras"}, 'no grid "carras"; did you mean "karras"'),
        ({"grid": 5}, "grid is a name"),
        ({"emphasis": None}, "emphasis is a name"),
        ({"strength": 0.0}, "strength is a number from 0.01 to 1, got 0.0"),
        ({"strength": float("nan")}, "strength is a number"),
        ({"enlarge": 9.0}, "enlarge is a number from 1 to 4"),
        ({"rescale": True}, "rescale is a number"),
        ({"image": 7}, "a picture is a file"),
        ({"mask": _picture()}, "a mask needs the image"),
        ({"transparent": True}, "give a mask"),
        ({"controls": 1}, "controls is a tuple of Control"),
        ({"feather": -1}, "feather is a whole number from 0 to 256"),
        ({"clip_skip": 0}, "clip_skip is a whole number from 1 to 32"),
        ({"tiling": "yes"}, "tiling is true or false"),
        ({"refiner": 1}, "refiner is a name"),
    ],
)
def test_wishes_that_are_none(wish: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request.from_dict({"prompt": "a cat"} | wish)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"model": ""}, "needs the file or folder"),
        ({"weight": 3.0}, "weight is a number from 0 to 2"),
        ({"start": 0.5, "end": 0.5}, "give start < end"),
    ],
)
def test_controls_that_are_none(wish: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Control(**({"image": _picture(), "model": "edges"} | wish))  # type: ignore[arg-type]
    for told in ({"image": 1}, "edges", {"image": 1, "model": "edges", "colour": 2}):
        with pytest.raises(RequestError, match="a control is a mapping of"):
            Request.from_dict({"prompt": "a cat", "controls": [told]})
