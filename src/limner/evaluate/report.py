"""What came of an evaluation: a table for the terminal and a file for programs. `page` makes the HTML."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from limner import __version__
from limner.errors import RequestError
from limner.evaluate.composition import PROTOCOL, Score, overall, score, spelled
from limner.evaluate.foreign import LeftOut
from limner.evaluate.journal import FILE, refuse
from limner.evaluate.prompts import GENEVAL
from limner.evaluate.run import Judged
from limner.models.detector import Seen

JSON, HTML = "composition.json", "composition.html"  # in the folder of a run


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Report:
    """A finished run."""

    about: Mapping[str, object]  # model, weights, detector, prompts, count, seed, settings
    judged: Sequence[Judged]
    beside: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)  # ceiling, nearest -> scores
    distances: Mapping[str, float] = field(default_factory=dict)  # to the ceiling's pictures; see `distances`
    left_out: Sequence[LeftOut] = ()  # prompts that the detector could not judge

    @property
    def scores(self) -> dict[str, Score]:
        """Of every task that was run."""
        return score((one.prompt.task, one.prompt.text, one.verdict.right) for one in self.judged)


def shares(scores: Mapping[str, Score]) -> dict[str, float]:
    """Right pictures per task, 0 to 1."""
    return {task: one.share for task, one in scores.items()}


def table(report: Report) -> Table:
    """The six tasks and their mean, then our own tasks, beside what they can be compared with."""
    result = Table("task", title=PROTOCOL, box=None, header_style="bold", pad_edge=False)
    for name in ("right", *report.beside, "pictures", "prompts"):
        result.add_column(name, justify="right")
    scores = report.scores
    columns = [shares(scores), *(shares(other) for other in report.beside.values())]
    for task, one in scores.items():
        if task not in GENEVAL:
            continue
        cells = [percent(column.get(task)) for column in columns]
        result.add_row(task, *cells, str(one.pictures), str(one.prompts))
    means = [percent(overall(column)) for column in columns]
    result.add_row("overall, mean of the six", *means, style="bold", end_section=True)
    for task, one in scores.items():
        if task not in GENEVAL:
            cells = [percent(column.get(task)) for column in columns]
            result.add_row(task, *cells, str(one.pictures), str(one.prompts))
    for name, distance in report.distances.items():
        result.add_row(name, f"{distance:.4g}", style="dim")
    if report.left_out:
        result.caption = f"{len(report.left_out)} prompts were left out: the detector cannot judge them"
    return result


def percent(share: float | None) -> str:
    """ "83.5 %", or a dash for what was not measured."""
    return "–" if share is None else f"{100 * share:.1f} %"


def to_dict(report: Report) -> dict[str, object]:
    """Plain values for JSON."""
    scores = report.scores
    return {
        "protocol": PROTOCOL,
        "version": __version__,
        **report.about,
        "overall": overall(shares(scores)),
        "scores": _scores(scores),
        "beside": {
            name: {"overall": overall(shares(other)), "scores": _scores(other)}
            for name, other in report.beside.items()
        },
        "distances": dict(report.distances),
        "left_out": [{"prompt": one.text, "reason": one.reason} for one in report.left_out],
        "pictures": [
            {
                "task": one.prompt.task,
                "prompt": one.prompt.text,
                "seed": one.seed,
                "right": one.verdict.right,
                "reasons": list(one.verdict.reasons),
                "seen": None if one.seen is None else _seen(one.seen),
            }
            for one in report.judged
        ],
    }


def prepare(folder: Path, *, resume: bool = False) -> None:
    """Make the folder, before hours are spent. Raises RequestError when it holds a run or is read-only; with
    `resume` it may hold one that was cut short."""
    for name in (JSON, HTML):
        if (folder / name).exists():
            raise RequestError(f"{folder} already holds {name}; choose another folder")
    if not resume:
        refuse(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON).touch(exist_ok=False)
        (folder / JSON).unlink()
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror}; choose another folder") from None


def save(report: Report, folder: Path) -> list[Path]:
    """Write JSON and page into a folder that `prepare` has made; returns the paths. The journal of the run
    goes when both are there. Raises RequestError."""
    from limner.evaluate.page import page

    files = {folder / JSON: json.dumps(to_dict(report), indent=1), folder / HTML: page(report)}
    try:
        for path, text in files.items():
            beside = path.with_name(path.name + ".partial")
            beside.write_text(text, "utf-8")
            beside.replace(path)
        (folder / FILE).unlink(missing_ok=True)
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror}") from None
    return list(files)


def _scores(scores: Mapping[str, Score]) -> dict[str, object]:
    return {
        task: {
            "share": round(one.share, 6),
            "right": one.right,
            "pictures": one.pictures,
            "prompts": one.prompts,
        }
        for task, one in scores.items()
    }


def _seen(seen: Seen) -> dict[str, object]:
    """Without the features; numbers to the fourth digit."""
    return {
        "objects": [
            {
                "label": thing.label,
                "score": round(thing.score, 4),
                "box": [round(side, 4) for side in thing.box],
                "colour": thing.colour,
            }
            for thing in seen.objects
        ],
        "word": spelled(seen),
        "style": seen.style,
        "background": seen.background,
    }
