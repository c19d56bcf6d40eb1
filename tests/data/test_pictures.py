"""Pictures that nobody vouched for: all that is readable is read right, all else is refused by name."""

import io
import os
import pickle
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.data.pictures import PictureError, measure, members, open_picture, read_bytes
from limner.errors import DataError


def refused(path: Path | str, **limits: int) -> PictureError:
    """The error that both ways of looking at a picture agree on."""
    with pytest.raises(PictureError) as opened:
        open_picture(str(path), **limits)
    with pytest.raises(PictureError) as measured:
        measure(str(path), **limits)
    assert opened.value.reason == measured.value.reason
    return opened.value


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "avif"])
def test_formats(suffix: str, tmp_path: Path, paint: Callable[..., Path]) -> None:
    path = paint(tmp_path / f"a.{suffix}", 40, 30)
    assert measure(str(path)) == (40, 30)
    assert measure(str(path), whole=False) == (40, 30)
    picture = open_picture(str(path))
    assert (picture.mode, picture.size) == ("RGB", (40, 30))


def test_a_truncated_jpeg_is_broken(tmp_path: Path, paint: Callable[..., Path]) -> None:
    path = paint(tmp_path / "a.jpg", 400, 300)
    path.write_bytes(path.read_bytes()[:-300])
    error = refused(path)
    assert error.reason == "broken"
    assert "a.jpg" in str(error)
    assert measure(str(path), whole=False) == (400, 300)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, huge_png: bytes) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(huge_png)
    tracemalloc.start()
    start = time.process_time()
    error = refused(path)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.reason == "too-large"
    assert "make it smaller" in str(error)
    assert seconds < 0.5
    assert peak < 5_000_000


def test_the_limit_is_the_callers(tmp_path: Path, paint: Callable[..., Path]) -> None:
    path = paint(tmp_path / "a.png", 40, 30)
    assert open_picture(str(path), largest=1200).size == (40, 30)
    assert "40 x 30" in str(refused(path, largest=1199))


@pytest.mark.parametrize("kind", ["GIF", "PPM", "TGA"])
def test_other_formats_are_refused_whatever_they_are_called(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", kind)
    assert refused(tmp_path / "a.png").reason == "not-a-picture"


@pytest.mark.parametrize("content", [b"", b"8BPS\0\1" + bytes(100), b"<svg/>", b"\xff\xd8\xff", bytes(1000)])
def test_what_is_no_picture(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert refused(tmp_path / "a.png").reason in ("not-a-picture", "broken")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    places = [tmp_path, tmp_path / "none.png", tmp_path / "pipe.png", tmp_path / "loop.png", "a\0.png"]
    assert {refused(path).reason for path in (*places, "/dev/zero", tmp_path / "no.tar::a.png")} == {
        "missing"
    }


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int, tmp_path: Path) -> None:
    upright = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3)
    stored = {  # what a camera stores so that `orientation` makes it upright: the inverse of each turn
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert measure(str(tmp_path / "a.png")) == (4, 6)
    assert open_picture(str(tmp_path / "a.png")).tobytes() == upright.tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, too
def test_a_torn_exif_block_does_not_lose_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (4, 6)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert measure(str(tmp_path / "a.jpg")) == (4, 6)
    assert open_picture(str(tmp_path / "a.jpg")).size == (4, 6)


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.array(open_picture(str(tmp_path / "a.png")))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "clear.png", transparency=1)
    palette.save(tmp_path / "plain.png")
    for name in ("rgba", "la", "clear"):
        assert open_picture(str(tmp_path / f"{name}.png")).getpixel((0, 0)) == (255, 255, 255)
    assert open_picture(str(tmp_path / "plain.png")).getpixel((0, 0)) == (10, 20, 30)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = np.array(open_picture(str(tmp_path / "a.jpg")))[4, 4].astype(int)
    assert red > 250
    assert max(green, blue) < 5


def test_samples_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(PictureError, match="mode F") as caught:
        open_picture(str(tmp_path / "a.tif"))
    assert caught.value.reason == "broken"


def test_members_of_a_tar_are_read_where_they_lie(tmp_path: Path, paint: Callable[..., Path]) -> None:
    picture = paint(tmp_path / "a.png", 20, 10)
    content = picture.read_bytes()
    tar = tar_of(tmp_path / "x.tar", {"first.txt": b"hello", "in/ä.png": content, "../b.png": content})
    assert open_picture(f"{tar}::in/ä.png").tobytes() == open_picture(str(picture)).tobytes()
    assert measure(f"{tar}::in/ä.png") == (20, 10)
    assert read_bytes(f"{tar}::in/ä.png") == content
    assert refused(f"{tar}::none.png").reason == "missing"
    assert next((name, size) for name, _, size in members(tar)) == ("first.txt", 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "x.tar"]


def test_a_tar_that_changed_is_read_anew(tmp_path: Path, paint: Callable[..., Path]) -> None:
    small = paint(tmp_path / "a.png", 8, 8).read_bytes()
    large = paint(tmp_path / "b.png", 16, 16).read_bytes()
    tar = tar_of(tmp_path / "x.tar", {"p.png": small})
    assert measure(f"{tar}::p.png") == (8, 8)
    tar_of(tar, {"first.txt": bytes(2000), "p.png": large})
    assert measure(f"{tar}::p.png") == (16, 16)


@pytest.mark.parametrize("content", [b"no tar at all" * 100, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_tar_says_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.tar"):
        list(members(tmp_path / "x.tar"))


def test_a_tar_that_ends_too_early_says_so(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "x.tar", {"a.png": bytes(5000), "b.png": bytes(5000)})
    tar.write_bytes(tar.read_bytes()[:8000])
    read = members(tar)
    assert next(read)[0] == "a.png"
    with pytest.raises(DataError, match="fetch it again"):
        list(read)


@pytest.mark.parametrize("keep", [6144 + 100, 6144 + 512 + 10])
def test_a_tar_that_is_cut_in_a_head_says_so(keep: int, tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "x.tar", {"a.png": bytes(5632), "b.png": bytes(100)})
    tar.write_bytes(tar.read_bytes()[:keep])
    with pytest.raises(DataError, match="fetch it again"):
        list(members(tar))


def test_links_and_devices_in_a_tar_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo("a.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert list(members(tmp_path / "x.tar")) == []
    assert refused(f"{tmp_path / 'x.tar'}::a.png").reason == "missing"


def test_errors_come_back_whole_from_another_process(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.png")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
    assert (again.reason, str(again)) == (error.reason, str(error))


def test_many_threads_may_look_at_once(tmp_path: Path, paint: Callable[..., Path]) -> None:
    tar = tar_of(
        tmp_path / "x.tar", {f"{i}.png": paint(tmp_path / "a.png", 8 + i).read_bytes() for i in range(8)}
    )
    sizes: dict[int, tuple[int, int]] = {}

    def look(i: int) -> None:
        sizes[i] = measure(f"{tar}::{i}.png")

    threads = [threading.Thread(target=look, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == {i: (8 + i, 24) for i in range(8)}


def test_a_png_with_flipped_bytes_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(levels).save(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT") + 4 + 2
    content[at + 4000 : at + 4040] = bytes(byte ^ 0xFF for byte in content[at + 4000 : at + 4040])
    path.write_bytes(content)
    assert measure(str(path), whole=False) == (64, 64)
    for look in (measure, open_picture):
        with pytest.raises(PictureError, match="cannot be decoded"):
            look(str(path))


def test_only_the_head_of_a_png_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (500, 400)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"IDAT") + 20])
    assert measure(str(path), whole=False) == (500, 400)
