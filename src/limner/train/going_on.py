"""What a run that goes on may change, and whether it has anything left to do."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.errors import ConfigError
from limner.train.config import OBJECTIVES, TRAINABLES, RunConfig, parse, to_dict

RUN = "run.json"  # the configuration
ENDED = "ended.json"  # the clock of the end that was published, and the files that it left
FIXED = ("loop.seed", "loop.batch", "loop.micros")  # by these the data of every step is found
FREE = ("name", "loop.images", "loop.device", "loop.checkpoint_seconds", "loop.sheet_seconds")


def changed(run: RunConfig, folder: Path) -> list[str]:
    """What `run` has otherwise than the run in `folder` had, in words; nothing where that is not known.

    Raises ConfigError where it is another run: by its objective, by what is trained, or by numbers from which
    the data of each step follows.
    """
    try:
        held = json.loads((folder / RUN).read_text("utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(held, dict):
        return []
    before, now = _flat(_whole(held)), _flat(_plain(run))
    given = {name for name in (*OBJECTIVES, *TRAINABLES) if getattr(run, name) is not None}
    kinds = [name for name in (*OBJECTIVES, *TRAINABLES) if (name in held) != (name in given)]
    told = {name: f"{name} was {before.get(name)} and is {now.get(name)}" for name in sorted(before | now)}
    wrong = [f"[{name}] was {'' if name in held else 'not '}there" for name in kinds]
    wrong += [told[name] for name in FIXED if name in before and before[name] != now[name]]
    if wrong:
        raise ConfigError(
            f"{folder} holds another run: {'; '.join(wrong)}. Go on with it as it was, or choose another "
            "folder, where loop.start may begin with its weights."
        )
    return [told[name] for name in told if name not in FREE and before.get(name) != now.get(name)]


def keep(run: RunConfig, folder: Path) -> None:
    """Write run.json: the old one or the whole new one, whenever the process dies."""
    _write(to_dict(run), folder / RUN)


def ended(folder: Path, clock: Mapping[str, int]) -> bool:
    """Whether the end of the run was published at this clock, and all of it is still there."""
    try:
        held = json.loads((folder / ENDED).read_text("utf-8"))
        return bool(held["clock"] == dict(clock) and all((folder / name).exists() for name in held["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def end(folder: Path, clock: Mapping[str, int], left: list[Path]) -> None:
    """Remember that everything was published, after it was: `left` are files and folders below `folder`."""
    names = [path.relative_to(folder).as_posix() for path in left]
    _write({"clock": dict(clock), "files": names}, folder / ENDED)


def _whole(held: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a run with those that an earlier version did not know, as they are by default."""
    try:
        return _plain(parse(RunConfig, held, RUN))
    except ConfigError:  # of another version, whose names are not ours
        return held


def _plain(run: RunConfig) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(json.dumps(to_dict(run)))
    return table


def _write(table: Mapping[str, Any], path: Path) -> None:
    beside = path.with_suffix(".partial")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(table, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _flat(table: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= _flat(value, f"{start}{name}.") if isinstance(value, dict) else {start + name: value}
    return found
