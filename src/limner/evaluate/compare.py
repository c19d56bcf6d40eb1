"""Two runs over the same prompts: what changed, and how sure that is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from limner.errors import DataError
from limner.evaluate.composition import PROTOCOL, overall
from limner.evaluate.prompts import GENEVAL, TASKS
from limner.evaluate.report import JSON, percent

RESAMPLES = 10_000
LEVEL = 0.95  # of the intervals
OVERALL = "overall, mean of the six"

Prompts = dict[tuple[str, str], float]  # (task, text) -> share of right pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Of one task, or of the overall score."""

    task: str
    before: float  # share of right pictures, 0 to 1
    after: float
    low: float  # of after - before, the interval by the bootstrap
    high: float
    prompts: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def compare(first: Path, second: Path, *, seed: int = 0) -> list[Change]:
    """What changed from the first run to the second (files, or folders of runs), by the prompts of both.

    The prompts of each task are drawn anew, with replacement and for both runs together, 10,000 times (paired
    bootstrap, Efron & Tibshirani 1993, chapter 8); an interval holds the middle 95 % of the differences.
    Raises DataError for files that are no runs, for other detectors, and when no prompt is in both.
    """
    (before, judge), (after, other) = read(first), read(second)
    if judge != other:
        raise DataError(f"{first} was judged by the detector {judge}, {second} by {other}; use one for both")
    generator = torch.Generator().manual_seed(seed)
    changes, drawn = [], {}
    for task in TASKS:
        common = [key for key in before if key[0] == task and key in after]
        if not common:
            continue
        pairs = torch.tensor([(before[key], after[key]) for key in common], dtype=torch.float64)
        difference = pairs[:, 1] - pairs[:, 0]
        rows = torch.randint(len(common), (RESAMPLES, len(common)), generator=generator)
        drawn[task] = difference[rows].mean(1)
        old, new = pairs.mean(0).tolist()
        changes.append(_change(task, old, new, drawn[task], len(common)))
    if not changes:
        raise DataError(f"{first} and {second} have no prompt in common")
    means = {change.task: (change.before, change.after) for change in changes}
    whole_old, whole_new = (overall({task: mean[side] for task, mean in means.items()}) for side in (0, 1))
    if whole_old is not None and whole_new is not None:
        whole = torch.stack([drawn[task] for task in GENEVAL]).mean(0)
        count = sum(change.prompts for change in changes if change.task in GENEVAL)
        changes.insert(len(GENEVAL), _change(OVERALL, whole_old, whole_new, whole, count))
    return changes


def table(changes: list[Change]) -> Table:
    """The changes for the terminal, in points; sure ones are bold."""
    result = Table("task", title=PROTOCOL, box=None, header_style="bold", pad_edge=False)
    for name in ("A", "B", "B - A", f"{LEVEL:.0%} interval", "prompts"):
        result.add_column(name, justify="right")
    for change in changes:
        result.add_row(
            change.task,
            percent(change.before),
            percent(change.after),
            f"{100 * (change.after - change.before):+.1f}",
            f"{100 * change.low:+.1f} to {100 * change.high:+.1f}",
            str(change.prompts),
            style="bold" if change.sure else None,
            end_section=change.task == OVERALL,
        )
    return result


def read(path: Path) -> tuple[Prompts, str]:
    """The share of right pictures of each prompt of a run, and the detector. Raises DataError."""
    file = path / JSON if path.is_dir() else path
    try:
        run = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the run {file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        run = None
    if not isinstance(run, dict) or run.get("protocol") != PROTOCOL:
        raise DataError(f"{file} is no run of `limner evaluate composition`")
    right: dict[tuple[str, str], list[bool]] = {}
    try:
        for picture in run["pictures"]:
            task, text, is_right = _picture(picture)
            right.setdefault((task, text), []).append(is_right)
        detector = str(run["detector"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{file} is a broken run; evaluate again") from None
    return {key: sum(each) / len(each) for key, each in right.items()}, detector


def _picture(picture: Mapping[str, object]) -> tuple[str, str, bool]:
    task, text, right = picture["task"], picture["prompt"], picture["right"]
    if not isinstance(task, str) or not isinstance(text, str) or not isinstance(right, bool):
        raise TypeError
    return task, text, right


def _change(task: str, before: float, after: float, drawn: torch.Tensor, prompts: int) -> Change:
    tail = (1 - LEVEL) / 2
    low, high = drawn.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Change(task=task, before=before, after=after, low=low, high=high, prompts=prompts)
