"""Objective: foretell the codes of pictures from text, one after the other. The second leg of a DALL-E."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from limner.data.world import source
from limner.data.world.caption import CaptionConfig, Captioner
from limner.data.world.scene import World, WorldConfig
from limner.errors import ConfigError
from limner.models.token_transformer import TokenTransformer, TokenTransformerConfig, continued
from limner.models.vqvae import joined, parted
from limner.nn.choice import Sampling
from limner.text.tokenizers import WordTokenizer, default_vocabulary
from limner.train.objectives.denoise import SHEET, split
from limner.util.images import images_from_pixels, sheet
from limner.util.rng import NoiseSource
from limner.weights import dalle, header


@dataclass(frozen=True, kw_only=True, slots=True)
class ARPriorConfig:
    """What is foretold, by which network, and what its errors cost."""

    codes: str  # weights of a [vqvae] run, whose codes are foretold
    data: source.DrawnConfig = field(default_factory=source.DrawnConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    model: TokenTransformerConfig = field(
        default_factory=TokenTransformerConfig
    )  # vocabulary, codes and side: from the data and the codes
    drop_text: float = 0.1  # share of pictures without their caption, for guidance
    text_weight: float = 0.05  # cost of text tokens foretold wrongly (DALL-E's is 1/8)
    coarse_weight: float = 0.4  # share of the codes' cost that is the coarse ones'


class Batch(NamedTuple):
    """One step's rows of tokens."""

    text: Int[Tensor, "b t"]
    codes: Int[Tensor, "b n"]  # coarse ones first


class ARPrior:
    """The objective: cross-entropy of every next token."""

    def __init__(self, config: ARPriorConfig, device: torch.device) -> None:
        path = Path(config.codes).expanduser()
        atlas, nouns = source.load(config.data)
        self.config = config
        self.vqvae = dalle.load_vqvae(path, device)
        self.learned = header.fingerprint([path])
        codes = self.vqvae.config
        self.world = World(atlas, config.world, device=device)
        self.captioner = Captioner(atlas, nouns, config.caption)
        self.tokenizer = WordTokenizer(default_vocabulary(atlas.objects))
        shape = replace(
            config.model,
            vocabulary=len(self.tokenizer.vocabulary),
            coarse_codes=codes.coarse_codes,
            fine_codes=codes.fine_codes,
            side=codes.fine // 2,
        )
        if shape.text_length < 3:
            raise ConfigError(f"text_length {shape.text_length} leaves no room for a word; 3 is the least.")
        self.model = TokenTransformer(shape).to(device)

    @torch.no_grad()
    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Compose `count` scenes and encode them. Everything comes from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        scenes = self.world.sample(count, generator)
        pixels, _ = self.world.render(scenes, self.vqvae.config.size)
        dropped = (torch.rand(count, generator=generator) < self.config.drop_text).tolist()
        captions = self.captioner.captions(scenes, seed)
        said = [() if drop else words for (_, words), drop in zip(captions, dropped, strict=True)]
        return Batch(self.text(said), joined(*self.vqvae.encode(pixels)))

    def text(self, captions: Sequence[Sequence[str]]) -> Int[Tensor, "b t"]:
        """Text tokens, padded to the length of every row."""
        length = self.model.config.text_length
        ids = [self.tokenizer.encode(words, length)[0] for words in captions]
        return torch.tensor(ids, device=self.world.device)

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy in nats per token: of text but for its padding, of coarse codes, of fine ones."""
        config, shape = self.config, self.model.config
        known = self.model(self.model.tokens(batch.text, batch.codes)[:, :-1])
        first, middle = shape.text_length - 1, shape.text_length - 1 + shape.coarse
        words, coarse, fine = known[:, :first], known[:, first:middle], known[:, middle:]
        asked = torch.where(batch.text[:, 1:] == self.tokenizer.pad, -1, batch.text[:, 1:])
        text = F.cross_entropy(self.model.logits(words, 0).flatten(0, 1), asked.flatten(), ignore_index=-1)
        levels = (coarse, batch.codes[:, : shape.coarse]), (fine, batch.codes[:, shape.coarse :])
        of_coarse, of_fine = (
            F.cross_entropy(self.model.logits(part, kind).flatten(0, 1), codes.flatten())
            for kind, (part, codes) in enumerate(levels, 1)
        )
        return {
            "text": config.text_weight * text,
            "coarse": config.coarse_weight * of_coarse,
            "fine": (1 - config.coarse_weight) * of_fine,
        }

    def blocks(self) -> list[nn.Module]:
        """Those of the transformer."""
        return list(self.model.blocks)

    def published(self) -> set[str]:
        """All parameters."""
        return {name for name, _ in self.model.named_parameters()}

    def header(self) -> dict[str, str]:
        """Network shape, words, and a short hash of the weights whose codes it foretells."""
        return {
            "network": json.dumps({"TokenTransformer": asdict(self.model.config)}),
            "codes": json.dumps(self.learned),
            **told_of_world(self.world, self.tokenizer),
        }

    @torch.no_grad()
    def draw(
        self,
        model: TokenTransformer,
        prompts: Sequence[str] = SHEET,
        *,
        seed: int = 0,
        guidance: float = 3.0,
        sampling: Sampling = Sampling(),
    ) -> Image.Image:
        """A sheet of two pictures per prompt (canonical words, separated by spaces)."""
        captions = [split(prompt) for prompt in prompts for _ in range(2)]
        shape = (model.config.codes,)
        u = torch.special.ndtr(NoiseSource([seed + i for i in range(len(captions))]).initial(shape))
        *_, codes = continued(
            model,
            self.text(captions),
            self.text([()] * len(captions)),
            u.to(self.world.device),
            guidance=guidance,
            sampling=sampling,
        )
        pixels = self.vqvae.decode(*parted(codes, model.config.side))
        return sheet(images_from_pixels(pixels.clamp(-1, 1)), columns=6)


def told_of_world(world: World, tokenizer: WordTokenizer) -> dict[str, str]:
    """What a reader of the weights must know of the words: vocabulary, objects, styles, whether it writes,
    and the art."""
    return {
        "vocabulary": json.dumps(tokenizer.vocabulary),
        "objects": json.dumps(world.atlas.objects),
        "styles": json.dumps(world.atlas.styles),
        "spells": json.dumps(world.config.word > 0),
        "sources": json.dumps(world.atlas.sources),
    }
