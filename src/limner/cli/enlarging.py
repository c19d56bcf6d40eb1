"""limner upscale: pictures made larger."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from limner.cli.options import DeviceOption, TypeOption
from limner.cli.screen import console, prompts_bar, visible
from limner.errors import LimnerError


def upscale(
    pictures: Annotated[
        list[Path], typer.Argument(help="PNG, JPEG or WebP files.", metavar="FILE", show_default=False)
    ],
    scale: Annotated[
        float | None, typer.Option(help="How many times larger, 1 to 16; as the upscaler does if not given.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="mini; file of a GAN upscaler (ESRGAN, Real-ESRGAN, as .safetensors); x4, or folder or hub "
            "id of that family."
        ),
    ] = "mini",
    prompt: Annotated[str, typer.Option(help="What the picture shows, for the x4 family.")] = "",
    tile: Annotated[
        int | None,
        typer.Option(help="Side in pixels of what is enlarged at once, 64 or more; 256 if not given."),
    ] = None,
    dtype: TypeOption = None,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("limner-out"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the paths and errors only.")] = False,
) -> None:
    """Make pictures larger and print the paths of the files. What fails is told, and the rest goes on; then
    the exit code is 2."""
    started = time.monotonic()
    from limner.pipeline import enlarge
    from limner.pipeline.places import tried

    enlarge.check_scale(scale)
    tried(out)
    err = console()
    upscaler = enlarge.load(model, device=device, dtype=dtype, prompt=prompt, tile=tile)
    for warning in upscaler.warnings:
        err.print(f"Warning: {visible(warning)}", style="yellow", markup=False)
    failed = 0
    with nullcontext() if quiet or len(pictures) == 1 else prompts_bar("pictures") as progress:
        for index, path in enumerate(pictures, 1):
            try:
                print(enlarge.enlarge_file(path, upscaler, out, scale))
            except LimnerError as error:
                failed += 1
                said = str(error) if str(path) in str(error) else f"{path}: {error}"
                err.print(f"Error: {visible(said)}", style="bold red", markup=False, soft_wrap=True)
            if progress is not None:
                progress(upscaler.name, index, len(pictures))
    if not quiet:
        done = len(pictures) - failed
        seconds = time.monotonic() - started
        counted = f"{done} picture{'' if done == 1 else 's'}"
        lost = f", {failed} failed" if failed else ""
        err.print(f"{counted} by {upscaler.name}{lost}, {seconds:.1f} s", style="dim")
    if failed:
        raise typer.Exit(2)
