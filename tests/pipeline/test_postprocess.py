"""Files that say how they were made."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner import __version__
from limner.diffusion.samplers import SAMPLERS
from limner.errors import RequestError
from limner.pipeline import postprocess
from limner.pipeline.postprocess import SAMPLER_NAMES, Record, infotext, save
from limner.pipeline.replay import read_record, read_request
from limner.pipeline.request import Request
from limner.pipeline.result import Result

REQUEST = Request(
    prompt="Two red apples, please!",
    seed=7,
    count=1,
    steps=16,
    guidance=3.0,
    sampler="dpmpp_2m",
    size=(192, 128),
    model="mini",
)
RECORD = Record(request=REQUEST, weights="0123456789")
PICTURE = Image.new("RGB", (8, 6), "red")


def test_infotext_as_other_programs_write_it() -> None:
    assert infotext(RECORD) == (
        "Two red apples, please!\n"
        "Steps: 16, Sampler: DPM++ 2M, CFG scale: 3, Seed: 7, Size: 128x192, Model hash: 0123456789, "
        f"Model: mini, Version: limner {__version__}"
    )


def test_infotext_with_everything() -> None:
    request = replace(
        REQUEST, prompt="a\nb", negative_prompt="a dog", style="flat", count=4, guidance=2.25, model="C:/x, y"
    )
    assert infotext(Record(request=request, weights="ab", grid=True, version="9")) == (
        "a\nb\nNegative prompt: a dog\n"
        "Steps: 16, Sampler: DPM++ 2M, CFG scale: 2.25, Seed: 7, Size: 128x192, Model hash: ab, "
        'Model: "x, y", Style: flat, Batch size: 4, Version: limner 9'
    )


def test_every_sampler_has_its_name_in_infotext() -> None:
    assert set(SAMPLER_NAMES) == set(SAMPLERS)


def test_a_saved_picture_says_how_it_was_made(tmp_path: Path) -> None:
    path = save(PICTURE, tmp_path / "new" / "folder", RECORD)
    assert path.name == "00001-7-two-red-apples-please.png"
    assert read_record(path) == RECORD
    assert read_request(str(path)) == REQUEST
    with Image.open(path) as image:
        assert image.convert("RGB").tobytes() == PICTURE.tobytes()
        assert image.text["parameters"] == infotext(RECORD)  # type: ignore[attr-defined]


def test_prompts_in_any_script_come_back(tmp_path: Path) -> None:
    record = Record(request=replace(REQUEST, prompt="愛 Löwe\n😀"), weights="ab")
    path = save(PICTURE, tmp_path, record)
    assert read_record(path) == record
    assert path.name == "00001-7-lowe.png"
    assert save(PICTURE, tmp_path, Record(request=replace(REQUEST, prompt="愛"), weights="a")).name == (
        "00002-7-picture.png"
    )


def test_names_are_short_and_stay_in_the_folder(tmp_path: Path) -> None:
    long = save(PICTURE, tmp_path, Record(request=replace(REQUEST, prompt="word " * 50), weights="a"))
    assert long.name == "00001-7-word-word-word-word-word-word-word-word.png"
    strange = save(
        PICTURE, tmp_path, Record(request=replace(REQUEST, prompt="../../" + "x" * 99), weights="a")
    )
    assert strange.name == f"00002-7-{'x' * 40}.png"
    assert strange.parent == tmp_path


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "00041-mine.txt").write_text("mine")
    paths = [save(PICTURE, tmp_path, RECORD) for _ in range(2)]
    assert [path.name[:5] for path in paths] == ["00042", "00043"]
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "00041-mine.txt"
    assert len(list(tmp_path.iterdir())) == 3  # and no leftovers


def test_a_name_taken_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(PICTURE, tmp_path, RECORD)
    content = first.read_bytes()
    monkeypatch.setattr(postprocess, "_last_number", lambda folder: 0)  # as if it had not been there yet
    second = save(Image.new("RGB", (8, 6), "blue"), tmp_path, RECORD)
    assert (first.read_bytes(), second.name[:5]) == (content, "00002")


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(postprocess, "_last_number", lambda folder: 0)
    paths = [save(PICTURE, tmp_path, RECORD) for _ in range(2)]
    assert [path.name[:5] for path in paths] == ["00001", "00002"]
    assert [read_record(path) for path in paths] == [RECORD, RECORD]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot save pictures in .*file"):
        save(PICTURE, tmp_path / "file", RECORD)


def test_results_save_each_picture_and_the_grid(tmp_path: Path) -> None:
    result = Result(
        images=(PICTURE, PICTURE, PICTURE),
        seeds=(7, 8, 9),
        request=replace(REQUEST, count=3),
        weights="ab",
        notices=(),
        warnings=(),
    )
    paths = result.save(tmp_path)
    assert [path.name for path in paths] == [
        "00001-7-two-red-apples-please.png",
        "00002-8-two-red-apples-please.png",
        "00003-9-two-red-apples-please.png",
        "00004-7-two-red-apples-please-grid.png",
    ]
    records = [read_record(path) for path in paths]
    assert [(r.request.seed, r.request.count, r.grid) for r in records] == [
        (7, 1, False),
        (8, 1, False),
        (9, 1, False),
        (7, 3, True),
    ]
    assert len(result.save(tmp_path, grid=False)) == 3
    alone = replace(result, images=(PICTURE,), seeds=(7,), request=REQUEST)
    assert len(alone.save(tmp_path)) == 1


def _png(path: Path, text: str | None) -> Path:
    information = PngInfo()
    if text is not None:
        information.add_text("limner", text)
    PICTURE.save(path, pnginfo=information)
    return path


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[]", "{}", "3", '{"request": 3, "weights": "", "grid": false, "version": ""}'],
)
def test_damaged_requests(tmp_path: Path, text: str) -> None:
    with pytest.raises(RequestError, match="is damaged"):
        read_record(_png(tmp_path / "a.png", text))


def test_requests_of_a_future_version_say_what_is_unknown(tmp_path: Path) -> None:
    told = {"request": {"prompt": "a", "mood": "x"}, "weights": "", "grid": False, "version": "9"}
    with pytest.raises(RequestError, match='has no "mood"'):
        read_record(_png(tmp_path / "a.png", json.dumps(told)))


def test_foreign_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="carries no Limner request"):
        read_record(_png(tmp_path / "a.png", None))
    PICTURE.save(tmp_path / "a.jpg")
    with pytest.raises(RequestError, match="carries no Limner request"):
        read_record(tmp_path / "a.jpg")
    with pytest.raises(RequestError, match="there is no file"):
        read_record(tmp_path / "none.png")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    with pytest.raises(RequestError, match="is not a whole picture"):
        read_record(tmp_path / "b.png")
    whole = save(Image.effect_noise((64, 64), 50).convert("RGB"), tmp_path / "c", RECORD)
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(RequestError, match="is not a whole picture"):
        read_record(whole)
    with pytest.raises(RequestError, match="is not a whole picture"):
        read_record(tmp_path)


def test_infotext_does_not_tell_where_a_model_lies() -> None:
    request = replace(
        REQUEST, model="/home/me/models/fox.v2.safetensors", refiner="/home/me/refiner", grid="karras"
    )
    text = infotext(Record(request=request, weights="0123456789"))
    assert "Model: fox.v2, " in text
    assert "Refiner: refiner, " in text
    assert "Schedule type: Karras, " in text
    assert "/home" not in text
