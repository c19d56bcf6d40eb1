"""Pipelines as drawers: the pictures, what their files say, and what they must not say."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import drawn
from PIL import Image

from limner.errors import RequestError, WeightsError
from limner.families import FAMILIES
from limner.pipeline.load import load
from limner.pipeline.postprocess import Record, texts
from limner.pipeline.request import Request
from limner.serve import drawer as module
from limner.serve.drawer import CAN, PipelineDrawer, previews
from limner.serve.jobs import Drawn, new_id
from limner.serve.messages import Drawer, EngineSettings, Look, Piece

USUAL = {"steps": 2, "guidance": 2.5, "sampler": "ddpm", "size": [64, 64], "model": "small"}


@pytest.fixture
def made(tiny: Path, tmp_path: Path) -> PipelineDrawer:
    """A drawer that has opened the tiny model as "small"."""
    (tmp_path / "loras").mkdir()
    settings = EngineSettings(
        models={"small": str(tiny), "torn": str(tmp_path)}, batch=2, threads=1, loras=tmp_path / "loras"
    )
    drawer = PipelineDrawer(settings, tmp_path / "pictures", "cpu")
    drawer.open("small")
    return drawer


def piece(
    prompt: str = "a cat",
    count: int = 1,
    first: int = 0,
    metadata: str = "full",
    pictures: Mapping[str, Drawn] | None = None,
    **more: object,
) -> Piece:
    request = USUAL | {"prompt": prompt, "seed": 7, "count": 4} | more
    return Piece(
        job=new_id(),
        attempt=1,
        request=request,
        pictures=pictures or {},
        model="small",
        shape="s",
        metadata=metadata,
        first=first,
        count=count,
    )


def uploaded(folder: Path, image: Image.Image, **more: Any) -> Drawn:
    picture = replace(drawn(job=None), width=image.width, height=image.height, **more)
    (folder / picture.file).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / picture.file)
    return picture


def finished(drawer: Drawer, *pieces: Piece, lean: bool = False) -> Sequence[Look]:
    *_, last = drawer.draw(pieces, lean=lean)
    return last


def opened(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def test_every_family_says_what_it_can() -> None:
    assert CAN.keys() == FAMILIES.keys()


def test_a_model_tells_what_it_is(made: PipelineDrawer) -> None:
    assert isinstance(made, Drawer)
    info = made.open("small")
    assert (info.name, info.family, info.default_size, info.styles) == (
        "small",
        "mini",
        (64, 64),
        ("flat", "glossy"),
    )
    assert info.can == {"image", "mask", "extend", "loras", "negative_prompt"}
    assert info.defaults["size"] == [64, 64]
    json.dumps(dict(info.defaults))
    assert made.pays() in (1, 2)
    assert made.sound()
    with pytest.raises(WeightsError):
        made.open("torn")
    with pytest.raises(RequestError):
        made.open("other")
    assert list(made.held) == []  # one at a time: the first was put away for the second


@pytest.mark.parametrize("lean", [False, True])
def test_pictures_are_those_of_the_pipeline(made: PipelineDrawer, tiny: Path, lean: bool) -> None:
    one, two = piece("a cat", 2, first=1), piece("a dog", 1)
    steps = list(made.draw([one, two], lean=lean))
    assert [looks[0].share for looks in steps] == sorted({looks[0].share for looks in steps})
    assert steps[-1][0].share == 1.0
    assert not any(look.painted for looks in steps[:-1] for look in looks)
    pipeline = load(tiny, device="cpu")
    for look, prompt, seeds in zip(steps[-1], ("a cat", "a dog"), ((8, 9), (7,)), strict=True):
        assert tuple(painted.seed for painted in look.painted) == seeds
        for painted in look.painted:
            asked = USUAL | {"prompt": prompt, "seed": painted.seed, "count": 1, "model": str(tiny)}
            alone = pipeline.draw(Request.from_dict(asked)).images[0]
            assert np.array_equal(np.asarray(opened(painted.data)), np.asarray(alone))
            assert (painted.width, painted.height) == (64, 64)
    shown = [opened(data) for data in steps[0][0].preview(32)]
    assert [(image.format, max(image.size) <= 32) for image in shown] == [("JPEG", True)] * 2


def test_files_say_as_much_as_they_may(made: PipelineDrawer, tiny: Path, tmp_path: Path) -> None:
    said = {}
    for level in ("none", "minimal", "full"):
        (look,) = finished(made, piece("a cat", metadata=level, negative_prompt="dogs"))
        said[level] = dict(opened(look.painted[0].data).text)  # type: ignore[attr-defined]
        assert str(tiny).encode() not in look.painted[0].data
        assert str(tmp_path).encode() not in look.painted[0].data
    assert said["none"] == {}
    assert set(said["minimal"]) == {"parameters"}
    assert said["minimal"]["parameters"].startswith("a cat\nNegative prompt: dogs\nSteps: 2,")
    told = json.loads(said["full"]["limner"])
    assert (told["request"]["seed"], told["request"]["count"], told["request"]["model"]) == (7, 1, "small")
    assert said["full"]["parameters"] == said["minimal"]["parameters"]


def test_pictures_of_a_request_go_by_their_ids(made: PipelineDrawer, tmp_path: Path) -> None:
    begin = uploaded(tmp_path / "pictures", Image.new("RGB", (64, 64), "red"))
    mask = uploaded(tmp_path / "pictures", Image.new("L", (64, 64), 255))
    given = {begin.id: begin, mask.id: mask}
    asked = piece(image={"picture": begin.id}, mask={"picture": mask.id}, pictures=given)
    (look,) = finished(made, asked)
    image = opened(look.painted[0].data)
    told = json.loads(image.text["limner"])  # type: ignore[attr-defined]
    assert told["request"]["image"]["file"] == begin.id
    assert told["request"]["mask"]["file"] == mask.id
    assert str(tmp_path).encode() not in look.painted[0].data

    (tmp_path / "pictures" / begin.file).write_bytes(b"no picture")
    for named in ({"picture": begin.id}, {"picture": new_id()}, {"file": "/etc/passwd"}):
        with pytest.raises(RequestError) as caught:
            finished(made, piece(image=named, pictures=given))
        assert str(tmp_path) not in str(caught.value)


def test_the_smallest_texts_name_no_other_picture() -> None:
    request = Request.from_dict(USUAL | {"prompt": "a", "seed": 1, "count": 1, "steps": 2})
    from limner.pipeline.picture import Picture

    varied = replace(request, vary=Picture(Image.new("RGB", (8, 8)), "secret-name.png"))
    record = Record(request=varied, weights="0")
    assert "secret-name" in texts(record)["parameters"]
    assert "secret-name" not in str(module.said(record, "minimal"))


def test_what_lies_on_the_server_cannot_be_named(made: PipelineDrawer, tmp_path: Path) -> None:
    image = uploaded(tmp_path / "pictures", Image.new("RGB", (64, 64), "red"))
    for network in ("../secret", "/etc/passwd", "edges"):
        control = {"image": {"picture": image.id}, "model": network}
        with pytest.raises(RequestError, match="no control network"):
            finished(made, piece(controls=[control], pictures={image.id: image}))
    with pytest.raises(RequestError, match="refiner"):
        finished(made, piece(refiner="/somewhere/else"))


@pytest.mark.parametrize("metadata", ["none", "minimal", "full"])
def test_a_finished_picture_is_made_larger(made: PipelineDrawer, tmp_path: Path, metadata: str) -> None:
    (look,) = finished(made, piece("a cat"))
    source = replace(uploaded(tmp_path / "pictures", Image.new("RGB", (8, 8))), seed=7, prompt="a cat")
    (tmp_path / "pictures" / source.file).write_bytes(look.painted[0].data)
    asked = Piece(
        job=new_id(),
        attempt=1,
        request={"upscale": {"picture": source.id, "scale": 1.5}},
        pictures={source.id: source},
        model="small",
        shape="s",
        metadata=metadata,
        count=1,
    )
    made.settings = replace(made.settings, upscaler=dict(made.settings.models)["small"])
    (larger,) = finished(made, asked)
    (painted,) = larger.painted
    assert (painted.seed, painted.width, painted.height) == (7, 96, 96)
    said = opened(painted.data).text  # type: ignore[attr-defined]
    known = {"none": set(), "minimal": {"parameters"}, "full": {"parameters", "limner-source"}}
    extra = {"postprocessing"} if metadata != "none" else set()
    assert set(said) == known[metadata] | extra
    assert len(larger.preview(16)) == 1


def test_previews_show_whatever_there_is() -> None:
    pixels = torch.tensor([float("nan"), float("inf"), 0.0]).reshape(1, 3, 1, 1).expand(2, 3, 30, 60)
    for data in previews(pixels, 20):
        image = opened(data)
        assert (image.format, image.size) == ("JPEG", (20, 10))
