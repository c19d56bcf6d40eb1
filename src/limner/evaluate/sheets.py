"""Sheets of pictures with something written below each, small enough to be kept in a repository."""

import io
import random
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from limner.errors import RequestError
from limner.evaluate.prompts import TASKS
from limner.evaluate.run import Judged
from limner.models.detector import Seen
from limner.util.images import sheet

LINE = 11  # pixels from one line of text to the next
LETTER = 5.2  # pixels, the width of a letter
LARGEST = 300_000  # bytes of a sheet


def failures(judged: Sequence[Judged], number: int = 20, *, seed: int = 0) -> list[Judged]:
    """Pictures that were judged wrong: task by task in turn, one of each prompt, chosen by the seed.

    What was not drawn cannot be shown. There may be fewer than `number`.
    """
    rng = random.Random(seed)
    wrong: dict[str, dict[str, Judged]] = {task: {} for task in TASKS}
    for one in rng.sample(list(judged), len(judged)):
        if not one.verdict.right and one.thumbnail:
            wrong[one.prompt.task].setdefault(one.prompt.text, one)
    queues = [list(ones.values()) for ones in wrong.values()]
    longest = max(map(len, queues))
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)][:number]


def failure_sheet(judged: Sequence[Judged]) -> Image.Image:
    """The pictures with their prompts, what was wrong, and what the detector saw. Raises RequestError for
    none."""
    cells = []
    for one in judged:
        picture = Image.open(io.BytesIO(one.thumbnail)).convert("RGB")
        seen = "" if one.seen is None else f"seen: {told(one.seen)}"
        cells.append((picture, [f"“{one.prompt.text}”", *one.verdict.reasons, seen]))
    return captioned(cells, width=150)


def captioned(cells: Sequence[tuple[Image.Image, Sequence[str]]], *, width: int) -> Image.Image:
    """Pictures as wide as `width` at most, five to a row, with paragraphs of text below."""
    if not cells:
        raise RequestError("there is nothing to show on a sheet: no such pictures")
    columns = int(width // LETTER)
    texts = [
        [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, columns)]
        for _, paragraphs in cells
    ]
    tallest = max(picture.height * min(width, picture.width) // picture.width for picture, _ in cells)
    height = tallest + 4 + LINE * max(map(len, texts)) + 4
    font = ImageFont.load_default(9)
    images = []
    for (picture, _), lines in zip(cells, texts, strict=True):
        cell = Image.new("RGB", (width, height), "white")
        if picture.width > width:
            picture = picture.resize((width, picture.height * width // picture.width))
        cell.paste(picture, ((width - picture.width) // 2, 0))
        pen = ImageDraw.Draw(cell)
        for row, line in enumerate(lines):
            pen.text((0, tallest + 4 + LINE * row), line, fill="black", font=font)
        images.append(cell)
    return sheet(images, columns=5, gap=6)


def save(image: Image.Image, path: Path, *, largest: int = LARGEST) -> int:
    """Write a PNG of at most `largest` bytes, in fewer colours if need be; returns its size.

    Raises RequestError when even sixteen colours are too many, and when the file cannot be written.
    """
    for colours in (None, 256, 128, 64, 32, 16):
        encoded = io.BytesIO()
        shown = image if colours is None else image.quantize(colours, dither=Image.Dither.NONE)
        shown.save(encoded, "PNG", optimize=True)
        if encoded.tell() <= largest:
            break
    else:
        raise RequestError(f"the sheet needs more than {largest} bytes; show fewer pictures")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.getvalue())
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from None
    return encoded.tell()


def told(seen: Seen) -> str:
    """ "cat 0.98 red, dog 0.41; flat on blue"."""
    things = [
        " ".join(filter(None, (thing.label, f"{thing.score:.2f}", thing.colour))) for thing in seen.objects
    ]
    return f"{', '.join(things) or 'no object'}; {seen.style} on {seen.background}"
