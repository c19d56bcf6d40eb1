"""From a saved picture back to its request; draw that again and see whether it is the same."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from limner.errors import RequestError
from limner.pipeline.postprocess import Record
from limner.pipeline.request import Request
from limner.pipeline.result import Result
from limner.pipeline.run import Pipeline

CHOSEN = ("seed", "steps", "guidance", "sampler", "size")  # what every file that we saved says


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replay:
    """What came of drawing a picture again."""

    record: Record  # what the file said
    result: Result  # what was drawn now
    share: float  # of the pixels that differ, 0 to 1; 1 when the sizes do
    worst: int  # largest difference of a channel, 0 to 255

    @property
    def same(self) -> bool:
        """Whether every pixel is."""
        return self.share == 0

    def __str__(self) -> str:
        if self.same:
            return "same pixels"
        told = f"different: {self.share:.1%} of the pixels, by at most {self.worst} of 255"
        if self.result.weights != self.record.weights:
            told += f"; it was drawn by the weights {self.record.weights}, these are {self.result.weights}"
        return told


def read_record(path: Path) -> Record:
    """What a picture saved by Limner says about itself.

    Raises RequestError for a file that is missing, no whole PNG, or without a request of ours.
    """
    text = _texts(path).get("limner")
    if text is None:
        raise RequestError(
            f"{path} carries no Limner request; only pictures that Limner saved as PNG can be replayed"
        )
    try:
        told = json.loads(text)
        request, weights, grid, version = (told[key] for key in ("request", "weights", "grid", "version"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RequestError(f"the Limner request in {path} is damaged") from None
    if not (isinstance(request, dict) and isinstance(weights, str) and isinstance(grid, bool)):
        raise RequestError(f"the Limner request in {path} is damaged")
    try:
        asked = Request.from_dict(request)
    except RequestError as error:
        wrong = "needs its pictures" if "picture" in str(error) else "is damaged"
        raise RequestError(f"the Limner request in {path} {wrong}: {error}") from None
    if open_choices := [name for name in CHOSEN if request.get(name) is None]:
        raise RequestError(f"the Limner request in {path} does not say its {', '.join(open_choices)}")
    return Record(request=asked, weights=weights, grid=grid, version=str(version))


def read_request(path: str | Path) -> Request:
    """The request that drew a saved picture, every choice made. Raises as `read_record` does."""
    return read_record(Path(path)).request


def _texts(path: Path) -> dict[str, str]:
    try:
        with Image.open(path) as image:
            image.load()
            texts = getattr(image, "text", {})
    except FileNotFoundError:
        raise RequestError(f"there is no file {path}") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # what Pillow raises for broken files
        raise RequestError(f"{path} is not a whole picture: {error}") from None
    return {str(key): str(value) for key, value in texts.items()}


def replay(path: Path, pipeline: Pipeline) -> Replay:
    """Draw the request in a saved picture with `pipeline`, whatever model the file names, and compare.

    Raises RequestError for a file that cannot be replayed, else as `Pipeline.generate` does.
    """
    record = read_record(path)
    *_, last = pipeline.generate(replace(record.request, model=None))
    assert last.result is not None  # the last one has it
    drawn = last.result.sheet() if record.grid else last.result.images[0]
    with Image.open(path) as saved:
        share, worst = difference(saved.convert(drawn.mode), drawn)
    return Replay(record=record, result=last.result, share=share, worst=worst)


def difference(one: Image.Image, other: Image.Image) -> tuple[float, int]:
    """(share of pixels that differ, largest difference of a channel) of two pictures of one mode."""
    if one.size != other.size:
        return 1.0, 255
    apart = np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16)).max(axis=2)
    return float((apart > 0).mean()), int(apart.max())
