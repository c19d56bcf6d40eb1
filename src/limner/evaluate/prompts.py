"""Prompts with what their pictures have to show, and the files that they are kept in.

A file holds one JSON object per line, in the format of GenEval's `evaluation_metadata.jsonl` (Ghosh et al.
2023): `tag`, `include` with `class`, `count`, `color` and `position`, `exclude`, `prompt`. Ours may have
`style`, `background`, `size` and `word` besides. Two sets come with the package: `core`, whose objects are
the reviewed ones, and `all`, with every object of the lexicon; `wording.write` made them from a seed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from limner.data.world.scene import BACKGROUNDS
from limner.errors import DataError
from limner.text.words import COLOURS, OPPOSITE, SIZES, STYLES
from limner.util.suggest import suggestion

GENEVAL = {  # task -> number of prompts, as in GenEval; only these six make the overall score
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
OURS = {  # task -> number of prompts; listed separately, never part of the overall score
    "style": 80,
    "background": 80,
    "size": 80,
    "three_objects": 100,
    "word": 100,
    "synonym": 100,
    "unseen_colors": 94,  # as colors, with pairs of object and colour that were held out
    "unseen_position": 100,  # as position, with object-relation-object triples that were held out
}
TASKS = GENEVAL | OURS
SETS = Path(__file__).with_name("sets")
MOST = 16  # objects of one kind that a prompt may ask for


@dataclass(frozen=True, kw_only=True, slots=True)
class Clause:
    """So many of one object."""

    object: str  # canonical name
    count: int = 1  # 1 to 16; wanted at least (include), or too many (exclude)
    colour: str | None = None  # of all of them; None: any
    position: tuple[str, int] | None = None  # relation to those of an earlier clause, by its index


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What is asked for, and what a right picture shows: all of `include`, none of `exclude`, the rest."""

    task: str  # one of TASKS
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()
    style: str | None = None  # art style; None: any, as in what follows
    background: str | None = None  # one of BACKGROUNDS
    size: str | None = None  # of the first object: small or large
    word: str | None = None  # in capital letters


def read(source: str | Path) -> list[Prompt]:
    """The prompts of a set ("core", "all") or of a file of your own.

    Raises DataError, with the number of the line, for what is no prompt.
    """
    path = SETS / f"{source}.jsonl" if source in known_sets() else Path(source)
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        hint = suggestion(str(source), known_sets())
        raise DataError(f"cannot read the prompts {source}: {error.strerror}{hint}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; prompts are JSON lines") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(from_dict(json.loads(line)))
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        except (ValueError, RecursionError):
            raise DataError(f"{path}, line {number} is not JSON") from None
    if not prompts:
        raise DataError(f"{path} holds no prompts; give one JSON object per line")
    return prompts


def known_sets() -> list[str]:
    """Names of the sets that come with the package."""
    return sorted(path.stem for path in SETS.glob("*.jsonl"))


def to_line(prompt: Prompt) -> str:
    """One line of a file, without its end; `from_dict` of its JSON gives the same prompt back."""
    told: dict[str, object] = {"tag": prompt.task, "include": [_clause_dict(c) for c in prompt.include]}
    if prompt.exclude:
        told["exclude"] = [_clause_dict(clause) for clause in prompt.exclude]
    for name in ("style", "background", "size", "word"):
        if (value := getattr(prompt, name)) is not None:
            told[name] = value
    return json.dumps(told | {"prompt": prompt.text}, ensure_ascii=False)


def from_dict(data: object) -> Prompt:
    """A prompt from what JSON gives. Raises DataError for anything that is none."""
    known = ("tag", "include", "exclude", "style", "background", "size", "word", "prompt")
    values = _mapping("a prompt", data, known)
    include = values.get("include")
    exclude = values.get("exclude", [])
    if not isinstance(include, list) or not include or not isinstance(exclude, list):
        raise DataError("include is a list of at least one clause, and exclude a list")
    word = None if values.get("word") is None else _text("word", values["word"])
    if word is not None and not (word.isascii() and word.isalpha() and word.isupper()):
        raise DataError(f'word is in the capital letters A to Z, got "{word}"')
    return Prompt(
        task=_one_of("tag", values.get("tag"), TASKS),
        text=_text("prompt", values.get("prompt")),
        include=tuple(_clause(clause, index) for index, clause in enumerate(include)),
        exclude=tuple(_clause(clause, 0) for clause in exclude),
        style=_optional("style", values, STYLES),
        background=_optional("background", values, BACKGROUNDS),
        size=_optional("size", values, SIZES),
        word=word,
    )


def _clause(data: object, index: int) -> Clause:
    """Clause number `index`, which may stand in relation to those before it."""
    values = _mapping("a clause", data, ("class", "count", "color", "position"))
    count = values.get("count", 1)
    if type(count) is not int or not 1 <= count <= MOST:
        raise DataError(f"count is a whole number from 1 to {MOST}, got {count!r}")
    position = values.get("position")
    if position is not None:
        if not isinstance(position, list) or len(position) != 2:
            raise DataError(f'position is such as ["left of", 0], got {position!r}')
        relation, other = position
        if type(other) is not int or not 0 <= other < index:
            raise DataError(f"position names the number of an earlier clause, got {other!r}")
        position = (_one_of("position", relation, OPPOSITE), other)
    return Clause(
        object=_text("class", values.get("class")),
        count=count,
        colour=_optional("color", values, COLOURS),
        position=position,
    )


def _clause_dict(clause: Clause) -> dict[str, object]:
    told: dict[str, object] = {"class": clause.object, "count": clause.count}
    if clause.colour is not None:
        told["color"] = clause.colour
    if clause.position is not None:
        told["position"] = list(clause.position)
    return told


def _mapping(what: str, data: object, known: tuple[str, ...]) -> Mapping[str, object]:
    if not isinstance(data, dict):
        raise DataError(f"{what} is a JSON object, got {data!r}")
    for key in data:
        if key not in known:
            raise DataError(f'{what} has no "{key}"{suggestion(key, known)}')
    return data


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} is text, got {value!r}")
    return value


def _one_of(name: str, value: object, known: Mapping[str, object] | tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise DataError(f'{name} cannot be "{value}"{suggestion(str(value), known)}')
    return value


def _optional(
    name: str, values: Mapping[str, object], known: Mapping[str, object] | tuple[str, ...]
) -> str | None:
    return None if values.get(name) is None else _one_of(name, values[name], known)
