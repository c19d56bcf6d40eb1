"""Objective: the same pictures in a few calls of the network, without a second call for guidance.

Consistency distillation of a guided teacher (Luo et al. 2023, "LCM", algorithm 1) on the flow path. The
teacher, our own published weights, moves a noised picture a little way along its guided path; the student,
which is told the guidance scale, has to name the same picture at both ends of that move, and so learns where
the whole path ends. Part of every batch is plain denoising at guidance 0, which keeps the many-step network
inside the new one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from limner.diffusion import guidance, losses
from limner.diffusion.paths import shift
from limner.errors import ConfigError
from limner.families.mini import grid_shift
from limner.models.pixel_dit import PixelDiT, PixelDiTConfig
from limner.train.objectives import denoise
from limner.train.objectives.denoise import SHEET, Denoise, DenoiseConfig, split
from limner.train.rollout import bound, rollout
from limner.util.images import images_from_pixels, sheet
from limner.weights import files, header

STEPS, SCALE = 4, 2.5  # of the sheets, and told as defaults in the header
SHORTEST = 0.01  # move along the path that an error is divided by, at least


@dataclass(frozen=True, kw_only=True, slots=True)
class FewStepConfig:
    """How the guided paths of published weights are drawn together."""

    base: DenoiseConfig = field(default_factory=DenoiseConfig)  # as in the run that made the weights
    guidance_channels: int = 64  # sinusoids that tell the student the guidance scale
    low: float = 1.0  # least guidance scale that it learns
    high: float = 4.0  # largest
    longest: float = 1 / 8  # share of the sampler's grid that a teacher's move spans, at most
    shortest: float = 1 / 32  # at least; drawn log-uniformly between the two
    teacher_steps: int = 1  # Euler steps of a move; two calls of the teacher each
    one: float = 0.1  # share of moves that begin at pure noise, where every drawing begins
    plain: float = 0.3  # share of a batch that is plain denoising at guidance 0
    weight: float = 0.1  # of the consistency loss beside the plain one
    softness: float = 1e-3  # of the pseudo-Huber distance, in root mean squares of pixels

    def __post_init__(self) -> None:
        if self.guidance_channels < 2 or self.guidance_channels % 2:
            raise ValueError(f"guidance_channels are an even number, got {self.guidance_channels}")
        if not 0 <= self.low < self.high:
            raise ValueError(f"need 0 <= low < high, got {self.low} and {self.high}")
        if not 0 < self.shortest <= self.longest <= 1:
            raise ValueError(f"need 0 < shortest <= longest <= 1, got {self.shortest} and {self.longest}")
        if not 0 <= self.plain < 1 or self.teacher_steps < 1:
            raise ValueError(
                f"need 0 <= plain < 1 and a step of the teacher, got {self.plain}, {self.teacher_steps}"
            )


class Moves(NamedTuple):
    """The part of a batch that learns consistency."""

    x0: Float[Tensor, "b 3 h w"]  # pixels [-1, 1]
    noise: Float[Tensor, "b 3 h w"]
    t: Float[Tensor, " b"]  # where a move begins, in (0, 1]
    r: Float[Tensor, " b"]  # where it ends, in [0, t)
    scale: Float[Tensor, " b"]  # of the guidance
    tokens: Int[Tensor, "b n"]
    empty: Int[Tensor, "b n"]  # of the empty caption
    weight: Float[Tensor, "b 1 h w"]  # cost per pixel


class Batch(NamedTuple):
    """One step's pictures, with everything random about the step already drawn."""

    plain: denoise.Batch | None
    moves: Moves


class FewStep:
    """The objective; `begin` gives it its teacher."""

    def __init__(self, config: FewStepConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        shape = replace(config.base.model, guidance_channels=config.guidance_channels)
        # nobody publishes a label head, so there is none to go on with
        self.base = Denoise(replace(config.base, model=shape, label_weight=0.0), device)
        self.model = self.base.model
        self.teacher = self.average = self.model  # until `begin`

    def inherited(self) -> set[str]:
        """All parameters but the embedding of the guidance scale."""
        return {name for name in self.published() if not name.startswith("guidance_in.")}

    def begin(self, start: Path, average: Mapping[str, Tensor]) -> None:
        """The teacher is what the run began with; the student's goals are said by its own average."""
        self.teacher = teacher(start, self.base, self.device)
        if self.teacher.config.guidance_channels:
            raise ConfigError(f"{start} draws in few steps already; begin with what it was made of.")
        self.average = following(self.model, average)

    def batch(self, count: int, seed: int, index: int = 0) -> Batch:
        """Scenes as `Denoise` composes them; the last ones are to be moved."""
        config = self.config
        whole = self.base.batch(count, seed, index)
        plain = min(round(config.plain * count), count - 1)
        generator = torch.Generator().manual_seed(seed + 1)
        moved = count - plain
        u, length, scale, first = torch.rand(4, moved, generator=generator)
        u = torch.where(first < config.one, 1.0, u.clamp_min(1e-3))
        length = config.shortest * (config.longest / config.shortest) ** length
        noisier = grid_shift(self.model.config.size)
        empty = self.base.tokens([()]).expand(moved, -1)
        width = whole.tokens.shape[1] - empty.shape[1]
        device = whole.x0.device
        moves = Moves(
            x0=whole.x0[plain:],
            noise=whole.noise[plain:],
            t=shift(u, noisier).to(device),
            r=shift((u - length).clamp_min(0), noisier).to(device),
            scale=(config.low + (config.high - config.low) * scale).to(device),
            tokens=whole.tokens[plain:],
            empty=torch.nn.functional.pad(empty, (0, width), value=self.base.tokenizer.pad),
            weight=whole.weight[plain:],
        )
        return Batch(plain=type(whole)(*(part[:plain] for part in whole)) if plain else None, moves=moves)

    def loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Pseudo-Huber distance of what is said at both ends of a move, over its length (Geng et al. 2024,
        "ECT", equation 14, with LCM's teacher); and the plain velocity loss."""
        config, moves, pad = self.config, batch.moves, self.base.tokenizer.pad
        t = moves.t[:, None, None, None]
        z_t = (1 - t) * moves.x0 + t * moves.noise
        goal = self.goal(z_t, moves)
        said = bound(self.model, moves.tokens, pad, moves.scale)(z_t, moves.t)
        square = losses.squared_error(said, goal, moves.weight)
        distance = (square + config.softness**2).sqrt() - config.softness
        length = (moves.t - moves.r).clamp_min(SHORTEST)
        parts = {"consistency": config.weight * (distance / length).mean()}
        return parts | (self.base.loss(batch.plain) if batch.plain is not None else {})

    @torch.no_grad()
    def goal(self, z_t: Float[Tensor, "b 3 h w"], moves: Moves) -> Float[Tensor, "b 3 h w"]:
        """What the student's average says where the teacher's move ends; at r = 0 that is the picture."""
        pad = self.base.tokenizer.pad
        both = guidance.batched(bound(self.teacher, torch.cat([moves.tokens, moves.empty]), pad))
        x, here = z_t, moves.t
        for step in range(1, self.config.teacher_steps + 1):
            there = moves.t + (moves.r - moves.t) * (step / self.config.teacher_steps)
            cond, uncond = both(x, here)
            x0 = (uncond + moves.scale[:, None, None, None] * (cond - uncond)).clamp(-1, 1)
            ratio = (there / here)[:, None, None, None]
            x, here = ratio * x + (1 - ratio) * x0, there  # Euler's step, x0 held fixed
        said = bound(self.average, moves.tokens, pad, moves.scale)(x, moves.r)
        return torch.where(moves.r[:, None, None, None] > 0, said.clamp(-1, 1), x)

    def published(self) -> set[str]:
        """All parameters."""
        return self.base.published()

    def header(self) -> dict[str, str]:
        """As of `Denoise`, and how to draw with it."""
        few = {"steps": STEPS, "guidance": SCALE, "low": self.config.low, "high": self.config.high}
        return self.base.header() | {"few_step": json.dumps(few)}

    def draw(self, model: PixelDiT, prompts: Sequence[str] = SHEET, *, seed: int = 0) -> Image.Image:
        """A sheet of two pictures per prompt, in four calls."""
        captions = [split(prompt) for prompt in prompts for _ in range(2)]
        tokens = self.base.tokens(captions)
        pad = self.base.tokenizer.pad
        pixels = rollout(model, tokens, tokens, pad, steps=STEPS, scale=SCALE, seed=seed)
        return sheet(images_from_pixels(pixels), columns=6)


def teacher(start: Path, base: Denoise, device: torch.device) -> PixelDiT:
    """The network in published weights. Raises ConfigError when its words are not those of the run, and
    WeightsError when the file is none of a PixelDiT."""
    metadata = header.read_metadata(start)
    shape = header.network_config(metadata, "PixelDiT", PixelDiTConfig, start)
    if header.listed(metadata, "vocabulary", start) != base.tokenizer.vocabulary:
        raise ConfigError(
            f"{start} knows other words than this run; give base.data the objects that it has learned."
        )
    return files.load(lambda: PixelDiT(shape), start, device)


def following(model: PixelDiT, average: Mapping[str, Tensor]) -> PixelDiT:
    """A network of the same shape whose weights are the running average itself, as it changes in place."""
    with torch.device("meta"):
        shadow = PixelDiT(model.config)
    shadow.load_state_dict(dict(average), strict=True, assign=True)
    return shadow.eval().requires_grad_(False)
