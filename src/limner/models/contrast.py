"""Contrast: a small CLIP of the drawn world, made of the towers of `clip.py`. It ranks candidates."""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from limner.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastConfig:
    """Shape of a Contrast: whole numbers only, as they stand in the header of its weights."""

    vocabulary: int = 0  # text tokens known
    end: int = 0  # the token whose row stands for the text
    length: int = 24  # text tokens at most
    text_depth: int = 2  # transformer blocks of the text tower
    size: int = 32  # side of the picture in pixels
    patch: int = 4  # side of a patch in pixels
    depth: int = 4  # transformer blocks of the picture tower
    width: int = 128  # channels of both token streams
    heads: int = 2  # attention heads
    space: int = 128  # dimensions of the space in which text and pictures meet
    bias: int = 0  # 1: each pair is judged by itself (SigLIP), beside a bias that is learned

    def __post_init__(self) -> None:
        if self.size % self.patch or self.width % self.heads:
            raise ValueError(
                f"size is a multiple of patch and width one of heads, got {self.size}, {self.patch}, "
                f"{self.width} and {self.heads}"
            )


class Contrast(nn.Module):
    """(pixels, tokens) -> how well each picture fits each text (Radford et al. 2021, figure 3)."""

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.text = CLIPText(
            CLIPTextConfig(
                width=width,
                depth=config.text_depth,
                heads=heads,
                inner=4 * width,
                activation="gelu",
                projection=config.space,
                vocabulary=config.vocabulary,
                length=config.length,
                end=config.end,
            )
        )
        self.vision = CLIPVision(
            CLIPVisionConfig(
                width=width,
                depth=config.depth,
                heads=heads,
                inner=4 * width,
                activation="gelu",
                projection=config.space,
                size=config.size,
                patch=config.patch,
            )
        )
        self.logit_scale = nn.Parameter(torch.zeros(()))  # natural logarithm
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.bias else None

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Set every weight: truncated normals of fan-in scale, and 1 / 0.07 as the scale (section 2.5)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                std = module.weight[0].numel() ** -0.5
                nn.init.trunc_normal_(module.weight, std=std, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.text.token.weight, std=0.5, generator=generator)
        for vectors in (self.text.position, self.vision.position, self.vision.whole):
            nn.init.normal_(vectors, std=0.1, generator=generator)
        nn.init.constant_(self.logit_scale, 2.659)
        if self.logit_bias is not None:  # at first, most pairs are none (Zhai et al. 2023, section 3.2)
            nn.init.constant_(self.logit_scale, 2.303)
            nn.init.constant_(self.logit_bias, -10.0)

    def forward(self, pixels: Float[Tensor, "i 3 h w"], tokens: Int[Tensor, "t n"]) -> Float[Tensor, "i t"]:
        """Cosine of every picture ([-1, 1], of any size) with every text."""
        size = (self.config.size, self.config.size)
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        pictures = self.vision(pixels).projected
        texts = self.text(self.text.embed(tokens), tokens).projected
        assert texts is not None  # the tower has a projection
        return F.normalize(pictures, dim=-1) @ F.normalize(texts, dim=-1).mT

    def loss(self, pixels: Float[Tensor, "b 3 h w"], tokens: Int[Tensor, "b n"]) -> Float[Tensor, ""]:
        """How wrong it is about who belongs to whom; the scale ends at 100 (section 2.5).

        Without a bias: cross-entropy of which text belongs to a picture and which picture to a text, half
        each (figure 3). With it: of whether each picture and each text belong together, summed over the texts
        of a picture (Zhai et al. 2023, "SigLIP", algorithm 1).
        """
        logits = self(pixels, tokens).float() * self.logit_scale.clamp_max(4.6052).exp()
        if self.logit_bias is not None:
            sign = 2 * torch.eye(len(logits), device=logits.device) - 1  # 1 for a pair, -1 for others
            return -F.logsigmoid(sign * (logits + self.logit_bias)).sum(1).mean()
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.mT, own)) / 2
