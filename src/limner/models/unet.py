"""The cross-attention U-Net of Stable Diffusion 1, 2 and XL (Rombach et al. 2022; Podell et al. 2023).

Residual blocks look at the latents' surroundings, transformers behind them at the whole picture and at the
text. On the way down every result is kept, on the way up it is laid beside the input again. The published
networks differ by the values of `UNetConfig` only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from limner.nn.attention import attention
from limner.nn.convolution import channels_last
from limner.nn.embeddings import guidance_embedding, timestep_embedding
from limner.nn.resnet import Downsample, ResBlock, Upsample

KeysValues = tuple[
    Float[Tensor, "b _ m _"], Float[Tensor, "b _ m _"]
]  # b h m d each; levels differ in h or d
ROWS = 1024  # pixels that a CPU takes through the widest layers at once: fresh memory costs it more than work
Added = tuple[Float[Tensor, "b p"], Float[Tensor, "b k"] | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig:
    """Shape of a UNet."""

    inputs: int = 4  # channels of x; 9 to inpaint: latents, mask, latents of what is kept
    outputs: int = 4  # channels of the prediction
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # of each level, the finest first
    depths: tuple[int, ...] = (1, 1, 1, 0)  # transformer blocks behind each residual block, of each level
    middle: int = 1  # transformer blocks at the turn
    layers: int = 2  # residual blocks of a level on the way down; the way up has one more
    context: int = 768  # width of the text
    heads: int | None = 8  # of every attention; None: as many as have `head_channels` each
    head_channels: int = 64  # of one head, where `heads` is None
    pooled: int = 0  # width of the vector that describes the whole picture; 0: there is none
    sizes: int = 0  # numbers that come with this vector (size ids)
    size_channels: int = 256  # of the sinusoids of each of those numbers
    groups: int = 32  # of the normalisations
    pointwise: bool = False  # its files hold 1x1 convolutions where transformers begin and end
    blind: tuple[bool, ...] = ()  # levels whose transformers look at the text twice, at the picture never
    levels: int = 0  # noise levels of a picture beside x, of which it is told one by its number
    guidance: int = 0  # width of the waves that tell it the scale of guidance (LCM); 0: it is not told

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.depths):
            raise ValueError(f"channels {self.channels} and depths {self.depths} must be of the same levels")
        if self.blind and len(self.blind) != len(self.depths):
            raise ValueError(f"blind {self.blind} and depths {self.depths} must be of the same levels")
        if self.sizes and not self.pooled:
            raise ValueError(f"sizes is {self.sizes}, but pooled is 0; they come together")

    def heads_of(self, channels: int) -> int:
        """Attention heads of a level that is `channels` wide."""
        return self.heads or channels // self.head_channels


SD15 = UNetConfig(pointwise=True)  # and 1.1 to 1.4
SD15_INPAINTING = replace(SD15, inputs=9)
SD15_LCM = replace(SD15, guidance=256)  # LCM_Dreamshaper_v7
SD21 = UNetConfig(context=1024, heads=None)  # and 2.0; base and v differ by what they predict only
SD21_INPAINTING = replace(SD21, inputs=9)
SD21_UNCLIP = replace(SD21, pooled=2048)  # CLIP ViT-H picture embedding, and as wide a noise level
SDXL = UNetConfig(
    channels=(320, 640, 1280), depths=(0, 2, 10), middle=10, context=2048, heads=None, pooled=1280, sizes=6
)
SDXL_INPAINTING = replace(SDXL, inputs=9)
SDXL_LCM = replace(SDXL, guidance=256)  # lcm-sdxl
SDXL_REFINER = UNetConfig(
    channels=(384, 768, 1536, 1536),
    depths=(0, 4, 4, 0),
    middle=4,
    context=1280,
    heads=None,
    pooled=1280,
    sizes=5,
)
X4 = UNetConfig(  # 7 channels: latents, and the small picture
    inputs=7,
    channels=(256, 512, 512, 1024),
    depths=(0, 1, 1, 1),
    blind=(True, True, True, False),
    context=1024,
    levels=1000,
)


@dataclass(frozen=True, slots=True)
class Control:
    """What control networks add to a U-Net, already weighted: to what is kept on the way down, in that order,
    and to the turn. Controls of several networks are summed."""

    down: tuple[Float[Tensor, "b _ _ _"], ...]
    middle: Float[Tensor, "b c h w"]

    def __add__(self, other: "Control") -> "Control":
        down = tuple(one + two for one, two in zip(self.down, other.down, strict=True))
        return Control(down, self.middle + other.middle)


class Attention(nn.Module):
    """Queries from x, keys and values of a text `source` wide; out of x itself where that is None."""

    def __init__(self, channels: int, source: int | None, heads: int) -> None:
        super().__init__()
        self.heads, self.reads = heads, source is not None
        source = source or channels
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(source, channels, bias=False)
        self.v = nn.Linear(source, channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def keys_values(self, source: Float[Tensor, "b m s"]) -> KeysValues:
        return self._by_head(self.k(source)), self._by_head(self.v(source))

    def forward(self, x: Float[Tensor, "b n c"], given: KeysValues | None = None) -> Float[Tensor, "b n c"]:
        keys, values = self.keys_values(x) if given is None else given
        seen: Tensor = self.out(attention(self._by_head(self.q(x)), keys, values))
        return seen

    def _by_head(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)


class GEGLU(nn.Module):
    """value * gelu(gate) through a third matrix (Shazeer 2020), four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Linear(channels, 8 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return self._rows(x)
        return torch.cat([self._rows(rows) for rows in x.split(ROWS, 1)], 1)

    def _rows(self, x: Tensor) -> Tensor:
        value, gate = self.inner(x).chunk(2, -1)
        projected: Tensor = self.out(value * F.gelu(gate))
        return projected


class TransformerBlock(nn.Module):
    """Looks at the picture, at the text, and thinks; pre-norm. One that is blind looks at the text twice."""

    def __init__(self, channels: int, config: UNetConfig, blind: bool = False) -> None:
        super().__init__()
        heads = config.heads_of(channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.picture = Attention(channels, config.context if blind else None, heads)
        self.text = Attention(channels, config.context, heads)
        self.mlp = GEGLU(channels)

    def forward(self, x: Float[Tensor, "b n c"], text: Iterator[KeysValues]) -> Float[Tensor, "b n c"]:
        x = x + self.picture(self.norm1(x), next(text) if self.picture.reads else None)
        x = x + self.text(self.norm2(x), next(text))
        return torch.add(x, self.mlp(self.norm3(x)))


class Transformer(nn.Module):
    """Transformer blocks over the pixels of a level, as a residual."""

    def __init__(self, channels: int, depth: int, config: UNetConfig, blind: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.enter = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels, config, blind) for _ in range(depth))
        self.leave = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "b c h w"], text: Iterator[KeysValues]) -> Float[Tensor, "b c h w"]:
        inner: Tensor = self.enter(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.blocks:
            inner = block(inner, text)
        inner = rearrange(self.leave(inner), "b (h w) c -> b c h w", h=x.shape[2])
        return x + inner


class Block(nn.Module):
    """A residual block, and a transformer behind it where `depth` is not 0."""

    def __init__(
        self, inputs: int, outputs: int, depth: int, config: UNetConfig, level: int | None = None
    ) -> None:
        """`level` counts from the finest; None: the turn."""
        super().__init__()
        blind = level is not None and bool(config.blind) and config.blind[level]
        self.resnet = ResBlock(inputs, outputs, time=4 * config.channels[0], groups=config.groups)
        self.transformer = Transformer(outputs, depth, config, blind) if depth else None

    def forward(
        self, x: Float[Tensor, "b i h w"], time: Float[Tensor, "b d"], text: Iterator[KeysValues]
    ) -> Float[Tensor, "b o h w"]:
        result: Tensor = self.resnet(x, time)
        if self.transformer is not None:
            result = self.transformer(result, text)
        return result


class Down(nn.Module):
    """The blocks of one resolution on the way down, and what leads to the next, if there is one."""

    def __init__(self, blocks: list[Block], resample: Downsample | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, x: Tensor, time: Tensor, text: Iterator[KeysValues]) -> list[Float[Tensor, "b _ _ _"]]:
        """The result of each of them."""
        results = []
        for block in self.blocks:
            x = block(x, time, text)
            results.append(x)
        return results if self.resample is None else [*results, self.resample(x)]


class Up(nn.Module):
    """The blocks of one resolution on the way up, and what leads to the next, if there is one."""

    def __init__(self, blocks: list[Block], resample: Upsample | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(
        self, x: Tensor, time: Tensor, text: Iterator[KeysValues], kept: list[Tensor]
    ) -> Float[Tensor, "b c h w"]:
        """Takes what was kept on the way down from the end of `kept`."""
        for block in self.blocks:
            x = block(torch.cat([x, kept.pop()], 1), time, text)
        if self.resample is not None:
            height, width = kept[-1].shape[2:]  # where a level had an odd side, twice the next is too much
            x = self.resample(x, (height, width))
        return x


class Encoder(nn.Module):
    """The way down and the turn, which U-Nets and control networks share."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        first, last = config.channels[0], config.channels[-1]
        self.config = config
        self.time = _perceptron(first, 4 * first)
        self.guidance = nn.Linear(config.guidance, first, bias=False) if config.guidance else None
        described = config.pooled + config.sizes * config.size_channels
        self.added = _perceptron(described, 4 * first) if described else None
        self.level = nn.Embedding(config.levels, 4 * first) if config.levels else None
        self.first = nn.Conv2d(config.inputs, first, 3, padding=1)
        self.down = nn.ModuleList()
        self.kept = [first]  # channels of everything that is kept on the way down
        for index, (channels, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
            inputs = [self.kept[-1]] + [channels] * (config.layers - 1)
            on = index + 1 < len(config.channels)
            blocks = [Block(width, channels, depth, config, index) for width in inputs]
            self.down.append(Down(blocks, Downsample(channels) if on else None))
            self.kept += [channels] * (config.layers + on)
        self.middle = nn.ModuleList(Block(last, last, depth, config) for depth in (config.middle, 0))
        self.looks = len(self.readers)  # attentions that ask for keys and values of the text

    @property
    def readers(self) -> tuple[Attention, ...]:
        """Attentions to the text, in the order in which they ask."""
        return tuple(module for module in self.modules() if isinstance(module, Attention) and module.reads)

    def text_kv(self, context: Float[Tensor, "b n d"]) -> tuple[KeysValues, ...]:
        """Keys and values of the text for all that look at it, in the order in which they are asked: the same
        for all steps, and accepted in place of `context`."""
        return tuple(attention.keys_values(context) for attention in self.readers)

    def text(self, context: Tensor | tuple[KeysValues, ...]) -> Iterator[KeysValues]:
        """Keys and values one block after the other, made of the text where they are not given already."""
        given = self.text_kv(context) if isinstance(context, Tensor) else context
        if len(given) != self.looks:
            raise ValueError(
                f"the text has keys and values for {len(given)} blocks; {self.looks} ask for them"
            )
        return iter(given)

    def embed(
        self,
        timestep: Tensor,
        added: Added | None,
        dtype: torch.dtype,
        level: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Float[Tensor, "b d"]:
        """What every residual block is told: the timestep, and what describes the whole picture."""
        if (level is None) != (self.level is None):
            raise ValueError(f"`level` must {'not ' if self.level is None else ''}be given")
        if (added is None) != (self.added is None):
            wanted = "be None" if self.added is None else "be given"
            raise ValueError(f"`added` must {wanted}: pooled is {self.config.pooled}")
        if (guidance is None) != (self.guidance is None):
            raise ValueError(f"`guidance` must {'not ' if self.guidance is None else ''}be given")
        time = timestep_embedding(timestep, self.config.channels[0]).to(dtype)
        if self.guidance is not None and guidance is not None:
            time = time + self.guidance(guidance_embedding(guidance, self.config.guidance).to(dtype))
        time = self.time(time)
        if self.added is not None and added is not None:
            pooled, sizes = added
            if sizes is not None:
                waves = timestep_embedding(rearrange(sizes, "b k -> (b k)"), self.config.size_channels)
                waves = rearrange(waves, "(b k) d -> b (k d)", b=len(sizes)).to(dtype)
                pooled = torch.cat([pooled.to(dtype), waves], 1)
            time = time + self.added(pooled.to(dtype))
        if self.level is not None:
            time = time + self.level(level)
        return F.silu(time)

    def descend(
        self, x: Tensor, time: Tensor, text: Iterator[KeysValues]
    ) -> tuple[Float[Tensor, "b c h w"], list[Tensor]]:
        """From the first convolution's result to that of the turn, and everything kept on the way."""
        kept = [channels_last(x)]
        for level in self.down:
            kept += level(kept[-1], time, text)
        x = kept[-1]
        for block in self.middle:
            x = block(x, time, text)
        return x, kept


class UNet(Encoder):
    """(x, timestep, context) -> prediction: eps or v, as the weights were trained."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        kept = list(self.kept)
        width = config.channels[-1]
        self.up = nn.ModuleList()
        for index in reversed(range(len(config.channels))):
            channels, blocks = config.channels[index], []
            for _ in range(config.layers + 1):
                blocks.append(Block(width + kept.pop(), channels, config.depths[index], config, index))
                width = channels
            self.up.append(Up(blocks, Upsample(channels) if index else None))
        self.looks = len(self.readers)
        self.norm = nn.GroupNorm(config.groups, width)
        self.last = nn.Conv2d(width, config.outputs, 3, padding=1)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        timestep: Float[Tensor, " b"],
        context: Float[Tensor, "b n d"] | tuple[KeysValues, ...],
        *,
        added: Added | None = None,
        control: Control | None = None,
        level: Int[Tensor, " b"] | None = None,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b o h w"]:
        """The network's prediction for scaled latents `x`, of any height and width.

        `timestep` runs over 0 ... 999 and may lie between two steps; `context` is the text, or what `text_kv`
        made of it. `added` is (pooled text, size ids) for the XL family: height, width, top, left, target
        height and target width in pixels; for its refiner: height, width, top, left and aesthetic score. For
        the unCLIP variants it is (vector, None). `level` is how noisy the picture beside x was made, below
        `config.levels`; `guidance` what the scale of guidance is above 1 (LCM).

        Raises ValueError when `added`, `level` or `guidance` is missing, or given to a network that knows
        none, and when `context` was made by another network's `text_kv`.
        """
        text = self.text(context)
        time = self.embed(timestep, added, x.dtype, level, guidance)
        x, kept = self.descend(self.first(x), time, text)
        if control is not None:
            x = x + control.middle
            kept = [one + more for one, more in zip(kept, control.down, strict=True)]
        for up in self.up:
            x = up(x, time, text, kept)
        prediction: Tensor = self.last(F.silu(self.norm(x)))
        return prediction


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
