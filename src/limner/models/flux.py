"""FLUX.1's transformer: pictures and text as one row of tokens, along a straight path from noise (Black
Forest Labs 2024; after Esser et al. 2024, "SD3").

First come blocks with two streams, which meet in attention only, then blocks with one, where attention and
feed-forward layer lie side by side (Dehghani et al. 2023). Queries and keys are turned by where their token
lies: axis 0 is not used, 1 is down, 2 is right, and all of the text lies at 0, 0, 0 (Su et al. 2021). What
goes for the whole picture, the time, the pooled text and the guidance, shifts, scales and gates every block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from limner.nn.attention import attention
from limner.nn.embeddings import timestep_embedding
from limner.nn.joint import JointBlock, Modulation, Projections, Turn, layer_norm
from limner.nn.norms import modulate

WAVES = 256  # channels in which time and guidance are told
LARGEST = 65_504.0  # of float16, in which the published networks overflow


@dataclass(frozen=True, kw_only=True, slots=True)
class FluxConfig:
    """Shape of a Flux."""

    latents: int = 16  # channels of what comes out
    inputs: int = 16  # channels of what comes in: more where a network is shown a picture beside its latents
    patch: int = 2  # side in latents of what one token holds
    heads: int = 24  # attention heads
    axes: tuple[int, ...] = (16, 56, 56)  # channels of a head that are turned along each axis
    double: int = 19  # blocks with two streams
    single: int = 38  # blocks with one
    context: int = 4096  # channels of the text's rows
    pooled: int = 768  # channels of the text as a whole
    guidance: bool = True  # whether it is told the guidance, which was distilled into it

    @property
    def width(self) -> int:
        """Channels of the token stream."""
        return self.heads * sum(self.axes)


FLUX_DEV = FluxConfig()
FLUX_SCHNELL = replace(FLUX_DEV, guidance=False)


@dataclass(frozen=True, slots=True, eq=False)
class FluxControl:
    """What control networks add to the picture's tokens after blocks, first to last. Where there are fewer
    than blocks, each goes to several blocks in a row."""

    double: tuple[Float[Tensor, "b n d"], ...] = ()
    single: tuple[Float[Tensor, "b n d"], ...] = ()

    def __add__(self, other: "FluxControl") -> "FluxControl":
        """Both at once. Those of one network are as many as those of the other, or none."""
        both = ((self.double, other.double), (self.single, other.single))
        double, single = (
            tuple(a + b for a, b in zip(one, two, strict=True)) if one and two else one or two
            for one, two in both
        )
        return FluxControl(double, single)


class SingleBlock(nn.Module):
    """Text and picture in one stream; attention and feed-forward layer see the same and are added up."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.width
        self.modulation = Modulation(width, 3)
        self.attention = Projections(width, config.heads, normed=True, back=False)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(5 * width, width)

    def forward(
        self, x: Float[Tensor, "b n d"], vector: Float[Tensor, "b d"], turn: Turn
    ) -> Float[Tensor, "b n d"]:
        shift, scale, gate = self.modulation(vector)
        seen = modulate(layer_norm(x), shift, scale)
        q, k, v = self.attention(seen)
        inner = F.gelu(self.inner(seen), approximate="tanh")
        return torch.addcmul(x, gate, self.outer(torch.cat([attention(turn(q), turn(k), v), inner], -1)))


class Trunk(nn.Module):
    """What the network has in common with those that control it: embeddings and blocks."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.picture = nn.Linear(config.inputs * config.patch**2, width)
        self.text = nn.Linear(config.context, width)
        self.time, self.pooled = _perceptron(WAVES, width), _perceptron(config.pooled, width)
        self.guidance = _perceptron(WAVES, width) if config.guidance else None
        self.doubles = nn.ModuleList(
            JointBlock(width, config.heads, normed=True) for _ in range(config.double)
        )
        self.singles = nn.ModuleList(SingleBlock(config) for _ in range(config.single))

    @property
    def blocks(self) -> Iterator[nn.Module]:
        """Its blocks, first to last, to be compiled or spread."""
        return chain(self.doubles, self.singles)

    def vector(
        self, t: Float[Tensor, " b"], pooled: Float[Tensor, "b p"], guidance: Float[Tensor, " b"] | None
    ) -> Float[Tensor, "b d"]:
        """What every block is told. Raises ValueError when guidance is missing, or not to be given."""
        if (guidance is None) != (self.guidance is None):
            raise ValueError(f"`guidance` must {'be None' if self.guidance is None else 'be given'}")
        dtype = self.picture.weight.dtype
        told: Tensor = self.time(timestep_embedding(1000 * t, WAVES).to(dtype)) + self.pooled(
            pooled.to(dtype)
        )
        if self.guidance is not None and guidance is not None:
            told = told + self.guidance(timestep_embedding(1000 * guidance, WAVES).to(dtype))
        return told

    def pack(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Latents, one token for every patch of them in row order."""
        side = self.config.patch
        return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=side, q=side)

    def turn(self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b n d"]) -> Turn:
        """Turns queries and keys by where they lie: those of the text not at all."""
        height, width = (side // self.config.patch for side in x.shape[2:])
        places = torch.cartesian_prod(*(torch.arange(side) for side in (1, height, width)))
        places = F.pad(places, (0, 0, context.shape[1], 0)).double()  # the text at 0, 0, 0
        angles = torch.cat(
            [
                place[:, None] * 10_000.0 ** (-torch.arange(0, channels, 2).double() / channels)
                for place, channels in zip(places.T, self.config.axes, strict=True)
            ],
            1,
        )
        cos, sin = angles.cos().float(), angles.sin().float()
        return partial(turned, cos=cos.to(x.device), sin=sin.to(x.device))


class Flux(Trunk):
    """(x, t, text) -> prediction, eps - x0: where the straight path through x leads away from the picture."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__(config)
        self.modulation = Modulation(config.width, 2)
        self.last = nn.Linear(config.width, config.latents * config.patch**2)

    def forward(
        self,
        x: Float[Tensor, "b i h w"],
        t: Float[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        pooled: Float[Tensor, "b p"],
        *,
        guidance: Float[Tensor, " b"] | None = None,
        control: FluxControl | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The network's prediction for scaled latents `x`, height and width multiples of the patch.

        `t` runs over [0, 1], 1 is noise; `context` are T5's rows, `pooled` is CLIP's. `guidance` is a scale
        that the network was taught to draw with, 1 to about 10.

        Raises ValueError when `guidance` is missing, or given to a network that knows none.
        """
        height, dtype = x.shape[2] // self.config.patch, self.picture.weight.dtype
        control = control or FluxControl()
        vector, turn = self.vector(t, pooled, guidance), self.turn(x, context)
        rows, text = self.picture(self.pack(x).to(dtype)), self.text(context.to(dtype))
        for index, block in enumerate(self.doubles):
            rows, text = block(rows, text, vector, turn)
            rows = added(_finite(rows), control.double, index, len(self.doubles))
            text = _finite(text)
        length = text.shape[1]
        both = torch.cat([text, rows], 1)
        for index, block in enumerate(self.singles):
            both = _finite(block(both, vector, turn))
            if control.single:
                rows = added(both[:, length:], control.single, index, len(self.singles))
                both = torch.cat([both[:, :length], rows], 1)
        out: Tensor = self.last(modulate(layer_norm(both[:, length:]), *self.modulation(vector)))
        side = self.config.patch
        return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=side, q=side)


def turned(
    x: Float[Tensor, "b h n d"], *, cos: Float[Tensor, "n half"], sin: Float[Tensor, "n half"]
) -> Float[Tensor, "b h n d"]:
    """Every two neighbouring channels as a point in the plane, turned about 0."""
    a, b = rearrange(x.float(), "... (d two) -> two ... d", two=2)
    both = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    return rearrange(both, "... d two -> ... (d two)").to(x.dtype)


def added(
    x: Float[Tensor, "b n d"], more: tuple[Float[Tensor, "b n d"], ...], index: int, blocks: int
) -> Float[Tensor, "b n d"]:
    """What control says after block `index` of `blocks`, added."""
    return x + more[index // -(-blocks // len(more))].to(x) if more else x


def _finite(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST, LARGEST) if x.dtype == torch.float16 else x


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
