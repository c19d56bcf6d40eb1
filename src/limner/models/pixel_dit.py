"""PixelDiT: a small text-conditional diffusion transformer on pixels, with its own text encoder.

Patches of the noisy picture are the tokens (Peebles & Xie 2023, "DiT"); the network predicts the clean
picture itself, which is what makes large patches trainable without an autoencoder (Li & He 2025, "JiT"). Text
tokens are offered to every block as further keys and values and are not updated there. A small convolutional
head at full resolution removes the seams between patches.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limner.nn.attention import attention, qk_norm
from limner.nn.convolution import channels_last
from limner.nn.embeddings import positions_2d, timestep_embedding
from limner.nn.norms import RMSNorm, SwiGLU, modulate


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelDiTConfig:
    """Shape of a PixelDiT."""

    vocabulary: int = 0  # text tokens known
    size: int = 64  # side of the picture in pixels
    patch: int = 8  # side of a patch in pixels
    width: int = 256  # channels of the token stream
    depth: int = 8  # transformer blocks
    heads: int = 4  # attention heads
    bottleneck: int = 128  # channels between a patch and the token stream
    text_depth: int = 2  # transformer blocks of the text encoder
    text_length: int = 48  # text tokens at most
    head_channels: int = 32  # channels of the convolutional head
    labels: int = 0  # classes of the training-only label head (one per object, and none); 0 leaves it away
    guidance_channels: int = 0  # sinusoids that tell it the guidance scale; 0: it is not told

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise ValueError(f"size {self.size} is not a multiple of patch {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class TextEncoder(nn.Module):
    """Tokens -> context (b n d) and pooled (b d); learned positions, attends both ways, ignores padding."""

    def __init__(self, config: PixelDiTConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.zeros(config.text_length, config.width))
        self.blocks = nn.ModuleList(TextBlock(config.width, config.heads) for _ in range(config.text_depth))
        self.norm = RMSNorm(config.width)

    def forward(self, tokens: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> tuple[Tensor, Tensor]:
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        weight = mask[..., None].to(x.dtype)
        return x, (x * weight).sum(1) / weight.sum(1).clamp_min(1)


class TextBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = SwiGLU(width)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        qkv = self.qkv(self.norm1(x))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        x = x + self.out(attention(q, k, v, mask=mask))
        return torch.add(x, self.mlp(self.norm2(x)))


class Block(nn.Module):
    """DiT block: picture tokens attend to [text, picture]; shift, scale and gate come from time and text."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.text_kv = nn.Linear(width, 2 * width, bias=False)
        self.q_scale = nn.Parameter(torch.ones(width // heads))
        self.k_scale = nn.Parameter(torch.ones(width // heads))
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = SwiGLU(width)
        self.modulation = nn.Parameter(torch.zeros(6, width))  # added to the shared one (PixArt)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m d"],
        modulation: Float[Tensor, "b 6 d"],
        mask: Bool[Tensor, "b all"],
    ) -> Float[Tensor, "b n d"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation)[:, :, None].unbind(1)
        qkv = self.qkv(modulate(self.norm1(x), shift1, scale1))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        text_k, text_v = rearrange(self.text_kv(context), "b m (two h d) -> two b h m d", two=2, h=self.heads)
        q = qk_norm(q, self.q_scale)
        k = qk_norm(torch.cat([text_k, k], 2), self.k_scale)
        x = x + gate1 * self.out(attention(q, k, torch.cat([text_v, v], 2), mask=mask))
        return torch.add(x, gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2)))


class PixelDiT(nn.Module):
    """(x_t, t, tokens) -> x0. Pixels are b 3 size size in [-1, 1]; t is in [0, 1], 1 is pure noise."""

    def __init__(self, config: PixelDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextEncoder(config)
        self.patch_in = nn.Linear(3 * config.patch**2, config.bottleneck, bias=False)
        self.token_in = nn.Linear(config.bottleneck, config.width)
        self.position = nn.Parameter(torch.zeros((config.size // config.patch) ** 2, config.width))
        self.time_in = nn.Linear(config.width, config.width)
        self.time_out = nn.Linear(config.width, config.width)
        self.pooled_in = nn.Linear(config.width, config.width)
        self.guidance_in = (
            nn.Linear(config.guidance_channels, config.width, bias=False)
            if config.guidance_channels
            else None
        )
        self.modulation = nn.Linear(config.width, 6 * config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.modulation_out = nn.Linear(config.width, 2 * config.width)
        self.patch_out = nn.Linear(config.width, 3 * config.patch**2)
        self.head = nn.Sequential(
            nn.Conv2d(6, config.head_channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(config.head_channels, config.head_channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(config.head_channels, 3, 3, padding=1),
        )
        self.label = nn.Linear(config.width, config.labels) if config.labels else None

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Set every weight: truncated normals of fan-in scale, zeros where a branch should start silent."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                fan_in = module.weight[0].numel()
                nn.init.trunc_normal_(module.weight, std=fan_in**-0.5, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.scale)
            elif isinstance(module, Block):
                nn.init.ones_(module.q_scale)
                nn.init.ones_(module.k_scale)
                nn.init.zeros_(module.modulation)
        nn.init.normal_(self.text.token.weight, std=0.5, generator=generator)
        nn.init.normal_(self.text.position, std=0.1, generator=generator)
        side = self.config.size // self.config.patch
        with torch.no_grad():
            self.position.copy_(positions_2d(side, side, self.config.width))
        for silent in (self.modulation, self.modulation_out, self.patch_out, self.head[-1]):
            nn.init.zeros_(silent.get_parameter("weight"))
        if self.guidance_in is not None:
            nn.init.zeros_(self.guidance_in.weight)  # so that it begins as the network that is not told

    def encode(self, tokens: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> tuple[Tensor, Tensor]:
        """Text once per prompt: context (b n d) and pooled (b d)."""
        context, pooled = self.text(tokens, mask)
        return context, pooled

    def forward(
        self,
        x_t: Float[Tensor, "b 3 h w"],
        t: Float[Tensor, " b"],
        context: Float[Tensor, "b m d"],
        pooled: Float[Tensor, "b d"],
        mask: Bool[Tensor, "b m"],
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The prediction of x0. A network with guidance_channels is told the scale of `guidance` (Meng et al.
        2023, "On distillation of guided diffusion models", section 3.1); None is 0, the prompt alone in many
        steps."""
        return self.features(x_t, t, context, pooled, mask, guidance)[0]

    def features(
        self,
        x_t: Tensor,
        t: Tensor,
        context: Tensor,
        pooled: Tensor,
        mask: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b n d"]]:
        """The prediction of x0, and the token stream halfway through the blocks."""
        patch, side = self.config.patch, self.config.size // self.config.patch
        patches = rearrange(x_t, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
        x = self.token_in(self.patch_in(patches)) + self.position
        modulation, end = self._told(t, pooled, guidance)
        mask = torch.cat([mask, mask.new_ones(len(mask), x.shape[1])], 1)
        halfway = x
        for index, block in enumerate(self.blocks):
            x = block(x, context, modulation, mask)
            if 2 * (index + 1) == len(self.blocks):
                halfway = x
        shift, scale = end[:, None].chunk(2, -1)
        patches = self.patch_out(modulate(self.norm(x), shift, scale))
        picture = rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=side, p=patch, q=patch)
        return picture + self.head(channels_last(torch.cat([picture, x_t], 1))), halfway

    def _told(
        self, t: Float[Tensor, " b"], pooled: Float[Tensor, "b d"], guidance: Float[Tensor, " b"] | None
    ) -> tuple[Float[Tensor, "b 6 d"], Float[Tensor, "b twice_d"]]:
        """How time, text and scale of the guidance shift, scale and gate the blocks, and the end.

        When pictures are drawn on the CPU, row by row: products of few rows are added up in an order that
        changes with their number (from 16 rows on, measured), and no picture is to depend on its neighbours.
        Those of a row for every patch were found not to, whatever stands beside them.
        """
        if len(t) > 1 and t.device.type == "cpu" and not torch.is_grad_enabled():
            scales = [None] * len(t) if guidance is None else guidance.split(1)
            rows = zip(t.split(1), pooled.split(1), scales, strict=True)
            modulations, ends = zip(*(self._told(*row) for row in rows), strict=True)
            return torch.cat(modulations), torch.cat(ends)
        time = self.time_out(F.silu(self.time_in(timestep_embedding(1000 * t, self.config.width))))
        told = time + self.pooled_in(pooled)
        if self.guidance_in is not None:
            scale = torch.zeros_like(t) if guidance is None else guidance
            told = told + self.guidance_in(timestep_embedding(100 * scale, self.config.guidance_channels))
        cond = F.silu(told)
        return rearrange(self.modulation(cond), "b (six d) -> b six d", six=6), self.modulation_out(cond)
