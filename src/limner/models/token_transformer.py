"""TokenTransformer: text and picture as one row of tokens, each foretold from those before it.

    text tokens | coarse codes of the picture, in reading order | fine codes

as in DALL-E (Ramesh et al. 2021, section 2), with the two levels of a VQ-VAE-2 in place of one. Every kind of
token has its own range of one vocabulary, and at a place only its range is asked. Each input is told where
the token to be foretold stands, and, among the fine codes, which coarse code lies beneath that place.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from limner.errors import EngineError
from limner.nn.attention import attention, qk_norm
from limner.nn.choice import Sampling, chances, choose, guided
from limner.nn.norms import RMSNorm, SwiGLU


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTransformerConfig:
    """Shape of a TokenTransformer."""

    vocabulary: int = 0  # text tokens known
    text_length: int = 24  # text tokens of every row, padding among them
    coarse_codes: int = 512  # codes in the coarse list
    fine_codes: int = 512  # codes in the fine list
    side: int = 4  # of the coarse grid; that of the fine one is twice it
    width: int = 192  # channels of the token stream
    depth: int = 6  # transformer blocks
    heads: int = 3  # attention heads

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def coarse(self) -> int:
        """How many coarse codes a picture has."""
        return self.side**2

    @property
    def fine(self) -> int:
        """How many fine codes a picture has."""
        return 4 * self.side**2

    @property
    def codes(self) -> int:
        """How many codes a picture has, of both levels."""
        return self.coarse + self.fine

    @property
    def ranges(self) -> tuple[range, range, range]:
        """The part of the vocabulary of text, coarse codes and fine codes."""
        first = self.vocabulary + self.coarse_codes
        return (
            range(self.vocabulary),
            range(self.vocabulary, first),
            range(first, first + self.fine_codes),
        )


class Cache:
    """Keys and values of the tokens that were read already, for each block."""

    def __init__(self, config: TokenTransformerConfig, batch: int, like: Tensor) -> None:
        length = config.text_length + config.codes
        shape = (2, config.depth, batch, config.heads, length, config.width // config.heads)
        self.read = 0  # tokens so far
        self.held = like.new_zeros(shape)

    def extend(
        self, index: int, k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"]
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        """All keys and values of block `index`, these new ones at their end."""
        end = self.read + k.shape[2]
        self.held[0, index, :, :, self.read : end] = k
        self.held[1, index, :, :, self.read : end] = v
        return self.held[0, index, :, :, :end], self.held[1, index, :, :, :end]


class Block(nn.Module):
    """Pre-norm transformer block that looks back only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_scale = nn.Parameter(torch.ones(width // heads))
        self.k_scale = nn.Parameter(torch.ones(width // heads))
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = SwiGLU(width)

    def forward(self, x: Float[Tensor, "b n d"], cache: Cache | None, index: int) -> Float[Tensor, "b n d"]:
        """`index` is the block's place in the cache. With one, x are the first tokens of all or a single
        next one."""
        qkv = self.qkv(self.norm1(x))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = qk_norm(q, self.q_scale), qk_norm(k, self.k_scale)
        if cache is not None:
            k, v = cache.extend(index, k, v)
        x = x + self.out(attention(q, k, v, causal=x.shape[1] > 1))
        return torch.add(x, self.mlp(self.norm2(x)))


class TokenTransformer(nn.Module):
    """Tokens of the whole vocabulary, b n -> what is known of each next one, b n d; `logits` tells the
    rest."""

    def __init__(self, config: TokenTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.width, config.side
        self.token = nn.Embedding(config.ranges[2].stop, width)
        self.position = nn.Parameter(torch.zeros(config.text_length, width))
        self.coarse_row = nn.Parameter(torch.zeros(side, width))
        self.coarse_column = nn.Parameter(torch.zeros(side, width))
        self.fine_row = nn.Parameter(torch.zeros(2 * side, width))
        self.fine_column = nn.Parameter(torch.zeros(2 * side, width))
        self.beneath = nn.Embedding(config.coarse_codes, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, config.ranges[2].stop, bias=False)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Set every weight: truncated normals of fan-in scale, zeros where a branch should start silent."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = module.weight.shape[1] ** -0.5
                nn.init.trunc_normal_(module.weight, std=std, generator=generator)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5, generator=generator)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.scale)
            elif isinstance(module, Block):
                nn.init.ones_(module.q_scale)
                nn.init.ones_(module.k_scale)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.out.weight)
            nn.init.zeros_(block.mlp.out.weight)
        nn.init.zeros_(self.out.weight)
        for name in ("position", "coarse_row", "coarse_column", "fine_row", "fine_column"):
            nn.init.normal_(self.get_parameter(name), std=0.5, generator=generator)

    def forward(self, tokens: Int[Tensor, "b n"], cache: Cache | None = None) -> Float[Tensor, "b m d"]:
        """What is known of the token after each of `tokens`, or, with a cache, after each of those that it
        has not read yet; then the cache has."""
        start = 0 if cache is None else cache.read
        x = self.embed(tokens, start)
        for index, block in enumerate(self.blocks):
            x = block(x, cache, index)
        if cache is not None:
            cache.read = tokens.shape[1]
        known: Tensor = self.norm(x)
        return known

    def embed(self, tokens: Int[Tensor, "b n"], start: int = 0) -> Float[Tensor, "b m d"]:
        """Inputs for tokens[:, start:]: each token's vector, where the next one stands, and what coarse code
        lies beneath that."""
        config = self.config
        fine = config.text_length + config.coarse  # where the fine codes begin
        first, end = start + 1, tokens.shape[1] + 1  # of the places to be foretold
        x: Tensor = self.token(tokens[:, start:]) + self.places()[first:end]
        if end <= fine:
            return x
        codes = tokens[:, config.text_length : fine] - config.ranges[1].start
        grid = rearrange(self.beneath(codes), "b (h w) d -> b h w d", h=config.side)
        below = repeat(grid, "b h w d -> b (h p) (w q) d", p=2, q=2)
        below = rearrange(below, "b h w d -> b (h w) d")[:, max(0, first - fine) : end - fine]
        return torch.cat([x[:, : -below.shape[1]], x[:, -below.shape[1] :] + below], 1)

    def places(self) -> Float[Tensor, "n d"]:
        """Where each token of a row stands: text one after the other, codes by row and column."""

        def grid(rows: Tensor, columns: Tensor) -> Tensor:
            return rearrange(rows[:, None] + columns, "h w d -> (h w) d")

        coarse, fine = grid(self.coarse_row, self.coarse_column), grid(self.fine_row, self.fine_column)
        return torch.cat([self.position, coarse, fine])

    def logits(self, known: Float[Tensor, "*b d"], kind: int) -> Float[Tensor, "*b k"]:
        """The logits of the next token: of text (`kind` 0), coarse codes (1) or fine ones (2), counted from
        the beginning of their range."""
        asked = self.config.ranges[kind]
        return F.linear(known, self.out.weight[asked.start : asked.stop]).float()

    def tokens(self, text: Int[Tensor, "b t"], codes: Int[Tensor, "b n"]) -> Int[Tensor, "b all"]:
        """Text tokens and codes (coarse ones first, as many as there are yet) in one vocabulary."""
        _, coarse, fine = self.config.ranges
        middle = self.config.coarse
        return torch.cat([text, codes[:, :middle] + coarse.start, codes[:, middle:] + fine.start], 1)


def continued(
    model: TokenTransformer,
    text: Int[Tensor, "b t"],
    without: Int[Tensor, "b t"] | None,  # text to be guided away from; None: no guidance
    u: Float[Tensor, "b n"],  # in [0, 1]: the number that decides each code
    *,
    guidance: float = 1.0,  # scale, where there is text to be guided away from
    sampling: Sampling = Sampling(),
    cached: bool = True,  # keep keys and values; without, every step reads all again
) -> Iterator[Int[Tensor, "b m"]]:
    """Draw the codes of pictures; yields all codes so far whenever a row of a grid is whole. Raises
    EngineError where the logits of one are not finite."""
    config = model.config
    told = text if without is None else torch.cat([text, without])
    cache = Cache(config, len(told), model.position) if cached else None
    codes = text[:, :0]
    for index in range(config.codes):
        seen = codes if without is None else codes.repeat(2, 1)
        known = model(model.tokens(told, seen), cache)[:, -1]
        within = index - config.coarse  # place among the fine codes
        logits = model.logits(known, 1 if within < 0 else 2)
        if without is not None:
            logits = guided(logits[: len(u)], logits[len(u) :], guidance)
        if not logits.isfinite().all():
            raise EngineError(
                f"the logits of code {index + 1} hold values that are not finite. The weights are broken, or "
                "the guidance is far too high"
            )
        code = choose(chances(logits, sampling), u[:, index])
        codes = torch.cat([codes, code[:, None]], 1)
        if (index + 1) % config.side == 0 if within < 0 else (within + 1) % (2 * config.side) == 0:
            yield codes
