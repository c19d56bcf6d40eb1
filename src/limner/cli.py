"""The command line: parse, call, print. What is slow to import is imported by the command that needs it."""

import json
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from limner import __version__
from limner.errors import ConfigError, DataError, EngineError, LimnerError, RequestError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from rich.text import Text
    from torch import Tensor

    from limner.pipeline.result import Result
    from limner.pipeline.run import Progress

app = typer.Typer(
    help="Words to pictures, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
world = typer.Typer(help="The drawn world that the built-in model learns from.", no_args_is_help=True)
app.add_typer(world, name="world")
evaluate = typer.Typer(help="Measure whether pictures show what their prompts ask for.", no_args_is_help=True)
app.add_typer(evaluate, name="evaluate")

ModelOption = Annotated[
    str, typer.Option(help="mini, or a folder with base.safetensors and upscaler.safetensors.")
]
COLUMNS = 24  # characters, and pixels, across one picture of a preview
CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # Unicode categories of what nobody can see
FRAME = 0.25  # seconds between two frames of a preview, at least


@app.command()
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
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("limner-out"),
    grid: Annotated[bool, typer.Option(help="Save all pictures as one sheet, too.")] = True,
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
    from limner.pipeline.request import Request, parse_size
    from limner.pipeline.run import load

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
    )
    console = _console()
    steps_of = load(model).generate(request)
    result = _watch(steps_of, console, show=not (quiet or as_json), preview=preview)
    paths = result.save(out, grid=grid)
    if as_json:
        _print_json(result, paths, time.monotonic() - started)
        return
    if not quiet:
        for notice in result.notices:
            console.print(_visible(str(notice)), style="dim", markup=False)
    for warning in result.warnings:
        console.print(f"Warning: {_visible(str(warning))}", style="yellow", markup=False)
    for path in paths:
        print(path)
    if not quiet:
        seconds = time.monotonic() - started
        drawn = f"{len(result.images)} picture{'s' if len(result.images) > 1 else ''}"
        console.print(f"{drawn}, seed {result.seeds[0]}, {seconds:.1f} s", style="dim")


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A PNG that Limner saved.", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="Draw with this model instead of the one named in the file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Save what was drawn in this folder, too.")] = None,
) -> None:
    """Draw a saved picture again from what its file says, and compare. Exit code 1 if any pixel differs."""
    from limner.pipeline import replay as again
    from limner.pipeline.run import load

    named = again.read_record(file).request.model or "mini"
    done = again.replay(file, load(named if model is None else model))
    if out is not None:
        for path in done.result.save(out, grid=done.record.grid):
            print(path)
    print(_visible(f"{file}: {done}"))
    if not done.same:
        raise typer.Exit(1)


@app.command()
def words(
    query: Annotated[str, typer.Argument(help="A name, a synonym, a keyword; all words if not given.")] = "",
    category: Annotated[
        str | None, typer.Option(help="Only this category, such as animals or colour.")
    ] = None,
    model: ModelOption = "mini",
) -> None:
    """List what a model can draw: words, their category, what else they may be called, the art's name."""
    from rich.table import Table

    found = _words(query, _objects(model))
    rows = [row for row in found if category in (None, row[1])]
    if not rows:
        raise RequestError(_no_words(query, category, elsewhere=dict.fromkeys(row[1] for row in found)))
    table = Table("word", "category", "also called", "art", box=None, header_style="bold", pad_edge=False)
    for name, kind, synonyms, art in rows:
        table.add_row(name, kind, ", ".join(synonyms), art)
    console = _console(stderr=False)
    console.print(table)
    _console().print(f"{len(rows)} word{'s' if len(rows) > 1 else ''}", style="dim")


@world.command()
def prepare(
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder with the unpacked npm packages. Fetched with npm if not given."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to put it, if not ~/.cache/limner/world.")
    ] = None,
    styles: Annotated[
        str | None, typer.Option(help="Art styles, separated by commas. All if not given.")
    ] = None,
    objects: Annotated[str, typer.Option(help="core: the reviewed ones; all: the whole lexicon.")] = "core",
) -> None:
    """Fetch the vector art and render every object once in all sizes; training draws its scenes from it."""
    from limner.data.world import art
    from limner.text.lexicon import load_lexicon

    if objects not in ("core", "all"):
        raise DataError(f'--objects is core or all, got "{objects}"')
    drawings = {entry.name: entry.art for entry in load_lexicon().entries if entry.core or objects == "all"}
    chosen = tuple(art.ART_SETS) if styles is None else tuple(name.strip() for name in styles.split(","))
    target = Path(folder or art.DEFAULT_FOLDER).expanduser()
    with _bar("{task.completed}/{task.total}") as bar:
        tasks = {style: bar.add_task(style, total=len(drawings), visible=False) for style in chosen}
        try:
            art.prepare(
                target,
                drawings,
                styles=chosen,
                source=source,
                progress=lambda style, done, total: bar.update(
                    tasks[style], completed=done, total=total, visible=True
                ),
            )
        except ModuleNotFoundError as error:
            raise DataError(f'{error.name} is missing; install it with pip install "limner[train]"') from None
    print(target)


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(help="A run as TOML, such as configs/mini.toml.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the run, if not runs/NAME.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
    ] = False,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Such as loop.batch=64. Repeatable."),
    ] = None,
) -> None:
    """Train a network. Everything needed to go on is saved every minute; Ctrl-C stops cleanly."""
    from limner.train.config import read, to_dict
    from limner.train.loop import fit

    run = read(config, dict(_setting(text) for text in change or []))
    if dry_run:
        print(json.dumps(to_dict(run), indent=2))
        return
    folder = Path("runs") / run.name if out is None else out
    seen = 0
    with _bar("{task.fields[speed]:.0f} pictures/s", "{task.fields[told]}") as bar:
        task = bar.add_task(run.name, total=run.loop.images, speed=0.0, told="starting")
        try:
            with closing(fit(run, folder, resume=resume)) as training:  # type: ignore[type-var]  # a generator
                for step in training:
                    seen = step.images_seen
                    told = " ".join(f"{name} {value:.3f}" for name, value in step.losses.items())
                    told += f" skipped {step.skipped}" if step.skipped else ""
                    bar.update(task, completed=seen, speed=step.images_per_second, told=told)
                    if step.sheet is not None:
                        bar.console.print(f"{seen} pictures seen: {step.sheet}", style="dim", highlight=False)
        except KeyboardInterrupt:
            bar.stop()
            again = f"limner train {config} --out {folder} --resume"
            bar.console.print(f"Stopped after {seen} pictures. Go on with: {again}", highlight=False)
            raise typer.Exit(130) from None
    print(folder / "weights.safetensors")


@evaluate.command()
def composition(
    detector: Annotated[
        Path, typer.Option(help="Weights of a detector, from a [detect] run.", show_default=False)
    ],
    model: ModelOption = "mini",
    prompts: Annotated[str, typer.Option(help="core, all, or a file of JSON lines.")] = "core",
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task, such as counting. Repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Prompts of each task, the first ones.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures of each prompt, 1 to 64.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the first picture; every picture has its own.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Of the sampler, 1 to 1000.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt, 0 to 30.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Such as dpmpp_2m, euler.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--world", help="Folder of the drawn world, if not ~/.cache/limner/world.")
    ] = None,
    references: Annotated[
        bool | None,
        typer.Option(
            help="Score composed scenes and nearest training pictures, too. Done if there is a world."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("limner-evaluation"),
) -> None:
    """Score a model by GenEval's protocol on the drawn world: a table, a JSON file and an HTML page."""
    from limner.data.world.art import DEFAULT_FOLDER
    from limner.evaluate import report
    from limner.evaluate.session import Settings, run

    settings = Settings(
        model=model,
        detector=detector,
        prompts=prompts,
        tasks=tuple(task or ()),
        limit=limit,
        count=count,
        seed=seed,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        world=Path(DEFAULT_FOLDER) if folder is None else folder,
        references=references,
    )
    report.prepare(out)
    with _bar("{task.completed}/{task.total} prompts") as bar:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        done = run(settings, progress=progress)
    paths = report.save(done, out)
    _console(stderr=False).print(report.table(done))
    for path in paths:
        print(path)


@evaluate.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder or JSON file of a run.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Of another one.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Say what changed from run A to run B by the prompts of both, with bootstrap intervals; bold is sure."""
    from limner.evaluate import compare as runs

    _console(stderr=False).print(runs.table(runs.compare(a, b, seed=seed)))


@app.command()
def version() -> None:
    """Print the version."""
    print(f"limner {__version__}")


def main() -> NoReturn:
    """Run the command line. Limner's own errors are one red line; exit code 2, or 1 if drawing failed."""
    try:
        app()
    except LimnerError as error:
        _console().print(
            f"Error: {_visible(str(error))}", style="bold red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(1 if isinstance(error, EngineError) else 2)
    sys.exit(0)


def _visible(text: str) -> str:
    """On one line, with escapes for what would break it or steer the terminal: messages quote files."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in CONTROLS
        else character
        for character in text
    )


def _console(*, stderr: bool = True) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def _bar(*columns: str) -> Iterator["Bar"]:
    """A progress bar on standard error: name, bar, the given columns, time left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    parts = [TextColumn("{task.description}"), BarColumn(), *map(TextColumn, columns), TimeRemainingColumn()]
    with Progress(*parts, console=_console()) as bar:
        yield bar


def _watch(steps: Iterator["Progress"], console: "Console", *, show: bool, preview: bool | None) -> "Result":
    """Take all steps, showing how far they are and, where the terminal can, what is forming."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    able = console.is_terminal and console.color_system == "truecolor"
    blocks = show and (able if preview is None else preview and console.is_terminal)
    picture = Text()
    shown = 0.0
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for step in steps:
            if step.result is not None:
                return step.result
            now = time.monotonic()
            if not show or now - shown < FRAME:
                continue
            shown = now
            if blocks:
                picture = half_blocks(step.preview, console.width)
            told = Text(f"{step.stage} {step.index + 1}/{step.total} ")
            bar = ProgressBar(total=step.total, completed=step.index + 1, width=40)
            live.update(Group(picture, told, bar) if blocks else Group(told, bar), refresh=True)
    raise EngineError("drawing ended without a result")


def half_blocks(pixels: "Tensor", width: int) -> "Text":
    """As many pictures (b 3 h w, [-1, 1]) as fit into `width` characters, four at most, side by side: each
    character is two pixels, one above the other."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text
    from torch import cat
    from torch.nn.functional import adaptive_avg_pool2d, pad

    beside = max(1, min(4, width // (COLUMNS + 1)))
    small = adaptive_avg_pool2d(pixels[:beside].float().nan_to_num().clamp(-1, 1), COLUMNS)
    row = cat([pad(picture, (0, 1), value=-1.0) for picture in small], 2)  # one dark column between pictures
    levels = row.add(1).mul(127.5).round().int().permute(1, 2, 0).tolist()
    text = Text(end="")
    for upper, lower in zip(levels[::2], levels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    return text


def _print_json(result: "Result", paths: list[Path], seconds: float) -> None:
    count = len(result.images)
    told = {
        "files": [str(path) for path in paths[:count]],
        "grid": str(paths[count]) if len(paths) > count else None,
        "seeds": list(result.seeds),
        "request": result.request.to_dict(),
        "weights": result.weights,
        "notices": list(result.notices),
        "warnings": list(result.warnings),
        "seconds": round(seconds, 3),
    }
    print(json.dumps(told, indent=2))


def _objects(model: str) -> frozenset[str]:
    """The objects that a model has learned, read from the header of its weights: no torch is needed."""
    from limner.weights.header import listed, read_metadata

    folder = Path(__file__).with_name("weights") / "mini" if model == "mini" else Path(model)
    path = folder / "base.safetensors"
    return frozenset(listed(read_metadata(path), "objects", path))


def _words(query: str, known: frozenset[str]) -> list[tuple[str, str, tuple[str, ...], str]]:
    """(word, category, also called, art) of the fixed words and then the objects that match."""
    from limner.text.catalogue import search
    from limner.text.lexicon import load_lexicon
    from limner.text.words import CLASSES

    fixed = [
        (word, kind, synonyms, "")
        for kind, members in CLASSES.items()
        for word, synonyms in members.items()
        if kind != "function" and (query.lower() in (kind, word, *synonyms) or not query)
    ]
    found = search(load_lexicon(), query, known)
    return fixed + [(entry.name, entry.category, entry.synonyms, entry.art) for entry in found]


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


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f'--set takes KEY=VALUE, such as loop.batch=64, got "{text}"')
    return key.strip(), value.strip()
