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

from limner.errors import DataError, WeightsError
from limner.evaluate.features import BATCH
from limner.models.clip import (
    CLIP,
    Activation,
    CLIPTextConfig,
    CLIPVisionConfig,
    clip_pixels,
)
from limner.text.clip_tokenizer import CLIPTokenizer
from limner.util.images import pixels_from_images
from limner.weights import files
from limner.weights.keymap import to_ours
from limner.weights.maps.clip import transformers_clip

LARGEST = 10_000  # of any number in a shape
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
        text, vision = _configs(folder / "config.json")
        path = folder / "model.safetensors"
        tensors = to_ours(transformers_clip(text), files.read(path), path)
        self.network = files.fill(
            lambda: CLIP(text, vision), tensors, path, device=device, dtype=torch.float32
        )
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


def _configs(path: Path) -> tuple[CLIPTextConfig, CLIPVisionConfig]:
    """Shapes out of config.json; what it leaves out is as transformers has it."""
    told = files.read_json(path)

    def of(table: str, key: str, default: int) -> int:
        inner = told.get(table)
        value = inner.get(key, default) if isinstance(inner, dict) else default
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise WeightsError(
                f"{path}: {key} in {table} is a whole number from 1 to {LARGEST}, got {value!r}"
            )
        return value

    def activation(table: str) -> Activation:
        inner = told.get(table)
        value = inner.get("hidden_act", "quick_gelu") if isinstance(inner, dict) else "quick_gelu"
        if value == "quick_gelu":
            return "quick_gelu"
        if value == "gelu":
            return "gelu"
        raise WeightsError(f"{path}: hidden_act in {table} is quick_gelu or gelu, got {value!r}")

    projection = told.get("projection_dim", 512)
    if type(projection) is not int or not 1 <= projection <= LARGEST:
        raise WeightsError(f"{path}: projection_dim is a whole number, got {projection!r}")
    text = CLIPTextConfig(
        width=of("text_config", "hidden_size", 512),
        depth=of("text_config", "num_hidden_layers", 12),
        heads=of("text_config", "num_attention_heads", 8),
        inner=of("text_config", "intermediate_size", 2048),
        activation=activation("text_config"),
        projection=projection,
        length=of("text_config", "max_position_embeddings", 77),
    )
    vision = CLIPVisionConfig(
        width=of("vision_config", "hidden_size", 768),
        depth=of("vision_config", "num_hidden_layers", 12),
        heads=of("vision_config", "num_attention_heads", 12),
        inner=of("vision_config", "intermediate_size", 3072),
        activation=activation("vision_config"),
        projection=projection,
        size=of("vision_config", "image_size", 224),
        patch=of("vision_config", "patch_size", 32),
    )
    return text, vision
