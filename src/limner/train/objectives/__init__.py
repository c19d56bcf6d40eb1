"""Objectives: what a run minimises. Adding one is a file here and a table in `RunConfig`."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from PIL import Image
from torch import Tensor


@runtime_checkable
class Objective(Protocol):
    """What the training loop needs of an objective."""

    model: Any  # an nn.Module with `initialize(generator)`

    def batch(self, count: int, seed: int) -> tuple[Tensor, ...]:
        """The data of one step; the same seed gives the same batch."""

    def loss(self, batch: Any) -> dict[str, Float[Tensor, ""]]:
        """Parts of the loss by name; their sum is minimised."""

    def draw(self, model: Any) -> Image.Image:
        """A sheet that shows what `model` has learned."""

    def published(self) -> set[str]:
        """Names of the parameters that are used after training."""

    def header(self) -> dict[str, str]:
        """What a reader of the weights must know, as safetensors metadata."""
