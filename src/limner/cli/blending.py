"""limner blend."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.options import DeviceOption, OffloadOption, TypeOption, VariantOption
from limner.cli.screen import console, visible, watch
from limner.errors import RequestError

if TYPE_CHECKING:
    from limner.pipeline.picture import Picture
    from limner.pipeline.request import Request

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # endings that no text has by chance


def blend(
    one: Annotated[str, typer.Argument(help="A picture's file, or a text.", show_default=False)],
    other: Annotated[str, typer.Argument(help="A picture's file, or a text.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(
            help="Folder or hub id: Karlo or Stable Diffusion 2.1 unCLIP; for two texts any model that reads "
            "by CLIP."
        ),
    ],
    at: Annotated[float, typer.Option(help="How far from ONE towards OTHER, 0 to 1.")] = 0.5,
    frames: Annotated[
        int | None, typer.Option(help="So many pictures evenly from ONE to OTHER, 2 to 64, instead of one.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same for all frames. Random if not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the sampler, 1 to 1000.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow, 0 to 30.")] = None,
    size: Annotated[str | None, typer.Option(help="Side in pixels, or WIDTHxHEIGHT.")] = None,
    variant: VariantOption = None,
    dtype: TypeOption = None,
    offload: OffloadOption = False,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("limner-out"),
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print the paths, warnings and errors only.")
    ] = False,
) -> None:
    """Draw what lies between two pictures, two texts, or a picture and a text; print the files' paths."""
    from dataclasses import replace
    from secrets import randbelow

    from limner.families.base import Wishes
    from limner.pipeline.load import load
    from limner.pipeline.request import parse_size

    if frames is not None and not 2 <= frames <= 64:
        raise RequestError(f"--frames is a whole number from 2 to 64, got {frames}")
    first = replace(
        between(one, other, at),
        seed=randbelow(2**32) if seed is None else seed,
        steps=steps,
        guidance=guidance,
        size=None if size is None else parse_size(size),
    )
    places = [at] if frames is None else [index / (frames - 1) for index in range(frames)]
    pipeline = load(model, device=device, wishes=Wishes(variant=variant, dtype=dtype, offload=offload))
    err = console()
    told: set[str] = set()
    for place in places:
        result = watch(pipeline.generate(replace(first, blend_at=place)), err, show=not quiet, preview=None)
        for warning in {*result.warnings} - told:
            err.print(f"Warning: {visible(warning)}", style="yellow", markup=False)
        told |= {*result.warnings}
        for path in result.save(out):
            print(path)


def between(one: str, other: str, at: float) -> "Request":
    """The request for what is between two pictures or texts. Raises RequestError for a missing picture."""
    from limner.pipeline.request import Request

    first, second = _read(one), _read(other)
    prompt, vary = (first, None) if isinstance(first, str) else ("", first)
    return Request(prompt=prompt, vary=vary, blend=second, blend_at=at, count=1)


def _read(what: str) -> "Picture | str":
    from limner.pipeline.picture import Picture

    path = Path(what)
    named = path.suffix.lower() in PICTURES and " " not in what
    return Picture.open(path) if named or (len(what) < 256 and path.is_file()) else what
