"""Objective: pictures of the drawn world as codes, and back. The first of the runs that make a DALL-E."""

import json
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from limner.data.world import source
from limner.data.world.scene import World, WorldConfig
from limner.models.vqvae import VQVAE, VQVAEConfig
from limner.nn.quantize import perplexity
from limner.util.images import images_from_pixels, sheet


@dataclass(frozen=True, kw_only=True, slots=True)
class VQVAEObjectiveConfig:
    """What is encoded, by which network, and how its codes are learned."""

    data: source.DrawnConfig = field(default_factory=source.DrawnConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    edge_weight: float = 0.1  # cost of wrong differences between neighbours
    coarse_only: float = 0.1  # share of pictures drawn without their fine codes, so that coarse ones suffice
    commitment: float = 0.25  # cost of features far from their codes (beta of VQ-VAE)
    decay: float = 0.99  # of the codes' running means, per step
    least: float = 0.03  # share of a fair share of the features below which a code is put elsewhere

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1 or not 0 <= self.least < 0.25:
            raise ValueError(
                f"decay is between 0 and 1, least from 0 to 0.25; got {self.decay} and {self.least}"
            )


class Batch(NamedTuple):
    """One step's pictures, and where dead codes would go."""

    x0: Float[Tensor, "b 3 h w"]  # pixels [-1, 1]
    revive_coarse: Float[Tensor, " k"]  # in [0, 1)
    revive_fine: Float[Tensor, " k"]
    coarse_only: Bool[Tensor, " b"]  # which pictures to draw without their fine codes


class VQVAEObjective:
    """The objective: give back pictures through two grids of codes."""

    def __init__(self, config: VQVAEObjectiveConfig, device: torch.device) -> None:
        atlas, _ = source.load(config.data)
        self.config = config
        self.world = World(atlas, config.world, device=device)
        self.model = VQVAE(config.model).to(device)

    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Compose `count` scenes. Everything comes from `seed`, so a step can be repeated exactly."""
        generator = torch.Generator().manual_seed(seed)
        x0, _ = self.world.render(self.world.sample(count, generator), self.config.model.size)
        model = self.config.model
        coarse, fine = (torch.rand(n, generator=generator) for n in (model.coarse_codes, model.fine_codes))
        alone = torch.rand(count, generator=generator) < self.config.coarse_only
        return Batch(x0, *(draw.to(x0.device) for draw in (coarse, fine, alone)))

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Squared error of pixels, absolute error of differences between neighbours, and commitment.

        In training, the codes move. `coarse perplexity` and `fine perplexity` are told only: how many codes
        are as good as in use; they carry no gradient.
        """
        coarse, fine, z, z_fine = self.model.quantize(batch.x0)
        unknown = self.model.fine.look_up(torch.full_like(fine.tokens, -1))
        q = torch.where(batch.coarse_only[:, None, None, None], unknown, fine.q)
        error = self.model.draw(coarse.q, q) - batch.x0
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        if self.model.training:
            levels = (
                (self.model.coarse, z, coarse.tokens, batch.revive_coarse),
                (self.model.fine, z_fine, fine.tokens, batch.revive_fine),
            )
            for quantizer, features, tokens, revive in levels:
                quantizer.learn(features, tokens, revive, decay=self.config.decay, least=self.config.least)
        return {
            "pixels": error.square().mean(),
            "edges": self.config.edge_weight * edges,
            "commitment": self.config.commitment * (coarse.commitment + fine.commitment),
            "coarse perplexity": perplexity(coarse.tokens, self.config.model.coarse_codes),
            "fine perplexity": perplexity(fine.tokens, self.config.model.fine_codes),
        }

    def published(self) -> set[str]:
        """All parameters, the codes and their use among them."""
        return {name for name, _ in self.model.named_parameters()}

    def header(self) -> dict[str, str]:
        """Network shape, and the art it learned from."""
        return {
            "network": json.dumps({"VQVAE": asdict(self.config.model)}),
            "sources": json.dumps(self.world.atlas.sources),
        }

    @torch.no_grad()
    def draw(self, model: VQVAE) -> Image.Image:
        """Held-out scenes: a row of pictures, a row of what their coarse codes alone say, a row of both."""
        x0 = held_out(self.world, self.config.model.size, 12)
        coarse, fine = model.encode(x0)
        rows = [x0, model.decode(coarse, torch.full_like(fine, -1)), model.decode(coarse, fine)]
        return sheet(images_from_pixels(torch.cat(rows).clamp(-1, 1)), columns=12)


def held_out(world: World, size: int, count: int) -> Float[Tensor, "b 3 size size"]:
    """Pictures of scenes of which none is ever trained on."""
    scenes = world.sample(count, torch.Generator().manual_seed(0), unseen=True)
    return world.render(scenes, size)[0]


@torch.no_grad()
def measure(model: VQVAE, pixels: Float[Tensor, "b 3 s s"]) -> dict[str, float]:
    """How well pictures are given back: mean PSNR in dB of 8-bit range, and the share of codes in use."""
    coarse, fine = model.encode(pixels)
    error = (model.decode(coarse, fine).clamp(-1, 1) - pixels).div(2).square().flatten(1).mean(1)
    return {
        "psnr": float((-10 * error.clamp_min(1e-10).log10()).mean()),
        "coarse use": len(coarse.unique()) / model.config.coarse_codes,
        "fine use": len(fine.unique()) / model.config.fine_codes,
        "coarse perplexity": float(perplexity(coarse, model.config.coarse_codes)),
        "fine perplexity": float(perplexity(fine, model.config.fine_codes)),
    }
