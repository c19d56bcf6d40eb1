"""A small evaluation that every change has to pass: 60 prompts of the committed set, and a recorded score.

The same prompts and seeds every time, so that only a change of the model, of the code or of the detector
moves the score. It is no figure to be quoted: `limner evaluate composition` measures those.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from limner.errors import DataError
from limner.evaluate import foreign
from limner.evaluate.composition import overall, score
from limner.evaluate.prompts import GENEVAL
from limner.evaluate.run import evaluate, stratified
from limner.evaluate.sources import drawn
from limner.pipeline import load as pipelines
from limner.pipeline.request import Request
from limner.util.devices import pick_device
from limner.weights.detector import load_detector, shipped
from limner.weights.header import fingerprint

RECORDED = Path(__file__).with_name("recorded.json")
PROMPTS, SEED = 60, 2024  # of the set `core`; which of them, and of the first picture
FALL = 0.04  # that is let pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What came of the 60 prompts."""

    overall: float  # mean of the six tasks, 0 to 1
    shares: dict[str, float]  # right pictures of each task
    count: int  # pictures of each prompt
    weights: str  # fingerprints
    detector: str


def measure(
    model: str = "mini",
    detector: Path | None = None,  # None: the one that comes with the package
    *,
    count: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Draw and judge ten prompts of each of the six tasks with the model's own defaults.

    Raises WeightsError and DataError for what does not fit.
    """
    path = shipped() if detector is None else detector
    device = pick_device()
    watcher = load_detector(path, device)
    prompts, _ = foreign.read("core", watcher.names)
    chosen = stratified(prompts, PROMPTS, SEED)
    pipeline = pipelines.load(model)
    judged = []
    source = drawn(pipeline, Request(prompt="", count=count))
    ones = evaluate(source, chosen, watcher, count=count, seed=SEED, device=device)
    for done, pictures in enumerate(ones, 1):
        judged += pictures
        progress(done, len(chosen))
    scores = score((one.prompt.task, one.prompt.text, one.verdict.right) for one in judged)
    shares = {task: scores[task].share for task in GENEVAL}
    whole = overall(shares)
    assert whole is not None  # all six are there
    return Measured(
        overall=whole,
        shares=shares,
        count=count,
        weights=pipeline.model.fingerprint,
        detector=fingerprint([path]),
    )


def record(measured: Measured, path: Path = RECORDED) -> None:
    """Make this the score that others are held against."""
    path.write_text(json.dumps(asdict(measured), indent=1) + "\n", "utf-8")


def recorded(path: Path = RECORDED) -> Measured:
    """The score to be held. Raises DataError when none was recorded."""
    try:
        told = json.loads(path.read_text("utf-8"))
        return Measured(**told)
    except OSError as error:
        raise DataError(
            f"no score is recorded in {path}: {error.strerror}; record one by `limner evaluate gate --record`"
        ) from None
    except (ValueError, TypeError):
        raise DataError(
            f"{path} is no recorded score; record one by `limner evaluate gate --record`"
        ) from None


def fallen(now: Measured, before: Measured) -> str | None:
    """Why `now` does not pass, or None. Raises DataError when the two cannot be compared."""
    if (now.detector, now.count) != (before.detector, before.count):
        raise DataError(
            f"the recorded score is by the detector {before.detector} on {before.count} pictures a prompt, "
            f"this one by {now.detector} on {now.count}; record it anew by `limner evaluate gate --record`"
        )
    if now.overall >= before.overall - FALL:
        return None
    return f"{100 * now.overall:.1f} %, more than {100 * FALL:.0f} points under {100 * before.overall:.1f} %"
