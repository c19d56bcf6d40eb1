"""The U-Net of pixel cascades ("ADM", Dhariwal & Nichol 2021): DeepFloyd IF's stages, Karlo's decoder and
super-resolution.

Residual blocks also halve and double the picture, attention looks at the picture and at the text in one
softmax, and the embedded timestep scales and shifts what a block has normalised. What else is known of the
picture is added to that embedding: the text pooled by attention, how noisy a small picture laid beside x was
made, or vectors that are given. The published networks differ by the values of `PixelUNetConfig` only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from limner.nn.attention import attention
from limner.nn.convolution import Conv2d, channels_last
from limner.nn.embeddings import timestep_embedding

TEXT_GROUPS = 32  # of the text's normalisation
KeysValues = tuple[Float[Tensor, "b _ m _"], Float[Tensor, "b _ m _"]]  # b h m d each; levels differ in h


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelUNetConfig:
    """Shape of a PixelUNet."""

    inputs: int = 3  # channels of x; 6 where a small picture is laid beside it
    outputs: int = 6  # channels of the prediction; 6: what is predicted, then how sure that is
    channels: tuple[int, ...] = (320, 640, 960, 1280)  # of each level, the finest first
    layers: tuple[int, ...] = (3, 3, 3, 3)  # residual blocks of each level; the way up has one more
    looks: tuple[bool, ...] = (
        False,
        True,
        True,
        True,
    )  # levels with attention; there is one at the turn, too
    context: int = 1280  # width of the text that attention hears; 0: there is no attention at all
    text: int = 0  # width of the text as it comes, where it is brought to `context` first; 0: it has that
    pool_heads: int = 0  # heads of the attention that makes one vector of the text; 0: there is none
    level: bool = False  # whether it is told how noisy the picture beside x was made
    picture: bool = True  # whether attention sees the picture as well as the text
    text_norm: bool = False  # whether each attention normalises the text
    head_channels: int = 64  # of one head
    time: int = 1280  # width of the embedded timestep
    modulated: bool = True  # the timestep scales and shifts; False: it is added before the norm
    activation: Literal["silu", "gelu"] = "silu"
    divisor: float = 1.0  # of the sum of a block's input and its result; the published ones are 1.414
    groups: int = 32  # of the normalisations of pictures

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.layers) == len(self.looks):
            raise ValueError("channels, layers and looks must be of the same levels")
        if self.context == 0 and (any(self.looks) or self.text or self.pool_heads):
            raise ValueError("attention and pooling need a text: context is 0")

    @property
    def factor(self) -> int:
        """Sides of pictures are multiples of it."""
        return int(2 ** (len(self.channels) - 1))


IF_I_L = PixelUNetConfig(text=4096, pool_heads=64, text_norm=True, activation="gelu")
IF_I_M = replace(IF_I_L, channels=(192, 384, 576, 768), context=768, time=768)
IF_I_XL = replace(IF_I_L, channels=(704, 1408, 2112, 2816), context=2816, time=2816)
KARLO_DECODER = PixelUNetConfig(context=1536)
KARLO_SUPER_RES = PixelUNetConfig(
    inputs=6, outputs=3, looks=(False,) * 4, context=0, modulated=False
)  # of all steps but the last, and of the last


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """What a network makes of a text, the same for all steps; see `PixelUNet.read`."""

    keys_values: tuple[KeysValues, ...]  # for every attention, in the order in which they are asked
    pooled: Float[Tensor, "b t"] | None

    def repeated(self, times: int) -> "Text":
        """Each row for `times` pictures."""

        def many(rows: Tensor) -> Tensor:
            return rows.repeat_interleave(times, 0)

        return Text(
            tuple((many(k), many(v)) for k, v in self.keys_values),
            None if self.pooled is None else many(self.pooled),
        )


class Residual(nn.Module):
    """(x + conv(act(norm(conv(act(norm(x)))) (1 + scale) + shift))) / config.divisor, b i h w -> b o H W.

    "up" doubles and "down" halves the sides of x and of what is inside. `time` is the embedded timestep,
    activated already, since all blocks share it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: PixelUNetConfig,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.resample = config, resample
        self.norm1 = nn.GroupNorm(config.groups, inputs)
        self.conv1 = Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(config.time, outputs * (1 + config.modulated))
        self.norm2 = nn.GroupNorm(config.groups, outputs)
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1)
        self.skip = Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "b i h w"], time: Float[Tensor, "b t"]) -> Float[Tensor, "b o _ _"]:
        inner = self._resampled(activated(self.norm1(x), self.config))
        inner = self.conv1(inner)
        told = rearrange(self.time(time), "b t -> b t 1 1")
        if self.config.modulated:
            scale, shift = told.chunk(2, 1)
            inner = torch.addcmul(shift, self.norm2(inner), 1 + scale)
        else:
            inner = self.norm2(inner + told)
        inner = self.conv2(activated(inner, self.config))
        total: Tensor = self.skip(self._resampled(x)) + inner
        return total if self.config.divisor == 1 else total / self.config.divisor

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x


class Attention(nn.Module):
    """Pixels look at the text and, if wanted, at each other; x + result, b c h w -> b c h w."""

    def __init__(self, channels: int, config: PixelUNetConfig) -> None:
        super().__init__()
        self.heads = channels // config.head_channels
        self.norm = nn.GroupNorm(config.groups, channels)
        self.q = nn.Linear(channels, channels)
        self.k, self.v = (nn.Linear(channels, channels) if config.picture else None for _ in range(2))
        self.text_norm = nn.GroupNorm(TEXT_GROUPS, config.context) if config.text_norm else nn.Identity()
        self.text_k, self.text_v = (nn.Linear(config.context, channels) for _ in range(2))
        self.out = nn.Linear(channels, channels)

    def read(self, context: Float[Tensor, "b m d"]) -> KeysValues:
        """Keys and values of a text."""
        normed = rearrange(self.text_norm(rearrange(context, "b m d -> b d m")), "b d m -> b m d")
        return self._by_head(self.text_k(normed)), self._by_head(self.text_v(normed))

    def forward(self, x: Float[Tensor, "b c h w"], text: KeysValues) -> Float[Tensor, "b c h w"]:
        rows = rearrange(self.norm(x), "b c h w -> b (h w) c")
        keys, values = text
        if self.k is not None and self.v is not None:
            keys = torch.cat([keys, self._by_head(self.k(rows))], 2)
            values = torch.cat([values, self._by_head(self.v(rows))], 2)
        seen = self.out(attention(self._by_head(self.q(rows)), keys, values))
        return torch.add(x, rearrange(seen, "b (h w) c -> b c h w", h=x.shape[2]))

    def _by_head(self, rows: Tensor) -> Tensor:
        return rearrange(rows, "b n (h d) -> b h n d", h=self.heads)


class Pool(nn.Module):
    """A text as one vector of the timestep's width: its mean asks all its tokens and itself."""

    def __init__(self, config: PixelUNetConfig) -> None:
        super().__init__()
        width = config.text or config.context
        self.heads = config.pool_heads
        self.norm1 = nn.LayerNorm(width)
        self.place = nn.Parameter(torch.zeros(1, width))  # added to the mean
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, config.time)
        self.norm2 = nn.LayerNorm(config.time)

    def forward(self, context: Float[Tensor, "b n d"]) -> Float[Tensor, "b t"]:
        rows = self.norm1(context)
        mean = rows.mean(1, keepdim=True) + self.place
        rows = torch.cat([mean, rows], 1)
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads)
            for part in (self.q(mean), self.k(rows), self.v(rows))
        )
        pooled: Tensor = self.norm2(self.out(rearrange(attention(q, k, v), "b 1 d -> b d")))
        return pooled


class Block(nn.Module):
    """A residual block, and attention behind it if `looks`."""

    def __init__(self, inputs: int, outputs: int, looks: bool, config: PixelUNetConfig) -> None:
        super().__init__()
        self.resnet = Residual(inputs, outputs, config)
        self.attention = Attention(outputs, config) if looks else None

    def forward(self, x: Tensor, time: Tensor, text: Iterator[KeysValues]) -> Float[Tensor, "b o h w"]:
        x = self.resnet(x, time)
        return x if self.attention is None else self.attention(x, next(text))


class Level(nn.Module):
    """The blocks of one resolution, and what leads to the next, if there is one."""

    def __init__(self, blocks: list[Block], resample: Residual | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        text: Iterator[KeysValues],
        beside: list[Tensor] | None = None,
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """The result of each of them. On the way up a block takes what was kept from the end of `beside`."""
        results = []
        for block in self.blocks:
            x = block(x if beside is None else torch.cat([x, beside.pop()], 1), time, text)
            results.append(x)
        return results if self.resample is None else [*results, self.resample(x, time)]


class PixelUNet(nn.Module):
    """(x, timestep, text) -> prediction, and how sure it is."""

    def __init__(self, config: PixelUNetConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.channels[0], config.channels[-1]
        self.time = _perceptron(first, config)
        self.level = _perceptron(first, config) if config.level else None
        self.project = nn.Linear(config.text, config.context) if config.text else nn.Identity()
        self.pool = Pool(config) if config.pool_heads else None
        self.first = nn.Conv2d(config.inputs, first, 3, padding=1)
        kept = [first]  # channels of everything that is kept on the way down
        self.down = nn.ModuleList()
        levels = list(zip(config.channels, config.layers, config.looks, strict=True))
        for index, (width, layers, looks) in enumerate(levels):
            on = index + 1 < len(levels)
            inputs = [kept[-1]] + [width] * (layers - 1)
            blocks = [Block(before, width, looks, config) for before in inputs]
            self.down.append(Level(blocks, Residual(width, width, config, "down") if on else None))
            kept += [width] * (layers + on)
        turns = (config.context > 0, False)
        self.middle = nn.ModuleList(Block(last, last, looks, config) for looks in turns)
        self.up = nn.ModuleList()
        before = last
        for index, (width, layers, looks) in reversed(list(enumerate(levels))):
            blocks = []
            for _ in range(layers + 1):
                blocks.append(Block(before + kept.pop(), width, looks, config))
                before = width
            self.up.append(Level(blocks, Residual(width, width, config, "up") if index else None))
        self.norm = nn.GroupNorm(config.groups, first)
        self.last = nn.Conv2d(first, config.outputs, 3, padding=1)

    def read(self, context: Float[Tensor, "b n d"]) -> Text:
        """What it makes of a text; the same for all steps. All of its rows are looked at."""
        projected = self.project(context)
        blocks = (module for module in self.modules() if isinstance(module, Attention))
        pooled = None if self.pool is None else self.pool(context)
        return Text(tuple(block.read(projected) for block in blocks), pooled)

    def forward(
        self,
        x: Float[Tensor, "b i h w"],
        timestep: Float[Tensor, " b"],
        text: Text | None = None,
        *,
        level: Float[Tensor, " b"] | None = None,
        added: Float[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b o h w"]:
        """The network's prediction for `x`, whose sides are multiples of `config.factor`.

        `x` is the noisy picture, and behind its channels those of a small picture, enlarged, where the
        network takes one. `timestep` and `level` run over 0 ... 999: how noisy x is, and how noisy the small
        picture was made. `added` is a vector for the embedded timestep (Karlo).

        Raises ValueError when `text` or `level` is missing, or given to a network that hears of none.
        """
        for name, given, heard in (
            ("text", text, self.config.context > 0),
            ("level", level, self.config.level),
        ):
            if (given is not None) != heard:
                raise ValueError(f"this network {'must' if heard else 'cannot'} be told the {name}")
        time = self._embedded(self.time, timestep, x.dtype)
        if self.level is not None and level is not None:
            time = time + self._embedded(self.level, level, x.dtype)
        if text is not None and text.pooled is not None:
            time = time + text.pooled
        time = activated(time if added is None else time + added, self.config)
        keys_values = iter(() if text is None else text.keys_values)
        kept = [channels_last(self.first(x))]
        for stage in self.down:
            kept += stage(kept[-1], time, keys_values)
        x = kept[-1]
        for block in self.middle:
            x = block(x, time, keys_values)
        for stage in self.up:
            x = stage(x, time, keys_values, kept)[-1]
        prediction: Tensor = self.last(activated(self.norm(x), self.config))
        return prediction

    def _embedded(self, perceptron: nn.Module, steps: Tensor, dtype: torch.dtype) -> Tensor:
        waves = timestep_embedding(steps, self.config.channels[0]).to(dtype)
        embedded: Tensor = perceptron(waves)
        return embedded


class Activation(nn.Module):
    """The configured one, as a layer."""

    def __init__(self, config: PixelUNetConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return activated(x, self.config)


def activated(x: Float[Tensor, "*shape"], config: PixelUNetConfig) -> Float[Tensor, "*shape"]:
    """silu or gelu of x."""
    return F.gelu(x) if config.activation == "gelu" else F.silu(x)


def _perceptron(inputs: int, config: PixelUNetConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, config.time), Activation(config), nn.Linear(config.time, config.time)
    )
