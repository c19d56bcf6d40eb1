"""Writes the tables of settings in docs/serving.md: python scripts/write_settings.py. A test compares."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from limner.cli import app
from limner.serve.cluster import ClusterSettings
from limner.serve.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
CALLED = {"hosts": "allow_host", "origins": "origin"}  # setting -> its option, where that has another name
TABLES = {"settings": Settings, "cluster settings": ClusterSettings}


def options() -> dict[str, str]:
    """The options of `limner serve` by the names of their parameters."""
    (serve,) = [one for name, one in get_command(app).commands.items() if name == "serve"]  # type: ignore[attr-defined]
    return {one.name: max(one.opts, key=len) for one in serve.params if one.name != "help"}


def comments(kind: type[Any]) -> dict[str, str]:
    """What stands behind each field of a class, in its source."""
    lines, _ = inspect.getsourcelines(kind)
    (tree,) = ast.parse("".join(lines)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno:
            said = re.search(r"  # (.+)$", lines[node.end_lineno - 1])
            found[node.target.id] = said[1] if said else ""
    return found


def table(kind: type[Any]) -> str:
    """The fields that a class has of its own, a row for each."""
    known, said = options(), comments(kind)
    rows = ["| variable | option | default | |", "|---|---|---|---|"]
    for name, what in said.items():
        option = known.get(CALLED.get(name, name), "")
        cells = (
            f"`LIMNER_{name.upper()}`",
            option and f"`{option}`",
            _default(kind, name),
            what.replace("<", "&lt;"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def page() -> str:
    """The whole page, with its tables as they are to be."""
    text = PAGE.read_text("utf-8")
    for name, kind in TABLES.items():
        begin, end = f"<!-- {name}: written by scripts/write_settings.py -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        text = before + begin + table(kind) + "\n" + end + rest.partition(end)[2]
    return text


def _default(kind: type[Any], name: str) -> str:
    value = kind.model_fields[name].default
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float):
        return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
    return f"`{','.join(value) if isinstance(value, tuple) else value}`"


def _wrong() -> Iterator[str]:
    taken = {CALLED.get(name, name) for kind in TABLES.values() for name in kind.model_fields}
    yield from (
        f"{option} is no setting" for name, option in options().items() if name not in taken | {"ray"}
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    sys.exit("\n".join(_wrong()) or None)
