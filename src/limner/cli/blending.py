"""limner blend."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
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
            help="Folder or hub id: Karlo or Stable Diffusion 2.1 unCLIP, for texts with a prior; for two "
            "texts also Stable Diffusion 1, 2 or XL, as a folder or file."
        ),
    ],
    at: Annotated[
        float | None, typer.Option(help="How far from ONE towards OTHER, 0 to 1; 0.5 if not given.")
    ] = None,
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
    from limner.pipeline.places import tried
    from limner.pipeline.request import parse_size

    if frames is not None and not 2 <= frames <= 64:
        raise RequestError(f"--frames is a whole number from 2 to 64, got {frames}")
    if frames is not None and at is not None:
        raise RequestError(
            "--frames draws all the way from ONE to OTHER, and --at one place; give one of them"
        )
    first = replace(
        between(one, other, 0.5 if at is None else at),
        seed=randbelow(2**32) if seed is None else seed,
        steps=steps,
        guidance=guidance,
        size=None if size is None else parse_size(size),
    )
    places = [first.blend_at] if frames is None else [index / (frames - 1) for index in range(frames)]
    tried(out)
    pipeline = load(model, device=device, wishes=Wishes(variant=variant, dtype=dtype, offload=offload))
    err = console()
    told: set[str] = set()
    for place in places:
        with _in_our_words(model):
            steps_of = pipeline.generate(replace(first, blend_at=place))
            result = watch(steps_of, err, show=not quiet, preview=None)
        for warning in {*result.warnings} - told:
            err.print(f"Warning: {visible(warning)}", style="yellow", markup=False)
        told |= {*result.warnings}
        for path in result.save(out):
            print(path)


def between(one: str, other: str, at: float) -> "Request":
    """The request for what is between two pictures or texts. Raises RequestError for a missing picture, a
    text that is too long, and a place that is not between."""
    from limner.pipeline.request import LONGEST_PROMPT, Request

    if not 0 <= at <= 1:
        raise RequestError(f"--at is a number from 0 to 1, got {at:g}")
    first, second = _read(one), _read(other)
    for name, end in (("ONE", first), ("OTHER", second)):
        if isinstance(end, str) and len(end) > LONGEST_PROMPT:
            raise RequestError(f"{name} has {len(end)} characters; {LONGEST_PROMPT} is the most")
    prompt, vary = (first, None) if isinstance(first, str) else ("", first)
    return Request(prompt=prompt, vary=vary, blend=second, blend_at=at, count=1)


@contextmanager
def _in_our_words(model: str) -> Iterator[None]:
    """What a model refuses of a blend, by what it is called here."""
    try:
        yield
    except RequestError as error:
        if not re.search(r"\b(knows|has) no (vary|blend)", str(error)):
            raise
        raise RequestError(
            f"{model} knows nothing between ONE and OTHER. Two texts take Stable Diffusion 1, 2 or XL, or "
            "Karlo; pictures take Karlo or Stable Diffusion 2.1 unCLIP"
        ) from None


def _read(what: str) -> "Picture | str":
    from limner.pipeline.picture import Picture

    path = Path(what)
    named = path.suffix.lower() in PICTURES and " " not in what
    return Picture.open(path) if named or (len(what) < 256 and path.is_file()) else what
