"""Objective: unCLIP's prior, from a text to CLIP's embedding of its picture (Ramesh et al. 2022, section
2.2).

    pixels   -> CLIP -> embedding, in deviations from the mean = x0 -> x_t
    captions -> CLIP -> context and pooled               prior(x_t, t, pooled, context) -> x0

The network predicts x0, and its squared error is what it learns by. Captions that are left out
(`data.drop_caption`) are the empty text, which those who draw guide away from. CLIP is the user's, or the
network of an own `[clip]` run over files. What comes of a run is the folder `prior` of a diffusers folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from limner.data.loader import LoaderConfig
from limner.diffusion import losses
from limner.diffusion.paths import VPPath
from limner.errors import ConfigError
from limner.models.clip import CLIP, CLIPText, CLIPVision, clip_pixels
from limner.models.unclip_prior import PriorConfig, UnCLIPPrior
from limner.train.learners.base import Networks, beside, swap
from limner.train.objectives.clip import tokens_of
from limner.train.pictures import Pictures
from limner.util.images import images_from_pixels, sheet
from limner.util.rng import mix
from limner.weights import clip, dalle, files
from limner.weights.keymap import to_theirs
from limner.weights.maps.unclip_prior import diffusers_prior
from limner.weights.settings import prior_settings

MEASURED = 256  # pictures from which mean and deviation of embeddings are found
NOISE, TIME = range(2)  # what chance is drawn for, each from numbers of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class UnCLIPPriorObjectiveConfig:
    """Whose embeddings, of which pictures, and which network foretells them."""

    data: LoaderConfig
    clip: str  # a folder with both of CLIP's towers as transformers has them, or a file of an own [clip] run
    model: PriorConfig = field(default_factory=PriorConfig)  # embedding, context and length: those of CLIP


class Batch(NamedTuple):
    """One step's embeddings, with everything random about the step already drawn."""

    x0: Float[Tensor, "b e"]  # of pictures, in deviations from the mean
    noise: Float[Tensor, "b e"]
    t: Float[Tensor, " b"]  # 0 ... 999
    pooled: Float[Tensor, "b e"]  # of texts
    context: Float[Tensor, "b n d"]  # their rows, filled up
    lengths: tuple[int, ...]  # rows that are a text's own


class UnCLIPPriorObjective:
    """The objective. It writes what it learns itself (`Writing`)."""

    def __init__(self, config: UnCLIPPriorObjectiveConfig, device: torch.device) -> None:
        """Raises ConfigError for a prior that does not fit CLIP, WeightsError where there is none."""
        self.config, self.device = config, device
        self.towers = towers(Path(config.clip).expanduser(), device)
        text, wanted = self.towers.text.config, self.towers.vision.config.projection
        shape = config.model
        if (shape.embedding, shape.context, shape.length) != (wanted, text.width, text.length):
            raise ConfigError(
                f"model: the CLIP in {config.clip} has embedding {wanted}, context {text.width} and length "
                f"{text.length}; got {shape.embedding}, {shape.context} and {shape.length}"
            )
        if text.width != wanted:
            raise ConfigError(
                f"priors hear rows as wide as embeddings, and the CLIP in {config.clip} has {text.width} and "
                f"{wanted}: in a [clip] run, give model.space the value of model.width"
            )
        self.pictures = Pictures(config.data, device, 1)
        self.path = VPPath.cosine(steps=1000)
        prior = begun(shape).to(device)
        self.model = Networks({"prior": prior})
        self._measure(prior)

    @property
    def prior(self) -> UnCLIPPrior:
        """The network that is trained."""
        network = self.model["prior"]
        assert isinstance(network, UnCLIPPrior)
        return network

    @torch.no_grad()
    def _measure(self, prior: UnCLIPPrior) -> None:
        """Mean and deviation of the embeddings, which are published and not trained."""
        count = min(MEASURED, len(self.pictures.loader))
        seen = torch.cat([self.see(self.pictures.batch(1, 0, index)[0]) for index in range(count)])
        prior.mean.copy_(seen.mean(0))
        prior.deviation.copy_(seen.std(0, correction=0).clamp(min=1e-3 * float(seen.std()) + 1e-12))
        for p in (prior.mean, prior.deviation):
            p.requires_grad_(False)

    def see(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """CLIP's embeddings of pictures."""
        return self.towers.see(pixels)

    @torch.no_grad()
    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Pictures in order; noise from `seed`."""
        pixels, loaded = self.pictures.batch(count, seed, index)
        x0 = (self.see(pixels) - self.prior.mean) / self.prior.deviation
        t = torch.randint(self.path.steps, (count,), generator=_chance(seed, TIME)).float()
        noise = torch.randn(x0.shape, generator=_chance(seed, NOISE))
        return Batch(x0, noise.to(x0), t.to(x0.device), *self.towers.say(loaded.captions))

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The squared error of x0."""
        x_t = losses.noised(batch.x0, batch.noise, self.path.alpha(batch.t), self.path.sigma(batch.t))
        said = self._predicted(x_t, batch)
        return {"embedding": (said.float() - batch.x0).square().mean()}

    def _predicted(self, x: Float[Tensor, "b e"], batch: Batch) -> Float[Tensor, "b e"]:
        """x0 of each; texts of one length at a time, for nobody may look at what they are filled up with."""
        said = torch.zeros_like(x)
        for length in sorted(set(batch.lengths)):
            rows = torch.tensor(
                [row for row, own in enumerate(batch.lengths) if own == length], device=x.device
            )
            found = self.prior(x[rows], batch.t[rows], batch.pooled[rows], batch.context[rows, :length])
            said = said.index_copy(0, rows, found.to(said.dtype))
        return said

    def broken(self) -> list[str]:
        return self.pictures.broken()

    def published(self) -> set[str]:
        """All parameters, mean and deviation among them."""
        return {name for name, _ in self.model.named_parameters()}

    def header(self) -> dict[str, str]:
        """Network shape."""
        return {"network": json.dumps({"UnCLIPPrior": asdict(self.config.model)})}

    def write(self, folder: Path, averaged: Mapping[str, Tensor], header: Mapping[str, str]) -> list[Path]:
        """`prior`, a part of a diffusers folder, in float32."""
        tensors = {name.removeprefix("prior."): p.detach() for name, p in averaged.items()}
        for name, p in (("mean", self.prior.mean), ("deviation", self.prior.deviation)):
            tensors[name] = p.detach()  # measured, and no average of what was measured
        target = beside(folder / "prior")
        theirs = to_theirs(diffusers_prior(), tensors)
        files.save(theirs, target / "diffusion_pytorch_model.safetensors", {"format": "pt"} | dict(header))
        files.write_json(prior_settings(self.config.model), target / "config.json")
        return [swap(target, folder / "prior")]

    @torch.no_grad()
    def foretell(self, batch: Batch) -> Float[Tensor, "b e"]:
        """Embeddings as CLIP gives them, from the texts of a batch alone: what is said of pure noise."""
        start = batch._replace(t=torch.full_like(batch.t, self.path.steps - 1))
        return self.prior.unscaled(self._predicted(batch.noise, start))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean cosine of a foretold embedding with that of its picture, and with those of other pictures."""
        batch = self.batch(32, 0, 0)
        fit = self._fit(batch)
        own = fit.diagonal().mean()
        others = (fit.sum() - fit.diagonal().sum()) / max(1, fit.numel() - len(fit))
        return {"cosine": float(own), "cosine of others": float(others)}

    @torch.no_grad()
    def draw(self, model: Any) -> Image.Image:
        """Pictures, each in a frame: green where the embedding foretold from its caption is nearest to it
        among 24, red where another is nearer."""
        pixels, loaded = self.pictures.batch(24, 0, 0)
        right = self._fit(self.batch(24, 0, 0)).argmax(1).tolist()
        framed = []
        for row, picture in enumerate(images_from_pixels(pixels)):
            same = loaded.keys[right[row]] == loaded.keys[row]
            edge = (0, 0, picture.width - 1, picture.height - 1)
            ImageDraw.Draw(picture).rectangle(edge, outline="lime" if same else "red", width=2)
            framed.append(picture)
        return sheet(framed, columns=8)

    def _fit(self, batch: Batch) -> Float[Tensor, "b b"]:
        """Cosines of foretold embeddings with pictures'."""
        told, real = self.foretell(batch), self.prior.unscaled(batch.x0)
        return F.normalize(told, dim=-1) @ F.normalize(real, dim=-1).mT


@dataclass(frozen=True, slots=True, eq=False)
class Towers:
    """Two towers that meet in one space."""

    text: CLIPText
    vision: CLIPVision
    prepared: bool  # pictures are CLIP's, cut and in deviations; False: pixels of the tower's size

    def see(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """Embeddings of pictures."""
        side = self.vision.config.size
        if self.prepared:
            ready = clip_pixels(pixels, side)
        else:
            ready = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
        seen: Tensor = self.vision(ready).projected
        return seen.float()

    def say(
        self, captions: Sequence[str]
    ) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b n d"], tuple[int, ...]]:
        """Embeddings of texts, their rows filled up, and how many rows are a text's own."""
        tokens: Int[Tensor, "b n"] = tokens_of(captions, self.text.config.length)
        lengths = ((tokens == self.text.config.end).int().argmax(1) + 1).tolist()
        tokens = tokens.to(self.text.position.device)
        out = self.text(self.text.embed(tokens), tokens)
        assert out.projected is not None  # both towers end in one space
        return out.projected.float(), out.context.float(), tuple(lengths)


def towers(path: Path, device: torch.device) -> Towers:
    """CLIP in a folder, or the network of an own [clip] run over files. Raises WeightsError."""
    network = clip.load(path, device) if path.is_dir() else dalle.load_contrast_of_files(path, device)
    return Towers(network.text, network.vision, isinstance(network, CLIP))


def begun(config: PriorConfig) -> UnCLIPPrior:
    """A new prior: rows that tell apart where they stand, and torch's own weights."""
    prior = UnCLIPPrior(config)
    for rows in (prior.position, prior.last):
        torch.nn.init.normal_(rows, std=0.02)
    return prior


def _chance(seed: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(seed, 6, use) % 2**63)
