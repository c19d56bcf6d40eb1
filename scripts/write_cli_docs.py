"""Writes docs/cli.md from the commands themselves: python scripts/write_cli_docs.py. A test compares them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from limner.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
INTRODUCTION = """\
# The command line

Written by `scripts/write_cli_docs.py` from what `--help` says.

Paths go to standard output; progress, notices, warnings and errors to standard error. Exit code 0 means
done, 1 that drawing failed or that a replay differs, 2 that what was asked for cannot be done, 130 that
Ctrl-C stopped a training.
"""


def page() -> str:
    """The whole page."""
    commands = "\n".join(_command(name, command) for name, command in _walk("limner", get_command(app)))
    return f"{INTRODUCTION}\n{commands}"


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    for key, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from _walk(f"{name} {key}", inner)
        else:
            yield f"{name} {key}", inner


def _command(name: str, command: Any) -> str:
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    named = [p for p in command.params if p.param_type_name == "argument"]
    arguments = [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in named]
    usage = " ".join([name, *arguments, *(["[OPTIONS]"] if len(rows) > len(arguments) else [])])
    table = ["", "| | | default |", "|---|---|---|", *rows] if rows else []
    return "\n".join([f"## {name}", "", command.help, "", f"    {usage}", *table, ""])


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        called = parameter.name.upper()
    else:
        called = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = "" if parameter.default in (None, "", False) or parameter.required else f"`{parameter.default}`"
    return f"| {called} | {parameter.help} | {default} |"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(PAGE)
