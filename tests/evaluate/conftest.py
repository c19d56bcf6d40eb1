"""What a detector may have seen, made by hand, and a detector that says so."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from limner.models.detector import Detection, DetectorConfig, Names, Seen

Maker = Callable[..., Detection]


@pytest.fixture
def thing() -> Maker:
    """A detection by its label, centre and side, all in shares of the picture."""

    def make(
        label: str,
        x: float = 0.5,
        y: float = 0.5,
        side: float = 0.2,
        *,
        score: float = 0.95,
        colour: str | None = None,
    ) -> Detection:
        half = side / 2
        return Detection(
            label=label, score=score, box=(x - half, y - half, x + half, y + half), colour=colour
        )

    return make


@pytest.fixture
def view() -> Callable[..., Seen]:
    """What a picture with these things shows."""

    def make(
        *objects: Detection,
        letters: tuple[Detection, ...] = (),
        style: str = "flat",
        background: str = "white",
    ) -> Seen:
        return Seen(
            objects=objects, letters=letters, style=style, background=background, features=torch.zeros(4)
        )

    return make


class FakeDetector:
    """Sees one red cat in bright pictures and nothing in dark ones; features are the mean colour."""

    config = DetectorConfig(size=64)
    names = Names(
        objects=("cat", "apple", "tree", "key", "house", "star", "ring", "balloon", "zebra"),
        letters=("A", "H", "I"),
        colours=("red",),
        styles=("flat", "glossy"),
        backgrounds=("white",),
    )

    def detect(self, pixels: Float[Tensor, "b 3 h w"], *, threshold: float = 0.3) -> list[Seen]:
        cat = Detection(label="cat", score=0.97, box=(0.1, 0.1, 0.9, 0.9), colour="red")
        return [
            Seen(
                objects=(cat,) if picture.mean() > 0 else (),
                letters=(),
                style="flat",
                background="white",
                features=picture.mean((1, 2)),
            )
            for picture in pixels
        ]


@pytest.fixture
def detector() -> FakeDetector:
    return FakeDetector()
