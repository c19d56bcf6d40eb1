"""Stable Diffusion 2.1 unCLIP: latents by a U-Net that is told what CLIP sees in a picture.

a picture, or a text through a prior -> embedding -> worn by some noise -> Stable Diffusion
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from limner.diffusion.paths import VPPath
from limner.diffusion.predictions import Denoise
from limner.families.base import Defaults, Order, Plan
from limner.families.embedder import Embedder, Embedding, at_ends
from limner.families.stages import DiffusionStage, Stage, Tag
from limner.families.told import ToldStage
from limner.models.unclip_prior import Normaliser
from limner.nn.embeddings import timestep_embedding
from limner.util.rng import NoiseSource

if TYPE_CHECKING:
    from limner.families.sd import StableDiffusion


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
        told = torch.empty(1, 0, device=self.sd.device)  # what the U-Net is told, by whoever asks it next
        planned = replace(self.sd, picture=told).plan(inner)
        level = round(order.vary_noise * (self.noising.steps - 1))

        def lay(x: Tensor, noise: NoiseSource) -> tuple[Stage, ...]:
            own = self._told(wanted.embedding(x), level, noise)
            return tuple(
                replace(stage, denoise=partial(asked, stage.denoise, own))
                if isinstance(stage, DiffusionStage)
                else stage
                for stage in planned.stages
            )

        def asked(denoise: Denoise, own: Tensor, x: Tensor, t: Tensor) -> Tensor:
            told.data = own  # pictures take turns
            return denoise(x, t)

        stage = ToldStage(
            lay=lay,
            given=wanted.given,
            device=self.sd.device,
            steps=sum(stage.steps for stage in planned.stages),
            name="diffusion",
            preview=self.sd.preview,
        )
        heard = () if wanted.words is None else wanted.words.warnings
        return replace(
            planned,
            stages=(*self.embedder.stages(wanted), stage),
            warnings=(*planned.warnings, *heard),
        )

    def _told(self, pictures: Embedding, level: int, noise: NoiseSource) -> Float[Tensor, "b p"]:
        """Embeddings noised at `level`, and beside them that level as waves."""
        at = torch.tensor([float(level)], dtype=torch.float64)
        alpha, sigma = float(self.noising.alpha(at)), float(self.noising.sigma(at))
        fresh = noise.step(0, (pictures.shape[1],), Tag.EMBEDDING_WORN).to(pictures)
        worn = self.normaliser.unscaled(alpha * self.normaliser(pictures) + sigma * fresh)
        waves = timestep_embedding(at.to(pictures), pictures.shape[1])
        return torch.cat([worn, waves.expand_as(worn)], 1)
