"""From texts and pictures to CLIP's embeddings of pictures (Ramesh et al. 2022, "unCLIP" or "DALL-E 2").

    a text    -> prior -> embedding
    a picture -> CLIP  -> embedding

What lies between two of either is found on the sphere. Embeddings go through stages as b e 1 1.
"""

from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from limner.diffusion import grids, guidance, predictions
from limner.diffusion.grids import Grid
from limner.diffusion.paths import VPPath
from limner.diffusion.predictions import Denoise
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.sphere import slerp
from limner.errors import RequestError
from limner.families.base import Order
from limner.families.conditions import Encoder, Tower
from limner.families.once import cut, frozen
from limner.families.shelf import Shelf
from limner.families.stages import ChangeStage, DiffusionStage, Stage, Tag, one_by_one
from limner.models.clip import CLIPText, CLIPVision, clip_pixels
from limner.models.unclip_prior import UnCLIPPrior
from limner.text.emphasis import CHUNK, split
from limner.text.prompt import parse

PRIOR_STEPS, PRIOR_GUIDANCE = 25, 4.0  # as Karlo was published
Embedding = Float[Tensor, "b e"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a network was published to be sampled."""

    path: VPPath
    limit: float  # x0 lies between minus this and this
    leading: bool = False  # at multiples of a whole number of steps, not evenly from end to end

    def grid(self, steps: int) -> Grid:
        """Where on the path."""
        if self.leading:
            return grids.leading(self.path, steps)
        return grids.linspace(self.path, steps, whole=True)


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """A text as CLIP reads it."""

    pooled: Float[Tensor, "1 e"]
    context: Float[Tensor, "1 n d"]  # filled up
    length: int  # rows that are the text's own
    warnings: tuple[str, ...] = ()  # of what is not heard of it

    @property
    def rows(self) -> Float[Tensor, "1 m d"]:
        """The context without what it was filled up with."""
        return self.context[:, : self.length]

    def towards(self, other: "Words", share: float) -> "Words":
        """`share` of the way to `other`, along the sphere."""
        return Words(
            slerp(self.pooled, other.pooled, share),
            slerp(self.context, other.context, share),
            max(self.length, other.length),
            (*self.warnings, *other.warnings),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What the picture embedding is to be made of."""

    words: Words | None  # for the prior; None: there is no text
    away: Words | None  # what the prior moves away from
    picture: Float[Tensor, "1 e"] | None  # embedding of what was given; None: there was no picture
    share: float = 0.0  # how far from what the prior finds to `picture`

    @property
    def given(self) -> Float[Tensor, "1 e 1 1"] | None:
        """The embedding, where no prior has to be asked."""
        if self.words is not None or self.picture is None:
            return None
        return rearrange(self.picture, "1 e -> 1 e 1 1")

    def embedding(self, x: Float[Tensor, "b e 1 1"]) -> Embedding:
        """Of each picture; x is `given`, or what the prior has found."""
        found = rearrange(x, "b e 1 1 -> b e")
        if self.words is None or self.picture is None:
            return found
        return slerp(found, self.picture.expand_as(found), self.share)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embedder:
    """From an order to picture embeddings."""

    shelf: Shelf  # "prior", "image_encoder" and the text tower
    device: torch.device
    prior: Sampling | None  # None: the files hold no prior
    sees: bool  # whether the files hold a picture tower
    tower: str = "text_encoder"  # what the prior's text tower is called

    def wanted(self, order: Order) -> Wanted:
        """Read texts, look at pictures. Raises RequestError where the network for it is not there."""
        ends = {"prompt": order.prompt if order.vary is None else order.vary}
        ends |= {} if order.blend is None else {"other text": order.blend}
        if self.prior is None and any(isinstance(end, str) for end in ends.values()):
            raise RequestError(
                "this model draws what it is shown: its files hold no prior, which finds pictures for texts. "
                "Give a picture to vary, and blend it with another picture only"
            )
        words = [self.words(name, end, order) for name, end in ends.items() if isinstance(end, str)]
        seen = [self.see(end) for end in ends.values() if isinstance(end, Tensor)]
        return Wanted(
            words[0].towards(words[1], order.blend_at) if len(words) == 2 else words[0] if words else None,
            self.words("negative prompt", order.negative_prompt, order) if words else None,
            slerp(seen[0], seen[1], order.blend_at) if len(seen) == 2 else seen[0] if seen else None,
            order.blend_at if order.vary is None else 1 - order.blend_at,
        )

    def words(self, name: str, text: str, order: Order) -> Words:
        """A text, which is called `name`, up to as many tokens as CLIP reads at once."""
        network = self.shelf.take(self.tower)
        assert isinstance(network, CLIPText)
        encoder = Encoder((Tower(network=network),))
        line = parse(text, compose=False).at(0, order.steps)[0]
        encoded = encoder.encode(line, skip=order.clip_skip, emphasis=order.emphasis)
        assert encoded.pooled is not None  # a prior's tower has a projection
        first, *rest = split(line, encoder.tokenizer.encode)
        left_out = sum(len(chunk.ids) for chunk in rest)
        reader = "this model" if self.tower == "text_encoder" else "the prior"  # others hear more
        return Words(
            encoded.pooled.float(),
            encoded.context[:, : network.config.length].float(),
            len(first.ids) + 2,
            (*frozen(name, text, order.steps, reader), *cut(name, left_out, CHUNK, reader)),
        )

    def see(self, pixels: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 e"]:
        """A picture."""
        if not self.sees:
            raise RequestError(
                "the files of this model hold no picture tower (image_encoder); Karlo's is published in "
                "karlo-v1-alpha-image-variations"
            )
        network = self.shelf.take("image_encoder")
        assert isinstance(network, CLIPVision)
        prepared = clip_pixels(pixels.to(self.device), network.config.size)
        seen: Tensor = network(prepared.to(network.position.dtype)).projected
        return seen.float()

    def stages(self, wanted: Wanted) -> tuple[Stage, ...]:
        """The prior's, where there is a text."""
        if wanted.words is None or wanted.away is None or self.prior is None:
            return ()
        branches = guidance.in_turn(self._told(wanted.words), self._told(wanted.away))
        denoise = guidance.static_threshold(guidance.cfg(branches, PRIOR_GUIDANCE), self.prior.limit)
        diffusion = DiffusionStage(
            denoise=one_by_one(denoise) if self.device.type == "cpu" else denoise,
            grid=self.prior.grid(PRIOR_STEPS),
            sampler=SAMPLERS["ddpm"],
            shape=(wanted.words.pooled.shape[1], 1, 1),
            device=self.device,
            tag=Tag.PRIOR,
            preview=nothing_yet,
            name="prior",
        )
        return diffusion, ChangeStage(change=self._unscaled, preview=nothing_yet, name="prior")

    def _network(self) -> UnCLIPPrior:
        network = self.shelf.take("prior")
        assert isinstance(network, UnCLIPPrior)
        return network

    def _told(self, words: Words) -> Denoise:
        """The prior with a text: x0, a picture embedding in deviations."""

        def network(x: Tensor, t: Tensor) -> Tensor:
            prior = self._network()
            dtype = prior.mean.dtype
            pooled, rows = (
                repeat(part, "1 ... -> b ...", b=len(x)).to(dtype) for part in (words.pooled, words.rows)
            )
            x0: Tensor = prior(rearrange(x, "b e 1 1 -> b e").to(dtype), t, pooled, rows)
            return rearrange(x0.float(), "b e -> b e 1 1")

        return predictions.x0(network)

    def _unscaled(self, x: Tensor) -> Tensor:
        found = self._network().unscaled(rearrange(x, "b e 1 1 -> b e"))
        return rearrange(found.float(), "b e -> b e 1 1")


def nothing_yet(x: Float[Tensor, "b e 1 1"]) -> Float[Tensor, "b 3 64 64"]:
    """An embedding as pixels: grey."""
    return x.new_zeros(len(x), 3, 64, 64)


def at_ends(order: Order) -> Order:
    """At either end of a blend only that end is asked for."""
    if order.blend is None or order.blend_at not in (0, 1):
        return order
    if order.blend_at == 0:
        return replace(order, blend=None)
    if isinstance(order.blend, str):
        return replace(order, blend=None, vary=None, prompt=order.blend)
    return replace(order, blend=None, vary=order.blend, prompt="")
