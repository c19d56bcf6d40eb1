"""Stable Diffusion 2.1 unCLIP: latents by a U-Net that is told what CLIP sees in a picture.

a picture, or a text through a prior -> embedding -> worn by some noise -> Stable Diffusion
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from limner.diffusion.paths import VPPath
from limner.families.base import Defaults, Order, Plan
from limner.families.embedder import Embedder, Embedding, at_ends
from limner.families.stages import Stage
from limner.families.told import ToldStage
from limner.models.unclip_prior import Normaliser
from limner.nn.embeddings import timestep_embedding
from limner.util.rng import NoiseSource

if TYPE_CHECKING:
    from limner.families.sd import StableDiffusion

NOISING_TAG = 4  # of noise


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StableUnCLIP:
    """Stable Diffusion 2.1 with a U-Net that is told of a picture, worn by some noise, and of how much."""

    sd: "StableDiffusion"
    embedder: Embedder
    normaliser: Normaliser
    noising: VPPath  # of embeddings
    defaults: Defaults

    @property
    def fingerprint(self) -> str:
        return self.sd.fingerprint

    def plan(self, order: Order) -> Plan:
        """The stages of an order. Raises RequestError for what this model cannot do."""
        order = at_ends(order)
        wanted = self.embedder.wanted(replace(order, negative_prompt=""))  # prior and U-Net as published
        text = None if order.blend is None else order.blend if isinstance(order.blend, str) else ""
        inner = replace(order, vary=None, vary_noise=0.0, blend=text)
        planned = self.sd.plan(inner)
        level = round(order.vary_noise * (self.noising.steps - 1))

        def lay(x: Tensor, noise: NoiseSource) -> tuple[Stage, ...]:
            told = self._told(wanted.embedding(x), level, noise)
            return replace(self.sd, picture=told).plan(inner).stages

        stage = ToldStage(
            lay=lay,
            given=wanted.given,
            device=self.sd.device,
            steps=sum(stage.steps for stage in planned.stages),
            name="diffusion",
            preview=self.sd.preview,
        )
        return replace(planned, stages=(*self.embedder.stages(wanted), stage))

    def _told(self, pictures: Embedding, level: int, noise: NoiseSource) -> Float[Tensor, "b p"]:
        """Embeddings noised at `level`, and beside them that level as waves."""
        at = torch.tensor([float(level)], dtype=torch.float64)
        alpha, sigma = float(self.noising.alpha(at)), float(self.noising.sigma(at))
        fresh = noise.step(0, (pictures.shape[1],), NOISING_TAG).to(pictures)
        worn = self.normaliser.unscaled(alpha * self.normaliser(pictures) + sigma * fresh)
        waves = timestep_embedding(at.to(pictures), pictures.shape[1])
        return torch.cat([worn, waves.expand_as(worn)], 1)
