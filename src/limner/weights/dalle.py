"""DALL-E's networks from the files of own training: the codes of pictures, what foretells them, and the
judge of the results."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from limner.errors import WeightsError
from limner.models.contrast import Contrast, ContrastConfig
from limner.models.token_transformer import TokenTransformer, TokenTransformerConfig
from limner.models.vqvae import VQVAE, VQVAEConfig
from limner.text.clip_tokenizer import END
from limner.text.tokenizers import WordTokenizer
from limner.weights import files, header

CLIP_TOKENS = "clip"  # of networks that read captions as CLIP does


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Said:
    """What a file says besides its network: the words that it knows."""

    tokenizer: WordTokenizer
    objects: tuple[str, ...]
    styles: tuple[str, ...]
    spells: bool  # whether it has seen words written in pictures


def load_vqvae(path: Path, device: torch.device | None = None) -> VQVAE:
    """The network that a [vqvae] run has written. Raises WeightsError."""
    shape = header.network_config(header.read_metadata(path), "VQVAE", VQVAEConfig, path)
    return files.load(lambda: VQVAE(shape), path, device)


def load_prior(path: Path, vqvae: Path, device: torch.device | None = None) -> tuple[TokenTransformer, Said]:
    """The network that an [ar_prior] run has written, and its words. Raises WeightsError, also when it has
    learned the codes of another file than `vqvae`."""
    metadata = header.read_metadata(path)
    shape = header.network_config(metadata, "TokenTransformer", TokenTransformerConfig, path)
    learned, given = metadata.get("codes"), json.dumps(header.fingerprint([vqvae]))
    if learned != given:
        raise WeightsError(
            f"{path} foretells the codes of the weights {learned}, and {vqvae} is {given}: put the [vqvae] "
            "run's weights that the [ar_prior] run was given beside it"
        )
    return files.load(lambda: TokenTransformer(shape), path, device), _said(metadata, shape.vocabulary, path)


def load_contrast_of_files(path: Path, device: torch.device | None = None) -> Contrast:
    """The network that a [clip] run over files has written, which reads CLIP's tokens. Raises WeightsError,
    also for one of the drawn world."""
    metadata = header.read_metadata(path)
    shape = header.network_config(metadata, "Contrast", ContrastConfig, path)
    if metadata.get("tokens") != json.dumps(CLIP_TOKENS):
        raise WeightsError(f"{path} reads the words of the drawn world; train one with clip.files")
    whole = replace(shape, vocabulary=END + 1, end=END)
    return files.load(lambda: Contrast(whole), path, device)


def load_contrast(path: Path, device: torch.device | None = None) -> tuple[Contrast, Said]:
    """The network that a [clip] run has written, and its words. Raises WeightsError."""
    metadata = header.read_metadata(path)
    shape = header.network_config(metadata, "Contrast", ContrastConfig, path)
    return files.load(lambda: Contrast(shape), path, device), _said(metadata, shape.vocabulary, path)


def _said(metadata: dict[str, str], count: int, path: Path) -> Said:
    vocabulary = header.listed(metadata, "vocabulary", path)
    if count != len(vocabulary):
        raise WeightsError(f"{path}: {len(vocabulary)} words in the header for {count} embeddings")
    objects, styles = (header.listed(metadata, key, path) for key in ("objects", "styles"))
    if unsaid := [word for word in (*objects, *styles) if word not in vocabulary]:
        raise WeightsError(f"{path}: the vocabulary in the header lacks {', '.join(unsaid[:5])}")
    return Said(
        tokenizer=WordTokenizer(vocabulary),
        objects=objects,
        styles=styles,
        spells=metadata.get("spells") == "true",
    )
