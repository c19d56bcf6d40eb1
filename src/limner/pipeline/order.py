"""From a request to what a model is given: pictures become pixels, masks fade."""

import math

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
from limner.pipeline.request import Request
from limner.util.images import pixels_from_images


def order_of(request: Request) -> Order:
    """What a model is given of a request with every choice made; its pictures at the size to be drawn."""
    assert request.steps is not None  # resolved, as all of them
    assert request.guidance is not None
    assert request.sampler is not None
    assert request.size is not None
    image = mask = None
    if request.image is not None:
        image, mask = _image_and_mask(request, request.image, request.size)
    return Order(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        guidance=request.guidance,
        sampler=request.sampler,
        size=request.size,
        style=request.style,
        grid=request.grid,
        image=image,
        strength=request.strength,
        mask=mask,
        controls=tuple(
            ControlOrder(
                pixels=_pixels(control.image, request.size),
                model=control.model,
                weight=control.weight,
                start=control.start,
                end=control.end,
            )
            for control in request.controls
        ),
        enlarge=request.enlarge,
        enlarge_strength=request.enlarge_strength,
        refiner=request.refiner,
        refine_from=request.refine_from,
        tiling=request.tiling,
        clip_skip=request.clip_skip,
        emphasis=request.emphasis,
        rescale=request.rescale,
        skip_layers=request.skip_layers,
        vary=None if request.vary is None else _whole(request.vary),
        vary_noise=request.vary_noise,
        blend=_whole(request.blend) if isinstance(request.blend, Picture) else request.blend,
        blend_at=request.blend_at,
        rerank=request.rerank,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
    )


def size_of(request: Request, usual: tuple[int, int]) -> tuple[int, int]:
    """(height, width) to draw where a request leaves it open: the model's `usual` one; that of the picture to
    begin with and what is drawn on around it; its shape at the usual number of pixels where it has over twice
    as many, unless a mask says what is to stay as it is."""
    if request.image is None:
        return usual
    (width, height), (left, top, right, bottom) = request.image.image.size, request.extend
    area = usual[0] * usual[1]
    if width * height > 2 * area and request.mask is None and not any(request.extend):
        share = math.sqrt(area / (width * height))
        height, width = (max(8, round(side * share / 8) * 8) for side in (height, width))
    return height + top + bottom, width + left + right


def _image_and_mask(
    request: Request, picture: Picture, size: tuple[int, int]
) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"] | None]:
    """The picture to begin with and where to draw, both of `size`. Around the picture its edge goes on, and
    is to be drawn."""
    left, top, right, bottom = request.extend
    inner = size[0] - top - bottom, size[1] - left - right
    if min(inner) < 1:
        raise RequestError(
            f"extend leaves nothing of a picture of {size[1]}x{size[0]}; ask for a larger size"
        )
    image = _pixels(picture, inner)
    if request.mask is None and not any(request.extend):
        return image, None
    marked = image.new_zeros(1, 1, *inner) if request.mask is None else _marked(request.mask, inner)
    image = F.pad(image, (left, right, top, bottom), mode="replicate")
    return image, _faded(F.pad(marked, (left, right, top, bottom), value=1.0), request.feather)


def _pixels(picture: Picture, size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """A picture at `size`, filled and cut in the middle where its shape is another."""
    return pixels_from_images([ImageOps.fit(picture.image, size[::-1], Image.Resampling.LANCZOS)])


def _whole(picture: Picture) -> Float[Tensor, "1 3 h w"]:
    """A picture at its own size."""
    return pixels_from_images([picture.image])


def _marked(picture: Picture, size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
    """1 where a mask is white, or transparent, and 0 where it is black."""
    image = picture.image
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    if alpha is not None and alpha.getextrema()[0] == 255:
        alpha = None  # nothing is transparent: colours mark
    marked = image.convert("L") if alpha is None else ImageChops.invert(alpha)
    levels = np.asarray(ImageOps.fit(marked, size[::-1], Image.Resampling.BILINEAR))
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
