"""Objective: an upscaler for pictures that the world has made bad (Real-ESRGAN, Wang et al. 2021).

    first   absolute error alone                                        (the paper's Real-ESRNet)
    then    absolute error + perceptual + adversarial, a U-Net judging   (Real-ESRGAN)

Small pictures are made from large ones by `data/degrade.py`. How two players fit into one loop is told in
`train/players.py`. What comes of a run is a file as the published ones are, which `limner upscale --model`
reads.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from limner.data.degrade import DegradeConfig, degrade, sharpened
from limner.data.loader import LoaderConfig
from limner.errors import ConfigError
from limner.models.discriminator import UNetDiscriminator, UNetDiscriminatorConfig
from limner.models.gan_upscaler import Compact, CompactConfig, DenseBlock, RRDBNet, RRDBNetConfig
from limner.train import perceptual
from limner.train.learners.base import Networks
from limner.train.pictures import Pictures
from limner.train.players import crossed, judged
from limner.util.images import images_from_pixels, sheet
from limner.util.rng import mix
from limner.weights import files, standalone
from limner.weights.keymap import to_theirs
from limner.weights.maps import gan_upscaler as names

WRITTEN = "upscaler.safetensors"
SMALL = 0.1  # of a layer of a dense block at first, beside He's initialisation (ESRGAN, section 3.1)


@dataclass(frozen=True, kw_only=True, slots=True)
class GANUpscalerConfig:
    """Which pictures, made bad how, and who redraws them. In brackets what Real-ESRGAN's code calls it."""

    data: LoaderConfig
    crop: int = 256  # side of the squares that are cut out and learned, in pixels (gt_size)
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    rrdb: RRDBNetConfig | None = None  # shape of the upscaler; neither: Real-ESRGAN's x4plus
    compact: CompactConfig | None = None  # or of this kind
    start: str = ""  # a published upscaler to go on from; its shape is taken
    sharpen: bool = True  # what is to be drawn; the discriminator sees real pictures as they are (l1_gt_usm)
    features: str = ""  # VGG19 or VGG16 in safetensors, or an own detector for rewards; empty: not compared
    pixel_weight: float = 1.0  # of the absolute error of pixels from 0 to 1
    perceptual_weight: float = 1.0
    adversarial_weight: float = 0.1
    adversarial_start: int = 0  # pictures that are learned by the absolute error alone
    discriminator: UNetDiscriminatorConfig = field(default_factory=UNetDiscriminatorConfig)

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.rrdb, self.compact)) + bool(self.start) > 1:
            raise ValueError("an upscaler is one of rrdb, compact and start: give one of them")
        for name in ("pixel_weight", "perceptual_weight", "adversarial_weight", "adversarial_start"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0, got {getattr(self, name)}")
        if self.crop % 8 or not 0 < self.crop <= self.data.size:
            raise ValueError(
                f"crop is a multiple of 8 and at most data.size = {self.data.size}, got {self.crop}"
            )


class Batch(NamedTuple):
    """One step's pictures."""

    small: Float[Tensor, "b 3 h w"]  # [-1, 1], as the others
    real: Float[Tensor, "b 3 H W"]
    wanted: Float[Tensor, "b 3 H W"]  # real, perhaps sharpened
    adversarial: bool  # whether all losses count, or the absolute error alone


class GANUpscaler:
    """The objective. It writes what it learns itself (`Writing`)."""

    def __init__(self, config: GANUpscalerConfig, device: torch.device) -> None:
        """Raises ConfigError for sizes that do not go together, WeightsError for files that do not fit."""
        self.config, self.device = config, device
        upscaler = _begun(config)
        if config.crop % upscaler.config.factor:
            raise ConfigError(
                f"crop is a multiple of {upscaler.config.factor}, by which this upscaler enlarges, got "
                f"{config.crop}"
            )
        self.pictures = Pictures(config.data, device, 1)
        if (shortest := self.pictures.shortest) < config.crop:
            raise ConfigError(
                f"crop is at most the shortest side of the buckets of {config.data.folder}, {shortest}, got "
                f"{config.crop}: lower it, raise data.bucket_min, or set data.buckets to false"
            )
        networks: dict[str, nn.Module] = {"upscaler": upscaler}
        if config.adversarial_weight:
            networks["discriminator"] = UNetDiscriminator(config.discriminator)
        self.model = Networks(networks).to(device)
        self.features = perceptual.load(config.features, device) if config.features else None

    @property
    def upscaler(self) -> RRDBNet | Compact:
        """The player that is published."""
        network = self.model["upscaler"]
        assert isinstance(network, RRDBNet | Compact)
        return network

    @torch.no_grad()
    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Pictures in order; where they are cut and how they are made bad follows from `seed`."""
        pixels, _ = self.pictures.batch(count, seed, index)
        chance, side = Random(mix(seed, 1)), self.config.crop
        corners = [[chance.randint(0, whole - side) for whole in pixels.shape[2:]] for _ in pixels]
        real = torch.stack(
            [
                each[:, top : top + side, left : left + side]
                for each, (top, left) in zip(pixels, corners, strict=True)
            ]
        )
        small = degrade(real, self.upscaler.config.factor, mix(seed, 2), self.config.degrade)
        wanted = sharpened(real) if self.config.sharpen else real
        return Batch(small.to(self.device), real, wanted, index * count >= self.config.adversarial_start)

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The losses of the stage that the run is in (section 4.1)."""
        config, drawn = self.config, self.upscaler(batch.small)
        # pixels run from -1 to 1 here; the weights are those of pixels from 0 to 1
        parts = {"pixels": config.pixel_weight * (drawn - batch.wanted).abs().mean() / 2}
        if not batch.adversarial:
            return parts
        if self.features is not None:
            found = perceptual.apart(self.features, drawn, batch.wanted)
            parts["perceptual"] = config.perceptual_weight * found
        if "discriminator" in self.model:
            discriminator = self.model["discriminator"]
            fooled = F.softplus(-judged(discriminator, drawn)).mean()
            parts["adversarial"] = config.adversarial_weight * fooled
            parts["discriminator"] = crossed(discriminator(batch.real), discriminator(drawn.detach()))
        return parts

    def broken(self) -> list[str]:
        return self.pictures.broken()

    def published(self) -> set[str]:
        """The upscaler; the discriminator stays in checkpoints."""
        return {name for name, _ in self.model.named_parameters() if name.startswith("upscaler.")}

    def header(self) -> dict[str, str]:
        """Network shape."""
        shape = self.upscaler.config
        return {"network": json.dumps({type(self.upscaler).__name__: asdict(shape)})}

    def write(self, folder: Path, averaged: Mapping[str, Tensor], header: Mapping[str, str]) -> list[Path]:
        """upscaler.safetensors under Real-ESRGAN's names, in float32."""
        start, shape = "upscaler.", self.upscaler.config
        tensors = {n.removeprefix(start): p.detach() for n, p in averaged.items() if n.startswith(start)}
        keys = names.compact(shape) if isinstance(shape, CompactConfig) else names.realesrgan(shape)
        files.save(to_theirs(keys, tensors), folder / WRITTEN, header)
        return [folder / WRITTEN]

    @torch.no_grad()
    def draw(self, model: Any) -> Image.Image:
        """In three rows: what is given, its pixels large; what is drawn; what was there."""
        batch = self.batch(4, 0, 0)
        given = F.interpolate(batch.small, batch.real.shape[2:], mode="nearest")
        rows = [given, self.upscaler(batch.small).clamp(-1, 1).float(), batch.real]
        return sheet(images_from_pixels(torch.cat(rows)), columns=4)


def _begun(config: GANUpscalerConfig) -> RRDBNet | Compact:
    if config.start:
        found = standalone.identify_network(Path(config.start).expanduser())
        network = found.load(dtype=torch.float32)
        if not isinstance(network, RRDBNet | Compact):
            raise ConfigError(f"{config.start} is {found.title}, and no upscaler to go on from")
        tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(
            tensors, assign=True
        )  # what was read is mapped from its file; training writes
        return network.train().requires_grad_(True)
    if config.compact is not None:
        return Compact(config.compact)
    fresh = RRDBNet(config.rrdb or RRDBNetConfig())
    for block in fresh.modules():
        if isinstance(block, DenseBlock):
            for layer in block.layers:
                assert isinstance(layer, nn.Conv2d)
                nn.init.kaiming_normal_(layer.weight)
                layer.weight.data.mul_(SMALL)
                nn.init.zeros_(layer.get_parameter("bias"))
    return fresh
