"""Pictures that are drawn again, and what is between two: from a request to an order, a file and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from limner.cli import app
from limner.cli.blending import between
from limner.errors import RequestError
from limner.pipeline.load import load
from limner.pipeline.order import order_of, size_of
from limner.pipeline.picture import Picture
from limner.pipeline.postprocess import Record, infotext
from limner.pipeline.request import Request

CHOSEN = {"seed": 1, "steps": 4, "guidance": 5.0, "sampler": "ddpm", "size": (32, 32), "count": 1}


def file(folder: Path, name: str, seed: int = 0) -> Path:
    levels = np.random.default_rng(seed).integers(0, 256, (20, 40, 3), np.uint8)
    Image.fromarray(levels).save(folder / name)
    return folder / name


def test_pictures_come_whole_and_at_their_own_size(tmp_path: Path) -> None:
    one, other = (Picture.open(file(tmp_path, f"{seed}.png", seed)) for seed in (0, 1))
    request = Request(prompt="", vary=one, vary_noise=0.2, blend=other, blend_at=0.25, **CHOSEN)
    order = order_of(request)
    assert order.vary is not None
    assert isinstance(order.blend, torch.Tensor)
    assert order.vary.shape == order.blend.shape == (1, 3, 20, 40)
    assert (order.vary_noise, order.blend_at) == (0.2, 0.25)
    assert order.image is None
    assert set(order.beyond()) == {"vary", "vary_noise", "blend", "blend_at"}
    assert size_of(request, (64, 64)) == (64, 64)  # the model's own, whatever the picture's
    assert order_of(Request(prompt="a cat", blend="a dog", **CHOSEN)).blend == "a dog"


def test_a_request_survives_its_file(tmp_path: Path) -> None:
    one = Picture.open(file(tmp_path, "one.png"))
    for request in (
        Request(prompt="", vary=one, vary_noise=0.5),
        Request(prompt="a cat", blend=one, blend_at=0.0),
        Request(prompt="a cat", blend="a dog", blend_at=1.0),
    ):
        assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_a_picture_needs_no_prompt(tmp_path: Path) -> None:
    path = file(tmp_path, "one.png")
    assert Request.from_dict({"vary": str(path)}).prompt == ""
    with pytest.raises(RequestError, match="needs a prompt"):
        Request.from_dict({"blend": "a cat"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vary": "missing.png"}, "there is no picture missing.png"),
        ({"vary_noise": 1.5}, "vary_noise is a number from 0 to 1, got 1.5"),
        ({"blend": 3}, "blend is a text or a Picture, got 3"),
        ({"blend": "a" * 10_001}, "blend has 10001 characters"),
        ({"blend_at": -0.1}, "blend_at is a number from 0 to 1"),
    ],
)
def test_what_is_no_request(change: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request.from_dict({"prompt": "a cat", **change})


def test_infotext_says_which_pictures_but_not_where_they_lie(tmp_path: Path) -> None:
    one = Picture.open(file(tmp_path, "one.png"))
    request = Request(prompt="", vary=one, blend="a dog, a cat", blend_at=0.25, **CHOSEN)
    text = infotext(Record(request=request, weights="ab"))
    assert 'Variation of: one.png, Blend with: "a dog, a cat", Blend at: 0.25' in text
    assert str(tmp_path) not in text


def test_the_command_tells_files_from_texts(tmp_path: Path) -> None:
    path = str(file(tmp_path, "one.png"))
    assert between("a cat", "a dog", 0.5) == Request(prompt="a cat", blend="a dog", blend_at=0.5, count=1)
    told = between(path, "a dog", 0.25)
    assert (told.prompt, told.vary, told.blend) == ("", Picture.open(path), "a dog")
    assert between("a cat", path, 0.25).blend == Picture.open(path)
    with pytest.raises(RequestError, match=r"there is no picture nowhere\.png"):
        between("nowhere.png", "a cat", 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("a cat", "a dog", "--frames", "3", "--at", "0.5"),
            "--frames draws all the way from ONE to OTHER, a",
        ),
        (("a cat", "a dog", "--at", "1.5"), "--at is a number from 0 to 1, got 1.5"),
        (("a cat", "a dog", "--at", "nan"), "--at is a number from 0 to 1, got nan"),
        (("a" * 10_001, "a dog"), "ONE has 10001 characters"),
        (("a cat", "a" * 10_001), "OTHER has 10001 characters"),
        (("a cat", "a dog"), "nothing between ONE and OTHER. Two texts take Stable Diffusion 1, 2 or XL"),
    ],
)
def test_what_cannot_be_blended_is_told_in_the_commands_words(
    tiny: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = CliRunner().invoke(app, ["blend", *words, "--model", str(tiny), "--out", str(tmp_path)])
    assert isinstance(done.exception, RequestError)
    assert message in str(done.exception)


def test_how_loosely_means_nothing_without_a_model_that_varies(tiny: Path) -> None:
    with pytest.raises(RequestError, match="has no vary_noise"):
        load(tiny, device="cpu").draw(Request(prompt="a cat", vary_noise=0.5, count=1))
