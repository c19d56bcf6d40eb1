"""CLIP: a text tower and a picture tower that meet in one space (Radford et al. 2021).

Both are pre-norm transformers of the same block. The text tower looks back only, so that the row of the
end-of-text token has seen the whole text; Stable Diffusion also takes all its rows as context. The networks
of OpenAI and of OpenCLIP differ by the values of their configurations only.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from limner.errors import RequestError
from limner.nn.attention import attention

MEAN = (0.48145466, 0.4578275, 0.40821073)  # red, green and blue, in [0, 1], of what CLIP was trained on
DEVIATION = (0.26862954, 0.26130258, 0.27577711)

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPTextConfig:
    """Shape of a text tower."""

    width: int = 768  # channels of the token stream
    depth: int = 12  # transformer blocks
    heads: int = 12  # attention heads
    inner: int = 3072  # channels inside a feed-forward layer
    activation: Activation = "quick_gelu"  # OpenAI's x sigmoid(1.702 x), or the exact one of OpenCLIP
    projection: int | None = None  # width of the space shared with pictures; None: not in the file
    left_out: int = 0  # blocks that the original file has after ours and that nobody uses
    vocabulary: int = 49_408  # tokens known
    length: int = 77  # tokens at most
    end: int = 49_407  # the token whose row is `pooled`


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPVisionConfig:
    """Shape of a picture tower."""

    width: int = 1024  # channels of the token stream
    depth: int = 24  # transformer blocks
    heads: int = 16  # attention heads
    inner: int = 4096  # channels inside a feed-forward layer
    activation: Activation = "quick_gelu"  # as in CLIPTextConfig
    projection: int = 768  # width of the space shared with text
    size: int = 224  # side of the picture in pixels
    patch: int = 14  # side of a patch in pixels


TEXT_L = CLIPTextConfig()  # OpenAI ViT-L/14: Stable Diffusion 1, first encoder of XL
TEXT_H = CLIPTextConfig(
    width=1024, depth=24, heads=16, inner=4096, activation="gelu", projection=1024
)  # OpenCLIP ViT-H/14
TEXT_H_SD2 = replace(TEXT_H, depth=23, projection=None, left_out=1)  # Stable Diffusion 2 keeps all but one
TEXT_G = CLIPTextConfig(
    width=1280, depth=32, heads=20, inner=5120, activation="gelu", projection=1280
)  # OpenCLIP ViT-bigG/14: second encoder of XL, only one of its refiner
VISION_L = CLIPVisionConfig()
VISION_H = CLIPVisionConfig(width=1280, depth=32, inner=5120, activation="gelu", projection=1024)
VISION_G = CLIPVisionConfig(width=1664, depth=48, inner=8192, activation="gelu", projection=1280)


@dataclass(frozen=True, slots=True)
class CLIPTextOutput:
    """What a text tower says."""

    context: Float[Tensor, "b n d"]  # rows of the layer that `skip` chose, final norm applied if asked
    last: Float[Tensor, "b n d"]  # rows after the last layer and the final norm
    pooled: Float[Tensor, "b d"]  # the row of `last` at the first end-of-text token
    projected: Float[Tensor, "b p"] | None  # `pooled` in the space shared with pictures


@dataclass(frozen=True, slots=True)
class CLIPVisionOutput:
    """What a picture tower says."""

    last: Float[Tensor, "b n d"]  # the class row and the patches in row order, before the final norm
    pooled: Float[Tensor, "b d"]  # the class row after it
    projected: Float[Tensor, "b p"]  # `pooled` in the space shared with text


class Block(nn.Module):
    """Pre-norm transformer block, b n d -> b n d."""

    def __init__(self, width: int, heads: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "b n d"], causal: bool) -> Float[Tensor, "b n d"]:
        seen = self.norm1(x)
        q, k, v = (
            rearrange(part(seen), "b n (h d) -> b h n d", h=self.heads) for part in (self.q, self.k, self.v)
        )
        x = x + self.out(attention(q, k, v, causal=causal))
        inner = self.inner(self.norm2(x))
        quick = self.activation == "quick_gelu"
        return torch.add(x, self.outer(inner * torch.sigmoid(1.702 * inner) if quick else F.gelu(inner)))


def _blocks(config: CLIPTextConfig | CLIPVisionConfig) -> nn.ModuleList:
    shape = (config.width, config.heads, config.inner, config.activation)
    return nn.ModuleList(Block(*shape) for _ in range(config.depth))


class CLIPText(nn.Module):
    """Tokens -> context, pooled and projected. `embed` stands apart from `forward`, so that learned vectors
    (textual inversion) can take the place of some tokens' own."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.zeros(config.length, config.width))
        self.blocks = _blocks(config)
        self.norm = nn.LayerNorm(config.width)
        self.projection = (
            nn.Linear(config.width, config.projection, bias=False) if config.projection else None
        )

    def embed(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """The vectors of the tokens, without their positions."""
        vectors: Tensor = self.token(tokens)
        return vectors

    def forward(
        self,
        embeddings: Float[Tensor, "b n d"],  # from `embed`
        tokens: Int[Tensor, "b n"],  # tells where the text ends
        *,
        skip: int = 1,  # which layer is the context: 1 the last, 2 the penultimate (clip-skip)
        norm: bool = True,  # whether the final norm is applied to the context
    ) -> CLIPTextOutput:
        """Raises RequestError when there is no layer `skip`, or more tokens than positions."""
        depth, length, count = self.config.depth, self.config.length, tokens.shape[1]
        if not 1 <= skip <= depth:
            raise RequestError(f"clip-skip {skip} is not between 1 and the {depth} layers there are")
        if count > length:
            raise RequestError(f"{count} tokens are more than {length}; encode them in chunks")
        x = chosen = embeddings + self.position[:count]
        for index, block in enumerate(self.blocks):
            x = block(x, causal=True)
            if index == depth - skip:
                chosen = x
        last = self.norm(x)
        end = (tokens == self.config.end).int().argmax(1)  # the first: padding may be the same token
        pooled = last[torch.arange(len(last), device=last.device), end]
        return CLIPTextOutput(
            context=self.norm(chosen) if norm else chosen,
            last=last,
            pooled=pooled,
            projected=self.projection(pooled) if self.projection is not None else None,
        )


class CLIPVision(nn.Module):
    """Pictures as `clip_pixels` prepares them, b 3 size size -> rows, pooled and projected."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.whole = nn.Parameter(torch.zeros(config.width))  # the class row's vector
        self.position = nn.Parameter(torch.zeros((config.size // config.patch) ** 2 + 1, config.width))
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.blocks = _blocks(config)
        self.projection = nn.Linear(config.width, config.projection, bias=False)

    def forward(self, prepared: Float[Tensor, "b 3 s s"]) -> CLIPVisionOutput:
        patches = rearrange(self.patch(prepared), "b d h w -> b (h w) d")
        whole = repeat(self.whole, "d -> b 1 d", b=len(patches))
        x = self.norm1(torch.cat([whole, patches], 1) + self.position)
        for block in self.blocks:
            x = block(x, causal=False)
        pooled = self.norm2(x[:, 0])
        return CLIPVisionOutput(last=x, pooled=pooled, projected=self.projection(pooled))


class CLIP(nn.Module):
    """Both towers, with the learned scale of their agreement."""

    def __init__(self, text: CLIPTextConfig, vision: CLIPVisionConfig) -> None:
        """Raises ValueError when the towers do not end in one space."""
        super().__init__()
        if text.projection != vision.projection:
            raise ValueError(f"text ends in {text.projection} dimensions, pictures in {vision.projection}")
        self.text, self.vision = CLIPText(text), CLIPVision(vision)
        self.logit_scale = nn.Parameter(torch.zeros(()))  # natural logarithm

    def similarity(
        self, pixels: Float[Tensor, "i 3 h w"], tokens: Int[Tensor, "t n"]
    ) -> Float[Tensor, "i t"]:
        """Cosine of every picture ([-1, 1]) with every text. Times 100 it is what is reported as CLIP score;
        times exp(logit_scale) it is CLIP's own logit (Radford et al. 2021, fig. 3)."""
        prepared = clip_pixels(pixels, self.vision.config.size).to(self.vision.position.dtype)
        pictures = self.vision(prepared).projected
        texts = self.text(self.text.embed(tokens), tokens).projected
        return torch.matmul(F.normalize(pictures, dim=-1), F.normalize(texts, dim=-1).T)


def clip_pixels(pixels: Float[Tensor, "b 3 h w"], size: int = 224) -> Float[Tensor, "b 3 s s"]:
    """Pixels in [-1, 1] as CLIP wants them: the shorter side brought to `size` bicubically, the middle cut
    out, MEAN taken off and divided by DEVIATION. In float32; rounded to 8 bits twice, as Pillow does."""
    height, width = pixels.shape[2:]
    shorter = min(height, width)
    target = (int(size * height / shorter), int(size * width / shorter))
    levels = (pixels.float() + 1) * 127.5
    for step in ((height, target[1]), target):
        levels = F.interpolate(levels, step, mode="bicubic", antialias=True).clamp(0, 255).round()
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    middle = levels[:, :, top : top + size, left : left + size] / 255
    mean, deviation = (rearrange(middle.new_tensor(each), "c -> c 1 1") for each in (MEAN, DEVIATION))
    return (middle - mean) / deviation
