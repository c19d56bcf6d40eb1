"""What the published models are told: prompts in AUTOMATIC1111's language through CLIP's text towers.

line of a prompt -> chunks of 77 tokens -> each tower -> weighed -> joined
                 -> context 1 (chunks 77) d, pooled 1 p
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from limner.diffusion.sphere import slerp
from limner.errors import RequestError
from limner.models.clip import CLIPText
from limner.text.clip_tokenizer import BEGIN, END, CLIPTokenizer
from limner.text.emphasis import Chunk, emphasise, frame, split, token_count
from limner.text.prompt import Line

Vectors = tuple[Float[Tensor, "n _"], ...]  # of a textual-inversion embedding, for each tower in their order


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tower:
    """One text encoder and how a family uses it."""

    network: CLIPText
    pad: int = END  # what follows the end of a text
    skip: int = 1  # which layer is the context: 1 the last, 2 the penultimate
    norm: bool = True  # whether the final norm is applied to it


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A line as networks are told it."""

    context: Float[Tensor, "1 n d"]
    pooled: Float[Tensor, "1 p"] | None  # of the last tower; None where it has no projection


class Encoder:
    """Lines -> Encoded. Towers are joined along d."""

    def __init__(
        self,
        towers: tuple[Tower | Callable[[], Tower], ...],  # or what brings one at the moment of use
        embeddings: Mapping[str, Vectors] | None = None,
    ) -> None:
        self.towers = towers
        self.embeddings = dict(embeddings or {})
        self.tokenizer = CLIPTokenizer()

    def encode(self, line: Line, *, skip: int | None = None, emphasis: str = "mean") -> Encoded:
        """`skip` chooses the layer of every tower instead of the family's own (clip-skip).

        Raises RequestError for a layer or an emphasis that there is none of.
        """
        return self.encode_all((line,), skip=skip, emphasis=emphasis)[0]

    def encode_all(
        self, lines: Sequence[Line], *, skip: int | None = None, emphasis: str = "mean"
    ) -> list[Encoded]:
        """Each line as `encode` gives it. All of them go through a tower before the next is asked."""
        every = [self._chunks(line) for line in lines]
        contexts: list[list[Tensor]] = [[] for _ in lines]
        pooled: list[Tensor | None] = [None] * len(every)
        for index, tower in enumerate(self.towers):
            tower = tower() if callable(tower) else tower
            empty = None
            if emphasis == "comfy" and every:
                empty = self._ask(tower, index, (Chunk(),), skip)[0]
            for row, chunks in enumerate(every):
                context, projected = self._ask(tower, index, chunks, skip)
                weights = torch.tensor([_frame(tower, chunk)[1] for chunk in chunks], device=context.device)
                weighed = emphasise(emphasis, context, weights, empty)
                contexts[row].append(rearrange(weighed, "chunks n d -> 1 (chunks n) d"))
                pooled[row] = None if projected is None else projected[:1]  # the first chunk is for all
        return [Encoded(torch.cat(parts, -1), one) for parts, one in zip(contexts, pooled, strict=True)]

    def between(self, one: Encoded, other: Encoded, share: float) -> Encoded:
        """`share` of the way from `one` to `other` along the sphere, row by row; the shorter one goes on with
        the empty text."""
        length = max(one.context.shape[1], other.context.shape[1])
        ends = []
        for end in (one, other):
            context = end.context
            while context.shape[1] < length:
                context = torch.cat([context, self.encode(Line(1.0, ((),))).context], 1)
            ends.append(context)
        pooled = one.pooled
        if one.pooled is not None and other.pooled is not None:
            pooled = slerp(one.pooled, other.pooled, share)
        return Encoded(slerp(ends[0], ends[1], share), pooled)

    def count(self, line: Line) -> str:
        """How long a line is, such as "83 of 150 tokens, 2 chunks"."""
        return token_count(self._chunks(line))

    def _chunks(self, line: Line) -> tuple[Chunk, ...]:
        lengths = {name: len(vectors[0]) for name, vectors in self.embeddings.items()}
        return split(line, self.tokenizer.encode, lengths)

    def _ask(
        self, tower: Tower, index: int, chunks: tuple[Chunk, ...], skip: int | None
    ) -> tuple[Tensor, Tensor | None]:
        device = tower.network.position.device
        tokens = torch.tensor([_frame(tower, chunk)[0] for chunk in chunks], device=device)
        vectors = tower.network.embed(tokens)
        for row, chunk in enumerate(chunks):
            for position, name in chunk.embeddings:
                learned = self.embeddings[name][index]
                if learned.shape[1] != vectors.shape[2]:
                    raise RequestError(
                        f"the embedding {name!r} has vectors of {learned.shape[1]} numbers, and this model "
                        f"takes {vectors.shape[2]}; it was made for another family"
                    )
                vectors[row, position + 1 : position + 1 + len(learned)] = learned.to(vectors)
        out = tower.network(vectors, tokens, skip=tower.skip if skip is None else skip, norm=tower.norm)
        return out.context, out.projected


def _frame(tower: Tower, chunk: Chunk) -> tuple[list[int], list[float]]:
    return frame(chunk, bos=BEGIN, eos=END, pad=tower.pad)
