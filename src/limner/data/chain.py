"""Several steps as one: what one command asks for, begun where an earlier run of it stopped."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from limner.data.records import DataSet, Reject
from limner.data.steps import Progress, Step, alone, run, run_alone, settings_of

PASSING = ("retry", "again", "anew")  # the settings that do not make a step another one


def in_turn(
    data: DataSet, steps: Sequence[Step], *, workers: int = 1, ray: bool = False
) -> Iterator[Progress]:
    """Take the steps one after the other. Those that the set ends with already, from the first on, are not
    taken twice; when that is all of them, nothing is. Raises as `run` does."""
    with alone(data):
        for step in steps[_taken(data, steps) :]:
            yield from run_alone(data, step, workers=workers, ray=ray)


def all_taken(data: DataSet, steps: Sequence[Step]) -> bool:
    """Whether the set ends with these steps."""
    return _taken(data, steps) == len(steps)


def rehearse(
    data: DataSet, step: Step, *, workers: int = 1, ray: bool = False
) -> Iterator[Reject | Progress]:
    """Take a step over a copy of what is known of the set, and say how far it is and then what it left out.
    The set stays as it is; the copy lies within it, where all workers see it, and goes at the end."""
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=data.folder) as made:
        shutil.copyfile(data.folder / "set.json", Path(made) / "set.json")
        copy = DataSet.open(Path(made))
        for path in DataSet(data.folder, copy.steps).parts():
            into = copy.folder / path.relative_to(data.folder)
            into.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, into)
        before = len(copy.steps)
        yield from run(copy, step, workers=workers, ray=ray)
        if len(copy.steps) > before:
            yield from DataSet(copy.folder, copy.steps[-1:]).rejects()


def _taken(data: DataSet, steps: Sequence[Step]) -> int:
    asked = [(step.name, _lasting(settings_of(step))) for step in steps]
    done: list[tuple[str, dict[str, object]]] = []
    for step in data.steps:
        one = (step.name, _lasting(step.settings))
        if not done or one != done[-1]:
            done.append(one)
    return max(
        (count for count in range(len(asked), 0, -1) if done[-count:] == asked[:count]),
        default=0,
    )


def _lasting(settings: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if name not in PASSING}
