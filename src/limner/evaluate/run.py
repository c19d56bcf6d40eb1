"""One evaluation: every prompt drawn, looked at, judged."""

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from limner.errors import DataError, RequestError
from limner.evaluate.composition import Verdict, judge
from limner.evaluate.prompts import GENEVAL, TASKS, Prompt
from limner.evaluate.sources import Source
from limner.models.detector import Seen
from limner.util.images import images_from_pixels

THUMBNAIL = 96  # side of the pictures on the page, in pixels


@runtime_checkable
class Watcher(Protocol):
    """What looks at pictures: `models.detector.Detector`, or what stands in for it."""

    def detect(self, pixels: Float[Tensor, "b 3 h w"], *, threshold: float = 0.3) -> list[Seen]:
        """What each picture shows, in order."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """One picture and what came of it."""

    prompt: Prompt
    seed: int  # alone, the picture is drawn the same from it
    verdict: Verdict
    seen: Seen | None  # None: it was not drawn
    thumbnail: bytes  # WebP; empty when it was not drawn


def choose(prompts: Sequence[Prompt], tasks: Sequence[str] = (), limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts of each task; `tasks` names some. Raises RequestError when none is left."""
    for task in tasks:
        if task not in TASKS:
            raise RequestError(f'there is no task "{task}"; known: {", ".join(TASKS)}')
    if limit is not None and limit < 1:
        raise RequestError(f"limit is at least 1 prompt of each task, got {limit}")
    chosen: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if not tasks or prompt.task in tasks:
            chosen.setdefault(prompt.task, []).append(prompt)
    if not chosen:
        raise RequestError(f"there are no prompts of the task {' or '.join(tasks)}")
    return [prompt for found in chosen.values() for prompt in found[:limit]]


def stratified(
    prompts: Sequence[Prompt], number: int, seed: int, tasks: Sequence[str] = tuple(GENEVAL)
) -> list[Prompt]:
    """As many prompts of each task, drawn by the seed, `number` in all; the first tasks have one more where
    it does not come out even. Raises RequestError when a task has too few."""
    chosen: list[Prompt] = []
    for index, task in enumerate(tasks):
        found = [prompt for prompt in prompts if prompt.task == task]
        wanted = number // len(tasks) + (index < number % len(tasks))
        if len(found) < wanted:
            raise RequestError(f"{wanted} prompts of the task {task} are needed, and there are {len(found)}")
        chosen += random.Random(f"{seed} {task}").sample(found, wanted)
    return chosen


def evaluate(
    source: Source,
    prompts: Sequence[Prompt],
    watcher: Watcher,
    *,
    count: int = 4,
    seed: int = 0,
    device: torch.device = torch.device("cpu"),  # of the watcher
    known: Mapping[int, list[Judged]] | None = None,  # judged before, by the prompt's number
) -> Iterator[list[Judged]]:
    """Judge `count` pictures of each prompt; yields after every prompt.

    Picture i of prompt number n has the seed `seed` + n * `count` + i, so two runs over the same prompts are
    drawn from the same noise. A prompt that the source refuses counts as wrong; when it refuses all of them,
    the last refusal is raised.
    """
    refused: RequestError | DataError | None = None
    drawn = 0
    for number, prompt in enumerate(prompts):
        first = seed + number * count
        if known is not None and number in known:
            drawn += any(one.seen is not None for one in known[number])
            yield known[number]
            continue
        try:
            pixels = source(prompt, first, count)
        except (RequestError, DataError) as error:
            refused = error
            verdict = Verdict(reasons=(f"not drawn: {error}",))
            yield [
                Judged(prompt=prompt, seed=first + i, verdict=verdict, seen=None, thumbnail=b"")
                for i in range(count)
            ]
            continue
        drawn += 1
        images = images_from_pixels(pixels)
        yield [
            Judged(
                prompt=prompt,
                seed=first + i,
                verdict=judge(prompt, seen),
                seen=seen,
                thumbnail=thumbnail(images[i]),
            )
            for i, seen in enumerate(watcher.detect(pixels.to(device)))
        ]
    if refused is not None and not drawn:
        raise refused


def thumbnail(image: Image.Image) -> bytes:
    """A small WebP of a picture."""
    encoded = io.BytesIO()
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    small.save(encoded, "WEBP", quality=70)
    return encoded.getvalue()
