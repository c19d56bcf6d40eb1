"""limner world, limner train."""

import json
import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.screen import bar as progress_bar
from limner.cli.screen import console, visible
from limner.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from limner.train.loop import TrainStep

BROKEN_SHOWN = 5  # unreadable samples of one step, at most

world = typer.Typer(help="The drawn world that the built-in model learns from.", no_args_is_help=True)


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
    with progress_bar("{task.completed}/{task.total}") as bar:
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


@world.command()
def draw(
    folder: Annotated[Path, typer.Argument(help="Where to put the pictures.", show_default=False)],
    count: Annotated[int, typer.Option("--count", "-n", help="How many pictures.", min=1)] = 100,
    size: Annotated[int, typer.Option(help="Pixels of a side.", min=16, max=1024)] = 64,
    seed: Annotated[int, typer.Option(help="Which pictures: the same seed draws the same ones.")] = 0,
    source: Annotated[
        Path | None, typer.Option("--from", help="The prepared world, if not ~/.cache/limner/world.")
    ] = None,
    styles: Annotated[str, typer.Option(help="Art styles, separated by commas.")] = "flat,glossy",
    objects: Annotated[str, typer.Option(help="core: the reviewed ones; all: the whole lexicon.")] = "core",
) -> None:
    """Draw scenes of the world into a folder, each a PNG with its caption in a text file beside it."""
    from limner.data.world import export
    from limner.data.world.source import DrawnConfig

    chosen = tuple(name.strip() for name in styles.split(","))
    origin = DrawnConfig(folder=str(source or DrawnConfig().folder), objects=objects, styles=chosen)
    with progress_bar("{task.completed}/{task.total}") as bar:
        task = bar.add_task("drawing", total=count)
        for done in export.draw(folder, count=count, size=size, seed=seed, source=origin):
            bar.update(task, completed=done)
    print(folder)


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
    from rich.markup import escape

    from limner.train import parallel
    from limner.train.config import read, to_dict
    from limner.train.loop import fit

    run = read(config, dict(_setting(text) for text in change or []))
    if dry_run:
        print(json.dumps(to_dict(run), indent=2))
        return
    folder = Path("runs") / run.name if out is None else out
    if parallel.rank():  # the first process speaks for all
        for _ in fit(run, folder, resume=resume):
            pass
        return
    step: TrainStep | None = None
    with progress_bar("{task.fields[speed]:.0f} pictures/s", "{task.fields[told]}") as bar:
        task = bar.add_task(escape(run.name), total=run.loop.images, speed=0.0, told="starting")
        try:
            with closing(fit(run, folder, resume=resume)) as training:  # type: ignore[type-var]  # a generator
                for step in training:
                    show(bar, task, step)
        except KeyboardInterrupt:
            bar.stop()
            changed = [word for text in change or [] for word in ("--set", text)]
            again = shlex.join(["limner", "train", str(config), *changed, "--out", str(folder), "--resume"])
            seen = 0 if step is None else step.images_seen
            said = f"Stopped after {seen} pictures. Go on with: {visible(again)}"
            bar.console.print(said, markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(130) from None
    tell_the_end(step)
    for path in (step and step.written) or (folder / "weights.safetensors",):
        print(path)


def show(bar: "Bar", task: "TaskID", step: "TrainStep") -> None:
    """Move the bar on (its task has the fields speed and told), and say above it what a person should see of
    a step: notes, what could not be read, a new sheet."""
    seen, on = step.images_seen, bar.console
    bar.update(task, completed=seen, speed=step.images_per_second, told=_told(step))
    for note in step.notes:
        on.print(f"Warning: {visible(note)}", style="yellow", markup=False)
    for sample in step.broken_samples[:BROKEN_SHOWN]:
        on.print(f"Could not be read: {visible(sample)}", style="dim", markup=False, highlight=False)
    if step.sheet is not None:
        said = f"{seen} pictures seen: {visible(str(step.sheet))}"
        on.print(said, style="dim", markup=False, highlight=False, soft_wrap=True)


def _told(step: "TrainStep") -> str:
    """What the bar says of a step: losses, the machine's use, what went wrong so far."""
    parts = [f"{name} {value:.3f}" for name, value in step.losses.items()]
    if step.flops_per_second:
        parts.append(f"{step.flops_per_second / 1e9:,.0f} GFLOP/s ({step.used:.0%} of peak)")
    if step.waited >= 0.01:
        parts.append(f"{step.waited:.0%} waiting for data")
    parts += [f"{what} {n}" for what, n in (("skipped", step.skipped), ("broken", step.broken)) if n]
    return " ".join(parts)


def tell_the_end(step: "TrainStep | None") -> None:
    """What a run leaves to be said by its last step: how much was unreadable, figures, the report."""
    if step is None:
        return
    on = console()
    if step.broken:
        on.print(f"{step.broken} samples could not be read; log.jsonl names them.", style="yellow")
    for name, value in step.figures.items():
        on.print(f"{name}: {value:.4g}", markup=False)
    if step.report is not None:
        on.print(f"Report: {visible(str(step.report))}", style="dim", markup=False, soft_wrap=True)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f'--set takes KEY=VALUE, such as loop.batch=64, got "{text}"')
    return key.strip(), value.strip()
