"""Objective: the autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G).

    reconstruction (absolute error) + perceptual + KL + adversarial (patches, hinge, adaptive weight)

How two players fit into one loop is told in `train/players.py`: the discriminator is part of the model, and
one backward pass serves both. What comes of a run is the folder `vae` of a diffusers folder.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from limner.data.loader import LoaderConfig
from limner.errors import ConfigError
from limner.models.discriminator import PatchConfig, PatchDiscriminator
from limner.models.kl_vae import KLVAE, KLVAEConfig, Posterior
from limner.train import perceptual
from limner.train.learners.base import Networks, beside, swap
from limner.train.pictures import Pictures
from limner.train.players import balance, hinge, judged
from limner.util.images import images_from_pixels, sheet
from limner.util.rng import mix
from limner.weights import files, standalone
from limner.weights.keymap import to_theirs
from limner.weights.maps.kl_vae import diffusers_vae
from limner.weights.settings import vae_settings

MEASURED = 16  # pictures by which the scale of the latents is found


@dataclass(frozen=True, kw_only=True, slots=True)
class KLVAEObjectiveConfig:
    """What is encoded, by which network, and what its errors cost. In brackets what LDM's code calls it."""

    data: LoaderConfig
    model: KLVAEConfig = field(default_factory=KLVAEConfig)  # its scale_factor is measured at the end
    start: str = ""  # a published autoencoder to go on from, a file or a folder; empty: random weights
    kl_weight: float = 1e-6  # cost of a nat of KL, beside the summed error of a picture (kl_weight)
    features: str = ""  # VGG16 or VGG19 in safetensors, or an own detector for rewards; empty: not compared
    perceptual_weight: float = 1.0  # of what they find unlike (perceptual_weight)
    discriminator: PatchConfig = field(default_factory=PatchConfig)
    adversarial_weight: float = 0.5  # beside the adaptive one (disc_weight); 0: there is no discriminator
    adversarial_start: int = 600_000  # pictures after which the discriminator comes in (disc_start, which
    # counts steps: 50,001 of 12 pictures)

    def __post_init__(self) -> None:
        for name in ("kl_weight", "perceptual_weight", "adversarial_weight", "adversarial_start"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0, got {getattr(self, name)}")


class Batch(NamedTuple):
    """One step's pictures."""

    pixels: Float[Tensor, "b 3 h w"]  # [-1, 1]
    noise: Float[Tensor, "b c y x"]  # of the latents
    adversarial: bool  # whether the discriminator plays already


class KLVAEObjective:
    """The objective. It writes what it learns itself (`Writing`)."""

    def __init__(self, config: KLVAEObjectiveConfig, device: torch.device) -> None:
        """Raises ConfigError for sizes that do not go together, WeightsError for files that do not fit."""
        self.config, self.device = config, device
        autoencoder = _begun(config)
        self.shape = autoencoder.config
        self.pictures = Pictures(config.data, device, self.shape.factor)
        networks: dict[str, nn.Module] = {"autoencoder": autoencoder}
        if config.adversarial_weight:
            least = config.discriminator.least
            if (shortest := self.pictures.shortest) < least:
                raise ConfigError(
                    f"a patch discriminator of {config.discriminator.layers} layers wants pictures of "
                    f"{least} pixels at least, and the shortest side of those of {config.data.folder} is "
                    f"{shortest}: give it fewer layers, or raise data.bucket_min"
                )
            networks["discriminator"] = PatchDiscriminator(config.discriminator)
        self.model = Networks(networks).to(device)
        self.features = perceptual.load(config.features, device) if config.features else None

    @property
    def autoencoder(self) -> KLVAE:
        """The player that is published."""
        network = self.model["autoencoder"]
        assert isinstance(network, KLVAE)
        return network

    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Pictures in order; noise from `seed`, and who plays from how many pictures came before."""
        pixels, _ = self.pictures.batch(count, seed, index)
        sides = [side // self.shape.factor for side in pixels.shape[2:]]
        generator = torch.Generator().manual_seed(mix(seed, 1) % 2**63)
        noise = torch.randn(count, self.shape.latents, *sides, generator=generator)
        plays = "discriminator" in self.model and index * count >= self.config.adversarial_start
        return Batch(pixels, noise.to(self.device), plays)

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Means over the numbers of a picture. `kl` is per picture over those, so that `kl_weight` means what
        it does where both are sums."""
        config, real, vae = self.config, batch.pixels, self.autoencoder
        posterior = vae.encode(real)
        drawn = vae.decode(posterior.sample(batch.noise))
        numbers = real[0].numel()
        parts = {
            "pixels": (drawn - real).abs().mean(),
            "kl": config.kl_weight * divergence(posterior).mean() / numbers,
        }
        if self.features is not None:
            parts["perceptual"] = config.perceptual_weight * perceptual.unlike(self.features, drawn, real)
        if not batch.adversarial:
            return parts
        discriminator = self.model["discriminator"]
        fooled = -judged(discriminator, drawn).mean()
        if torch.is_grad_enabled():
            pleased = parts["pixels"] + parts.get("perceptual", 0)
            weight = balance(pleased, fooled, vae.decoder.last.weight)
            parts["adversarial"] = config.adversarial_weight * weight * fooled
        parts["discriminator"] = hinge(discriminator(real), discriminator(drawn.detach()))
        return parts

    def broken(self) -> list[str]:
        return self.pictures.broken()

    def published(self) -> set[str]:
        """The autoencoder; the discriminator stays in checkpoints."""
        return {name for name, _ in self.model.named_parameters() if name.startswith("autoencoder.")}

    def header(self) -> dict[str, str]:
        """Network shape."""
        return {"network": json.dumps({"KLVAE": asdict(self.shape)})}

    def write(self, folder: Path, averaged: Mapping[str, Tensor], header: Mapping[str, str]) -> list[Path]:
        """`vae`, a part of a diffusers folder, in float32. The scale of the latents is what makes them of
        unit deviation over a few pictures; of a network that was gone on from, it stays, for others rely on
        it."""
        start = "autoencoder."
        tensors = {n.removeprefix(start): p.detach() for n, p in averaged.items() if n.startswith(start)}
        shape = self.shape if self.config.start else replace(self.shape, scale_factor=self._scale(tensors))
        target = beside(folder / "vae")
        theirs = to_theirs(diffusers_vae(), tensors)
        files.save(theirs, target / "diffusion_pytorch_model.safetensors", {"format": "pt"} | dict(header))
        files.write_json(vae_settings(shape), target / "config.json")
        return [swap(target, folder / "vae")]

    @torch.no_grad()
    def _scale(self, tensors: Mapping[str, Tensor]) -> float:
        """1 / deviation of the raw latents (section G of the paper: "rescaled to unit standard
        deviation")."""
        held = {f"network.{name}": tensor.to(self.device) for name, tensor in tensors.items()}
        moments = functional_call(_Moments(self.autoencoder), held, (self.pictures.shown(MEASURED),))
        raw = posterior_of(moments).mean
        return float(1 / (raw - self.shape.shift).std().clamp(min=1e-6))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR in dB of what is given back, over a few pictures."""
        real = self.pictures.shown(MEASURED)
        drawn = self.autoencoder.decode(self.autoencoder.encode(real).mean).clamp(-1, 1)
        error = (drawn - real).div(2).square().flatten(1).mean(1).clamp_min(1e-10)
        return {"psnr": float((-10 * error.log10()).mean())}

    @torch.no_grad()
    def draw(self, model: Any) -> Image.Image:
        """A row of pictures, and a row of what the autoencoder gives back."""
        real = self.pictures.shown(8)
        drawn = self.autoencoder.decode(self.autoencoder.encode(real).mean)
        return sheet(images_from_pixels(torch.cat([real, drawn.clamp(-1, 1).float()])), columns=8)


class _Moments(nn.Module):
    """An autoencoder called for its moments."""

    def __init__(self, network: KLVAE) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c2 y x"]:
        return self.network.moments(pixels)


def posterior_of(moments: Float[Tensor, "b c2 y x"]) -> Posterior:
    """What `KLVAE.moments` says, as `KLVAE.encode` does."""
    mean, logvar = moments.chunk(2, 1)
    return Posterior(mean, logvar.clamp(-30, 20))


def divergence(posterior: Posterior) -> Float[Tensor, " b"]:
    """KL from the posterior of each picture to standard normals, in nats (Kingma & Welling 2014, appendix
    B)."""
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2


def _begun(config: KLVAEObjectiveConfig) -> KLVAE:
    if not config.start:
        return KLVAE(config.model)
    path = Path(config.start).expanduser()
    own = standalone.autoencoder("an autoencoder of this run's shape", config.model)
    network = standalone.identify_network(path, (own,)).load(dtype=torch.float32)
    assert isinstance(network, KLVAE)
    again = KLVAE(network.config)  # what was read is mapped from its file; training writes
    again.load_state_dict(network.state_dict())
    return again
