"""Pictures that clients bring, and pictures that they fetch: decoded, looked at, encoded anew.

What is kept of an upload is its pixels and, where it says how it was drawn, those settings. Only PNG, JPEG
and WebP are tried, and no pixel is decoded before the picture's size is known to be allowed.
"""

import hashlib
import io
import json
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from limner.serve.errors import Refused
from limner.serve.infotext import parse, plain_settings

FORMATS = ("PNG", "JPEG", "WEBP")
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
As = Literal["png", "jpeg", "webp"]
EXIF, USER_COMMENT = 0x8769, 0x9286
SETTINGS = "limner-settings"  # our key in the PNG of an upload


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A picture that was brought, as it will be kept."""

    data: bytes  # a PNG made here
    width: int  # pixels
    height: int  # pixels
    sha256: str  # of `data`
    settings: dict[str, object] | None  # how it was drawn, where it says so

    @property
    def prompt(self) -> str:
        """What it is found by."""
        return str((self.settings or {}).get("prompt", ""))


def decoded(data: bytes, most_pixels: int) -> Image.Image:
    """The picture in the bytes of a file, RGB or RGBA, turned as its EXIF says; `info` and `text` as read.

    Raises Refused: 415 for what is no PNG, JPEG or WebP, 413 for more than `most_pixels`, 400 for a broken
    one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_large(most_pixels) from None
    except Exception:  # Pillow raises whatever a broken header brings about
        raise Refused(415, "no_picture", "this is no PNG, JPEG or WebP picture", param="file") from None
    with image:
        if image.width * image.height > most_pixels:
            raise _too_large(most_pixels)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.load()
                turned = ImageOps.exif_transpose(image)
            mode = "RGBA" if turned.has_transparency_data else "RGB"
            return turned.convert(mode)
        except Image.DecompressionBombError:
            raise _too_large(most_pixels) from None
        except Exception:  # ... and of broken data
            raise Refused(400, "broken_picture", "this picture is damaged", param="file") from None


def read_upload(data: bytes, most_pixels: int, *, metadata: str = "full") -> Upload:
    """Decode and encode anew; with `metadata` "none" what is kept says nothing. Raises as `decoded`."""
    image = decoded(data, most_pixels)
    settings = settings_in(data)
    information = PngInfo()
    if settings and metadata != "none":
        information.add_text(SETTINGS, json.dumps(settings))
    kept = io.BytesIO()
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    bare.save(kept, "PNG", pnginfo=information, compress_level=3)
    told = kept.getvalue()
    return Upload(
        data=told,
        width=image.width,
        height=image.height,
        sha256=hashlib.sha256(told).hexdigest(),
        settings=settings,
    )


def infotext_in(data: bytes) -> str | None:
    """The infotext of a PNG, or in the EXIF of a JPEG or WebP, as it stands there; None: there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                texts = _texts(image)
    except Exception:  # as above; what a picture says of itself is extra
        return None
    return texts.get("parameters")


def settings_in(data: bytes) -> dict[str, object] | None:
    """How a picture was drawn, as fields of a request that stand for themselves; None: it does not say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                texts = _texts(image)
    except Exception:  # as above
        return None
    for key, inner in (("limner", "request"), (SETTINGS, None)):
        try:
            told = json.loads(texts.get(key, ""))
            told = told[inner] if inner else told
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(told, Mapping) and (found := plain_settings(told)):
            return found
    if "parameters" in texts:
        return parse(texts["parameters"]) or None
    return None


def _texts(image: Image.Image) -> dict[str, str]:
    if image.format == "PNG":  # texts may stand behind the pixels; those of a bomb are not decoded
        return {str(key): str(text)[:100_000] for key, text in getattr(image, "text", {}).items()}
    value = image.getexif().get_ifd(EXIF).get(USER_COMMENT)
    comment = _comment(value) if isinstance(value, bytes) else None
    return {"parameters": comment[:100_000]} if comment else {}


def _comment(value: bytes) -> str | None:
    """The text of EXIF's UserComment: eight bytes name its encoding."""
    if value.startswith(b"UNICODE\0"):
        order = "utf-16-be" if value[8:9] == b"\0" else "utf-16-le"
        return value[8:].decode(order, "replace").strip("\0 ")
    return value[8:].decode("ascii", "replace").strip("\0 ") if value.startswith(b"ASCII\0\0\0") else None


def encoded(data: bytes, as_: As, side: int | None = None, *, quality: int = 92) -> bytes:
    """A PNG of ours as another format, or with no side longer than `side` pixels, a thumbnail.

    A thumbnail says nothing of how it was drawn; another format what the PNG does, as EXIF's UserComment."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        said = image.text.get("parameters") if side is None else None  # type: ignore[attr-defined]  # a PNG
        image.load()
        shown: Image.Image = image
        if side is not None:
            shown = image.convert("RGBA" if image.has_transparency_data else "RGB")
            shown.thumbnail((side, side), Image.Resampling.LANCZOS)
        if as_ == "jpeg":
            shown = _on_white(shown)
        exif = Image.Exif()
        if said is not None:
            exif.get_ifd(EXIF)[USER_COMMENT] = b"UNICODE\0" + said.encode("utf-16-be")
        information = PngInfo()
        kept = io.BytesIO()
        if as_ == "png":
            if said is not None:
                information.add_text("parameters", said)
            shown.save(kept, "PNG", pnginfo=information)
        elif as_ == "jpeg":
            shown.save(kept, "JPEG", quality=quality, exif=exif.tobytes() if said else b"")
        else:
            shown.save(kept, "WEBP", quality=quality, method=2, exif=exif.tobytes() if said else b"")
    return kept.getvalue()


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


class Thumbnails:
    """Small pictures that were asked for lately. Safe from several threads."""

    def __init__(self, most_bytes: int = 32 << 20) -> None:
        self.most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, sha256: str, as_: str, side: int) -> bytes | None:
        """The thumbnail of a file with this hash, if it is here."""
        with self._lock:
            if (data := self._kept.get((sha256, as_, side))) is not None:
                self._kept.move_to_end((sha256, as_, side))
            return data

    def put(self, sha256: str, as_: str, side: int, data: bytes) -> None:
        """Keep one; the oldest go where it is too much."""
        with self._lock:
            if (old := self._kept.pop((sha256, as_, side), None)) is not None:
                self._bytes -= len(old)
            self._kept[sha256, as_, side] = data
            self._bytes += len(data)
            while self._bytes > self.most_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1])


def _too_large(most_pixels: int) -> Refused:
    return Refused(413, "too_large", f"{most_pixels:,} pixels are the most of a picture", param="file")
