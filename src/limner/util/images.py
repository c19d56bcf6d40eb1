"""Pictures in their three forms, and the way from one to the next.

    images   PIL pictures, RGB, 8 bits                      what is read and saved
    bytes    uint8  [0, 255]   b c h w                       what is stored and compared
    pixels   float  [-1, 1]    b c h w                       what networks see

Going from images to pixels and back changes no value: 8-bit level k is the pixel k / 127.5 - 1 exactly enough
that rounding returns k, for every k.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from limner.errors import LimnerError, RequestError


def quantize(pixels: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
    """Pixels to the nearest of 256 levels. Values outside [-1, 1] are clipped.

    Raises LimnerError when a value is not a number, since a black or random picture would hide why.
    """
    broken = int((~torch.isfinite(pixels)).sum())
    if broken:
        raise LimnerError(
            f"{broken} of {pixels.numel()} pixel values are not finite numbers; "
            "try float32 precision, a lower guidance or other weights"
        )
    return pixels.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def dequantize(levels: UInt8[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
    """Levels [0, 255] to float32 pixels [-1, 1]: the inverse of `quantize`."""
    return levels.float().div(127.5).sub(1)


def images_from_pixels(pixels: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """One RGB picture per row of the batch, from any device and float type. Raises as `quantize` does."""
    levels = rearrange(quantize(pixels), "b c h w -> b h w c").cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(level)) for level in levels]


def pixels_from_images(images: Sequence[Image.Image]) -> Float[Tensor, "b 3 h w"]:
    """A float32 CPU batch from pictures of one size and any mode; transparency is laid on white.

    Raises RequestError when there is no picture or when sizes differ.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        found = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)) or "no picture at all"
        raise RequestError(f"pictures of one batch must share one size, got {found}; resize them first")
    levels = np.stack([np.array(_opaque(image)) for image in images])
    return dequantize(rearrange(torch.from_numpy(levels), "b h w c -> b c h w"))


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def sheet(
    images: Sequence[Image.Image],
    *,
    columns: int | None = None,  # pictures per row; None: as square as the count allows
    gap: int = 4,  # background between and around the pictures, in screen pixels
    background: str = "white",  # any colour that PIL knows
) -> Image.Image:
    """One RGB picture that shows all `images` in reading order, each centred in a cell of the largest size.

    Raises RequestError when there is nothing to show or `columns` is not positive.
    """
    if not images:
        raise RequestError("a sheet needs at least one picture, got none")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise RequestError(f"a sheet needs at least one column, got {columns}")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell_width = max(image.width for image in images)
    cell_height = max(image.height for image in images)
    canvas_size = (columns * (cell_width + gap) + gap, rows * (cell_height + gap) + gap)
    canvas = Image.new("RGB", canvas_size, background)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left = gap + column * (cell_width + gap) + (cell_width - image.width) // 2
        top = gap + row * (cell_height + gap) + (cell_height - image.height) // 2
        canvas.paste(_opaque(image), (left, top))
    return canvas
