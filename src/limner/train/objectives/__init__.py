"""Objectives: what a run minimises. Adding one is a file here and a table in `RunConfig`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from PIL import Image
from torch import Tensor


@runtime_checkable
class Objective(Protocol):
    """What the training loop needs of an objective."""

    model: Any  # an nn.Module with `initialize(generator)`

    def batch(self, count: int, seed: int) -> tuple[Any, ...]:
        """The data of one step; the same seed gives the same batch."""

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
