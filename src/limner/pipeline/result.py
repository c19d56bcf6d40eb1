"""Result: the pictures, and what is to be said about them."""

from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from limner.pipeline import postprocess
from limner.pipeline.postprocess import Record
from limner.pipeline.request import Request
from limner.util.images import sheet


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Result:
    """What came of a request."""

    images: tuple[Image.Image, ...]  # RGB; RGBA where a transparent cut-out was asked for
    seeds: tuple[int, ...]  # of each picture: alone it is drawn the same
    request: Request  # with every choice made
    weights: str  # short hash of the model's weights
    notices: tuple[str, ...]  # how words and wishes were understood
    warnings: tuple[str, ...]  # what was asked for and is not in the pictures

    def sheet(self) -> Image.Image:
        """All pictures as one, in reading order."""
        return sheet(self.images)

    def save(self, folder: str | Path = "limner-out", *, grid: bool = True) -> list[Path]:
        """Write each picture as a PNG that carries its request, and with `grid` all of several as one more.

        Returns the paths, the grid's last. Never overwrites a file. Raises RequestError when the folder
        cannot be written to.
        """
        at = Path(folder)
        paths = []
        for image, seed in zip(self.images, self.seeds, strict=True):
            alone = replace(self.request, seed=seed, count=1)
            paths.append(postprocess.save(image, at, Record(request=alone, weights=self.weights)))
        if grid and len(self.images) > 1:
            record = Record(request=self.request, weights=self.weights, grid=True)
            paths.append(postprocess.save(self.sheet(), at, record))
        return paths
