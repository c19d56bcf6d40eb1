"""The command line: parse, call, print. What is slow to import is imported by the command that needs it."""

import sys
from typing import NoReturn

import typer

from limner import __version__
from limner.cli import blending, curating, drawing, enlarging, files, packing, personal, serving, training
from limner.cli.data import data
from limner.cli.evaluating import evaluate
from limner.cli.screen import console, visible
from limner.cli.training import world
from limner.errors import EngineError, LimnerError

app = typer.Typer(
    help="Words to pictures, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(world, name="world")
app.add_typer(data, name="data")
app.add_typer(evaluate, name="evaluate")
app.add_typer(serving.keys, name="keys")
data.command("filter")(curating.filter_set)
for step in (curating.dedup, curating.group, curating.caption, packing.pack):
    data.command()(step)
for command in (
    drawing.imagine,
    drawing.replay,
    enlarging.upscale,
    blending.blend,
    drawing.words,
    files.inspect,
    files.convert,
    training.train,
    personal.dreambooth,
    personal.lora,
    personal.invert,
    serving.serve,
):
    app.command()(command)


@app.command()
def version() -> None:
    """Print the version."""
    print(f"limner {__version__}")


def main() -> NoReturn:
    """Run the command line. Limner's own errors are one red line; exit code 2, or 1 if drawing failed."""
    try:
        app()
    except LimnerError as error:
        console().print(
            f"Error: {visible(str(error))}", style="bold red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(1 if isinstance(error, EngineError) else 2)
    sys.exit(0)
