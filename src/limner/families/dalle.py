"""DALL-E: words and picture as one row of tokens (Ramesh et al. 2021), the picture's in two levels of codes.

    prompt -> codes, one after the other -> pixels -> the best of several, by a small CLIP

All parts come of own training on the drawn world. Codes go through stages as b k 1 n: k candidates for each
picture, of n codes each, -1 those that are not drawn yet.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from limner.diffusion.samplers import Step
from limner.errors import EngineError, RequestError
from limner.families.base import BY_TOKENS, Defaults, Order, Plan
from limner.families.drawn import DrawnWords, account, drawable, nothing
from limner.families.stages import Change, ChangeStage, Stage, Tag
from limner.models.contrast import Contrast
from limner.models.token_transformer import TokenTransformer, continued
from limner.models.vqvae import VQVAE, parted
from limner.nn.choice import Sampling
from limner.text.tokenizers import WordTokenizer
from limner.util.rng import NoiseSource

SAMPLING = Sampling(top_p=0.95)  # where an order leaves it open
GUIDANCE = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoregressiveStage:
    """Codes one after the other. Each is decided by one random number of its picture; a step is a row."""

    rows: Callable[
        [Float[Tensor, "b n"]], Iterator[Float[Tensor, "b m"]]
    ]  # numbers in [0, 1] -> codes so far
    length: int  # codes of a picture
    steps: int  # how often `rows` yields
    candidates: int = 1  # of each picture, each with random numbers of its own
    alone: bool = True  # each picture by itself, as in `one_by_one`
    preview: Change  # b k 1 n codes, -1 those that are not drawn yet, as pixels
    name: str = "codes"

    def run(self, x: Float[Tensor, "b c h w"] | None, noise: NoiseSource) -> Iterator[Step]:
        """Yields b k 1 n: the codes of k candidates."""
        draws = [noise.step(index, (self.length,), Tag.CODES) for index in range(self.candidates)]
        numbers = torch.special.ndtr(torch.stack(draws, 1).double()).float()  # normal to uniform
        groups = numbers.split(1 if self.alone else len(numbers))
        walks = [self.rows(rearrange(group, "b k n -> (b k) n")) for group in groups]
        for index, parts in enumerate(zip(*walks, strict=True)):
            codes = F.pad(torch.cat(parts), (0, self.length - parts[0].shape[1]), value=-1)
            codes = rearrange(codes, "(b k) n -> b k 1 n", k=self.candidates)
            yield Step(index, self.steps, codes, codes)

    def look(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.preview(x0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judge:
    """What says how well a picture fits its prompt."""

    network: Contrast
    tokenizer: WordTokenizer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DallE:
    """The loaded model. `plan` is all that a pipeline needs; the parts are there to be used by hand."""

    vqvae: VQVAE
    prior: TokenTransformer
    tokenizer: WordTokenizer
    words: DrawnWords
    judge: Judge | None  # None: nothing can be ranked
    fingerprint: str
    device: torch.device

    @property
    def defaults(self) -> Defaults:
        """A step is a row of codes; there is nothing for a sampler to do."""
        side = self.vqvae.config.size
        return Defaults(
            steps=3 * self.prior.config.side, guidance=GUIDANCE, sampler="euler", size=(side, side)
        )

    def plan(self, order: Order) -> Plan:
        """The stages of an order. Raises RequestError for a size, a style, a wish or a prompt beyond this
        model."""
        if beyond := [name for name in order.beyond() if name not in BY_TOKENS]:
            raise RequestError(f"this model has no {', '.join(beyond)}; leave that out or take another model")
        if order.rerank > 1 and self.judge is None:
            raise RequestError(
                "to rank candidates, this model needs clip.safetensors, of a [clip] run, in its folder; put "
                "it there, or leave out rerank"
            )
        prompt, negative = self.words.read(order.prompt, order.style), self.words.read(order.negative_prompt)
        if not drawable(prompt):
            raise RequestError(nothing(prompt))
        notices, warnings = self._about(order), []
        rows = []
        for reading, where in ((prompt, "the prompt"), (negative, "the negative prompt")):
            ids, left_out = self.tokenizer.encode(reading.words, self.prior.config.text_length)
            understood, unmet = account(reading, left_out, where)
            notices += understood
            warnings += unmet
            rows.append(ids)
        tokens = torch.tensor(rows, device=self.device)
        stages: list[Stage] = [self.drawing(tokens, order), self.decoder()]
        if order.rerank > 1:
            stages.append(self.best(prompt.words))
        return Plan(stages=tuple(stages), notices=tuple(notices), warnings=tuple(warnings), by_tokens=True)

    def drawing(self, tokens: Int[Tensor, "two t"], order: Order) -> AutoregressiveStage:
        """Codes from text: row 0 the prompt, row 1 what to move away from."""
        given = {"temperature": order.temperature, "top_k": order.top_k, "top_p": order.top_p}
        usual = {name: getattr(SAMPLING, name) for name in given}
        sampling = Sampling(**usual | {name: value for name, value in given.items() if value is not None})

        def rows(u: Float[Tensor, "b n"]) -> Iterator[Float[Tensor, "b m"]]:
            text, without = (repeat(row, "t -> b t", b=len(u)) for row in tokens)
            away = without if order.guidance != 1 else None
            u = u.to(self.device)
            for codes in continued(self.prior, text, away, u, guidance=order.guidance, sampling=sampling):
                yield codes.float()

        return AutoregressiveStage(
            rows=rows,
            length=self.prior.config.codes,
            steps=self.defaults.steps,
            candidates=order.rerank,
            alone=self.device.type == "cpu",
            preview=lambda codes: self.decode(codes[:, :1])[:, 0],
        )

    def decode(self, codes: Float[Tensor, "b k 1 n"]) -> Float[Tensor, "b k 3 s s"]:
        """Pixels of codes; grey where none is known."""
        coarse, fine = parted(rearrange(codes, "b k 1 n -> (b k) n").long(), self.prior.config.side)
        pixels = self.vqvae.decode(coarse, fine)
        times = pixels.shape[2] // coarse.shape[2]
        known = repeat(coarse >= 0, "b h w -> b 1 (h p) (w q)", p=times, q=times)
        return rearrange(pixels * known, "(b k) c h w -> b k c h w", b=len(codes))

    def decoder(self) -> ChangeStage:
        """Codes b k 1 n to pixels; those of all candidates follow each other as channels."""
        return ChangeStage(
            change=lambda codes: rearrange(self.decode(codes), "b k c h w -> b (k c) h w"),
            name="decoder",
            preview=lambda pixels: pixels[:, :3],
        )

    def best(self, said: tuple[str, ...]) -> ChangeStage:
        """Of the candidates of a picture, the one that fits the words best."""
        assert self.judge is not None  # an order to rank was accepted
        judge = self.judge
        ids, _ = judge.tokenizer.encode(said, judge.network.config.length)
        text = torch.tensor([ids], device=self.device)

        def chosen(pixels: Tensor) -> Tensor:
            candidates = rearrange(pixels, "1 (k c) h w -> k c h w", c=3)
            fit = judge.network(candidates.clamp(-1, 1), text)[:, 0]
            if not fit.isfinite().all():
                raise EngineError(
                    "the ranking gives values that are not finite: its weights (clip.safetensors) are broken"
                )
            return candidates[fit.argmax()][None]

        return ChangeStage(change=chosen, name="ranking")

    def _about(self, order: Order) -> list[str]:
        """What is to be said of wishes that mean nothing here. Raises RequestError for a size beyond it."""
        height, width = order.size
        native = self.defaults.size[0]
        if height != width:
            raise RequestError(
                f"this model draws squares, and {width}x{height} is none; try {min(order.size)}"
            )
        told = [] if height == native else [f"drawn at {native}x{native} and resized to {width}x{height}"]
        if order.steps != self.defaults.steps:
            told.append(f"steps was left out: this model draws token by token, {self.defaults.steps} rows")
        return told
