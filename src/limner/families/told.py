"""A stage of stages that cannot be laid out before it is known what the stage before has found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from limner.diffusion.paths import Path
from limner.diffusion.samplers import Step
from limner.families.stages import Stage
from limner.util.rng import NoiseSource


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ToldStage:
    """Stages that are laid out once it is there what the stage before has found, such as a small picture or
    an embedding; each picture by itself on the CPU."""

    lay: Callable[[Tensor, NoiseSource], tuple[Stage, ...]]  # of one or more pictures
    given: Tensor | None = None  # 1 c h w: what is there already; None: comes from the stage before
    device: torch.device
    steps: int  # of them all
    name: str
    preview: Callable[[Tensor], Tensor] | None = None  # what is no pixels, as pixels

    def run(self, x: Float[Tensor, "b c h w"] | None, noise: NoiseSource) -> Iterator[Step]:
        told = x if self.given is None else self.given.expand(len(noise.seeds), -1, -1, -1)
        assert told is not None  # one of both there is
        groups = [(told, noise)]
        if self.device.type == "cpu":  # each picture by itself: see `one_by_one`
            groups = [(told[i : i + 1], NoiseSource([seed])) for i, seed in enumerate(noise.seeds)]
        ways = (_through(self.lay(rows.to(self.device), source), source) for rows, source in groups)
        for index, parts in enumerate(zip(*ways, strict=True)):
            x, x0 = torch.cat([part.x for part in parts]), torch.cat([part.x0 for part in parts])
            yield Step(index, self.steps, x, x0)

    def look(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return x0 if self.preview is None or x0.shape[1] == 3 else self.preview(x0)


def _through(stages: tuple[Stage, ...], noise: NoiseSource) -> Iterator[Step]:
    """All steps of all stages, each stage handing on to the next."""
    x: Tensor | None = None
    for stage in stages:
        for step in stage.run(x, noise):
            yield step
        x = step.x


def noised(
    pictures: Float[Tensor, "b c h w"], path: Path, level: int, noise: NoiseSource, tag: int
) -> Float[Tensor, "b c h w"]:
    """Pictures at t = `level` of a path."""
    t = torch.tensor([float(level)], dtype=torch.float64)
    fresh = noise.step(0, tuple(pictures.shape[1:]), tag).to(pictures)
    return float(path.alpha(t)) * pictures + float(path.sigma(t)) * fresh
