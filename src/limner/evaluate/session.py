"""A whole evaluation, from its settings to its report."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from limner import __version__
from limner.data.world.art import DEFAULT_FOLDER
from limner.data.world.scene import WorldConfig
from limner.errors import RequestError, WeightsError
from limner.evaluate import foreign
from limner.evaluate import prompts as prompt_sets
from limner.evaluate.composition import Score, score
from limner.evaluate.distances import distances
from limner.evaluate.journal import Journal
from limner.evaluate.prompts import Prompt
from limner.evaluate.report import Report
from limner.evaluate.run import Judged, Watcher, choose, evaluate
from limner.evaluate.sources import Source, composed, drawn, nearest, world_of
from limner.families import FAMILIES
from limner.pipeline import load as pipelines
from limner.pipeline.request import Request
from limner.util.devices import pick_device
from limner.weights import detector as detectors
from limner.weights.header import fingerprint, read_metadata

LARGEST_SPREAD = 0.3  # of jitter and stretch: objects would leave their places
CEILING, NEAREST = "ceiling", "nearest"  # composed scenes; training pictures by their captions


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is drawn, and who judges it."""

    model: str  # a family, or a folder with weights
    detector: Path | None = None  # file of a [detect] run; None: the one that comes with the package
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
    jitter: float | None = None  # of composed scenes, as in WorldConfig; None: as the model was trained with
    stretch: float | None = None
    references: bool | None = None  # score CEILING and NEAREST, too; None: if there is an atlas


def run(
    settings: Settings,
    *,
    folder: Path | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Report:
    """Draw, look, judge. `progress` hears whose pictures, how many prompts are done, and of how many.

    With a `folder` every prompt's result is written there as it comes, and `resume` goes on with what is
    there. Raises RequestError, WeightsError, DataError and ConfigError for what cannot be met, before
    anything is drawn, and EngineError when the numbers break down.
    """
    path = detectors.shipped() if settings.detector is None else settings.detector
    device = pick_device()
    found = prompt_sets.read(settings.prompts) if Path(settings.prompts).suffix != ".txt" else None
    if found is not None:
        choose(found, settings.tasks, settings.limit)  # misspelt tasks are heard of before weights are loaded
    _request(settings, 1)
    detector = detectors.load_detector(path, device)
    prompts, left_out = foreign.read(settings.prompts, detector.names)
    chosen = choose(prompts, settings.tasks, settings.limit)
    request = _request(settings, len(chosen))
    pipeline = pipelines.load(settings.model)
    world_folder = settings.world.expanduser()
    config, whose = _world_config(settings)
    sources: dict[str, Source] = {settings.model: drawn(pipeline, request)}
    if settings.references or (settings.references is None and (world_folder / "atlas.json").is_file()):
        size = detector.config.size
        world = world_of(chosen, world_folder, detector.names.styles, size, config)
        sources |= {CEILING: composed(world, size), NEAREST: nearest(world, size, captions=settings.captions)}
    resolved = pipeline.resolve(request)
    about: dict[str, object] = {
        "model": settings.model,
        "weights": pipeline.model.fingerprint,
        "detector": fingerprint([path]),
        "prompts": settings.prompts,
        "limit": settings.limit,
        "count": settings.count,
        "seed": settings.seed,
        "steps": resolved.steps,
        "guidance": resolved.guidance,
        "sampler": resolved.sampler,
    }
    if len(sources) > 1:
        about |= {"jitter": config.jitter, "stretch": config.stretch, "jitter and stretch from": whose}
    journal = None
    if folder is not None:
        asked = hashlib.sha256("\n".join(map(prompt_sets.to_line, chosen)).encode()).hexdigest()[:10]
        more = {
            "version": __version__,
            "asked": asked,
            "sources": list(sources),
            "captions": settings.captions,
        }
        journal = Journal(folder, about | more, resume=resume)
    try:
        judged = {
            name: _judge(name, source, chosen, detector, settings, device, progress, journal)
            for name, source in sources.items()
        }
    finally:
        if journal is not None:
            journal.close()
    model = judged[settings.model]
    return Report(
        about=about,
        judged=model,
        beside={name: _score(judged[name]) for name in (CEILING, NEAREST) if name in judged},
        distances=_distances(model, judged[CEILING]) if CEILING in judged else {},
        left_out=left_out,
    )


def trained_world(model: str) -> WorldConfig | None:
    """The scenes that a model of the drawn world learned from, as the header of its weights says; None when
    it says nothing of the kind."""
    folder = (FAMILIES[model].folder if model in FAMILIES else None) or Path(model)
    try:
        told = json.loads(read_metadata(folder / "base.safetensors")["run"])["denoise"]["world"]
        return WorldConfig(jitter=float(told["jitter"]), stretch=float(told["stretch"]))
    except (WeightsError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _world_config(settings: Settings) -> tuple[WorldConfig, str]:
    """Of the references, and who says so."""
    trained = trained_world(settings.model)
    config = replace(trained or WorldConfig(), word=0.1)
    whose = "the world's defaults" if trained is None else "the model's header"
    for name, value in (("jitter", settings.jitter), ("stretch", settings.stretch)):
        if value is not None and not 0 <= value <= LARGEST_SPREAD:
            raise RequestError(f"{name} is from 0 to {LARGEST_SPREAD}, got {value}")
    if settings.jitter is not None:
        config, whose = replace(config, jitter=settings.jitter), "the command"
    if settings.stretch is not None:
        config, whose = replace(config, stretch=settings.stretch), "the command"
    return config, whose


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
    journal: Journal | None,
) -> list[Judged]:
    found: list[Judged] = []
    known = {} if journal is None else journal.known(name, prompts)
    ones = evaluate(
        source, prompts, watcher, count=settings.count, seed=settings.seed, device=device, known=known
    )
    progress(name, 0, len(prompts))
    for number, pictures in enumerate(ones):
        if journal is not None:
            journal.write(name, number, pictures)
        found += pictures
        progress(name, number + 1, len(prompts))
    return found


def _score(judged: Sequence[Judged]) -> dict[str, Score]:
    return score((one.prompt.task, one.prompt.text, one.verdict.right) for one in judged)


def _distances(pictures: Sequence[Judged], reference: Sequence[Judged]) -> dict[str, float]:
    """Between the features of two sets of pictures; {} when there are too few."""
    features = [[one.seen.features for one in ones if one.seen is not None] for ones in (pictures, reference)]
    if min(map(len, features)) < 2:
        return {}
    return distances(*(torch.stack([row.cpu() for row in rows]) for rows in features))
