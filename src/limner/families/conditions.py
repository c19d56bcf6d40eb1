"""What the published models are told: prompts in AUTOMATIC1111's language through CLIP's text towers.

line of a prompt -> chunks of 77 tokens -> each tower -> weighed -> joined
                 -> context 1 (chunks 77) d, pooled 1 p
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

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

    def __init__(self, towers: tuple[Tower, ...], embeddings: Mapping[str, Vectors] | None = None) -> None:
        self.towers = towers
        self.embeddings = dict(embeddings or {})
        self.tokenizer = CLIPTokenizer()

    def encode(self, line: Line, *, skip: int | None = None, emphasis: str = "mean") -> Encoded:
        """`skip` chooses the layer of every tower instead of the family's own (clip-skip).

        Raises RequestError for a layer or an emphasis that there is none of.
        """
        chunks = self._chunks(line)
        contexts, pooled = [], None
        for index, tower in enumerate(self.towers):
            context, projected = self._ask(index, chunks, skip)
            weights = torch.tensor([_frame(tower, chunk)[1] for chunk in chunks], device=context.device)
            empty = self._ask(index, (Chunk(),), skip)[0] if emphasis == "comfy" else None
            weighed = emphasise(emphasis, context, weights, empty)
            contexts.append(rearrange(weighed, "chunks n d -> 1 (chunks n) d"))
            pooled = None if projected is None else projected[:1]  # the first chunk speaks for all
        return Encoded(torch.cat(contexts, -1), pooled)

    def count(self, line: Line) -> str:
        """How long a line is, such as "83 of 150 tokens, 2 chunks"."""
        return token_count(self._chunks(line))

    def _chunks(self, line: Line) -> tuple[Chunk, ...]:
        lengths = {name: len(vectors[0]) for name, vectors in self.embeddings.items()}
        return split(line, self.tokenizer.encode, lengths)

    def _ask(self, index: int, chunks: tuple[Chunk, ...], skip: int | None) -> tuple[Tensor, Tensor | None]:
        tower = self.towers[index]
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
