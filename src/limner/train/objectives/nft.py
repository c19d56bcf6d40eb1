"""Objective: go on from published weights by rewards, without a likelihood and without guidance at training.

DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117): pictures that the running average draws are noised again,
and the network moves towards what pictures with a good reward say and away from what bad ones say. The old
policy is the loop's running average, and what the run began with holds the network near.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from limner.diffusion import losses
from limner.models.pixel_dit import PixelDiT
from limner.train.objectives.best_of import draw_scenes
from limner.train.objectives.denoise import Denoise, DenoiseConfig
from limner.train.objectives.few_step import following, teacher
from limner.train.reward import Reward
from limner.train.rollout import bound
from limner.util.rng import mix


@dataclass(frozen=True, kw_only=True, slots=True)
class NFTConfig:
    """How pictures are drawn, and how hard their rewards pull."""

    detector: str  # weights of a [detect] run with the role "reward"
    base: DenoiseConfig = field(default_factory=DenoiseConfig)  # as in the run that made the weights
    group: int = 16  # pictures of each caption, whose rewards are compared with each other
    steps: int = 8  # of the sampler
    scale: float = 2.5  # of the guidance that they are drawn with
    beta: float = 1.0  # how far the two mixtures stand from the old policy
    clip: float = 5.0  # an advantage, in standard deviations of the group, at most
    anchor: float = 1e-4  # cost of leaving the weights that the run began with

    def __post_init__(self) -> None:
        if self.group < 2 or self.steps < 1 or not 0 < self.beta <= 1 or self.clip <= 0:
            raise ValueError(
                f"need groups of two or more, a step, 0 < beta <= 1 and a clip above 0, got {self.group}, "
                f"{self.steps}, {self.beta} and {self.clip}"
            )


class Batch(NamedTuple):
    """One step's pictures, drawn by the old policy."""

    x0: Float[Tensor, "b 3 h w"]
    noise: Float[Tensor, "b 3 h w"]
    t: Float[Tensor, " b"]
    tokens: Int[Tensor, "b n"]
    good: Float[Tensor, " b"]  # how good each is within its group, 0 to 1, 0.5 in the middle


class NFT:
    """The objective; `begin` gives it the old policy and the anchor."""

    def __init__(self, config: NFTConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.base = Denoise(replace(config.base, label_weight=0.0), device)
        self.reward = Reward(Path(config.detector).expanduser(), device)
        self.model = self.old = self.anchor = self.base.model

    def inherited(self) -> set[str]:
        """All parameters."""
        return self.base.published()

    def begin(self, start: Path, average: Mapping[str, Tensor]) -> None:
        """The old policy is `average`, the anchor what the run began with."""
        self.anchor = teacher(start, self.base, self.device)
        self.old = following(self.model, average)

    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Groups of pictures, as many as fit into `count`; at least one."""
        config = self.config
        drawn = draw_scenes(
            self.base,
            self.old,
            self.reward,
            scenes=max(1, count // config.group),
            samples=config.group,
            steps=config.steps,
            scale=config.scale,
            seed=seed,
        )
        generator = torch.Generator().manual_seed(mix(seed, 2) % 2**63)
        x0 = rearrange(drawn.pixels, "p s c h w -> (p s) c h w")
        settings = config.base
        t = losses.logit_normal(len(x0), settings.t_mean, settings.t_std, settings.t_uniform, generator)
        return Batch(
            x0=x0,
            noise=torch.randn(x0.shape, generator=generator).to(x0.device),
            t=t.clamp_min(0.02).to(x0.device),
            tokens=repeat(drawn.tokens, "p n -> (p s) n", s=config.group),
            good=goodness(drawn.rewards, config.clip).flatten(),
        )

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The paper's loss, in x0: both mixtures of new and old policy meet the picture, each as much as its
        reward says, every error divided by its own size. And the distance from the anchor."""
        config, pad = self.config, self.base.tokenizer.pad
        t = batch.t[:, None, None, None]
        x_t = (1 - t) * batch.x0 + t * batch.noise
        told = torch.full_like(batch.t, config.scale) if self.model.config.guidance_channels else None
        new = bound(self.model, batch.tokens, pad, told)(x_t, batch.t)
        with torch.no_grad():
            old = bound(self.old, batch.tokens, pad, told)(x_t, batch.t)
            first = bound(self.anchor, batch.tokens, pad, told)(x_t, batch.t)
        towards = _apart(config.beta * new + (1 - config.beta) * old, batch.x0)
        away = _apart((1 + config.beta) * old - config.beta * new, batch.x0)
        policy = (batch.good * towards + (1 - batch.good) * away).mean() / config.beta
        anchored = losses.flow_x0_loss(new, first.to(new.dtype), batch.t).mean()
        return {"policy": policy, "anchor": config.anchor * anchored}

    def published(self) -> set[str]:
        """All parameters."""
        return self.base.published()

    def header(self) -> dict[str, str]:
        """As of `Denoise`, and which detector rewarded."""
        return self.base.header() | {"rewarded_by": json.dumps(self.reward.fingerprint)}

    def draw(self, model: PixelDiT) -> Image.Image:
        """The sheet of `Denoise`."""
        return self.base.draw(model)


def goodness(rewards: Float[Tensor, "p s"], clip: float) -> Float[Tensor, "p s"]:
    """Rewards within their group, from 0 to 1: half is the mean, the ends are `clip` deviations from it."""
    apart = rewards - rewards.mean(1, keepdim=True)
    advantage = apart / rewards.std(1, keepdim=True).clamp_min(1e-4)
    return (advantage / (2 * clip) + 0.5).clamp(0, 1)


def _apart(x0_hat: Float[Tensor, "b 3 h w"], x0: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Mean squared error of each picture over its mean absolute error, the latter without a gradient."""
    error = (x0_hat.float() - x0).flatten(1)
    return error.square().mean(1) / error.detach().abs().mean(1).clamp_min(1e-5)
