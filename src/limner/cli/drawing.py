"""limner imagine, replay, words."""

import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.options import (
    DeviceOption,
    EmbeddingsOption,
    LorasOption,
    ModelOption,
    OffloadOption,
    PredictionOption,
    ThenOption,
    TypeOption,
    VariantOption,
)
from limner.cli.screen import console, visible, watch
from limner.errors import RequestError

if TYPE_CHECKING:
    from limner.pipeline.request import Control
    from limner.pipeline.result import Result


def imagine(
    prompt: Annotated[str, typer.Argument(help="What to draw, in English.", show_default=False)],
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures, 1 to 64.")] = 4,
    seed: Annotated[
        int | None, typer.Option(help="Of the first picture; the next has seed + 1. Random if not given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of the sampler, 1 to 1000.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt, 0 to 30.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Such as dpmpp_2m, euler, euler_ancestral, heun.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Side in pixels, or WIDTHxHEIGHT.")] = None,
    negative: Annotated[str, typer.Option(help="What to move away from.")] = "",
    style: Annotated[str | None, typer.Option(help="Art style of the model, such as flat or glossy.")] = None,
    model: ModelOption = "mini",
    grid: Annotated[
        str | None, typer.Option("--steps-at", help="Where the sampler stops: karras, leading, trailing ...")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to begin with.")] = None,
    strength: Annotated[float, typer.Option(help="How much of it to draw anew, above 0 to 1.")] = 0.75,
    mask: Annotated[
        Path | None, typer.Option(help="White where to draw, black what to keep of --image.")
    ] = None,
    feather: Annotated[int, typer.Option(help="Pixels over which the mask fades.")] = 4,
    extend: Annotated[
        str | None,
        typer.Option(
            metavar="LEFT,TOP,RIGHT,BOTTOM",
            help="Draw on around --image, so many pixels LEFT,TOP,RIGHT,BOTTOM.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PICTURE=NETWORK[:WEIGHT[:START:END]]",
            help="Follow PICTURE by a control network's file or folder, as NETWORK:WEIGHT:START:END with "
            "shares of the steps. Repeatable.",
        ),
    ] = None,
    enlarge: Annotated[float, typer.Option(help="Draw again, so many times larger, 1 to 4.")] = 1.0,
    enlarge_strength: Annotated[float, typer.Option(help="How much to draw anew then.")] = 0.7,
    refiner: Annotated[str | None, typer.Option(help="A model that draws the last steps.")] = None,
    refine_from: Annotated[float, typer.Option(help="Share of the steps after which it does.")] = 0.8,
    tiling: Annotated[bool, typer.Option("--tiling", help="Make opposite edges fit together.")] = False,
    transparent: Annotated[
        bool, typer.Option("--transparent", help="Make what the mask keeps transparent.")
    ] = False,
    clip_skip: Annotated[
        int | None, typer.Option(help="Layer of the text encoders that is used, 1 the last.")
    ] = None,
    emphasis: Annotated[
        str, typer.Option(help="What weights in the prompt do: mean, plain, comfy, ignore.")
    ] = "mean",
    rescale: Annotated[float, typer.Option(help="Of guidance, 0 to 1, against overexposure.")] = 0.0,
    vary: Annotated[
        Path | None, typer.Option(help="A picture whose content is drawn again (unCLIP models).")
    ] = None,
    vary_noise: Annotated[float, typer.Option(help="How loosely, 0 to 1 (SD 2.1 unCLIP).")] = 0.0,
    skip_layers: Annotated[
        float, typer.Option(help="Of guidance by leaving layers out, for SD3.5 medium: 2.8.")
    ] = 0.0,
    rerank: Annotated[
        int, typer.Option(help="Draw so many candidates for each picture and keep the best (DALL-E).")
    ] = 1,
    temperature: Annotated[
        float | None, typer.Option(help="Of what is drawn token by token: below 1 is surer (DALL-E).")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Likeliest tokens to choose from, 0 for all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Share of the likeliest tokens to choose from.")] = None,
    loras: LorasOption = None,
    embeddings: EmbeddingsOption = None,
    preview_by: Annotated[
        Path | None, typer.Option(help="A TAESD to watch pictures by, instead of rough colours.")
    ] = None,
    prediction: PredictionOption = None,
    variant: VariantOption = None,
    dtype: TypeOption = None,
    offload: OffloadOption = False,
    then: ThenOption = None,
    upscale: Annotated[
        str | None, typer.Option(help="Save each picture larger as well, by what `limner upscale` takes.")
    ] = None,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("limner-out"),
    sheet: Annotated[
        bool, typer.Option("--grid/--no-grid", help="Save all pictures as one sheet, too.")
    ] = True,
    preview: Annotated[
        bool | None, typer.Option(help="Show the pictures while they form, in terminals with 24-bit colour.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print the paths, warnings and errors only.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Draw pictures of a prompt and print the paths of the files."""
    started = time.monotonic()
    from limner.families.base import Wishes
    from limner.pipeline.load import load
    from limner.pipeline.picture import Picture
    from limner.pipeline.places import tried
    from limner.pipeline.request import Request, parse_sides, parse_size

    request = Request(
        prompt=prompt,
        negative_prompt=negative,
        seed=seed,
        count=count,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        size=None if size is None else parse_size(size),
        style=style,
        grid=grid,
        image=None if image is None else Picture.open(image),
        strength=strength,
        mask=None if mask is None else Picture.open(mask),
        feather=feather,
        extend=(0, 0, 0, 0) if extend is None else parse_sides(extend),
        controls=tuple(_control(text) for text in control or []),
        enlarge=enlarge,
        enlarge_strength=enlarge_strength,
        refiner=refiner,
        refine_from=refine_from,
        tiling=tiling,
        transparent=transparent,
        clip_skip=clip_skip,
        emphasis=emphasis,
        rescale=rescale,
        vary=None if vary is None else Picture.open(vary),
        vary_noise=vary_noise,
        skip_layers=skip_layers,
        rerank=rerank,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    wishes = Wishes(
        prediction=prediction,
        variant=variant,
        dtype=dtype,
        loras=loras,
        embeddings=embeddings,
        preview=preview_by,
        offload=offload,
        then=tuple(then or ()),
    )
    err = console()
    tried(out)
    steps_of = load(model, device=device, wishes=wishes).generate(request)
    if upscale is not None:
        from limner.pipeline import enlarge as larger

        hears = larger.draws(upscale)
        upscaler = larger.load(
            upscale, device=device, dtype=dtype if hears else None, prompt=prompt if hears else ""
        )
    result = watch(steps_of, err, show=not (quiet or as_json), preview=preview)
    paths = result.save(out, grid=sheet)
    enlarged: list[Path] = []
    if upscale is not None:
        enlarged = [larger.enlarge_file(path, upscaler, out) for path in paths[: len(result.images)]]
    warnings = (*result.warnings, *(upscaler.warnings if upscale is not None else ()))
    if as_json:
        _print_json(result, paths, enlarged, warnings, time.monotonic() - started)
        return
    if not quiet:
        for notice in result.notices:
            err.print(visible(str(notice)), style="dim", markup=False)
    for warning in warnings:
        err.print(f"Warning: {visible(str(warning))}", style="yellow", markup=False)
    for path in (*paths, *enlarged):
        print(path)
    if not quiet:
        seconds = time.monotonic() - started
        drawn = f"{len(result.images)} picture{'s' if len(result.images) > 1 else ''}"
        err.print(f"{drawn}, seed {result.seeds[0]}, {seconds:.1f} s", style="dim")


def replay(
    file: Annotated[Path, typer.Argument(help="A PNG that Limner saved.", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="Draw with this model instead of the one named in the file.")
    ] = None,
    loras: LorasOption = None,
    embeddings: EmbeddingsOption = None,
    prediction: PredictionOption = None,
    variant: VariantOption = None,
    dtype: TypeOption = None,
    offload: OffloadOption = False,
    then: ThenOption = None,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Save what was drawn in this folder, too.")] = None,
) -> None:
    """Draw a saved picture again from what its file says, and compare. Exit code 1 if any pixel differs."""
    from limner.families.base import Wishes
    from limner.pipeline import replay as again
    from limner.pipeline.load import load
    from limner.pipeline.places import tried

    if out is not None:
        tried(out)
    named = again.read_record(file).request.model or "mini"
    wishes = Wishes(
        prediction=prediction,
        variant=variant,
        dtype=dtype,
        loras=loras,
        embeddings=embeddings,
        offload=offload,
        then=tuple(then or ()),
    )
    pipeline = load(named if model is None else model, device=device, wishes=wishes)
    done = again.replay(file, pipeline)
    if out is not None:
        for path in done.result.save(out, grid=done.record.grid):
            print(path)
    print(visible(f"{file}: {done}"))
    if not done.same:
        raise typer.Exit(1)


def words(
    query: Annotated[str, typer.Argument(help="A name, a synonym, a keyword; all words if not given.")] = "",
    category: Annotated[
        str | None, typer.Option(help="Only this category, such as animals or colour.")
    ] = None,
    model: ModelOption = "mini",
) -> None:
    """List what a model can draw: words, their category, what else they may be called, the art's name."""
    from rich.table import Table

    from limner.pipeline.vocabulary import objects, words_of

    found = words_of(query, objects(model))
    rows = [row for row in found if category in (None, row[1])]
    if not rows:
        raise RequestError(_no_words(query, category, elsewhere=dict.fromkeys(row[1] for row in found)))
    table = Table("word", "category", "also called", "art", box=None, header_style="bold", pad_edge=False)
    for name, kind, synonyms, art in rows:
        table.add_row(name, kind, ", ".join(synonyms), art)
    console(stderr=False).print(table)
    console().print(f"{len(rows)} word{'s' if len(rows) > 1 else ''}", style="dim")


def _print_json(
    result: "Result", paths: list[Path], enlarged: list[Path], warnings: tuple[object, ...], seconds: float
) -> None:
    count = len(result.images)
    told = {
        "files": [str(path) for path in paths[:count]],
        "grid": str(paths[count]) if len(paths) > count else None,
        **({"upscaled": [str(path) for path in enlarged]} if enlarged else {}),
        "seeds": list(result.seeds),
        "request": result.request.to_dict(),
        "weights": result.weights,
        "notices": list(result.notices),
        "warnings": list(warnings),
        "seconds": round(seconds, 3),
    }
    print(json.dumps(told, indent=2))


def _no_words(query: str, category: str | None, elsewhere: Iterable[str]) -> str:
    from limner.text.lexicon import CATEGORIES, load_lexicon
    from limner.text.words import CLASSES
    from limner.util.suggest import suggestion

    kinds = [*(kind for kind in CLASSES if kind != "function"), *CATEGORIES]
    if category is not None and category not in kinds:
        return f'there is no category "{category}"{suggestion(category, kinds)}'
    if others := ", ".join(elsewhere):
        return f'no word for "{query}" is in the category "{category}", but in: {others}'
    nearest = ", ".join(load_lexicon().nearest(query))
    return f'this model knows no word for "{query}"' + (f"; nearest: {nearest}" if nearest else "")


def _control(text: str) -> "Control":
    """A control from PICTURE=NETWORK[:WEIGHT[:START:END]]."""
    from limner.pipeline.picture import Picture
    from limner.pipeline.request import Control

    picture, equals, network = text.partition("=")
    match = re.fullmatch(r"(.*?)(?::([0-9.]+))?(?::([0-9.]+):([0-9.]+))?", network)
    if not equals or match is None:
        raise RequestError(f'--control takes PICTURE=NETWORK[:WEIGHT[:START:END]], got "{text}"')
    name, *numbers = match.groups()
    try:
        weight, start, end = (float(said or usual) for said, usual in zip(numbers, (1, 0, 1), strict=True))
    except ValueError:
        raise RequestError(f'--control "{text}": WEIGHT, START and END are numbers such as 0.8') from None
    return Control(image=Picture.open(picture), model=name, weight=weight, start=start, end=end)
