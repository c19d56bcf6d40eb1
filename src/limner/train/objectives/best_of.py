"""Objective: go on from published weights, and learn from the best of what they draw by themselves.

Of several pictures of each caption the one that a second detector finds best is kept (RAFT, Dong et al. 2023)
and learned from as if it had been composed; composed scenes fill the rest of the batch, so that the network
cannot drift far from the world. Where not even the best is good, the composed picture is learned from.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from limner.evaluate.prompts import Prompt
from limner.models.pixel_dit import PixelDiT
from limner.train.objectives.denoise import Batch, Denoise, DenoiseConfig
from limner.train.objectives.few_step import following, teacher
from limner.train.reward import Reward, asked
from limner.train.rollout import rollout
from limner.util.devices import autocast
from limner.util.rng import mix


@dataclass(frozen=True, kw_only=True, slots=True)
class BestOfConfig:
    """How pictures are drawn, and which are kept."""

    detector: str  # weights of a [detect] run with the role "reward"
    base: DenoiseConfig = field(default_factory=DenoiseConfig)  # as in the run that made the weights
    share: float = 0.5  # of a batch that the network has drawn itself
    samples: int = 8  # pictures of each caption, of which the best is kept
    repeats: int = 4  # times that a kept picture is learned from, each with other noise
    least: float = 0.9  # reward of a picture that is worth learning from; below, the composed one is
    steps: int = 8  # of the sampler
    scale: float = 2.5  # of the guidance

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or min(self.samples, self.repeats, self.steps) < 1:
            raise ValueError(
                f"need 0 < share <= 1 and samples, repeats and steps of at least 1, got {self.share}, "
                f"{self.samples}, {self.repeats} and {self.steps}"
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """Pictures that the running average drew of some scenes, and what they are worth."""

    composed: Float[Tensor, "p 3 h w"]  # what should have been drawn
    captions: tuple[tuple[str, ...], ...]  # canonical words, one caption per scene
    tokens: Int[Tensor, "p n"]
    pixels: Float[Tensor, "p s 3 h w"]
    rewards: Float[Tensor, "p s"]


class BestOf:
    """The objective; `begin` gives it the average that draws."""

    def __init__(self, config: BestOfConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.base = Denoise(replace(config.base, label_weight=0.0), device)  # no labels of what was drawn
        self.reward = Reward(Path(config.detector).expanduser(), device)
        self.model = self.average = self.base.model

    def inherited(self) -> set[str]:
        """All parameters."""
        return self.base.published()

    def begin(self, start: Path, average: Mapping[str, Tensor]) -> None:
        """`average` draws from now on. Raises ConfigError when `start` knows other words than this run."""
        teacher(start, self.base, self.device)
        self.average = following(self.model, average)

    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Composed scenes, the first ones replaced by what the network has drawn best."""
        config = self.config
        composed = self.base.batch(count, seed, index)
        own = max(1, round(config.share * count))
        drawn = draw_scenes(
            self.base,
            self.average,
            self.reward,
            scenes=-(-own // config.repeats),
            samples=config.samples,
            steps=config.steps,
            scale=config.scale,
            seed=mix(seed, 1) % 2**63,
        )
        value, best = drawn.rewards.max(1)
        kept = drawn.pixels[torch.arange(len(best), device=best.device), best]
        kept = torch.where((value >= config.least)[:, None, None, None], kept, drawn.composed)
        x0 = repeat(kept, "p c h w -> (p r) c h w", r=config.repeats)[:own]
        said = [caption for caption in drawn.captions for _ in range(config.repeats)][:own]
        dropped = torch.rand(own, generator=torch.Generator().manual_seed(seed)) < config.base.drop_text
        said = [() if drop else words for words, drop in zip(said, dropped.tolist(), strict=True)]
        pad = self.base.tokenizer.pad
        tokens = _stacked([self.base.tokens(said), composed.tokens[own:]], pad)
        return composed._replace(
            x0=torch.cat([x0, composed.x0[own:]]),
            tokens=tokens,
            weight=torch.cat([torch.ones_like(composed.weight[:own]), composed.weight[own:]]),
        )

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The velocity loss of `Denoise`."""
        return self.base.loss(batch)

    def published(self) -> set[str]:
        """All parameters."""
        return self.base.published()

    def header(self) -> dict[str, str]:
        """As of `Denoise`, and which detector chose."""
        return self.base.header() | {"rewarded_by": json.dumps(self.reward.fingerprint)}

    def draw(self, model: PixelDiT) -> Image.Image:
        """The sheet of `Denoise`."""
        return self.base.draw(model)


def draw_scenes(
    base: Denoise,
    model: PixelDiT,
    reward: Reward,
    *,
    scenes: int,  # how many
    samples: int,  # pictures of each
    steps: int,
    scale: float,
    seed: int,
) -> Drawn:
    """Draw the captions of fresh scenes, and have every picture judged. `seed` and `model` decide it all."""
    sampled = base.world.sample(scenes, torch.Generator().manual_seed(seed))
    composed, _ = base.world.render(sampled, model.config.size)
    captions = tuple(words for _, words in base.captioner.captions(sampled, seed))
    prompts: list[Prompt] = asked(base.world.atlas, sampled, captions)
    tokens = base.tokens(captions)
    many = repeat(tokens, "p n -> (p s) n", s=samples)
    pad = base.tokenizer.pad
    empty = _stacked([base.tokens([()]), tokens], pad)[:1].expand(len(many), -1)
    with autocast(tokens.device):
        pixels = rollout(model, many, empty, pad, steps=steps, scale=scale, seed=seed).float()
    worth = reward.of(pixels, [prompt for prompt in prompts for _ in range(samples)])
    return Drawn(
        composed=composed,
        captions=captions,
        tokens=tokens,
        pixels=rearrange(pixels, "(p s) c h w -> p s c h w", s=samples),
        rewards=rearrange(worth, "(p s) -> p s", s=samples),
    )


def _stacked(tokens: list[Tensor], pad: int) -> Int[Tensor, "b n"]:
    """Rows of different lengths, one under the other."""
    longest = max(rows.shape[1] for rows in tokens)
    return torch.cat(
        [torch.nn.functional.pad(rows, (0, longest - rows.shape[1]), value=pad) for rows in tokens]
    )
