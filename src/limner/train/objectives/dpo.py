"""Objective: prefer what people preferred, without a model of rewards (Diffusion-DPO, Wallace et al. 2023).

    -log sigmoid(-beta/2 ((L_w - L_w_ref) - (L_l - L_l_ref)))                                        (equation
    14)

L are squared errors of predictions for the winner and the loser of a pair, which are noised alike; `ref` are
those of the model as it was. The whole network learns, or a LoRA over it, whose reference costs no memory.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from limner.data.pairs import Pairs, PairsConfig
from limner.diffusion import losses
from limner.diffusion.losses import Prediction
from limner.diffusion.paths import VPPath, shift
from limner.errors import ConfigError
from limner.train import learners, trainable
from limner.train.frozen import Frozen
from limner.train.learners.base import Said
from limner.train.trainable import LoRAConfig, Trainable
from limner.util.images import images_from_pixels, sheet
from limner.util.rng import mix

LATENTS, NOISE, TIME, DROPPED = range(4)  # what chance is drawn for, each from numbers of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class DPOConfig:
    """Which model, which pairs. In brackets what diffusers' example calls it."""

    model: str  # "mini", a folder, a file or a hub id (pretrained_model_name_or_path)
    data: PairsConfig
    beta: float = 5000.0  # how dearly it holds to what it was; errors are means over a picture (beta_dpo)
    drop_caption: float = 0.0  # share of pairs that are told nothing (proportion_empty_prompts)
    prompts: tuple[str, ...] = ()  # of the sheets; (): captions of the data (validation_prompts)
    sheet_steps: int = 20  # of the sampler

    def __post_init__(self) -> None:
        if self.beta <= 0 or not 0 <= self.drop_caption <= 1:
            raise ValueError(
                f"beta is above 0 and drop_caption a share from 0 to 1, got {self.beta} "
                f"and {self.drop_caption}"
            )


class Batch(NamedTuple):
    """One step's pairs; the first half are winners, the second the losers in the same order."""

    x0: Float[Tensor, "b2 c h w"]
    noise: Float[Tensor, "b2 c h w"]  # the same for both of a pair
    t: Float[Tensor, " b2"]
    said: Said


class DPO:
    """The objective. It writes what it learns itself (`Writing`)."""

    def __init__(self, config: DPOConfig, device: torch.device, trained: Trainable = None) -> None:
        """Raises ConfigError for what does not go together."""
        self.config, self.trained, self.device = config, trained, device
        self.learner = learners.load(config.model, device)
        if config.data.size % self.learner.multiple:
            raise ConfigError(
                f"data.size is a multiple of {self.learner.multiple} for this model, got {config.data.size}"
            )
        trainable.prepare(self.learner, trained)
        self.frozen = Frozen(self.learner, trained)
        self.model = self.learner.networks
        self.pairs = Pairs(config.data)
        self.met: list[str] = []

    @torch.no_grad()
    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """`count` pairs: twice as many pictures."""
        paired = self.pairs.batch(count, index, seed)
        self.met += [f"{key}: {why}" for key, why in paired.broken]
        pixels = torch.cat([paired.winners, paired.losers]).to(self.device)
        x0 = self.learner.latents(pixels, _chance(seed, LATENTS)).float()
        noise = torch.randn(x0[:count].shape, generator=_chance(seed, NOISE))
        t = self.times(count, _chance(seed, TIME))
        dropped = torch.rand(count, generator=_chance(seed, DROPPED)) < self.config.drop_caption
        captions = ["" if drop else c for c, drop in zip(paired.captions, dropped.tolist(), strict=True)]
        side = self.config.data.size
        said = self.learner.say([*captions, *captions], target=(side, side))
        return Batch(x0, torch.cat([noise, noise]).to(x0), torch.cat([t, t]).to(x0.device), said)

    def times(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        """t of the path: uniform; on straight paths shifted as the model is."""
        path, side = self.learner.path, self.config.data.size
        if isinstance(path, VPPath):
            return torch.randint(path.steps, (count,), generator=generator).float()
        t = shift(losses.uniform(count, generator), self.learner.shift((side, side)))
        return t.clamp(min=path.end)

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The loss; and told only, without a gradient, in which share of the pairs the model has come nearer
        to the winner than to the loser."""
        ours = self._errors(batch)
        with self.frozen.in_place():
            theirs = self._errors(batch)
        (winner, loser), (winner_ref, loser_ref) = ours.chunk(2), theirs.chunk(2)
        nearer = (winner - winner_ref < loser - loser_ref).float().mean()
        parts = {"preference": preference(winner, loser, winner_ref, loser_ref, self.config.beta)}
        return parts | {"prefers": nearer.detach()}

    def _errors(self, batch: Batch) -> Float[Tensor, " b2"]:
        """The mean squared error of each picture's prediction."""
        path, kind = self.learner.path, cast(Prediction, self.learner.prediction)
        alpha, sigma = path.alpha(batch.t), path.sigma(batch.t)
        x_t = losses.noised(batch.x0, batch.noise, alpha, sigma)
        wanted = losses.target(kind, batch.x0, batch.noise, alpha, sigma)
        return losses.squared_error(self.learner.predict(x_t, batch.t, batch.said), wanted)

    def blocks(self) -> list[nn.Module]:
        return self.learner.blocks()

    def broken(self) -> list[str]:
        met, self.met = list(dict.fromkeys(self.met)), []
        return met

    def published(self) -> set[str]:
        """Everything that is trained."""
        return {name for name, p in self.model.named_parameters() if p.requires_grad}

    def header(self) -> dict[str, str]:
        """The model, and what was trained of it."""
        said = {"model": Path(self.config.model).name, "prediction": self.learner.prediction}
        if isinstance(self.trained, LoRAConfig):
            said["trained"] = json.dumps({"LoRAConfig": asdict(self.trained)}, sort_keys=True)
        return said

    def write(self, folder: Path, averaged: Mapping[str, Tensor], header: Mapping[str, str]) -> list[Path]:
        """As `Writing` has it; what is written is told in `trainable.write`."""
        return trainable.write(self.learner, self.trained, folder, averaged, header)

    def draw(self, model: Any) -> Image.Image:
        """A sheet of pictures by the family's own plan: above as the model was, below as it is."""
        prompts = list(self.config.prompts) or self.pairs.batch(4, 0, 0).captions
        seeds, size = list(range(len(prompts))), (self.config.data.size,) * 2
        with self.frozen.in_place():
            before = self.learner.sample(prompts, seeds, steps=self.config.sheet_steps, size=size)
        after = self.learner.sample(prompts, seeds, steps=self.config.sheet_steps, size=size)
        return sheet(images_from_pixels(torch.cat([before, after])), columns=len(prompts))


def preference(
    winner: Float[Tensor, " b"],
    loser: Float[Tensor, " b"],
    winner_ref: Float[Tensor, " b"],
    loser_ref: Float[Tensor, " b"],
    beta: float,
) -> Float[Tensor, ""]:
    """Equation 14 of the paper from squared errors, the mean over the pairs; log 2 where nothing was
    learned."""
    inside = -beta / 2 * ((winner - winner_ref) - (loser - loser_ref))
    return -F.logsigmoid(inside).mean()


def _chance(seed: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(seed, 3, use) % 2**63)
