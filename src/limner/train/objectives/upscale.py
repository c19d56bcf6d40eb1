"""Objective: redraw a small picture larger. The world draws each scene at both sizes, so pairs are exact."""

import json
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from limner.data.world import source
from limner.data.world.scene import World, WorldConfig
from limner.models.upscaler import Upscaler, UpscalerConfig, prepared
from limner.util.images import images_from_pixels, sheet


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscaleConfig:
    """What is enlarged, how the input is worn, and what errors cost."""

    data: source.DrawnConfig = field(default_factory=source.DrawnConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    model: UpscalerConfig = field(default_factory=UpscalerConfig)
    size: int = 96  # side of the small pictures in pixels
    large: int = 512  # side of the large ones; a multiple of the network's factor
    crop: int = 256  # side of the part of the large ones that a step looks at; a multiple of the factor
    noise: float = 0.15  # standard deviation of the noise on the input, at most (pixels are in [-1, 1])
    blur: float = 0.9  # standard deviation of the blur on the input, in small pixels, at most
    edge_weight: float = 0.3  # cost of wrong differences between neighbours, relative to wrong pixels

    def __post_init__(self) -> None:
        factor = self.model.factor
        if self.large % factor or self.crop % factor or not 0 < self.crop <= self.large:
            raise ValueError(
                f"large and crop are multiples of the factor {factor}, and the crop lies within; got "
                f"{self.large} and {self.crop}"
            )


class Batch(NamedTuple):
    """One step's pairs."""

    small: Float[Tensor, "b 3 h w"]
    noise: Float[Tensor, " b"]  # standard deviation of what was added to `small`
    large: Float[Tensor, "b 3 H W"]


class Upscale:
    """The objective: pairs of crops, the small one worn as a diffusion model would wear it."""

    def __init__(self, config: UpscaleConfig, device: torch.device) -> None:
        atlas, _ = source.load(config.data, sizes=(16, 32, 64, 128, 256))
        self.config = config
        self.world = World(atlas, config.world, device=device)
        self.model = Upscaler(config.model).to(device)

    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        config, factor = self.config, self.config.model.factor
        generator = torch.Generator().manual_seed(seed)
        scenes = self.world.sample(count, generator)
        small, _ = self.world.render(scenes, config.size)
        large, _ = self.world.render(scenes, config.large)
        draws = torch.rand(2, count, generator=generator).to(small.device)
        noise = config.noise * draws[0].square()  # small noise is what inference uses, so it is seen most
        grain = torch.randn(small.shape, generator=generator).to(small.device)
        small = blur(small, config.blur * draws[1]) + noise[:, None, None, None] * grain
        small = prepared(small, config.large // factor)
        crop = config.crop // factor
        y, x = torch.randint(small.shape[-1] - crop + 1, (2,), generator=generator).tolist()
        small = small[:, :, y : y + crop, x : x + crop]
        large = large[:, :, y * factor : (y + crop) * factor, x * factor : (x + crop) * factor]
        return Batch(small=small, noise=noise, large=large)

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Charbonnier distance of pixels, and of the differences between neighbouring pixels."""
        error = self.model(batch.small, batch.noise) - batch.large
        edges = charbonnier(error.diff(dim=2)) + charbonnier(error.diff(dim=3))
        return {"pixels": charbonnier(error), "edges": self.config.edge_weight * edges}

    def published(self) -> set[str]:
        """All parameters."""
        return {name for name, _ in self.model.named_parameters()}

    def header(self) -> dict[str, str]:
        """Network shape, and the sizes of the pictures it was trained on."""
        return {
            "network": json.dumps({"Upscaler": asdict(self.config.model)}),
            "size": json.dumps(self.config.size),
            "large": json.dumps(self.config.large),
            "sources": json.dumps(self.world.atlas.sources),
        }

    @torch.no_grad()
    def draw(self, model: Upscaler) -> Image.Image:
        """Rows of plain enlargement, the network's, and the truth."""
        scenes = self.world.sample(6, torch.Generator().manual_seed(0))
        small, _ = self.world.render(scenes, self.config.size)
        large, _ = self.world.render(scenes, self.config.large)
        plain = prepared(small, self.config.large).clamp(-1, 1)
        drawn = model.enlarge(small, small.new_zeros(len(small)), self.config.large).clamp(-1, 1)
        return sheet(images_from_pixels(torch.cat([plain, drawn, large])), columns=6)


def charbonnier(error: Tensor, softness: float = 1e-3) -> Float[Tensor, ""]:
    """mean sqrt(error^2 + softness^2): an absolute error that is smooth at zero (Charbonnier et al. 1994)."""
    return (error.square() + softness**2).sqrt().mean()


def blur(pixels: Float[Tensor, "b 3 h w"], deviation: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Gaussian blur with one standard deviation per picture, in pixels, up to about 1.5."""
    offsets = torch.arange(-3, 4, device=pixels.device)
    kernel = torch.exp(-offsets.square() / (2 * deviation[:, None].clamp_min(0.05).square()))
    kernel = kernel / kernel.sum(1, keepdim=True)
    count, channels = pixels.shape[:2]
    rows = F.pad(pixels, (3, 3, 3, 3), mode="replicate").flatten(0, 1)[None]  # every channel is a group
    weight = kernel.repeat_interleave(channels, 0)[:, None, None]
    for along in (weight, weight.mT):
        rows = F.conv2d(rows, along, groups=count * channels)
    return torch.unflatten(rows[0], 0, (count, channels))
