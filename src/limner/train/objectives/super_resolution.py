"""Objective: a later stage of a cascade, pixels from a smaller picture (Imagen, Saharia et al. 2022, 2.4).

The small picture is enlarged and laid beside the noised large one. It is noised itself, by a random amount
that the network is told (noise conditioning augmentation, Ho et al. 2021), so that it learns to mend what an
earlier stage got wrong, and how far to trust it. Networks are those of DeepFloyd IF's second stage: they
predict the noise and, in as many channels behind it, how wide that of a step is. What comes of a run is a
folder which `limner imagine --model FIRST --then FOLDER` takes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from limner.data.loader import LoaderConfig
from limner.diffusion import grids, guidance, losses, predictions, samplers
from limner.diffusion.paths import VPPath
from limner.errors import ConfigError, WeightsError
from limner.models.pixel_unet import IF_I_L, Attention, PixelUNet, PixelUNetConfig, Residual
from limner.models.t5 import T5Config, T5Encoder
from limner.text.t5_tokenizer import T5Tokenizer
from limner.train.learners.base import Networks, beside, swap
from limner.train.pictures import Pictures
from limner.util.images import images_from_pixels, sheet
from limner.util.rng import NoiseSource, mix
from limner.weights import described, files, folders
from limner.weights.keymap import to_ours
from limner.weights.maps.t5 import transformers_t5
from limner.weights.parts_cascade import stage

FACTOR, LENGTH = 4, 77  # how many times larger than the small picture, and tokens of a text: as IF has them
STEPS, WORN = 16, 100  # of the sheets: steps, and how noisy the small picture is made
NOISE, TIME, LEVEL, GRAIN = range(4)  # what chance is drawn for, each from numbers of its own
SECOND = replace(IF_I_L, inputs=6, level=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuperResolutionConfig:
    """Which pictures, and which network redraws them four times larger."""

    data: LoaderConfig  # its size is that of the large pictures
    text: str  # a folder with T5 as `text_encoder` and `tokenizer`, such as one of IF's stages; frozen
    model: PixelUNetConfig = field(default_factory=lambda: SECOND)  # `text` of it is T5's width
    most: int = 1000  # how noisy the small picture is made, of 1000 levels; uniform below it
    variance_weight: float = (
        0.001  # of the bound that teaches how wide noise is (Nichol & Dhariwal 2021, eq. 16)
    )

    def __post_init__(self) -> None:
        if not 1 <= self.most <= 1000 or self.variance_weight < 0:
            raise ValueError(
                f"most is from 1 to 1000 and variance_weight at least 0, got {self.most} and "
                f"{self.variance_weight}"
            )
        if (
            self.model.inputs != 6
            or self.model.outputs != 6
            or not self.model.level
            or not self.model.context
        ):
            raise ValueError(
                "model: a second stage has 6 inputs and outputs, a level and a context, as IF's has"
            )


class Batch(NamedTuple):
    """One step's pictures, with everything random about the step already drawn."""

    x0: Float[Tensor, "b 3 h w"]  # [-1, 1]
    noise: Float[Tensor, "b 3 h w"]
    t: Float[Tensor, " b"]  # 0 ... 999
    worn: Float[Tensor, "b 3 h w"]  # the small picture, enlarged and noised
    level: Float[Tensor, " b"]  # how much, 0 ... 999
    context: Float[Tensor, "b n d"]


class SuperResolution:
    """The objective. It writes what it learns itself (`Writing`)."""

    def __init__(self, config: SuperResolutionConfig, device: torch.device) -> None:
        """Raises ConfigError for sizes that do not go together, WeightsError where there is no T5."""
        self.config, self.device = config, device
        folder = Path(config.text).expanduser()
        self.encoder, self.told = _reader(folder, device)
        if (config.model.text or config.model.context) != self.told.width:
            raise ConfigError(
                f"model.text is the width of the T5 in {folder}, {self.told.width}, got {config.model.text}"
            )
        self.tokenizer = T5Tokenizer.read(folder / "tokenizer")
        self.pictures = Pictures(config.data, device, math.lcm(FACTOR, config.model.factor))
        self.path = VPPath.cosine(steps=1000)
        self.model = Networks({"unet": begun(config.model)}).to(device)

    @property
    def unet(self) -> PixelUNet:
        """The network that is trained."""
        network = self.model["unet"]
        assert isinstance(network, PixelUNet)
        return network

    @torch.no_grad()
    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Pictures in order; everything else from `seed`."""
        x0, loaded = self.pictures.batch(count, seed, index)
        t = torch.randint(self.path.steps, (count,), generator=_chance(seed, TIME)).float()
        level = torch.randint(self.config.most, (count,), generator=_chance(seed, LEVEL)).float()
        noise, grain = (torch.randn(x0.shape, generator=_chance(seed, use)).to(x0) for use in (NOISE, GRAIN))
        level = level.to(x0.device)
        worn = losses.noised(enlarged(x0), grain, self.path.alpha(level), self.path.sigma(level))
        return Batch(x0, noise, t.to(x0.device), worn, level, self.say(loaded.captions))

    def say(self, captions: list[str]) -> Float[Tensor, "b n d"]:
        """Captions through T5, small, as IF was taught."""
        ids, masks = zip(*(self.tokenizer.encode(c.lower(), LENGTH)[:2] for c in captions), strict=True)
        told = (torch.tensor(rows, device=self.device) for rows in (ids, masks))
        context: Tensor = self.encoder(*told)
        return context

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The squared error of the noise, and the bound by which the width of noise is learned."""
        alpha, sigma = self.path.alpha(batch.t), self.path.sigma(batch.t)
        x_t = losses.noised(batch.x0, batch.noise, alpha, sigma)
        text = self.unet.read(batch.context)
        said = self.unet(torch.cat([x_t, batch.worn], 1), batch.t, text, level=batch.level)
        eps, share = said.float().chunk(2, 1)
        parts = {"eps": losses.squared_error(eps, batch.noise).mean()}
        if self.config.variance_weight:
            bound = variance_bound(self.path, batch.t, batch.noise - eps.detach(), (share + 1) / 2)
            parts["variance"] = self.config.variance_weight * self.path.steps * bound.mean()
        return parts

    def broken(self) -> list[str]:
        return self.pictures.broken()

    def published(self) -> set[str]:
        """All parameters."""
        return {name for name, _ in self.model.named_parameters()}

    def header(self) -> dict[str, str]:
        """Network shape."""
        return {"network": json.dumps({"PixelUNet": asdict(self.config.model)})}

    def write(self, folder: Path, averaged: Mapping[str, Tensor], header: Mapping[str, str]) -> list[Path]:
        """`model`, a second stage of IF without a T5 of its own, in float32."""
        model = stage("own", self.config.model, self.told)
        unet = {name.removeprefix("unet."): p.detach() for name, p in averaged.items()}
        target = beside(folder / "model")
        folders.write(target, model, {"unet": unet})
        return [swap(target, folder / "model")]

    @torch.no_grad()
    def draw(self, model: Any) -> Image.Image:
        """In three rows: what is given, what is drawn in a few steps, what was there."""
        batch = self.batch(4, 0, 0)
        level = torch.full_like(batch.level, WORN)
        given = enlarged(batch.x0)
        worn = losses.noised(given, batch.noise, self.path.alpha(level), self.path.sigma(level))
        text = self.unet.read(batch.context)

        def network(x: Tensor, t: Tensor) -> Tensor:
            said: Tensor = self.unet(torch.cat([x, worn], 1), t, text, level=level)
            return said[:, :3].float()

        denoise = guidance.static_threshold(predictions.eps(network, self.path))
        noise, shape = NoiseSource(list(range(4))), tuple(batch.x0.shape[1:])
        start = noise.initial(shape).to(self.device)
        grid = grids.leading(self.path, STEPS)
        *_, last = samplers.SAMPLERS["ddim"](denoise, start, grid, noise=noise.draws(shape))
        rows = [given.clamp(-1, 1), last.x.clamp(-1, 1).float(), batch.x0]
        return sheet(images_from_pixels(torch.cat(rows)), columns=4)


def enlarged(x0: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Made four times smaller, and as large again in the way that the cascade does it."""
    size = (x0.shape[2], x0.shape[3])
    small = F.interpolate(x0, (size[0] // FACTOR, size[1] // FACTOR), mode="area")
    return F.interpolate(small, size, mode="bilinear", align_corners=True)


def variance_bound(
    path: VPPath,
    t: Float[Tensor, " b"],
    error: Float[Tensor, "b c h w"],  # of the predicted noise, without a gradient
    share: Float[Tensor, "b c h w"],  # from 0, the posterior's deviation, to 1, that of the path's own noise
) -> Float[Tensor, " b"]:
    """KL in bits, a mean over the numbers of a picture, from the true step t -> t - 1 to the predicted one,
    whose variance is between the two in logarithms (Nichol & Dhariwal 2021, equations 4 and 15). 0 at t = 0,
    where there is no step left but the last."""
    now, then = (path.alpha(at).double() ** 2 for at in (t, (t - 1).clamp(min=0)))
    beta = (1 - now / then).clamp(min=1e-12)  # of the path's step
    posterior = (beta * (1 - then) / (1 - now)).clamp(min=1e-20)
    low, high = (losses.along(v.log().float(), share) for v in (posterior, beta))
    log_variance = low + share * (high - low)
    # the mean is off as the noise is: (x_t - beta / sqrt(1 - abar) eps) / sqrt(alpha) (DDPM eq. 11)
    off = losses.along((beta / ((1 - now).sqrt() * (1 - beta).sqrt())).float(), share) * error
    nats = (log_variance - low + (low - log_variance).exp() + off.square() * (-log_variance).exp() - 1) / 2
    return torch.where(t > 0, nats.flatten(1).mean(1) / math.log(2), 0.0)


def begun(config: PixelUNetConfig) -> PixelUNet:
    """A new network, whose blocks change nothing and which predicts nothing at first (Dhariwal & Nichol
    2021)."""
    network = PixelUNet(config)
    silent = [network.last]
    for module in network.modules():
        if isinstance(module, Residual):
            silent.append(module.conv2)
        elif isinstance(module, Attention):
            torch.nn.init.zeros_(module.out.weight)
            torch.nn.init.zeros_(module.out.bias)
    for layer in silent:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.get_parameter("bias"))
    return network


def _reader(folder: Path, device: torch.device) -> tuple[T5Encoder, T5Config]:
    """The T5 in `folder`, frozen, and its shape. Raises WeightsError where there is none."""
    where = folder / "text_encoder"
    said = files.read_json(where / "config.json")
    try:
        config = described.t5(said)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{where / 'config.json'} is none of a T5 that Limner knows: {error}") from None
    tensors, _ = folders.read_part(where)
    ours = to_ours(transformers_t5(config), tensors, where)
    encoder = files.fill(lambda: T5Encoder(config), ours, where, device=device, dtype=torch.float32)
    return encoder, config


def _chance(seed: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(seed, 5, use) % 2**63)
