"""Textual inversion: words that were learned as vectors (Gal et al. 2022).

emb_params          AUTOMATIC1111, for Stable Diffusion 1 and 2
clip_l, clip_g      for the two text encoders of XL
<any-token>         diffusers, one file with one tensor
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from limner.errors import WeightsError
from limner.weights import files

ENCODERS = {"emb_params": "text_encoder", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}
MOST = 75  # vectors: a prompt has no more places


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A learned word."""

    name: str  # what to type: the token in the file, else the file's own name
    vectors: Mapping[str, Float[Tensor, "n _"]]  # text encoder -> one row for each place that the word takes


def is_embedding(names: Iterable[str], shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether tensors of these names and shapes are an embedding's: one in a file, or XL's two."""
    names, shapes = set(names), list(shapes)
    lone = len(names) == 1 and "." not in next(iter(names))
    return ((bool(names) and names <= set(ENCODERS)) or lone) and all(
        len(shape) in (1, 2) for shape in shapes
    )


def read(path: Path) -> Embedding:
    """The word in an embedding file. Raises WeightsError when it holds something else."""
    tensors = files.read(path)
    if not is_embedding(tensors, (tuple(tensor.shape) for tensor in tensors.values())):
        raise WeightsError(
            f"{path} is not a textual-inversion embedding; those hold emb_params, or clip_l and clip_g, "
            f"or one tensor called after its token; it holds {', '.join(sorted(tensors)[:5]) or 'nothing'}"
        )
    vectors: dict[str, Tensor] = {}
    name = path.stem
    for key, tensor in tensors.items():
        rows = tensor if tensor.ndim == 2 else tensor[None]
        if not 1 <= len(rows) <= MOST or not tensor.is_floating_point():
            raise WeightsError(
                f"{path}: {key} holds {tuple(tensor.shape)}; 1 to {MOST} vectors were expected"
            )
        vectors[ENCODERS.get(key, "text_encoder")] = rows
        name = name if key in ENCODERS else key
    if len({len(rows) for rows in vectors.values()}) > 1:
        raise WeightsError(f"{path}: clip_l and clip_g have different numbers of vectors")
    return Embedding(name, vectors)


def spellable(name: str) -> bool:
    """Whether a word can be written and read back under this name."""
    return bool(name.strip()) and name == name.strip() and name not in ENCODERS and "." not in name


def write(path: Path, embedding: Embedding, metadata: Mapping[str, str] | None = None) -> None:
    """Write a word: one tensor called after it for one text encoder, as diffusers does, and clip_l and clip_g
    for two; then the file's own name is what to type.

    Raises WeightsError for a name that cannot be written, for other encoders, and for more than 75 vectors.
    """
    names = {encoder: key for key, encoder in ENCODERS.items()}
    lone = len(embedding.vectors) == 1
    if not spellable(embedding.name) or (not lone and path.stem != embedding.name):
        raise WeightsError(
            f"a word cannot be written as {embedding.name!r} to {path.name}: names have no dot, and those of "
            "two encoders are the file's own"
        )
    long = any(len(rows) > MOST for rows in embedding.vectors.values())
    if long or not set(embedding.vectors) <= set(names):
        raise WeightsError(f"{path.name}: words have 1 to {MOST} vectors for {' and '.join(sorted(names))}")
    two = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    tensors = {
        embedding.name if lone else two[encoder]: rows.detach() for encoder, rows in embedding.vectors.items()
    }
    files.save(tensors, path, metadata or {})


def check(embedding: Embedding, widths: Mapping[str, int]) -> None:
    """Raises WeightsError unless the embedding has vectors of just these `widths`, {text encoder: width}."""
    held = {encoder: rows.shape[1] for encoder, rows in embedding.vectors.items()}
    if held != dict(widths):
        raise WeightsError(
            f'the embedding "{embedding.name}" has vectors of {held}, the model needs {dict(widths)}; '
            f"it was made for another model"
        )
