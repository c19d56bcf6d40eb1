"""unCLIP's prior: what the picture of a text looks like to CLIP (Ramesh et al. 2022, section 2.2).

A causal transformer over text rows, text embedding, timestep, noised picture embedding and a learned last
row; what it says at the last row is the clean picture embedding, counted in deviations from the mean of all
pictures.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from limner.errors import RequestError
from limner.models.clip import Block
from limner.nn.embeddings import timestep_embedding

BEHIND = 4  # rows behind the text: its embedding, the timestep, the noised picture embedding, the last


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """Shape of an UnCLIPPrior."""

    embedding: int = 768  # width of CLIP's space, of its pictures and of its texts
    context: int = 768  # width of the text's rows
    length: int = 77  # rows of a text at most
    width: int = 2048  # channels of the token stream
    depth: int = 20  # transformer blocks
    heads: int = 32  # attention heads


KARLO_PRIOR = PriorConfig()


class UnCLIPPrior(nn.Module):
    """(noised picture embedding, timestep, text) -> x0, the clean one. `unscaled` brings it to CLIP's own."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.width, config.embedding
        self.picture = nn.Linear(embedding, width)
        self.pooled = nn.Linear(embedding, width)
        self.text = nn.Linear(config.context, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.position = nn.Parameter(torch.zeros(config.length + BEHIND, width))
        self.last = nn.Parameter(torch.zeros(width))  # of the row at which the answer is read
        self.blocks = nn.ModuleList(
            Block(width, config.heads, 4 * width, "gelu") for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, embedding)
        self.mean = nn.Parameter(torch.zeros(embedding))  # of picture embeddings
        self.deviation = nn.Parameter(torch.ones(embedding))

    def forward(
        self,
        x: Float[Tensor, "b e"],
        timestep: Float[Tensor, " b"],
        pooled: Float[Tensor, "b e"],
        context: Float[Tensor, "b n d"],
    ) -> Float[Tensor, "b e"]:
        """The clean picture embedding in deviations from the mean, as `x` is. `timestep` runs over 0 ... 999;
        `context` holds the rows of the text from its beginning to its end: nobody may look at what CLIP is
        given to fill up with, so it is left out.

        Raises RequestError for more rows than there are places.
        """
        count = context.shape[1]
        if count > self.config.length:
            raise RequestError(f"a text of {count} tokens is longer than the {self.config.length} there are")
        time = self.time(timestep_embedding(timestep, self.config.width).to(x.dtype))
        behind = (self.pooled(pooled), time, self.picture(x), repeat(self.last, "d -> b d", b=len(x)))
        rows = torch.cat([self.text(context), torch.stack(behind, 1)], 1)
        rows = rows + torch.cat([self.position[:count], self.position[-BEHIND:]])
        for block in self.blocks:
            rows = block(rows, causal=True)
        x0: Tensor = self.out(self.norm(rows[:, -1]))
        return x0

    def unscaled(self, x0: Float[Tensor, "b e"]) -> Float[Tensor, "b e"]:
        """A picture embedding as CLIP itself would give it."""
        return x0 * self.deviation + self.mean


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectionConfig:
    """Shape of an UnCLIPProjection."""

    embedding: int = 768  # width of CLIP's space
    tokens: int = 4  # rows that the picture becomes
    context: int = 1536  # width of what the decoder looks at
    time: int = 1280  # width of the decoder's embedding of time


KARLO_PROJECTION = ProjectionConfig()


class UnCLIPProjection(nn.Module):
    """What the decoder is told of a picture embedding and a text (section 2.1): rows to look at, and what is
    added to its embedding of time."""

    def __init__(self, config: ProjectionConfig) -> None:
        super().__init__()
        self.config = config
        self.nothing = nn.Parameter(torch.zeros(config.embedding))  # the embedding of no picture
        self.picture_rows = nn.Linear(config.embedding, config.tokens * config.context)
        self.picture_time = nn.Linear(config.embedding, config.time)
        self.text_rows = nn.Linear(config.embedding, config.context)
        self.text_time = nn.Linear(config.embedding, config.time)
        self.norm = nn.LayerNorm(config.context)

    def forward(
        self,
        picture: Float[Tensor, "b e"] | None,  # as CLIP gives it; None: without one, to be guided away from
        pooled: Float[Tensor, "b e"],
        context: Float[Tensor, "b n e"],
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b t"]]:
        """(rows: first those of the picture, then those of the text; addition to the time)."""
        if picture is None:
            picture = repeat(self.nothing, "e -> b e", b=len(pooled))
        rows = rearrange(self.picture_rows(picture), "b (d k) -> b k d", k=self.config.tokens)
        text = self.norm(self.text_rows(context))
        return torch.cat([rows, text], 1), self.picture_time(picture) + self.text_time(pooled)


class Normaliser(nn.Module):
    """Mean and deviation of a CLIP's picture embeddings (Stable Diffusion unCLIP)."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(embedding))
        self.deviation = nn.Parameter(torch.ones(embedding))

    def forward(self, picture: Float[Tensor, "b e"]) -> Float[Tensor, "b e"]:
        """In deviations from the mean."""
        return (picture - self.mean) / self.deviation

    def unscaled(self, x: Float[Tensor, "b e"]) -> Float[Tensor, "b e"]:
        """As CLIP gives it."""
        return x * self.deviation + self.mean
