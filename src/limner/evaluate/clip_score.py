"""CLIP score: how near a picture and its words are in the space of a CLIP that the user supplies.

CLIP hardly hears which word belongs to which (Yuksekgonul et al. 2023), so this is no measure of composition;
`composition` is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from limner.errors import DataError
from limner.evaluate.features import BATCH
from limner.models.clip import clip_pixels
from limner.text.clip_tokenizer import CLIPTokenizer
from limner.util.images import pixels_from_images
from limner.weights import clip

WEIGHT = 2.5  # Hessel et al. 2021 ("CLIPScore"), section 3


@runtime_checkable
class Embedder(Protocol):
    """A CLIP: both towers, with their preprocessing."""

    def pictures(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Projected embeddings, of any length."""

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Projected embeddings of the same dimension."""


def clip_score(pictures: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """2.5 max(cosine, 0) of each row of pictures with the row of texts, 0 to 2.5 (Hessel et al. 2021).

    Others print 100 max(cosine, 0), which is 40 times this. Raises DataError for values that are not finite.
    """
    if not (pictures.isfinite().all() and texts.isfinite().all()):
        raise DataError("some embeddings are not finite; try float32, or other weights")
    return WEIGHT * F.cosine_similarity(pictures.double(), texts.double(), dim=-1).clamp_min(0)


def score(embedder: Embedder, pairs: Sequence[tuple[Path, str]]) -> tuple[float, Float[Tensor, " n"]]:
    """Mean CLIP score of picture files with their texts, and the score of each. Raises DataError."""
    if not pairs:
        raise DataError("there are no pictures to score")
    parts = []
    for first in range(0, len(pairs), BATCH):
        some = pairs[first : first + BATCH]
        with torch.inference_mode():
            images = embedder.pictures([_opened(path) for path, _ in some])
            parts.append(clip_score(images.cpu(), embedder.texts([text for _, text in some]).cpu()))
    scores = torch.cat(parts)
    return float(scores.mean()), scores


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(f"{path} is no picture: {error}") from None


class CLIPFolder:
    """A CLIP in the layout of transformers: a folder with config.json and model.safetensors, such as OpenAI's
    ViT-L/14. Computes in float32."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        """Raises WeightsError for files that are missing or do not fit."""
        self.network = clip.load(folder, device)
        self.tokenizer = CLIPTokenizer()

    def pictures(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Of any size and shape; the middle square counts."""
        vision = self.network.vision
        size, device = vision.config.size, vision.position.device
        prepared = [clip_pixels(pixels_from_images([image]).to(device), size) for image in images]
        embedded: Tensor = vision(torch.cat(prepared)).projected
        return embedded

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Cut off after 75 tokens."""
        tower = self.network.text
        framed = [self.tokenizer.frame(self.tokenizer.encode(text), tower.config.length)[0] for text in texts]
        tokens = torch.tensor(framed, device=tower.position.device)
        embedded: Tensor = tower(tower.embed(tokens), tokens).projected
        return embedded
