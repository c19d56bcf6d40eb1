from pathlib import Path

import pytest
from PIL import Image

from limner.errors import RequestError
from limner.pipeline import picture
from limner.pipeline.picture import Picture


@pytest.fixture
def file(tmp_path: Path) -> Path:
    image = Image.new("RGB", (6, 4), "red")
    image.putpixel((5, 0), (0, 0, 255))
    image.save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_a_picture_is_its_pixels(file: Path) -> None:
    from_file, from_memory = Picture.open(file), Picture(Image.open(file))
    assert from_file == from_memory
    assert hash(from_file) == hash(from_memory)
    assert from_file != Picture(Image.new("RGB", (6, 4), "red"))
    assert from_file != "red"
    assert repr(from_file) == f"Picture({str(file)!r}, 6x4)"
    assert Picture(Image.new("L", (2, 2))).image.mode == "RGB"
    assert Picture(Image.new("LA", (2, 2))).image.mode == "RGBA"


def test_what_it_tells_finds_it_again(file: Path) -> None:
    told = Picture.open(file).told()
    assert Picture.read(told) == Picture.open(file)
    assert Picture.read(str(file)) == Picture.read(file) == Picture.read(Image.open(file))
    Image.new("RGB", (6, 4), "green").save(file)
    with pytest.raises(RequestError, match="no longer the picture"):
        Picture.read(told)
    with pytest.raises(RequestError, match="given from memory"):
        Picture.read(Picture(Image.new("RGB", (2, 2))).told())


def test_it_is_turned_as_the_camera_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    tags = Image.Exif()
    tags[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=tags)
    assert Picture.open(tmp_path / "turned.jpg").image.size == (4, 6)


def test_what_is_no_picture(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="there is no picture"):
        Picture.open(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(RequestError, match="is not a whole picture"):
        Picture.open(tmp_path / "text.png")
    (tmp_path / "cut.png").write_bytes(file.read_bytes()[:50])
    with pytest.raises(RequestError, match="is not a whole picture"):
        Picture.open(tmp_path / "cut.png")
    with pytest.raises(RequestError, match=f"{tmp_path} is a folder"):
        Picture.open(tmp_path)
    with pytest.raises(RequestError, match="a file or a PIL image, got 7"):
        Picture.read(7)
    monkeypatch.setattr(picture, "MOST_PIXELS", 23)
    with pytest.raises(RequestError, match="6x4"):
        Picture.open(file)
    with pytest.raises(RequestError, match="6x4"):
        Picture(Image.new("RGB", (6, 4)))
