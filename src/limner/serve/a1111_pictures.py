"""Pictures as AUTOMATIC1111's clients send them: in base64, fitted to a size, with masks that are white where
to draw. Nothing is fetched from anywhere."""

import base64
import binascii
import io
import re
from collections.abc import Callable

from PIL import Image, ImageOps

from limner.serve.errors import Refused
from limner.serve.uploads import decoded

URI = re.compile(r"data:[\w./+-]{0,100}(?:;[\w=-]{0,100}){0,4};base64,", re.IGNORECASE)
SPACE = str.maketrans("", "", " \t\r\n")


def bytes_of(said: str, param: str) -> bytes:
    """The file in a text of base64, or a data: URI of one. Raises Refused, 400."""
    match = URI.match(said[:600])
    text = said[match.end() :] if match else said
    if text[:8].lower().startswith(("http:", "https:")):
        raise Refused(
            400, "no_urls", f"{param}: send the picture itself, nothing is fetched here", param=param
        )
    try:
        data = base64.b64decode(text.translate(SPACE), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(
            400, "invalid_image", f"Invalid encoded image: {param} is no base64", param=param
        ) from None
    return data


def begun(
    image: bytes,
    mask: bytes | None,
    *,
    size: tuple[int, int] | None,  # (height, width) to be drawn; None: the picture's own
    mode: int,  # how a picture of another shape becomes one of it: 0 and 3 stretched, 1 cut, 2 filled up
    invert: bool,  # whether the mask is black where to draw
    most: int,  # pixels
) -> tuple[bytes, bytes | None]:
    """A picture to begin with and its mask, white where to draw, as files that fit. Raises Refused, as
    `uploads.decoded`, and 400 for a mask that marks nothing."""
    picture = decoded(image, most)
    fit = _fit(picture.size, size, mode)
    fitted = image if fit is None else _png(fit(picture, Image.Resampling.LANCZOS))
    if mask is None:
        return fitted, None
    marks = _marks(decoded(mask, most), invert)
    if marks.size != picture.size:  # the web UI stretches it over the picture
        marks = marks.resize(picture.size, Image.Resampling.NEAREST)
    if fit is not None:
        marks = fit(marks, Image.Resampling.NEAREST)
    if marks.getextrema() == (0, 0):
        raise Refused(400, "invalid_value", "the mask marks nothing: white is where to draw", param="mask")
    return fitted, _png(marks.convert("RGB"))


def resized(data: bytes, size: tuple[int, int], how: Image.Resampling, *, crop: bool, most: int) -> bytes:
    """A picture at (width, height): filled and cut, or as large as goes into it. Raises as `decoded`."""
    picture = decoded(data, most)
    return _png(ImageOps.fit(picture, size, how) if crop else _inside(picture, size, how))


Fit = Callable[[Image.Image, Image.Resampling], Image.Image]


def _fit(own: tuple[int, int], size: tuple[int, int] | None, mode: int) -> Fit | None:
    """How to bring a picture of `own` (width, height) to size (height, width); None: it is left to the model,
    which fills and cuts."""
    if size is None or own == (target := size[::-1]) or mode == 1:
        return None
    if mode == 2:
        return lambda image, how: _filled(image, target, how)
    return lambda image, how: image.resize(target, how)


def _inside(image: Image.Image, target: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """As large as goes into it."""
    scale = min(whole / own for whole, own in zip(target, image.size, strict=True))
    width, height = (
        max(1, min(whole, round(own * scale))) for whole, own in zip(target, image.size, strict=True)
    )
    return image.resize((width, height), how)


def _filled(image: Image.Image, target: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """All of it, in the middle, and around it its edges go on."""
    inner = _inside(image, target, how)
    left, top = ((whole - part) // 2 for whole, part in zip(target, inner.size, strict=True))
    right, bottom = left + inner.width, top + inner.height
    whole = Image.new(inner.mode, target)
    whole.paste(inner, (left, top))
    for edge, width, place in ((left, left, 0), (right - 1, target[0] - right, right)):
        if width > 0:
            strip = whole.crop((min(edge, right - 1), 0, min(edge, right - 1) + 1, target[1]))
            whole.paste(strip.resize((width, target[1])), (place, 0))
    for edge, height, place in ((top, top, 0), (bottom - 1, target[1] - bottom, bottom)):
        if height > 0:
            strip = whole.crop((0, edge, target[0], edge + 1))
            whole.paste(strip.resize((target[0], height)), (0, place))
    return whole


def _marks(mask: Image.Image, invert: bool) -> Image.Image:
    """White where to draw, and black: a mask with transparency is read by that, as the web UI does."""
    alpha = mask.getchannel("A") if mask.mode == "RGBA" else None
    levels = mask.convert("L") if alpha is None or alpha.getextrema() == (255, 255) else alpha
    marks = levels.point([0] * 129 + [255] * 127)
    return ImageOps.invert(marks) if invert else marks


def _png(image: Image.Image) -> bytes:
    kept = io.BytesIO()
    image.save(kept, "PNG", compress_level=3)
    return kept.getvalue()
