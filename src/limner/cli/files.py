"""limner inspect, limner convert: what lies in weights files, and other ways of writing it."""

from pathlib import Path
from typing import Annotated

import typer

from limner.cli.screen import console, visible
from limner.errors import RequestError


def inspect(
    path: Annotated[Path, typer.Argument(help="A file or folder of weights.", show_default=False)],
) -> None:
    """Say what a file or folder is: which model, its parts, types and metadata. Runs nothing in it."""
    from limner.weights.inspect import inspect as look

    for line in str(look(path)).splitlines():
        print(visible(line))


def convert(
    path: Annotated[
        Path,
        typer.Argument(help="Folder or file of a model; pickles (.ckpt, .pt), too.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="Where to, if not beside it.")] = None,
    to: Annotated[
        str | None, typer.Option(help="folder (as diffusers has it) or single (the original naming).")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16, if not as stored.")] = None,
    prediction: Annotated[str | None, typer.Option(help="eps or v, where the file does not say it.")] = None,
) -> None:
    """Write a model another way. Pickles are read without running what is in them."""
    from limner.weights.convert import convert as write

    if to not in (None, "folder", "single"):
        raise RequestError(f'--to is folder or single, got "{to}"')
    written, notices = write(path, out, to=to, dtype=dtype, prediction=prediction)  # type: ignore[arg-type]
    for notice in notices:
        console().print(visible(notice), style="dim", markup=False)
    print(written)
