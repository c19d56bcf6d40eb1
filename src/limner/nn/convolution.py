"""Convolutions that take the quickest way on the CPU in float32; everywhere else they are torch's own.

Measured on a core with AVX512 (2.5 GHz, single thread), pictures b x h x w, against torch's convolution:

    channels       picture          torch      here
    320 -> 320     2 x 64 x 64      115 ms     103 ms   fewer multiplications
    640 -> 640     2 x 32 x 32      130 ms      85 ms
    512 -> 512     1 x 128 x 128   1204 ms     517 ms
    256 -> 256     1 x 256 x 256    742 ms     529 ms
    2560 -> 1280   2 x 8 x 8        347 ms     171 ms   as one matrix product

The multiplications are saved as in Winograd 1980 and Lavin & Gray 2015: sixteen neighbouring results follow
from a polynomial product, which five points and infinity fix with 36 multiplications instead of 144. What
that costs in accuracy depends on the points: these err 3e-6 of the largest value in a layer of 320 channels
(torch: 3e-7), the 0, 1, -1, 2, -2 of the papers 1.7e-5.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)  # and infinity
SIDE = len(POINTS) + 1  # of the square of numbers that a square of 4 x 4 results depends on
VALUES = 5 * 2**15  # squares times channels at once: 24 MB of values, which the allocator keeps at hand
PIECE = 2**22  # numbers of transformed weights at once
WIDE, LARGE = 256, 24 * 24  # channels and pixels from which on multiplications are worth saving
SMALL, HEAVY = 512, 2**18  # pixels in all up to which, and channel pairs from which on, weights decide


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, b i h w -> b o H W; on the CPU in float32, and with no gradients wanted, quicker."""

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o _ _"]:
        plain = self.stride == (1, 1) and self.groups == 1 and self.dilation == (1, 1)
        if not plain or not _quicker(x) or self.weight.dtype != torch.float32:
            return super().forward(x)
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            rows = F.linear(rearrange(x, "b i h w -> b h w i"), self.weight.flatten(1), self.bias)
            return rearrange(rows, "b h w o -> b o h w")
        if self.kernel_size == (3, 3) and self.padding == (1, 1) and self.padding_mode == "zeros":
            if min(self.weight.shape[:2]) >= WIDE and x.shape[2] * x.shape[3] >= LARGE:
                return fewer_products(x, self.weight, self.bias)
            if self.in_channels * self.out_channels >= HEAVY and len(x) * x.shape[2] * x.shape[3] <= SMALL:
                return one_product(x, self.weight, self.bias)
        return super().forward(x)


def channels_last(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The same numbers, those of a pixel side by side, which convolutions keep up and run faster on."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type in ("cpu", "cuda") else x


def one_product(
    x: Float[Tensor, "b i h w"], weight: Float[Tensor, "o i 3 3"], bias: Float[Tensor, " o"] | None
) -> Float[Tensor, "b o h w"]:
    """A padded 3x3 convolution of small pictures: surroundings are copied, the weights stay as they lie."""
    around = rearrange(F.unfold(x, 3, padding=1), "b k n -> k (b n)")
    found = weight.flatten(1) @ around
    found = rearrange(found, "o (b h w) -> b o h w", h=x.shape[2], w=x.shape[3])
    return channels_last(found if bias is None else found + rearrange(bias, "o -> o 1 1"))


def fewer_products(
    x: Float[Tensor, "b i h w"], weight: Float[Tensor, "o i 3 3"], bias: Float[Tensor, " o"] | None
) -> Float[Tensor, "b o h w"]:
    """A padded 3x3 convolution of large pictures in float32, channels last."""
    batch, inputs, height, width = x.shape
    into, _, out_of = _transforms()
    tall, wide = -(-height // 4), -(-width // 4)
    strip = max(1, VALUES // (batch * wide * inputs))  # rows of squares
    pieces: Iterator[Tensor] | list[Tensor] = _transformed(weight)
    if strip < tall:
        pieces = list(pieces)
    pixels = rearrange(x, "b i h w -> b h w i")
    result = x.new_empty(batch, 4 * tall, 4 * wide, len(weight))
    squares = rearrange(result, "b (y i) (x j) o -> i j b y x o", i=4, j=4)
    for top in range(0, tall, strip):
        end = min(top + strip, tall)
        part = pixels[:, max(0, 4 * top - 1) : 4 * end + 1]
        above = int(top == 0)
        below = 4 * (end - top) + 2 - above - part.shape[1]
        part = F.pad(part, (0, 0, 1, 4 * wide + 1 - width, above, below))
        tiles = rearrange(part.unfold(1, SIDE, 4).unfold(2, SIDE, 4), "b y x c i j -> (i j) (b y x c)")
        values = rearrange(into @ tiles, "p (t c) -> p t c", c=inputs)
        first = 0
        for piece in pieces:
            last = first + piece.shape[1]
            products = rearrange(torch.bmm(values, piece.mT), "p t o -> p (t o)")
            target = squares[:, :, :, top:end, :, first:last]
            found = (out_of @ products).view(target.shape)
            if bias is None:
                target.copy_(found)
            else:
                torch.add(found, bias[first:last], out=target)
            first = last
    return rearrange(result[:, :height, :width], "b h w o -> b o h w")


def _transformed(weight: Tensor) -> Iterator[Float[Tensor, "p o i"]]:
    """Weights at the points, some outputs at a time: kept, they would take four times the memory."""
    _, at_points, _ = _transforms()
    some = max(32, PIECE // (SIDE**2 * weight.shape[1]) // 32 * 32)
    for part in weight.split(some):
        flat = rearrange(part, "o i y x -> (y x) (o i)")
        yield rearrange(at_points @ flat, "p (o i) -> p o i", i=weight.shape[1])


@lru_cache(maxsize=1)
def _transforms() -> tuple[Float[Tensor, "p p"], Float[Tensor, "p 9"], Float[Tensor, "16 p"]]:
    """What squares of numbers, and weights, are multiplied by; and what makes results of their products."""
    with torch.inference_mode(False):
        points = torch.tensor(POINTS, dtype=torch.float64)
        powers = torch.stack([points**power for power in range(SIDE)])
        others = [[q for j, q in enumerate(POINTS) if j != i] for i in range(len(POINTS))]
        into = torch.zeros(SIDE, SIDE, dtype=torch.float64)
        for row, roots in zip(into, [*others, list(POINTS)], strict=True):
            row[: len(roots) + 1] = _polynomial(roots)
        scale = torch.stack([(p - torch.tensor(o)).prod() for p, o in zip(points, others, strict=True)])
        infinity = torch.eye(SIDE, dtype=torch.float64)  # the highest power is all that counts there
        weights = torch.cat([(powers[:3] / scale).mT, infinity[2:3, :3]])
        results = torch.cat([powers[:4], infinity[:4, 3:4]], 1)
        two = [torch.kron(matrix, matrix).float() for matrix in (into, weights, results)]
    return two[0], two[1], two[2]


def _polynomial(roots: list[float]) -> Tensor:
    """Coefficients of the polynomial with these roots, the constant one first."""
    coefficients = torch.ones(1, dtype=torch.float64)
    for root in roots:
        coefficients = F.pad(coefficients, (1, 0)) - root * F.pad(coefficients, (0, 1))
    return coefficients


def _quicker(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
        return False
    return not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
