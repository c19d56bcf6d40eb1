"""Objective: bring pictures and their captions together in one space. What comes of it ranks candidates.

Pictures are those of the drawn world, in its own words, or files, whose captions are read in CLIP's tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from limner.data.loader import LoaderConfig
from limner.data.world import source
from limner.data.world.caption import CaptionConfig, Captioner
from limner.data.world.scene import World, WorldConfig
from limner.models.contrast import Contrast, ContrastConfig
from limner.text.clip_tokenizer import END, CLIPTokenizer
from limner.text.tokenizers import WordTokenizer, default_vocabulary
from limner.train.objectives.ar_prior import told_of_world
from limner.train.pictures import Pictures
from limner.util.images import images_from_pixels, sheet
from limner.weights import dalle


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPObjectiveConfig:
    """Which pictures meet their captions, and in which network."""

    data: source.DrawnConfig = field(default_factory=source.DrawnConfig)
    files: LoaderConfig | None = None  # pictures and captions on the disk, in the place of the drawn world
    loss: str = "softmax"  # softmax over the batch, or sigmoid of each pair (SigLIP)
    world: WorldConfig = field(default_factory=WorldConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    model: ContrastConfig = field(default_factory=ContrastConfig)  # vocabulary and end: from the data
    codes: str = ""  # weights of a [vqvae] run, to see pictures as they come from codes; empty: as drawn
    through: float = 0.5  # share of the pictures that go through it

    def __post_init__(self) -> None:
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f"loss is softmax or sigmoid, got {self.loss!r}")
        if self.files is not None and (
            self.codes or self.files.buckets or self.files.size != self.model.size
        ):
            raise ValueError(
                f"files: pictures are squares of model.size = {self.model.size}, seen as they are: set "
                "files.size to it, files.buckets to false, and leave out codes"
            )


class Batch(NamedTuple):
    """One step's pairs."""

    pixels: Float[Tensor, "b 3 h w"]  # [-1, 1]
    tokens: Int[Tensor, "b n"]


class CLIPObjective:
    """The objective: every picture finds its caption among those of the batch, and the other way round."""

    def __init__(self, config: CLIPObjectiveConfig, device: torch.device) -> None:
        self.config = config
        self.pictures: Pictures | None = None
        if config.files is not None:
            self.pictures = Pictures(config.files, device, config.model.patch)
            count, end = END + 1, END
        else:
            atlas, nouns = source.load(config.data)
            self.world = World(atlas, config.world, device=device)
            self.captioner = Captioner(atlas, nouns, config.caption)
            self.tokenizer = WordTokenizer(default_vocabulary(atlas.objects))
            count, end = len(self.tokenizer.vocabulary), self.tokenizer.eos
        self.vqvae = dalle.load_vqvae(Path(config.codes).expanduser(), device) if config.codes else None
        shape = replace(config.model, vocabulary=count, end=end, bias=int(config.loss == "sigmoid"))
        self.model = Contrast(shape).to(device)

    @torch.no_grad()
    def batch(self, count: int, seed: int, index: int = 0, *, unseen: bool = False) -> Batch:
        """Compose and name `count` scenes. Everything comes from `seed`; with `unseen`, all are held out. Of
        files, the next ones with their captions; none is held out."""
        if self.pictures is not None:
            pixels, loaded = self.pictures.batch(count, seed, index)
            return Batch(pixels, tokens_of(loaded.captions, self.config.model.length).to(pixels.device))
        generator = torch.Generator().manual_seed(seed)
        scenes = self.world.sample(count, generator, unseen=unseen)
        side = self.config.model.size if self.vqvae is None else self.vqvae.config.size
        pixels, _ = self.world.render(scenes, side)
        if self.vqvae is not None:
            rows = torch.rand(count, generator=generator).to(pixels.device) < self.config.through
            drawn = self.vqvae.decode(*self.vqvae.encode(pixels)).clamp(-1, 1)
            pixels = torch.where(rows[:, None, None, None], drawn, pixels)
        length = self.model.config.length
        said = [self.tokenizer.encode(words, length)[0] for _, words in self.captioner.captions(scenes, seed)]
        return Batch(pixels, torch.tensor(said, device=pixels.device))

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The contrastive loss of the batch."""
        return {"contrast": self.model.loss(batch.pixels, batch.tokens)}

    def broken(self) -> list[str]:
        return [] if self.pictures is None else self.pictures.broken()

    def published(self) -> set[str]:
        """All parameters."""
        return {name for name, _ in self.model.named_parameters()}

    def header(self) -> dict[str, str]:
        """Network shape, words and art; of files, that captions are read in CLIP's tokens."""
        shape = json.dumps({"Contrast": asdict(self.model.config)})
        if self.pictures is not None:
            own = replace(self.model.config, vocabulary=0, end=0)  # CLIP's
            return {"network": json.dumps({"Contrast": asdict(own)}), "tokens": json.dumps(dalle.CLIP_TOKENS)}
        return {"network": shape, **told_of_world(self.world, self.tokenizer)}

    @torch.no_grad()
    def draw(self, model: Contrast) -> Image.Image:
        """Held-out pictures, each in a frame: green where its own caption is the best of 48, red where
        another's is."""
        batch = self.batch(48, 0, unseen=True)
        right = found(model, batch)
        framed = []
        for picture, fits in zip(images_from_pixels(batch.pixels), right.tolist(), strict=True):
            ImageDraw.Draw(picture).rectangle(
                (0, 0, picture.width - 1, picture.height - 1), outline="lime" if fits else "red", width=2
            )
            framed.append(picture)
        return sheet(framed, columns=12)


def tokens_of(captions: Sequence[str], length: int) -> Int[Tensor, "b n"]:
    """Captions in CLIP's tokens: begin, the first of the text, end, and more of them up to `length`."""
    tokenizer = CLIPTokenizer()
    return torch.tensor([tokenizer.frame(tokenizer.encode(caption), length)[0] for caption in captions])


def found(model: Contrast, batch: Batch) -> Bool[Tensor, " b"]:
    """Which pictures of a batch fit their own caption best."""
    fit: Tensor = model(batch.pixels, batch.tokens)
    return fit.argmax(1) == torch.arange(len(fit), device=fit.device)
