"""Objectives: what a run minimises. Adding one is a file here and a table in `RunConfig`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn


@runtime_checkable
class Objective(Protocol):
    """What the training loop needs of an objective."""

    model: Any  # an nn.Module with `initialize(generator)`

    def batch(self, count: int, seed: int, index: int = 0) -> tuple[Any, ...]:
        """The data of one micro-batch of `count` pictures; the same seed and index give the same.

        `index` is how many of this size came before it in the run: what is gone through in order is read
        from there. What is drawn freshly follows from the seed alone.
        """

    def loss(self, batch: Any) -> dict[str, Float[Tensor, ""]]:
        """Parts of the loss by name; their sum is minimised."""

    def draw(self, model: Any) -> Image.Image:
        """A sheet that shows what `model` has learned."""

    def published(self) -> set[str]:
        """Names of the parameters that are used after training."""

    def header(self) -> dict[str, str]:
        """What a reader of the weights must know, as safetensors metadata."""


@runtime_checkable
class Tuning(Protocol):
    """What the loop needs, besides, of an objective that goes on from published weights (`loop.start`)."""

    def inherited(self) -> set[str]:
        """Names of the parameters that the published weights hold; the others begin as initialised."""

    def begin(self, start: Path, average: Mapping[str, Tensor]) -> None:
        """Called once before the first step, when weights and average are in place, also of a resumed run.

        `start` is the file that the run began with; `average` the running average of the model's parameters,
        which changes in place. Raises ConfigError or WeightsError when they do not serve.
        """


@runtime_checkable
class Blocks(Protocol):
    """An objective whose network is a row of like blocks: sharded, compiled and checkpointed one by one."""

    def blocks(self) -> list[nn.Module]:
        """The blocks, each called by its `forward` alone, in the order in which they run."""


@runtime_checkable
class Writing(Protocol):
    """An objective that writes what it has learned itself: LoRA files, diffusers folders."""

    def write(self, folder: Path, averaged: Mapping[str, Tensor], header: Mapping[str, str]) -> list[Path]:
        """Write the averaged parameters, all those that are trained, by name; returns what was written.

        `header` is what is to stand in the metadata: the objective's own header, run and clock. What stood
        there before is whole until the new one is.
        """


@runtime_checkable
class Broken(Protocol):
    """An objective whose data may hold samples that cannot be read."""

    def broken(self) -> list[str]:
        """Those met since it was last asked, each as "NAME: why"; others were taken in their place, or
        nothing is learned of them."""


@runtime_checkable
class Finishing(Protocol):
    """An objective whose family has an evaluation."""

    def evaluate(self) -> dict[str, float]:
        """Figures of the finished model by name; the averaged weights are in place."""
