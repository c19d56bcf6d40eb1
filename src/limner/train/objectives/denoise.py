"""Objective: learn to draw the small world. A step noises pictures of fresh scenes and asks for them back."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from limner.data.world import source
from limner.data.world.caption import CaptionConfig, Captioner
from limner.data.world.scene import Scenes, World, WorldConfig
from limner.diffusion import grids, guidance, losses, samplers
from limner.diffusion.paths import FlowPath
from limner.models.pixel_dit import PixelDiT, PixelDiTConfig
from limner.text.tokenizers import WordTokenizer, default_vocabulary
from limner.util.images import images_from_pixels, sheet
from limner.util.rng import NoiseSource

SHEET = (  # fixed prompts, in canonical words, whose samples show how far a run has come
    "a cat on a blue background",
    "a hamburger on a green background in glossy style",
    "a rocket in space",
    "two apple <plural> on a yellow background",
    "a red umbrella on a white background",
    "a dog left of a tree on a pink background",
    "a penguin in snow",
    "a crown above a fox on a purple background",
    "three balloon <plural> in sky",
    "a guitar on a orange background in flat style",
    "a bicycle on a white background",
    "a house on grass",
)
MULTIWORD = ("left of", "right of")


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiseConfig:
    """What is drawn, by which network, and what its errors cost."""

    data: source.DrawnConfig = field(default_factory=source.DrawnConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    model: PixelDiTConfig = field(default_factory=PixelDiTConfig)  # vocabulary and labels: from the data
    t_mean: float = 0.8  # of the logit-normal draw of t; above 0 leans to noise
    t_std: float = 1.0  # of the same draw
    t_uniform: float = 0.1  # share of t drawn uniformly instead
    t_one: float = 0.15  # share of t set to 1, where all there is to see is the text
    drop_text: float = 0.1  # share of pictures trained without their caption, for guidance
    object_weight: float = 3.0  # cost of a pixel on an object, relative to one on the background
    label_weight: float = 0.25  # of naming the object in each patch halfway through; 0 leaves it away


class Batch(NamedTuple):
    """One step's pictures, with everything random about the step already drawn."""

    x0: Float[Tensor, "b 3 h w"]  # pixels [-1, 1]
    noise: Float[Tensor, "b 3 h w"]
    t: Float[Tensor, " b"]
    tokens: Int[Tensor, "b m"]
    weight: Float[Tensor, "b 1 h w"]  # cost per pixel, mean 1
    labels: Int[Tensor, "b n"]  # per patch: object index + 1, or 0


class Denoise:
    """The objective: `batch` is data, `loss` is what to minimise, `draw` shows what was learned."""

    def __init__(self, config: DenoiseConfig, device: torch.device) -> None:
        atlas, nouns = source.load(config.data)
        self.config = config
        self.world = World(atlas, config.world, device=device)
        self.captioner = Captioner(atlas, nouns, config.caption)
        self.tokenizer = WordTokenizer(default_vocabulary(atlas.objects))
        labels = len(atlas.objects) + 1 if config.label_weight else 0
        shape = replace(config.model, vocabulary=len(self.tokenizer.vocabulary), labels=labels)
        self.model = PixelDiT(shape).to(device)
        self.path = FlowPath()

    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Compose `count` scenes. Everything comes from `seed`, so a step can be repeated exactly."""
        shape, config = self.model.config, self.config
        generator = torch.Generator().manual_seed(seed)
        scenes = self.world.sample(count, generator)
        x0, cover = self.world.render(scenes, shape.size)
        dropped = (torch.rand(count, generator=generator) < config.drop_text).tolist()
        captions = self.captioner.captions(scenes, seed)
        said = [() if drop else words for (_, words), drop in zip(captions, dropped, strict=True)]
        weight = 1 + (config.object_weight - 1) * cover.sum(1, keepdim=True).clamp_max(1)
        noise = torch.randn(x0.shape, generator=generator)
        t = losses.logit_normal(count, config.t_mean, config.t_std, config.t_uniform, generator)
        t = torch.where(torch.rand(count, generator=generator) < config.t_one, 1.0, t)
        return Batch(
            x0=x0,
            noise=noise.to(x0.device),
            t=t.to(x0.device),
            tokens=self.tokens(said),
            weight=weight / weight.mean(),
            labels=patch_labels(scenes, cover, shape.patch),
        )

    def tokens(self, captions: Sequence[Sequence[str]]) -> Int[Tensor, "b m"]:
        """Token ids, padded to 24 or the next multiple of 8: few lengths, so that few losses are compiled."""
        longest = max(24, -(-max(len(words) + 2 for words in captions) // 8) * 8)
        length = min(self.model.config.text_length, longest)
        ids = [self.tokenizer.encode(words, length)[0] for words in captions]
        return torch.tensor(ids, device=self.world.device)

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Velocity loss on the flow path with x0 predicted, plus the label head's cross-entropy."""
        t = batch.t[:, None, None, None]
        x_t = (1 - t) * batch.x0 + t * batch.noise
        mask = batch.tokens != self.tokenizer.pad
        context, pooled = self.model.encode(batch.tokens, mask)
        x0, halfway = self.model.features(x_t, batch.t, context, pooled, mask)
        parts = {"velocity": losses.flow_x0_loss(x0, batch.x0, batch.t, batch.weight).mean()}
        if self.model.label is not None:
            guess = self.model.label(halfway).flatten(0, 1)
            parts["label"] = self.config.label_weight * F.cross_entropy(guess.float(), batch.labels.flatten())
        return parts

    def blocks(self) -> list[nn.Module]:
        """Those of the transformers."""
        return [*self.model.text.blocks, *self.model.blocks]

    def published(self) -> set[str]:
        """All parameters but those of the label head."""
        return {name for name, _ in self.model.named_parameters() if not name.startswith("label.")}

    def header(self) -> dict[str, str]:
        """Network shape, vocabulary, objects, styles, whether it writes, and the art it learned from."""
        shape = replace(self.model.config, labels=0)
        atlas = self.world.atlas
        return {
            "network": json.dumps({"PixelDiT": asdict(shape)}),
            "vocabulary": json.dumps(self.tokenizer.vocabulary),
            "objects": json.dumps(atlas.objects),
            "styles": json.dumps(atlas.styles),
            "spells": json.dumps(self.config.world.word > 0),
            "sources": json.dumps(atlas.sources),
        }

    @torch.no_grad()
    def draw(
        self, model: PixelDiT, prompts: Sequence[str] = SHEET, *, seed: int = 0, scale: float = 3.0
    ) -> Image.Image:
        """A sheet of two pictures per prompt (canonical words, separated by spaces)."""
        captions = [split(prompt) for prompt in prompts for _ in range(2)]
        count = len(captions)
        tokens = self.tokens([*captions, *([()] * count)])
        mask = tokens != self.tokenizer.pad
        context, pooled = model.encode(tokens, mask)
        both = guidance.batched(lambda x, t: model(x, t, context, pooled, mask))
        noise = NoiseSource([seed + i for i in range(count)])
        shape = (3, model.config.size, model.config.size)
        steps = samplers.euler(
            guidance.static_threshold(guidance.cfg(both, scale)),
            noise.initial(shape).to(tokens.device),
            grids.uniform(self.path, 16),
            noise=noise.draws(shape),
        )
        *_, last = steps
        return sheet(images_from_pixels(last.x.clamp(-1, 1)), columns=6)


def patch_labels(scenes: Scenes, cover: Float[Tensor, "b k h w"], patch: int) -> Int[Tensor, "b n"]:
    """Which object each patch shows: its index + 1 where it covers at least 40 % of the patch, else 0."""
    share, place = F.avg_pool2d(cover, patch).flatten(2).max(1)
    return torch.where(share > 0.4, scenes.object.gather(1, place) + 1, 0)


def split(prompt: str) -> list[str]:
    """The canonical words of a prompt of SHEET."""
    for phrase in MULTIWORD:
        prompt = prompt.replace(phrase, phrase.replace(" ", "_"))
    return [word.replace("_", " ") for word in prompt.split()]
