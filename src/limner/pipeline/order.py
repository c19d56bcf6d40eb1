"""From a request to what a model is given: pictures become pixels, masks fade."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageChops, ImageOps
from torch import Tensor

from limner.errors import RequestError
from limner.families.base import ControlOrder, Order
from limner.pipeline.picture import Picture
from limner.pipeline.request import Control, Request
from limner.util.images import pixels_from_images


def order_of(request: Request) -> Order:
    """What a model is given of a request with every choice made; its pictures at the size to be drawn."""
    assert request.size is not None  # resolved
    image = mask = None
    if request.image is not None:
        image, mask = _image_and_mask(request, request.image, request.size)
    told: dict[str, Any] = {
        "image": image,
        "mask": mask,
        "controls": tuple(_control(control, request.size) for control in request.controls),
        "vary": None if request.vary is None else _whole(request.vary),
        "blend": _whole(request.blend) if isinstance(request.blend, Picture) else request.blend,
    }
    alike = {field.name: getattr(request, field.name) for field in fields(Order) if field.name not in told}
    return Order(**alike, **told)


def _control(control: Control, size: tuple[int, int]) -> ControlOrder:
    alike = {name: getattr(control, name) for name in ("model", "weight", "start", "end")}
    return ControlOrder(pixels=_pixels(control.image, size, (0.5, 0.5)), **alike)


def size_of(
    request: Request,
    usual: tuple[int, int],
    factor: int = 1,
    *,
    square: bool = False,
    picture: tuple[int, int]
    | None = None,  # (width, height) of the one to begin with, where it is not at hand
) -> tuple[int, int]:
    """(height, width) to draw where a request leaves it open: the model's `usual` one; that of the picture to
    begin with and what is drawn on around it, or `factor` times as large for a model that enlarges; its shape
    at the usual number of pixels where it has over twice as many, unless a mask says what is to stay as it
    is. Of a model that draws squares only, a square that fits into that."""
    if request.image is None:
        return usual
    (width, height), (left, top, right, bottom) = picture or request.image.image.size, request.extend
    if factor > 1:
        return factor * height, factor * width
    area = usual[0] * usual[1]
    if width * height > 2 * area and request.mask is None and not any(request.extend):
        share = math.sqrt(area / (width * height))
        height, width = (max(8, round(side * share / 8) * 8) for side in (height, width))
    height, width = height + top + bottom, width + left + right
    return (min(height, width),) * 2 if square else (height, width)


def _image_and_mask(
    request: Request, picture: Picture, size: tuple[int, int]
) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"] | None]:
    """The picture to begin with and where to draw, both of `size`. Around the picture its edge goes on, and
    is to be drawn. Where there is no room for all of the picture, what lies beside that stays."""
    left, top, right, bottom = request.extend
    inner = size[0] - top - bottom, size[1] - left - right
    if min(inner) < 1:
        raise RequestError(
            f"extend leaves nothing of a picture of {size[1]}x{size[0]}; ask for a larger size"
        )
    beside = 0.5 + (bool(right) - bool(left)) / 2, 0.5 + (bool(bottom) - bool(top)) / 2
    image = _pixels(picture, inner, beside)
    if request.mask is None and not any(request.extend):
        return image, None
    marked = image.new_zeros(1, 1, *inner) if request.mask is None else _marked(request.mask, inner, beside)
    image = F.pad(image, (left, right, top, bottom), mode="replicate")
    return image, _faded(F.pad(marked, (left, right, top, bottom), value=1.0), request.feather)


def _pixels(picture: Picture, size: tuple[int, int], centre: tuple[float, float]) -> Float[Tensor, "1 3 h w"]:
    """A picture at `size`, filled and cut where its shape is another: in the middle, or towards a side."""
    image = ImageOps.fit(picture.image, size[::-1], Image.Resampling.LANCZOS, centering=centre)
    return pixels_from_images([image])


def _whole(picture: Picture) -> Float[Tensor, "1 3 h w"]:
    """A picture at its own size."""
    return pixels_from_images([picture.image])


def _marked(picture: Picture, size: tuple[int, int], centre: tuple[float, float]) -> Float[Tensor, "1 1 h w"]:
    """1 where a mask is white, or transparent, and 0 where it is black."""
    image = picture.image
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    if alpha is not None and alpha.getextrema()[0] == 255:
        alpha = None  # nothing is transparent: colours mark
    marked = image.convert("L") if alpha is None else ImageChops.invert(alpha)
    levels = np.asarray(ImageOps.fit(marked, size[::-1], Image.Resampling.BILINEAR, centering=centre))
    return rearrange(torch.from_numpy(levels > 127), "h w -> 1 1 h w").float()


def _faded(mask: Float[Tensor, "1 1 h w"], feather: int) -> Float[Tensor, "1 1 h w"]:
    """A mask that fades outwards over `feather` pixels, so that all of what was marked is drawn anew."""
    if not mask.any():
        raise RequestError("the mask marks nothing: white, or what is transparent, is where to draw")
    radius = min(-(-feather // 2), min(mask.shape[2:]) // 2)
    for kernel, around in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        mask = F.max_pool2d(mask, kernel, 1, around)  # wider by the radius ...
    for kernel, around in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        mask = F.avg_pool2d(mask, kernel, 1, around, count_include_pad=False)  # ... and blurred by it
    return mask


def cut_out(images: tuple[Image.Image, ...], order: Order) -> tuple[Image.Image, ...]:
    """What the mask keeps becomes transparent."""
    assert order.mask is not None  # a request that is transparent has one
    levels = (order.mask[0, 0] * 255).round().to(torch.uint8).numpy()
    alpha = Image.fromarray(levels)
    cut = []
    for image in images:
        layer = image.convert("RGBA")
        layer.putalpha(alpha.resize(image.size))
        cut.append(layer)
    return tuple(cut)
