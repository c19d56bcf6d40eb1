"""Pictures from files that nobody has vouched for: looked at before they are decoded, upright, in RGB.

A picture is a file, or a member of a tar, written "dir/x.tar::0001.jpg". Members are read where they lie;
nothing is ever extracted.
"""

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from limner.errors import DataError

LARGEST = 89_000_000  # pixels of a picture, at most: beyond, Pillow takes it for an attack
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")  # what is decoded, whatever a name ends in
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"})
STARTS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
ENCODED = 512_000_000  # bytes of a picture's file, at most
TARS = 8  # tables of contents that are remembered
ORIENTATION = 0x0112  # EXIF tag
TURNS = {  # EXIF orientation -> what makes the picture upright (CIPA DC-008, table 5)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(DataError):
    """A picture cannot be used. `reason` is one fixed word, as a `Reject` has it: "missing", "too-large",
    "not-a-picture" or "broken"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["PictureError"], tuple[str, str]]:
        return type(self), (self.reason, str(self))  # so that it comes back whole from another process


def open_picture(where: str, *, largest: int = LARGEST, content: bytes | None = None) -> Image.Image:
    """The picture at `where`: RGB, 8 bits, upright, transparency laid on white, 16 bits scaled to 8.
    `content`: its bytes, if they were read before; `where` is then only what a message calls it.

    Raises PictureError (a DataError) when there is no such file or member, when it is no picture of a format
    in FORMATS, when it has more than `largest` pixels (before any is decoded), and when it is cut off or
    broken.
    """
    with _opened(where, largest, content) as image:
        try:
            image.load()
            turn = _turn(image, decoded=True)
            upright = _rgb(image)
            return upright if turn is None else upright.transpose(turn)
        except Exception as error:  # decoders fail in every way that Python knows
            raise PictureError("broken", f"{where} cannot be decoded: {_said(error)}") from None


def measure(where: str, *, largest: int = LARGEST, whole: bool = True) -> tuple[int, int]:
    """(width, height) of the upright picture. With `whole` it is decoded, at the least cost, to see that all
    of it is there; without, only its head is read. Raises as `open_picture` does."""
    with _opened(where, largest) as image:
        width, height = image.size
        turn = _turn(image, decoded=False)
        if whole:
            try:
                image.draft(None, (1, 1))  # JPEG: every coefficient is read, an eighth of the pixels made
                image.load()
                turn = _turn(image, decoded=True)
            except Exception as error:
                raise PictureError("broken", f"{where} cannot be decoded: {_said(error)}") from None
    sideways = turn is not None and turn in (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
    return (height, width) if sideways else (width, height)


def thumbnails(places: Iterable[str], side: int) -> Iterator[Image.Image]:
    """The pictures, at most `side` pixels wide and high. Those that cannot be read are passed over: the next
    step that needs them says so."""
    for where in places:
        try:
            picture = open_picture(where)
        except PictureError:
            continue
        picture.thumbnail((side, side))
        yield picture


def ending(content: bytes) -> str:
    """What the name of an encoded picture ends in, such as "jpg", by how it begins; "" for what is none."""
    for start, found in STARTS.items():
        if content.startswith(start):
            return found
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return "avif" if content[4:12] in (b"ftypavif", b"ftypavis") else ""


def read_bytes(where: str) -> bytes:
    """The encoded picture, as it lies there. Raises PictureError when it is missing or over 512 MB."""
    with _stream(where) as file:
        return _read(file.read, where)


@contextmanager
def opened(path: str, *, most: int | None = ENCODED) -> Iterator[IO[bytes]]:
    """An ordinary file to read, with at most `most` bytes; a pipe would wait for ever, a device never end.

    Raises PictureError when it is something else, is not there or cannot be read.
    """
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise PictureError("missing", f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # a zero byte in the name
        raise PictureError("missing", f"{path!r} is no name of a file") from None
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        os.close(number)
        raise PictureError("missing", f"{path} is no ordinary file")
    with open(number, "rb") as file:  # noqa: PTH123 (a descriptor)
        if most is not None and status.st_size > most:
            raise PictureError("too-large", f"{path} is a file of {status.st_size / 1e6:.0f} MB")
        yield file


def members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each ordinary file of a tar, in its order, whatever it is called.

    Raises DataError when it is no plain tar or ends too early.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            size = path.stat().st_size
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it remembers them all, in vain
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{path} ends in the middle of {member.name!r}; fetch it again")
                yield member.name, member.offset_data, member.size
        with path.open("rb") as file:  # tarfile is silent about all that it cannot read but the first
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise DataError(f"{path} is broken or cut off at byte {tar.offset}; fetch it again")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{path} is no whole, uncompressed tar ({error}); unpack or fetch it again") from None


@contextmanager
def _opened(where: str, largest: int, content: bytes | None = None) -> Iterator[Image.Image]:
    """The picture, of which only the head was read."""
    too_large = f"and pictures of at most {largest / 1e6:.3g} million pixels are wanted; make it smaller"
    with _stream(where) if content is None else io.BytesIO(content) as file:
        try:
            image = Image.open(file, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise PictureError(
                "too-large", f"{where} has over {LARGEST / 1e6:g} million pixels, {too_large}"
            ) from None
        except Exception as error:
            told = "" if isinstance(error, UnidentifiedImageError) else f" ({_said(error)})"
            raise PictureError("not-a-picture", f"{where} is none of {', '.join(FORMATS)}{told}") from None
        with image:
            width, height = image.size
            if width * height > largest:
                raise PictureError("too-large", f"{where} has {width} x {height} pixels, {too_large}")
            yield image


@contextmanager
def _stream(where: str) -> Iterator[IO[bytes]]:
    path, tar, member = where.partition(".tar::")
    if tar and not Path(where).is_file():
        yield io.BytesIO(_member(path + ".tar", member))
        return
    with opened(where) as file:
        yield file


def _member(path: str, name: str) -> bytes:
    with opened(path, most=None) as file:
        status = os.fstat(file.fileno())
        try:
            offset, size = _contents(path, status.st_mtime_ns, status.st_size)[name]
        except KeyError:
            raise PictureError("missing", f"{path} has no member {name!r}") from None
        if size > ENCODED:
            raise PictureError("too-large", f"{path}::{name} is a file of {size / 1e6:.0f} MB")
        file.seek(offset)
        return _read(file.read, path, size)


def _read(read: Callable[[int], bytes], where: str, size: int = -1) -> bytes:
    try:
        return read(size)
    except OSError as error:  # a disk that fails
        raise PictureError("missing", f"cannot read {where}: {error.strerror}") from None


@lru_cache(TARS)
def _contents(path: str, changed: int, size: int) -> dict[str, tuple[int, int]]:
    """Where the members of a tar lie; of two with one name the first counts."""
    found: dict[str, tuple[int, int]] = {}
    for name, offset, length in members(Path(path)):
        found.setdefault(name, (offset, length))
    return found


def _turn(image: Image.Image, *, decoded: bool) -> Image.Transpose | None:
    """What makes it upright. Of a picture that is not decoded only the head counts: a PNG's own `getexif`
    would decode all of it, for EXIF may follow the pixels, and forget what went wrong meanwhile."""
    try:
        exif = image.getexif() if decoded else Image.Image.getexif(image)
        return TURNS.get(exif.get(ORIENTATION, 1))
    except Exception:  # a torn EXIF block is no reason to lose the picture
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        import numpy as np

        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(
            f"its samples are of mode {image.mode}, whose range nobody knows; save it with 8 bits"
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
