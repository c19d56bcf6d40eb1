"""From weighted text to chunks of weighted tokens, and what the weights do to an encoder's answer.

    chunks = split(line, tokenizer.encode, {"easynegative": 8})    # a prompt.Line: 75 tokens in each, at most
    ids, weights = frame(chunk, bos=BEGIN, eos=END, pad=END)       # 77 of each
    context = emphasise("mean", context, weights)                  # afterwards; a row for each chunk

The rules are those of AUTOMATIC1111.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from limner.errors import RequestError
from limner.text.prompt import Line
from limner.util.suggest import suggestion

CHUNK = 75  # tokens that CLIP reads at once, besides the one before and the one after
BACKTRACK = 20  # a chunk may end at a comma among this many of its last tokens
EMPHASES = ("mean", "plain", "comfy", "ignore")

Tokenize = Callable[[str], Sequence[int]]  # text -> ids, without begin, end and padding


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """What a text encoder reads at once. The default is the chunk of an empty prompt."""

    ids: tuple[int, ...] = ()  # one for each vector; 0 where an embedding's vectors go
    weights: tuple[float, ...] = ()  # one for each id
    embeddings: tuple[tuple[int, str], ...] = ()  # (number of its first id in `ids`, name), rising


class _Unit(NamedTuple):
    """What is never divided: a token, or all vectors of an embedding."""

    ids: tuple[int, ...]
    weight: float
    name: str | None


def split(
    line: Line,
    tokenize: Tokenize,
    embeddings: Mapping[str, int] | None = None,
    *,
    size: int = CHUNK,
    backtrack: int = BACKTRACK,
) -> tuple[Chunk, ...]:
    """The chunks of a line, at least one.

    A full chunk ends behind the last comma among its last `backtrack` tokens if there is one, and what stood
    behind the comma opens the next chunk. Each BREAK ends a chunk, an empty one too, unless nothing follows.

    Args:
        line: one of `Prompt.at`.
        tokenize: text to ids, without begin, end and padding.
        embeddings: for each textual-inversion embedding by name how many vectors it has. A name is found
            where its own ids stand in the text; of several, the one with most ids. None: there are none.
        size: most ids in a chunk.
        backtrack: 0 fills every chunk to the brim.

    Raises:
        RequestError: an embedding that is used has more vectors than a chunk has room for.
    """
    names = _by_first_id(tokenize, embeddings or {})
    comma = tuple(tokenize(","))[-1:]
    chunks: list[Chunk] = []
    units: list[_Unit] = []
    for index, run in enumerate(line.runs):
        if index:
            chunks.append(_chunk(units))
            units = []
        filled = 0
        for segment in run:
            for unit in _units(tokenize(segment.text), segment.weight, names):
                if len(unit.ids) > size:
                    raise RequestError(
                        f"the embedding {unit.name!r} has {len(unit.ids)} vectors, and a chunk holds {size}"
                    )
                if (
                    filled == size
                    and unit.ids != comma
                    and (behind := _behind_comma(units, comma, backtrack))
                ):
                    chunks.append(_chunk(units[:behind]))
                    units = units[behind:]
                    filled = sum(len(kept.ids) for kept in units)
                if filled + len(unit.ids) > size:
                    chunks.append(_chunk(units))
                    units, filled = [], 0
                units.append(unit)
                filled += len(unit.ids)
    if units or not chunks:
        chunks.append(_chunk(units))
    return tuple(chunks)


def token_count(chunks: Sequence[Chunk], size: int = CHUNK) -> str:
    """Such as "83 of 150 tokens, 2 chunks". All chunks but the last count as full: their rest is lost."""
    used = size * (len(chunks) - 1) + len(chunks[-1].ids)
    return f"{used} of {size * len(chunks)} tokens, {len(chunks)} chunk{'s' * (len(chunks) > 1)}"


def frame(chunk: Chunk, *, bos: int, eos: int, pad: int, size: int = CHUNK) -> tuple[list[int], list[float]]:
    """`size` + 2 ids, bos chunk eos pad..., and as many weights, 1 for all that was added. What is at
    `position` of the chunk is at `position + 1` here."""
    rest = size - len(chunk.ids)
    return [bos, *chunk.ids, eos, *[pad] * rest], [1.0, *chunk.weights, *[1.0] * (rest + 1)]


def mean(context: Float[Tensor, "b n d"], weights: Float[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
    """y = z w · mean(z) / mean(z w), the means over n and d of each row: AUTOMATIC1111's original.

    There the mean is over the whole batch; by row, a picture does not depend on its batch, and a batch of one
    prompt comes out the same. A row whose new mean is 0 is not rescaled.
    """
    z = context.float()
    weighed = z * rearrange(weights.float(), "b n -> b n 1")
    before, after = (reduce(x, "b n d -> b 1 1", "mean") for x in (z, weighed))
    ratio = torch.where(after == 0, 1.0, before / after)
    return (weighed * ratio).to(context.dtype)


def plain(context: Float[Tensor, "b n d"], weights: Float[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
    """y = z w: AUTOMATIC1111's "No norm"."""
    return context * rearrange(weights, "b n -> b n 1").to(context.dtype)


def comfy(
    context: Float[Tensor, "b n d"], weights: Float[Tensor, "b n"], empty: Float[Tensor, "#b n d"]
) -> Float[Tensor, "b n d"]:
    """y = e + w (z - e), e the encoder's answer to the empty prompt: ComfyUI's. w = 1 leaves z as it is."""
    moved = empty + rearrange(weights, "b n -> b n 1").to(context.dtype) * (context - empty)
    return torch.where(rearrange(weights == 1, "b n -> b n 1"), context, moved)


def emphasise(
    name: str,
    context: Float[Tensor, "b n d"],
    weights: Float[Tensor, "b n"],
    empty: Float[Tensor, "#b n d"] | None = None,
) -> Float[Tensor, "b n d"]:
    """The context as the convention `name` of EMPHASES weighs it; "ignore" leaves it alone.

    Args:
        name: "mean", "plain", "comfy" or "ignore".
        context: the encoder's answer, a row for each chunk.
        weights: as `frame` gives them.
        empty: the encoder's answer to the empty prompt; "comfy" needs it, the others do not look at it.

    Raises:
        RequestError: another name, or "comfy" without `empty`.
    """
    if name not in EMPHASES:
        raise RequestError(f"no emphasis is called {name!r}{suggestion(name, EMPHASES)}")
    if name == "ignore" or bool((weights == 1).all()):
        return context
    if name == "mean":
        return mean(context, weights)
    if name == "plain":
        return plain(context, weights)
    if empty is None:
        raise RequestError('emphasis "comfy" needs the encoded empty prompt; give it, or choose "mean"')
    return comfy(context, weights, empty)


def _by_first_id(
    tokenize: Tokenize, embeddings: Mapping[str, int]
) -> dict[int, list[tuple[tuple[int, ...], str, int]]]:
    """For each id the embeddings whose names begin with it, (ids, name, vectors), longest name first."""
    found: dict[int, list[tuple[tuple[int, ...], str, int]]] = {}
    for name, vectors in sorted(embeddings.items()):
        ids = tuple(tokenize(name))
        if ids and vectors:
            found.setdefault(ids[0], []).append((ids, name, vectors))
    return {first: sorted(those, key=lambda one: -len(one[0])) for first, those in found.items()}


def _units(
    ids: Sequence[int], weight: float, names: Mapping[int, list[tuple[tuple[int, ...], str, int]]]
) -> list[_Unit]:
    units = []
    position = 0
    while position < len(ids):
        unit, length = _Unit((ids[position],), weight, None), 1
        for name_ids, name, vectors in names.get(ids[position], ()):
            if tuple(ids[position : position + len(name_ids)]) == name_ids:
                unit, length = _Unit((0,) * vectors, weight, name), len(name_ids)
                break
        units.append(unit)
        position += length
    return units


def _behind_comma(units: Sequence[_Unit], comma: tuple[int, ...], backtrack: int) -> int:
    """How many units to keep so that the last comma ends the chunk; 0 if none is near enough to the end."""
    seen = 0
    for index in reversed(range(len(units))):
        seen += len(units[index].ids)
        if seen > backtrack:
            return 0
        if units[index].name is None and units[index].ids == comma:
            return index + 1
    return 0


def _chunk(units: Sequence[_Unit]) -> Chunk:
    ids: list[int] = []
    weights: list[float] = []
    embeddings = []
    for unit in units:
        if unit.name is not None:
            embeddings.append((len(ids), unit.name))
        ids += unit.ids
        weights += [unit.weight] * len(unit.ids)
    return Chunk(ids=tuple(ids), weights=tuple(weights), embeddings=tuple(embeddings))
