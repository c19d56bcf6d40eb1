"""A whole evaluation, from its settings to its report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from limner.data.world.art import DEFAULT_FOLDER
from limner.errors import RequestError
from limner.evaluate import prompts as prompt_sets
from limner.evaluate.composition import Score, score
from limner.evaluate.distances import distances
from limner.evaluate.prompts import Prompt
from limner.evaluate.report import Report
from limner.evaluate.run import Judged, Watcher, choose, evaluate
from limner.evaluate.sources import Source, composed, drawn, nearest, world_of
from limner.pipeline import run as pipelines
from limner.pipeline.request import Request
from limner.util.devices import pick_device
from limner.weights import detector as detectors
from limner.weights.header import fingerprint

CEILING, NEAREST = "ceiling", "nearest"  # composed scenes; training pictures by their captions


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is drawn, and who judges it."""

    model: str  # a family, or a folder with weights
    detector: Path  # file of a [detect] run
    prompts: str = "core"  # a set that comes with the package, or a file
    tasks: tuple[str, ...] = ()  # only these; () is all
    limit: int | None = None  # prompts of each task, the first ones; None: all
    count: int = 4  # pictures of each prompt, 1 to 64
    seed: int = 0  # of the first picture
    steps: int | None = None  # as in Request; None leaves it to the model
    guidance: float | None = None
    sampler: str | None = None
    world: Path = Path(DEFAULT_FOLDER)  # where `limner world prepare` put the atlas
    captions: int = 20_000  # training pictures to choose the nearest from
    references: bool | None = None  # score CEILING and NEAREST, too; None: if there is an atlas


def run(
    settings: Settings, *, progress: Callable[[str, int, int], None] = lambda what, done, total: None
) -> Report:
    """Draw, look, judge. `progress` hears whose pictures, how many prompts are done, and of how many.

    Raises RequestError, WeightsError, DataError and ConfigError for what cannot be met, before anything is
    drawn, and EngineError when the numbers break down.
    """
    chosen = choose(prompt_sets.read(settings.prompts), settings.tasks, settings.limit)
    request = _request(settings, len(chosen))
    device = pick_device()
    detector = detectors.load_detector(settings.detector, device)
    pipeline = pipelines.load(settings.model)
    folder = settings.world.expanduser()
    sources: dict[str, Source] = {settings.model: drawn(pipeline, request)}
    if settings.references or (settings.references is None and (folder / "atlas.json").is_file()):
        size = detector.config.size
        world = world_of(chosen, folder, detector.names.styles, size)
        sources |= {CEILING: composed(world, size), NEAREST: nearest(world, size, captions=settings.captions)}
    judged = {
        name: _judge(name, source, chosen, detector, settings, device, progress)
        for name, source in sources.items()
    }
    resolved = pipeline.resolve(request)
    model = judged[settings.model]
    return Report(
        about={
            "model": settings.model,
            "weights": pipeline.model.fingerprint,
            "detector": fingerprint([settings.detector]),
            "prompts": settings.prompts,
            "limit": settings.limit,
            "count": settings.count,
            "seed": settings.seed,
            "steps": resolved.steps,
            "guidance": resolved.guidance,
            "sampler": resolved.sampler,
        },
        judged=model,
        beside={name: _score(judged[name]) for name in (CEILING, NEAREST) if name in judged},
        distances=_distances(model, judged[CEILING]) if CEILING in judged else {},
    )


def _request(settings: Settings, prompts: int) -> Request:
    """The request of the last prompt, so that what no prompt could ask for is refused at once."""
    if settings.model in (CEILING, NEAREST):
        raise RequestError(f'"{settings.model}" stands beside every model already; name a model to draw with')
    return Request(
        prompt="",
        seed=settings.seed + settings.count * (prompts - 1) if settings.seed >= 0 else settings.seed,
        count=settings.count,
        steps=settings.steps,
        guidance=settings.guidance,
        sampler=settings.sampler,
    )


def _judge(
    name: str,
    source: Source,
    prompts: Sequence[Prompt],
    watcher: Watcher,
    settings: Settings,
    device: torch.device,
    progress: Callable[[str, int, int], None],
) -> list[Judged]:
    found: list[Judged] = []
    ones = evaluate(source, prompts, watcher, count=settings.count, seed=settings.seed, device=device)
    progress(name, 0, len(prompts))
    for done, pictures in enumerate(ones, 1):
        found += pictures
        progress(name, done, len(prompts))
    return found


def _score(judged: Sequence[Judged]) -> dict[str, Score]:
    return score((one.prompt.task, one.prompt.text, one.verdict.right) for one in judged)


def _distances(pictures: Sequence[Judged], reference: Sequence[Judged]) -> dict[str, float]:
    """Between the features of two sets of pictures; {} when there are too few."""
    features = [[one.seen.features for one in ones if one.seen is not None] for ones in (pictures, reference)]
    if min(map(len, features)) < 2:
        return {}
    return distances(torch.stack(features[0]), torch.stack(features[1]))
